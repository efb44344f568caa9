"""``bf.tl.grn``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import Category, ConfigError, DataError, Names, check_arguments, seed_from, warn
from scbioformers.data import ObsField
from scbioformers.nn import computes
from scbioformers.results import ConditionGRN, ModelLike, Query, check_key_added, open_query, target, write_grn
from scbioformers.settings import shows_progress
from scbioformers.tasks import ConsensusGRN, EdgeScorer, Method, draw_conditions, edge_table, infer_grn

logger = logging.getLogger(__name__)

ALL_CELLS = "all cells"
MIN_CELLS = 10


@computes
def grn(
    adata: AnnData,
    *,
    method: Method = "embedding",
    groupby: str | None = None,
    reference: Category | None = None,
    regulators: Names | None = None,
    top_k: int = 1000,
    n_cells: int | None = 1000,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    contextual: bool = True,
    model: ModelLike | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    key: str = "bioformer",
    key_added: str = "grn",
    rng: int | np.random.Generator = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Infer a gene regulatory network for each condition (paper, section 3.4 and Fig. 2).

    Fit an ensemble first: ``bf.tl.fit(adata, n_models=5, config=bf.ModelConfig(svd_init=False))``. With
    ``svd_init=False``, its members start at random. Weights and ranks are averaged over the members. The support of an
    edge is the share of members that have it among their strongest edges. With a single member, the support has no
    meaning.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data.
    method
        How edges are weighted.

        ``"embedding"``: cosine of the mean-centred gene embeddings, times the square root of the explained shares of
        both genes (of the regulator only, if the data is not counts). The explained share of a gene is the standard
        deviation of its predicted expression over the cells, divided by that of its measured expression, at most 1. The
        weight is signed: positive means activation. The cosine has no direction, so pass ``regulators``.

        ``"knockout"``: in-silico knock-out. The count of the regulator is set to 0 in up to 32 cells that express it.
        The effect on a target is the mean decrease of its predicted log rate, times the explained share of the target.
        All effects of a regulator are then scaled, such that their Euclidean norm is the explained share of the
        regulator. The weight is signed and directed.

        ``"attention"``: attention that the target, queried like a masked gene, pays to the regulator. The average
        product correction subtracts the attention that is expected from the means of both genes. Weights of pairs in
        few cells are shrunk towards 0. The weight is directed, but has no sign.
    groupby
        Column of ``adata.obs`` with the conditions. One network is computed for each category, from equal numbers of
        cells. Cells without a value are left out, and conditions with fewer than 10 cells are skipped. The names in
        ``adata.varp`` and ``adata.var`` then end in a dot and the name of the condition. By default, one network is
        computed from all cells.
    reference
        Category of ``groupby``. The difference of each other network from this one is stored as well.
    regulators
        Genes that can be regulators, such as transcription factors. By default, all genes.
    top_k
        Number of strongest edges of each condition in the table of edges. For the support, the strongest edges of a
        member are ``top_k`` pairs, but at most 10 % of all pairs.
    n_cells
        Maximum number of cells that are drawn from each condition. All conditions have the same number of cells, which
        is also limited by the smallest condition. None sets no other limit.
    layers, heads
        Attention layers and heads to average over, counted from 0. By default, all. Only for ``method="attention"``.
    contextual
        Only for ``method="embedding"``. True: the embedding of a gene is the derivative of its predicted log rate with
        respect to the latent vector, averaged over the cells of the condition. False: it is the embedding of the gene
        token, which is the same in all conditions, and the weight is the cosine alone.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    layer
        Layer to read. By default, the layer that the model was fitted on if ``adata`` has it, else ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    key
        Key of the model in ``adata.uns``.
    key_added
        Key under which the results are stored (see Returns).
    rng
        Seed, or :class:`numpy.random.Generator`, for all random choices.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.varp[key_added]`` : CSR float32 (n_vars, n_vars)
        Weight of each pair, mean over the members. Rows are targets and columns are regulators. Pairs without a weight
        are not stored.
    ``adata.varp[f"{key_added}_count"]`` : CSR int32 (n_vars, n_vars)
        Number of cells from which each weight was computed. For attention, these are the cells in which attention reads
        both genes (with ``tokens="all"``, also genes with a zero count). For knock-outs, they are the cells in which
        the regulator was knocked out. For embeddings, they are all cells of the condition.
    ``adata.varp[f"{key_added}_difference"]`` : CSR float32 (n_vars, n_vars)
        Only with ``reference``, for the other conditions: weight minus weight in the reference, for pairs that have a
        weight in both.
    ``adata.var[f"{key_added}_attention"]`` : float32 (n_vars,)
        Only with ``method="attention"``: attention that each regulator receives in a cell, summed over the other genes,
        mean over the cells and members. NaN for genes that are not regulators. :func:`scbioformers.tl.regulators` ranks
        key drivers by it.
    ``adata.uns[key_added]`` : dict
        ``edges`` (DataFrame): the ``top_k`` strongest edges of each condition. Read it with
        :func:`scbioformers.get.grn`, which explains the columns. ``params`` (JSON string). All networks of an earlier
        call with the same ``key_added`` are removed.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` is not found.
    ConfigError
        If a parameter is out of range, ``reference`` is given without ``groupby``, ``method="attention"`` and the model
        has no attention, or the device is not available.
    DataError
        If a regulator is not a gene of the model (the message suggests similar names) or not measured, the reference or
        all conditions have fewer than 10 cells, the values are on another scale than the training data, or ``adata``
        has too few genes of the model.

    Warns
    -----
    BioformersWarning
        If conditions with fewer than 10 cells are skipped.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, n_models=2, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"])
    >>> sorted(set(bf.get.grn(adata)["source"]))
    ['TF1', 'TF2']
    """
    check_arguments(grn, locals())
    query = open_query(adata, model, layer=layer, gene_symbols=gene_symbols, key=key, device=device)
    check_key_added(adata, key_added, {"var": [f"{key_added}_attention"]})
    if top_k < 1 or (n_cells is not None and n_cells < MIN_CELLS):
        raise ConfigError(
            f"`top_k` must be at least 1 and `n_cells` at least {MIN_CELLS}, found {top_k} and {n_cells}."
        )
    measured = query.measured
    # unique, because duplicate entries of a sparse matrix are added up
    chosen = (
        np.flatnonzero(measured)
        if regulators is None
        else np.unique(query.positions(regulators, argument="regulators"))
    )
    names, codes = _conditions(adata, groupby, reference)
    scorer = EdgeScorer(query.model, method, chosen, _as_tuple(layers), _as_tuple(heads), contextual)
    seed = seed_from(rng)
    adata = target(adata, copy)
    networks, tables = {}, []
    drawn = list(draw_conditions(codes, n_cells, seed))
    for name, rows in zip(names, drawn, strict=True):
        shown = name if shows_progress(progress_bar) else None
        inferred = infer_grn(scorer, query.source.rows(rows), measured, top_k, seed, shown)
        networks[name] = _to_var_order(inferred, query, chosen, adata.n_vars)
        table = edge_table(inferred, query.stored_names, chosen, top_k)
        tables.append(table.assign(condition=name))
    params = {"method": method, "groupby": groupby, "reference": reference, "conditions": names, "top_k": top_k}
    params |= {"n_cells": len(drawn[0]), "n_members": len(query.model.members), "model_hash": query.model.hash}
    edges = pd.concat(tables, ignore_index=True)
    write_grn(
        adata, key_added, networks, edges, params | {"layer": query.layer, "gene_symbols": query.genes.gene_symbols}
    )
    return adata if copy else None


def _as_tuple(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers)


def _conditions(adata: AnnData, groupby: str | None, reference: Category | None) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the conditions, and the code of each cell, -1 for cells without a condition."""
    if groupby is None:
        if reference is not None:
            raise ConfigError("`reference` requires `groupby`. Pass the column of the conditions as `groupby=`.")
        if adata.n_obs < MIN_CELLS:
            raise DataError(f"A network requires at least {MIN_CELLS} cells, found {adata.n_obs}.")
        return [ALL_CELLS], np.zeros(adata.n_obs, np.int64)
    field = ObsField.register(adata, groupby, allow_missing=True)
    codes = field.transfer(adata, allow_missing=True).astype(np.int64)
    sizes = np.bincount(codes[codes >= 0], minlength=len(field.categories))
    if reference is not None and reference not in field.categories:
        raise DataError(
            f"`reference` {reference!r} is not a category of adata.obs[{groupby!r}]. Pass one of these categories: "
            f"{list(field.categories[:10])}."
        )
    small = {name: int(n) for name, n in zip(field.categories, sizes, strict=True) if n < MIN_CELLS}
    kept = [i for i, name in enumerate(field.categories) if name not in small]
    if not kept or reference in small:
        raise DataError(
            f"A network requires at least {MIN_CELLS} cells of a condition. These conditions of adata.obs[{groupby!r}] "
            f"have fewer: {small}. Pass another `groupby=` or `reference=`."
        )
    if small:
        warn(f"Conditions with fewer than {MIN_CELLS} cells are skipped: {small}.")
    new_codes = np.full(len(field.categories) + 1, -1)  # the last entry is for cells without a value (code -1)
    new_codes[kept] = np.arange(len(kept))
    return [field.categories[i] for i in kept], new_codes[codes]


def _to_var_order(inferred: ConsensusGRN, query: Query, regulators: NDArray[np.int64], n_vars: int) -> ConditionGRN:
    """Change the order of the genes from that of the model to that of ``adata.var``."""
    measured = np.flatnonzero(query.measured)
    rows, columns = query.columns[measured], query.columns[regulators]
    weight, count = inferred.consensus.weight[measured], inferred.count[measured]
    # a weight of 0 is stored, because a pair that is not stored has no weight; pairs of a gene with itself are not
    target, regulator = np.nonzero((count > 0) & (rows[:, None] != columns[None]))

    def sparse(values: NDArray[Any], dtype: type) -> sp.csr_matrix:
        entries: NDArray[Any] = values[target, regulator].astype(dtype)
        return sp.csr_matrix((entries, (rows[target], columns[regulator])), shape=(n_vars, n_vars))

    attention = None
    if inferred.received is not None:
        attention = np.full(n_vars, np.nan, np.float32)
        attention[columns] = inferred.received
    return ConditionGRN(sparse(weight, np.float32), sparse(count, np.int32), attention)
