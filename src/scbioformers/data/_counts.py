"""Where the counts of a matrix are: the layer, ``X`` or ``raw`` from which its values were computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from scbioformers.data._matrix import canonical, layer_names, to_csr

# default keys of results: never layers with raw counts
OWN_LAYERS = ("imputed", "perturbed", "bin_value", "bin_segment", "bin_quantile")
SLOTS = "slots"  # key, in the entry of a result in `uns`, of the list of the other slots of the result
_VELOCITY_LAYERS = ("spliced", "unspliced", "ambiguous")  # their sum may be the counts
_HINTS = ("count", "raw", "umi")
_PEEK_ROWS = 256  # cells that are compared, those with the most genes
_PEEK_GENES = 500
_PEEK_VALUES = 1_000_000
_SAME_SCALE = 1e-2  # spread of the ratio of the values to their counts within a cell
_MATE, _LIKELY = 0.95, 0.5  # correlation per gene; the lower one for a layer whose name says that it holds counts


@dataclass(frozen=True)
class CountsSlot:
    """Where the counts of a matrix are, and how to reach them."""

    name: str
    """The slot as an expression."""
    layer: str
    """Value of ``layer=``, ``"X"`` for ``adata.X``."""
    call: str | None = None
    """A statement to run first, for counts that no layer holds yet."""
    replaces_genes: bool = False
    """Whether the statement gives ``adata`` other genes."""


def seem_counts(matrix: Any) -> bool:
    """Whether the first values of a matrix are whole numbers of at least 0, and not only 0 and 1."""
    if not _has_numbers(matrix):
        return False
    return _whole(matrix.data[:_PEEK_VALUES] if sp.issparse(matrix) else to_csr(matrix[:_PEEK_ROWS]).data)


def own_layers(adata: Any) -> set[str]:
    """Layers that verbs have written: those that results in ``uns`` list, and those with a default key."""
    listed = (entry.get(SLOTS, ()) for entry in adata.uns.values() if isinstance(entry, Mapping))
    keys = {str(slot) for slots in listed for slot in np.ravel(slots)}  # one slot may be read back as a scalar
    return {key.removeprefix("layers/") for key in keys if key.startswith("layers/")}.union(OWN_LAYERS)


def find_counts(
    adata: Any, layer: str | None, matrix: Any, kind: str, cells: NDArray[np.int64], cell_nnz: NDArray[np.int64]
) -> CountsSlot | None:
    """Find the slot whose counts the values of ``matrix`` were computed from.

    The values of a cell are compared with the counts of a slot: for normalised values, also on a log scale, the ratio
    is the same for all genes. For other values, the correlation over cells has to be high for most genes.

    Parameters
    ----------
    adata
        The data.
    layer
        The layer that ``matrix`` is, ``None`` for ``X``. It is not considered.
    matrix
        The values.
    kind
        Kind of the values, see :class:`~scbioformers.data.Inspection`.
    cells
        (n,), rows of cells that may be compared.
    cell_nnz
        (n,), number of non-zero values of each of them.
    """
    rows = cells[np.sort(np.argsort(-cell_nnz, kind="stable")[:_PEEK_ROWS])]
    values = _read(matrix, rows)
    best, highest = None, 0.0
    for slot, counts, depth in _candidates(adata, layer, rows):
        hinted = any(hint in slot.name.lower() for hint in _HINTS)
        score = _agreement(values, counts, depth, kind) if counts is not None else _LIKELY
        if score > highest and score >= (_LIKELY if hinted else _MATE):
            best, highest = slot, score
    return best


def _candidates(
    adata: Any, layer: str | None, rows: NDArray[np.int64]
) -> Iterator[tuple[CountsSlot, sp.csr_matrix | None, NDArray[np.float64] | None]]:
    """Slots with counts, the counts of some cells, and their depth. The counts are None where genes differ."""
    skipped = own_layers(adata) | {layer}
    keys = [key for key in layer_names(adata) if key not in skipped]
    read = {key: _read_counts(adata.layers[key], rows) for key in keys}
    layers: dict[str, Any] = {key: counts for key, counts in read.items() if counts is not None}
    for key in sorted(layers, key=lambda key: "count" not in key.lower()):
        yield CountsSlot(f"adata.layers[{key!r}]", key), layers[key], _sums(layers[key])
    if layer is not None and adata.X is not None and (counts := _read_counts(adata.X, rows)) is not None:
        yield CountsSlot("adata.X", "X"), counts, _sums(counts)
    new = next(name for name in ("counts", "raw_counts", "counts_of_X") if name not in adata.layers)
    parts = [key for key in _VELOCITY_LAYERS if key in layers]
    for n in range(2, len(parts) + 1):
        total, added = " + ".join(f"adata.layers[{key!r}]" for key in parts[:n]), sum(layers[key] for key in parts[:n])
        yield CountsSlot(total, new, f"adata.layers[{new!r}] = {total}"), added, _sums(added)
    if adata.raw is None or adata.isbacked or (counts := _read_counts(adata.raw.X, rows)) is None:
        return
    at = adata.raw.var_names.get_indexer(adata.var_names) if adata.raw.var_names.is_unique else np.array([-1])
    if (at >= 0).all():
        call = f"adata.layers[{new!r}] = adata.raw[:, adata.var_names].X"
        yield CountsSlot("adata.raw", new, call), counts[:, at], _sums(counts)
    else:
        yield CountsSlot("adata.raw", "X", "adata = adata.raw.to_adata()", True), None, None


def _has_numbers(matrix: Any) -> bool:
    return np.dtype(matrix.dtype).kind in "iuf" and not isinstance(matrix, CSCDataset)  # which is read as a whole


def _whole(data: Any) -> bool:
    return bool(len(data) and data.max() > 1 and np.all((data >= 0) & (data == np.rint(data))))


def _read(matrix: Any, rows: NDArray[np.int64]) -> sp.csr_matrix:
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    matrix = matrix.tocsr() if sp.issparse(matrix) else matrix
    return canonical(to_csr(matrix[rows]).astype(np.float64))


def _read_counts(matrix: Any, rows: NDArray[np.int64]) -> sp.csr_matrix | None:
    """Some cells of a matrix if it seems to hold counts, else None."""
    if not _has_numbers(matrix):
        return None
    counts = _read(matrix, rows)
    return counts if _whole(counts.data) else None


def _sums(counts: sp.csr_matrix) -> NDArray[np.float64]:
    return np.asarray(counts.sum(axis=1), np.float64).ravel()


def _agreement(values: sp.csr_matrix, counts: sp.csr_matrix, depth: Any, kind: str) -> float:
    """From 0 to 1: 1 if the values are normalised counts, also on a log scale, else the correlation over cells."""
    counts = canonical(counts)
    if kind != "centered" and _same_pattern(values, counts) and _same_ratio(values, counts):
        return 1.0
    genes = np.argsort(-np.asarray(counts.sum(axis=0)).ravel(), kind="stable")[:_PEEK_GENES]
    a, b = values[:, genes].toarray(), counts[:, genes].toarray()
    if kind != "estimated":
        b = b / np.maximum(depth, 1)[:, None] * np.median(depth)
    if kind in ("log1p", "centered"):
        b = np.log1p(b)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    told = size > 0
    return float(np.median((a * b).sum(axis=0)[told] / size[told])) if told.any() else 0.0


def _same_pattern(values: sp.csr_matrix, counts: sp.csr_matrix) -> bool:
    return np.array_equal(values.indptr, counts.indptr) and np.array_equal(values.indices, counts.indices)


def _same_ratio(values: sp.csr_matrix, counts: sp.csr_matrix) -> bool:
    """Whether the values, or their exponentials, are multiples of the counts of the same cell."""
    row_of = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    for base in (None, np.e, 2.0, 10.0):
        linear = values.data if base is None else base ** np.minimum(values.data, 100.0) - 1
        ratio = np.log(np.maximum(linear, 1e-300) / counts.data)
        n = np.maximum(np.bincount(row_of, minlength=values.shape[0]), 1)
        mean = np.bincount(row_of, ratio, values.shape[0]) / n
        if np.mean(np.abs(ratio - mean[row_of]) < _SAME_SCALE) > 0.99:
            return True
    return False
