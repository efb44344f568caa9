"""Inspection of a matrix in one pass: which kind of numbers it contains."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from scbioformers.config import ValueScale
from scbioformers.data._counts import CountsSlot, find_counts
from scbioformers.data._matrix import canonical, check_numbers, get_matrix, layer_key, read_rows, to_csr
from scbioformers.data._scale import ScaleTally
from scbioformers.data._source import CHUNK_SIZE

logger = logging.getLogger(__name__)

Kind = Literal["counts", "bool", "log1p", "normalized", "estimated", "centered"]

UNNAMED = ["", "nan", "NaN", "None", "<NA>"]  # names that missing names become as text
MAX_KEPT = 65_536  # cells whose sums are kept, so that memory does not grow with the number of cells
FLOAT32_EXACT = 2**24  # float32 cannot represent every integer above this value
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")
_BARCODE = re.compile(r"(?:^|[^A-Za-z])[ACGT]{8,}(?:[^A-Za-z]|$)")
_COMMON_GENES = frozenset({"ACTB", "GAPDH", "B2M", "MALAT1", "RPL13", "RPS18", "EEF1A1", "TUBA1B", "CD4", "MT-CO1"})


@dataclass(frozen=True, eq=False)
class Inspection:
    """Properties of a matrix of an AnnData, found by ``inspect``."""

    layer: str | None
    """Layer that was read, ``None`` for ``X``."""
    n_obs: int
    """Number of cells."""
    n_vars: int
    """Number of genes."""
    kind: Kind
    """Kind of the values.

    A bool matrix is "bool". Otherwise a matrix with negative values is "centered", and a matrix of non-negative
    integers is "counts". Of the remaining matrices, those on a log scale are "log1p", those whose cells were scaled are
    "normalized", and the others are "estimated": estimated counts, or values on another scale.
    """
    max_value: float
    """Largest finite value, 0 for an empty matrix."""
    n_negative: int
    """Number of negative values."""
    first_negative: tuple[str, str] | None
    """Names of the cell and the gene of the first negative value."""
    n_non_finite: int
    """Number of NaN and infinite values."""
    first_non_finite: tuple[str, str] | None
    """Names of the cell and the gene of the first NaN or infinite value."""
    n_non_integer: int
    """Number of finite values that are not integers."""
    first_non_integer: tuple[str, str] | None
    """Names of the cell and the gene of the first value that is not an integer."""
    n_nonzero: int
    """Number of non-zero values."""
    depth: NDArray[np.float64]
    """(n,) sum over all genes of each cell, or of at most 65,536 cells in equal distances if there are more."""
    cell_nnz: NDArray[np.int64]
    """(n,) number of non-zero values of each of these cells."""
    n_empty_cells: int
    """Number of cells without any non-zero value."""
    gene_nnz: NDArray[np.int64]
    """(n_vars,) number of non-zero values of each gene."""
    duplicate_vars: tuple[str, ...]
    """Gene names that occur more than once."""
    n_duplicate_obs: int
    """Number of cell names that occur more than once."""
    n_unnamed_vars: int
    """Number of genes whose name is missing (NaN, None or empty)."""
    id_type: Literal["ensembl", "symbol", "number"]
    """Type of most gene names. Names that are neither Ensembl ids nor numbers are symbols."""
    transposed: bool
    """Whether the names indicate that genes are in the rows."""
    stored: Literal["dense", "sparse", "disk"]
    """How the data are stored: as an array or a sparse matrix in memory, or (in part) on disk."""
    feature_types: dict[str, int]
    """Number of features of each type, from the column ``"feature_types"`` of ``var`` that 10x files have."""
    counts: CountsSlot | None
    """If the values are not counts, the slot with the counts that they were computed from."""

    @property
    def scale(self) -> ValueScale:
        """Scale of the values. A bool matrix holds counts; what may be estimated counts is not called counts."""
        if self.kind == "bool":
            return "counts"
        return "normalized" if self.kind == "estimated" else self.kind

    @property
    def n_empty_genes(self) -> int:
        """Number of genes without any non-zero value."""
        return int((self.gene_nnz == 0).sum())

    @property
    def density(self) -> float:
        """Share of the values that are not zero."""
        return self.n_nonzero / max(self.n_obs * self.n_vars, 1)

    @property
    def name(self) -> str:
        """The matrix as an expression, ``adata.X`` or ``adata.layers[...]``."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def log_place(self) -> None:
        """Say in the log, once for each call of a verb, that the data are read from disk."""
        if self.stored == "disk":
            logger.info(
                "%s is read from disk, in blocks of cells. Results stay in memory, except with `out=`.", self.name
            )


class _Tally:
    """Number of values that satisfy a condition, and the position of the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: tuple[int, int] | None = None

    def add(self, hits: NDArray[np.bool_], rows: sp.csr_matrix, start: int) -> None:
        n_hits = int(np.count_nonzero(hits))
        if n_hits and self.first is None:
            entry = int(np.argmax(hits))
            row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
            self.first = (start + row, int(rows.indices[entry]))
        self.count += n_hits

    def named(self, adata: Any) -> tuple[str, str] | None:
        return (
            None if self.first is None else (str(adata.obs_names[self.first[0]]), str(adata.var_names[self.first[1]]))
        )


def inspect(
    adata: Any,
    layer: str | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    also: Callable[[int, sp.csr_matrix], None] | None = None,
) -> Inspection:
    """Read a matrix in chunks and find out what it contains. The data are not changed and no warning is given.

    Parameters
    ----------
    adata
        AnnData, in memory or backed.
    layer
        Layer to read. None, and ``"X"``, read ``X``.
    chunk_size
        Number of rows read at a time. It does not change the result.
    also
        Called with the first row and the rows of each chunk, as stored, so that other sums need no pass of their own.

    Raises
    ------
    DataError, MissingKeyError
        If there is no matrix of numbers, see :func:`get_matrix`.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> found = inspect(ad.AnnData(np.array([[0.0, 2.0], [0.0, 1.0]])))
    >>> found.kind, found.density, found.n_empty_genes
    ('counts', 0.5, 1)
    """
    layer = layer_key(adata, layer)
    matrix = get_matrix(adata, layer)
    check_numbers(matrix)
    n_obs, n_vars = adata.shape
    negative, non_finite, non_integer = _Tally(), _Tally(), _Tally()
    kept = np.arange(0, n_obs, max(1, -(-n_obs // MAX_KEPT)))  # cells whose sums are kept
    depth, cell_nnz, gene_nnz = np.zeros(len(kept)), np.zeros(len(kept), np.int64), np.zeros(n_vars, np.int64)
    max_value, scale, n_nonzero, n_empty = 0.0, ScaleTally(len(kept)), 0, 0
    for start, stored in _rows(matrix, n_obs, chunk_size):
        if also is not None:
            also(start, stored)
        rows = canonical(stored)
        data = rows.data.astype(np.float64, copy=False)
        n_genes = np.diff(rows.indptr)
        n_nonzero, n_empty = n_nonzero + rows.nnz, n_empty + int((n_genes == 0).sum())
        here = slice(*np.searchsorted(kept, [start, start + rows.shape[0]]))
        local = kept[here] - start
        cell_nnz[here] = n_genes[local]
        gene_nnz += np.bincount(rows.indices, minlength=n_vars)
        finite = np.isfinite(data)
        non_finite.add(~finite, rows, start)
        data = np.where(finite, data, 0.0)
        negative.add(data < 0, rows, start)
        non_integer.add(data != np.rint(data), rows, start)
        max_value = max(max_value, float(data.max(initial=0.0)))
        row_of = np.repeat(np.arange(rows.shape[0]), n_genes)
        depth[here] = np.bincount(row_of, data, rows.shape[0])[local]
        scale.add(rows, data, here, local)
    names = pd.Series(adata.var_names, dtype=object)
    var_names = [str(name) for name in adata.var_names]
    kind: Kind = "counts"
    if matrix.dtype == np.bool_:
        kind = "bool"
    elif negative.count:
        kind = "centered"
    elif non_integer.count:
        kind = scale.kind(depth, cell_nnz, max_value, non_integer.count / n_nonzero)
    has_counts = kind in ("counts", "bool") or not n_nonzero
    return Inspection(
        layer=layer,
        n_obs=n_obs,
        n_vars=n_vars,
        kind=kind,
        max_value=max_value,
        n_negative=negative.count,
        first_negative=negative.named(adata),
        n_non_finite=non_finite.count,
        first_non_finite=non_finite.named(adata),
        n_non_integer=non_integer.count,
        first_non_integer=non_integer.named(adata),
        n_nonzero=n_nonzero,
        depth=depth,
        cell_nnz=cell_nnz,
        n_empty_cells=n_empty,
        gene_nnz=gene_nnz,
        duplicate_vars=tuple(str(name) for name in names[names.duplicated() & names.notna()].unique()),
        n_duplicate_obs=int(pd.Index(adata.obs_names).duplicated().sum()),
        n_unnamed_vars=_count_unnamed(names),
        id_type=_id_type(var_names),
        transposed=_transposed([str(name) for name in adata.obs_names[kept]], var_names),
        stored=_stored(adata, matrix),
        feature_types=_feature_types(adata.var),
        counts=None if has_counts else find_counts(adata, layer, matrix, kind, kept, cell_nnz),
    )


def _rows(matrix: Any, n_obs: int, chunk_size: int) -> Iterator[tuple[int, sp.csr_matrix]]:
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    if sp.issparse(matrix):
        matrix = matrix.tocsr()
    for start in range(0, n_obs, chunk_size):
        yield start, to_csr(read_rows(matrix, start, min(start + chunk_size, n_obs)))


def _stored(adata: Any, matrix: Any) -> Literal["dense", "sparse", "disk"]:
    if adata.isbacked or not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        return "disk"
    return "sparse" if sp.issparse(matrix) else "dense"


def _feature_types(var: pd.DataFrame) -> dict[str, int]:
    if "feature_types" not in var or not isinstance(var["feature_types"], pd.Series):
        return {}
    return {str(name): int(n) for name, n in var["feature_types"].value_counts().items() if n}


def _count_unnamed(names: pd.Series[Any]) -> int:
    missing = names.isna() | (names == "")
    # anndata converts missing names to text. "nan" (nanchung) is also a gene of the fly, whose data has "CG1234" names
    if not names.astype(str).str.fullmatch(r"CG\d+").any():
        missing |= names.isin(UNNAMED)
    return int(missing.sum())


def _id_type(names: Sequence[str]) -> Literal["ensembl", "symbol", "number"]:
    half = len(names) / 2
    if sum(_ENSEMBL.match(name) is not None for name in names) > half:
        return "ensembl"
    return "number" if sum(name.isdecimal() for name in names) > half else "symbol"


def _transposed(obs_names: Sequence[str], var_names: Sequence[str]) -> bool:
    genes_in_obs, genes_in_var = _are_genes(obs_names), _are_genes(var_names)
    cells_in_obs, cells_in_var = _are_barcodes(obs_names), _are_barcodes(var_names)
    return (genes_in_obs and not genes_in_var) or (cells_in_var and not cells_in_obs)


def _are_genes(names: Sequence[str]) -> bool:
    return _id_type(names) == "ensembl" or len(_COMMON_GENES.intersection(name.upper() for name in names)) >= 3


def _are_barcodes(names: Sequence[str]) -> bool:
    return sum(_BARCODE.search(name) is not None for name in names) > len(names) / 2
