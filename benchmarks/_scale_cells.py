"""The simulated cells of :mod:`benchmarks.scale`: written block by block, and opened so that they stay on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

N_GENES, N_TYPES, DENSITY, BLOCK = 1000, 8, 0.05, 4096


def simulate_blocks(n_cells: int, n_genes: int, seed: int = 0) -> Iterator[sparse.csr_matrix]:
    """Counts of cells of eight types, in blocks. The blocks do not depend on the number of cells."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.5, 1.0, n_genes)
    rates = 1.3 * DENSITY * mean / mean.mean() * rng.gamma(4.0, 0.25, (N_TYPES, n_genes))
    for start in range(0, n_cells, BLOCK):
        rng = np.random.default_rng([seed, start])
        kind, depth = rng.integers(0, N_TYPES, BLOCK), rng.lognormal(0.0, 0.3, (BLOCK, 1))
        counts = rng.poisson(rates[kind] * depth)[: n_cells - start]
        yield sparse.csr_matrix(counts.astype(np.float32))


def write_cells(path: Path, n_cells: int) -> None:
    """Write simulated cells to a sharded zarr store that :func:`anndata.read_zarr` reads, block by block."""
    import anndata as ad
    import pandas as pd
    import zarr

    if path.exists():
        return
    temporary = path.with_suffix(".part")
    group: Any = zarr.open_group(str(temporary), mode="w", zarr_format=3)
    obs, var = (pd.DataFrame(index=[f"{x}{i}" for i in range(n)]) for x, n in (("cell", n_cells), ("G", N_GENES)))
    ad.io.write_elem(group, "/", ad.AnnData(obs=obs, var=var), dataset_kwargs={"shards": None})
    matrix = group.create_group("X", overwrite=True)
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, N_GENES]})
    chunk, shard = 2**16, 2**20
    arrays = {
        name: matrix.create_array(name, shape=(0,), dtype=dtype, chunks=(chunk,), shards=(shard,))
        for name, dtype in (("data", "float32"), ("indices", "int32"))
    }
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in arrays}
    ends = [np.zeros(1, np.int64)]

    def flush(least: int) -> None:
        for name, array in arrays.items():
            values = np.concatenate([np.zeros(0, array.dtype), *waiting[name]])
            whole = len(values) if least == 0 else len(values) // shard * shard  # a shard is written once
            if whole:
                array.append(values[:whole])
            waiting[name] = [values[whole:]]

    for block in simulate_blocks(n_cells, N_GENES):
        ends.append(ends[-1][-1] + block.indptr[1:].astype(np.int64))
        waiting["data"].append(block.data)
        waiting["indices"].append(block.indices.astype(np.int32))
        flush(shard)
    flush(0)
    matrix.create_array("indptr", data=np.concatenate(ends), chunks=(chunk,))
    temporary.rename(path)


def write_collection(path: Path, store: Path) -> None:
    """Write the cells of a store to a collection, shuffled by annbatch."""
    import annbatch

    if not path.exists():
        annbatch.DatasetCollection(path).add_adatas([store])


def open_cells(path: Path) -> Any:
    """The cells as an AnnData whose matrix stays on disk."""
    import anndata as ad
    import zarr

    from scbioformers.data import CollectionReader, RowData, is_collection

    if is_collection(path):
        return RowData(CollectionReader(path))
    group: Any = zarr.open_group(str(path), mode="r")
    obs, var = (ad.io.read_elem(group[name]) for name in ("obs", "var"))
    return ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=obs, var=var)


def in_memory(adata: Any, n_cells: int) -> Any:
    """The first cells, in memory."""
    import anndata as ad

    n = min(n_cells, adata.n_obs)
    return ad.AnnData(adata.X[:n], obs=adata.obs.iloc[:n].copy(), var=adata.var.copy())
