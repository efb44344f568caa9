"""What ``support`` can say, for the verbs that compute it from the members of an ensemble."""

from __future__ import annotations

import logging

from scbioformers.model import BioFormer

logger = logging.getLogger(__name__)


def log_shared_starts(model: BioFormer) -> None:
    """Say in the log if members started from the same weights, because they then agree more than independent fits."""
    n_members, n_starts = len(model.members), model.n_starts
    if n_starts < n_members:
        logger.warning(
            "The %d members of the model share %d start%s (they were added by `bf.tl.fit(adata, model=...)`). They "
            "agree more than independent fits would, so `support` is too high.",
            n_members, n_starts, "s" * (n_starts > 1),
        )  # fmt: skip
