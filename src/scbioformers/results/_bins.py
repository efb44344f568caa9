"""Bins that ``bf.pp`` writes: ``layers[key]``, with parameters in ``uns[key]`` and quantiles in ``varm``."""

from __future__ import annotations

from typing import Any

from scbioformers.config import Binning
from scbioformers.results._slots import params_to_json, write_result


def write_bins(adata: Any, key: str, bins: Any, binning: Binning, layer: str | None) -> None:
    """Write bins (N, n_vars), the binning, and the layer that was binned."""
    params = params_to_json({"layer": layer, "binning": binning.to_dict()})
    arrays = {f"{key}_{name}": array for name, array in binning.to_arrays().items() if array.size}
    write_result(adata, key, {"params": params}, {"layers": {key: bins}, "varm": arrays})
