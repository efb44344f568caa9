"""What the figures of networks call weights, signs and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WEIGHTS = {
    "knockout": "knock-out weight (scaled log rate)",
    "embedding": "cosine of gene embeddings (weighted)",
    "attention": "attention (corrected)",
}
_SIGNED = ("knockout", "embedding")


def is_signed(params: Mapping[str, Any]) -> bool:
    """Whether a weight has a sign: positive for activation, negative for repression."""
    return params["method"] in _SIGNED


def only_associated(params: Mapping[str, Any]) -> bool:
    """Whether a sign says no more than that two features rise and fall together, or that one falls as the other rises.

    So it is with a cosine between a gene and a protein: what is named a regulator is not known to be one.
    """
    return params["method"] == "embedding" and "modalities" in params


def weight_label(params: Mapping[str, Any]) -> str:
    """Label of a colour bar: what a weight is, and what a positive weight means."""
    meaning = "positive: activates, a knock-out lowers the target"
    if not params["directed"]:
        meaning = "positive: both genes rise and fall together"
    elif only_associated(params):
        meaning = "positive: regulator and target rise and fall together"
    return WEIGHTS[params["method"]] + (f"\n{meaning}" if is_signed(params) else "")


def condition_label(condition: str) -> str:
    """Name of a condition; quoted if it would not be visible."""
    return condition if condition.strip() else repr(condition)
