"""The cells of a query with all genes of the data: values of imputed genes beside those of the others."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import Scale
from scbioformers.data import AnnDataSource, Block, BlockSource, HiddenSource
from scbioformers.results import Query
from scbioformers.tasks import N_FOLDS, QueryMemory, fit_query_memory, folds, own_values

logger = logging.getLogger(__name__)


class ImputedCells:
    """The cells of a query with all genes of the data: those to impute, and the others, which keep their values.

    ``imputed`` (K,) are the columns to impute. ``hidden`` (N, n_vars) are the masked positions, None if there are none.
    """

    def __init__(self, query: Query, imputed: NDArray[np.int64], hidden: sp.csr_matrix | None) -> None:
        self.query, self.imputed = query, imputed
        self.source: BlockSource = query.source
        self.mask: sp.csr_matrix | None = None
        """(N, M), the masked positions of the genes of the model, also of those that are not imputed."""
        n_vars = query.data.n_vars
        self._others = np.setdiff1d(np.arange(n_vars), imputed)
        self._values = AnnDataSource(query.data, layer=query.layer, columns=self._others)
        self._hidden: sp.csr_matrix | None = None
        if hidden is None:
            return
        measured = query.measured
        place = (np.ones(measured.sum(), bool), (query.columns[measured], np.flatnonzero(measured)))
        self.mask = (hidden @ sp.csr_matrix(place, shape=(n_vars, len(measured)))).astype(bool)
        self._hidden = hidden[:, self._others]
        if self._hidden.nnz:
            logger.info(
                "%d masked values are in genes that are not modelled or not requested. They are NaN.", self._hidden.nnz
            )
        unmodelled = np.setdiff1d(np.arange(n_vars), query.columns)
        if query.model.reading.counts and hidden[:, unmodelled].nnz:
            rest = AnnDataSource(query.data, layer=query.layer, columns=unmodelled)
            self.source = HiddenSource(query.source, rest, hidden[:, unmodelled])

    def fit_memory(self, *, batch_size: int, progress_bar: bool) -> QueryMemory:
        """What the cells read of each other."""
        measured = self.query.measured
        return fit_query_memory(
            self.query.model,
            self.source,
            self.query.data.obs_names,
            folds(len(measured), N_FOLDS, np.flatnonzero(measured)).columns,
            hidden=self.mask,
            batch_size=batch_size,
            progress_bar=progress_bar,
        )

    def own(self, block: Block, scale: Scale) -> sp.csr_matrix:
        """(n, n_vars), values of the genes that are not imputed, of the cells of a block."""
        model, n = self.query.model, len(block.depth)
        if not self._others.size:
            return sp.csr_matrix((n, self.query.data.n_vars), dtype=np.float32)
        start, stop = block.start, block.start + n
        others = self._values.read(start, stop).counts
        mask = None if self.mask is None else self.mask[start:stop]
        own = own_values(model, block, others, scale, model.first_tokenizer.whole_depth(block, mask))
        if self._hidden is not None:
            unknown = self._hidden[start:stop].astype(np.float32)
            unknown.data[:] = np.nan
            own = own + unknown
        return sp.csr_matrix((own.data, self._others[own.indices], own.indptr), shape=(n, self.query.data.n_vars))

    def assemble(self, values: NDArray[np.float32], own: sp.csr_matrix) -> sp.csr_matrix:
        """(n, n_vars), imputed values (n, K) beside those of the other genes."""
        n, k = values.shape
        indptr = np.arange(n + 1) * k
        return sp.csr_matrix((values.ravel(), np.tile(self.imputed, n), indptr), shape=own.shape) + own
