"""Generated cells: ``uns["generated"]`` says where they are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scbioformers.results._slots import params_to_json


def generated_entry(model_hash: str, params: Mapping[str, Any]) -> dict[str, str]:
    """The entry in ``uns`` of generated cells."""
    return {"params": params_to_json({"model_hash": model_hash, **params})}
