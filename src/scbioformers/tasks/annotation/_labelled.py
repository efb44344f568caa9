"""The labels of all cells by a head, predicted in blocks of embedded cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scbioformers.tasks.annotation._head import AnnotationHead


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """The labels of N cells by a head."""

    codes: NDArray[np.int64]
    """(N,) position of the label, -1 for "unknown"."""
    probability: NDArray[np.float32]
    """(N,) probability of the label, of the most probable one for "unknown"."""
    probabilities: NDArray[np.float32] | None
    """(N, K), of all labels, if they are asked for."""

    @classmethod
    def of(
        cls,
        head: AnnotationHead,
        blocks: Iterable[tuple[int, NDArray[np.float32]]],
        empty: NDArray[np.bool_],
        given: NDArray[np.int64] | None,
        *,
        all_labels: bool,
    ) -> LabelledCells:
        """Predict the labels in blocks of embedded cells. A cell without counts says nothing, so it is "unknown".

        ``given`` (N,) are labels that are kept, -1 for none.
        """
        n, k = len(empty), len(head.categories)
        found = cls(
            np.empty(n, np.int64), np.empty(n, np.float32), np.empty((n, k), np.float32) if all_labels else None
        )
        for start, features in blocks:
            rows = slice(start, start + len(features))
            probabilities, unlike = head.predict(features)
            codes = np.where((unlike > head.threshold) | empty[rows], -1, probabilities.argmax(axis=1))
            probability = probabilities.max(axis=1)
            if given is not None:
                kept = np.flatnonzero(given[rows] >= 0)
                codes[kept] = given[rows][kept]
                probability[kept] = probabilities[kept, codes[kept]]
            found.codes[rows], found.probability[rows] = codes, probability
            if found.probabilities is not None:
                found.probabilities[rows] = probabilities
        return found
