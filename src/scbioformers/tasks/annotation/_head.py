"""The head that labels cells from their embeddings. It consists of float32 arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from scbioformers.core import ModelFormatError
from scbioformers.model import USES, Head, Use
from scbioformers.tasks.annotation._classifier import Array
from scbioformers.tasks.annotation._known_cells import distance, energy, unlikeness

_BLOCK = 8192  # number of cells that are labelled at a time
_PREFIX = "annotation:"
_ARRAYS = ("mean", "scale", "weights", "intercepts", "class_means", "class_axes", "standard")


def head_name(label_key: str) -> str:
    """Key of the head in ``BioFormer.heads``: there is one for each column of labels."""
    return f"{_PREFIX}{label_key}"


@dataclass(frozen=True, eq=False)
class AnnotationHead:
    """Labels cells by their embedding (D,), and says how unlike all labelled cells they are.

    The probabilities of the K labels are ``softmax((x W + b) / T)`` with ``x = (embedding - mean) / scale``. How unlike
    the labelled cells a cell is follows from two numbers: the Mahalanobis distance to the nearest class in the last P
    columns of x, and the energy ``-logsumexp(x W + b)``. Both are standardised and added.
    """

    label_key: str
    """The column of labels that was learned."""
    categories: tuple[str, ...]
    """(K,), the labels."""
    network: str
    """Hash of the network whose embedding is used."""
    use: tuple[Use, ...]
    """Which embeddings are concatenated, see :func:`scbioformers.model.embed_cells`."""
    mean: NDArray[np.float32]
    """(D,), mean of the embedding over the labelled cells."""
    scale: NDArray[np.float32]
    """(D,), unit of each column. It is the same for all columns of ``<cls>``, and for all of the latent."""
    weights: NDArray[np.float32]
    """(K, D), weights of the logistic regression."""
    intercepts: NDArray[np.float32]
    """(K,), its intercepts."""
    temperature: float
    """Divides the logits, so that the probabilities are right for cells that were not learned from."""
    class_means: NDArray[np.float32]
    """(C, P), means of the classes, in the last P columns."""
    class_axes: NDArray[np.float32]
    """(P, P), axes in which each class has unit variance."""
    standard: NDArray[np.float32]
    """(2, 2), mean and standard deviation of distance and energy of labelled cells that were left out."""
    threshold: float
    """How unlike the labelled cells a cell may be, at most, to get a label."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Colours of the labels in figures."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Scores of the cross-validation over the labelled cells, see :func:`collect_evidence`."""

    def predict(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities (N, K) of the labels of N cells, and how unlike the labelled cells each cell is (N,).

        ``features`` (N, D) are the embeddings of the cells. Cells for which the second number is above
        :attr:`threshold` are to be called unknown.
        """
        probabilities = np.empty((len(features), len(self.categories)), np.float32)
        unlike = np.empty(len(features), np.float32)
        arrays = (self.weights, self.class_means, self.class_axes, self.standard)
        weights, means, axes, standard = (array.astype(np.float64) for array in arrays)
        for start in range(0, len(features), _BLOCK):
            rows = slice(start, start + _BLOCK)
            X: Array = (features[rows].astype(np.float64) - self.mean) / self.scale
            logits: Array = X @ weights.T + self.intercepts
            probabilities[rows] = softmax(logits / self.temperature, axis=1)
            unlike[rows] = unlikeness(distance(X[:, -len(axes) :], means, axes), energy(logits), standard)
        return probabilities, unlike

    def to_head(self) -> Head:
        """Convert to the form that is stored with a model."""
        config = {
            "label_key": self.label_key,
            "categories": list(self.categories),
            "network": self.network,
            "use": list(self.use),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "colours": dict(self.colours),
            "evidence": dict(self.evidence),
        }
        return Head(config, {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _ARRAYS})

    @classmethod
    def from_head(cls, head: Head, label_key: str, network: str) -> AnnotationHead:
        """Inverse of :meth:`to_head`.

        Parameters
        ----------
        head
            The stored form.
        label_key
            The column of labels, for messages.
        network
            Hash of the network whose embeddings the head is to be used with.

        Raises
        ------
        ModelFormatError
            If entries are missing or inconsistent, or if the head was made for another network.
        """
        again = f"Run `bf.tl.annotate(adata, {label_key!r})` on cells with labels, to learn them again."
        try:
            found = cls._checked(head)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(f"The stored head for {label_key!r} is inconsistent: {error!r}. {again}") from error
        if found.network != network:
            raise ModelFormatError(
                f"The head for {label_key!r} was made for another network (hash {found.network[:12]}) than that of the "
                f"model (hash {network[:12]}), so its embeddings mean something else. {again}"
            )
        return found

    @classmethod
    def _checked(cls, head: Head) -> AnnotationHead:
        stored, arrays = head.config, {name: np.asarray(head.arrays[name], np.float32) for name in _ARRAYS}
        categories, use = tuple(str(name) for name in stored["categories"]), tuple(stored["use"])
        temperature, threshold = float(stored["temperature"]), float(stored["threshold"])
        k, d = len(categories), arrays["mean"].size
        c, p = arrays["class_means"].shape
        shapes = {"mean": (d,), "scale": (d,), "weights": (k, d), "intercepts": (k,), "class_axes": (p, p)}
        shapes["standard"] = (2, 2)
        if wrong := [name for name, shape in shapes.items() if arrays[name].shape != shape]:
            raise ValueError(f"{wrong} have other shapes than expected, {shapes}")
        if k < 2 or len(set(categories)) < k or not 0 < c <= k or not 0 < p <= d or set(use) - set(USES):
            raise ValueError(f"found the labels {categories}, {c} means of {p} in {d} columns, and {use}")
        positive = [temperature, float(arrays["scale"].min()), *map(float, arrays["standard"][:, 1])]
        if not (
            min(positive) > 0
            and np.isfinite([temperature, threshold, *(array.sum() for array in arrays.values())]).all()
        ):
            raise ValueError("expected finite arrays, and a positive temperature, scale and standard deviation")
        return cls(
            label_key=str(stored["label_key"]),
            categories=categories,
            network=str(stored["network"]),
            use=use,
            temperature=temperature,
            threshold=threshold,
            colours={str(name): str(colour) for name, colour in stored["colours"].items()},
            evidence=dict(stored["evidence"]),
            **arrays,
        )
