"""``bf.tl.grn``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import Category, Names, check_arguments, seed_from, short_list, warn
from scbioformers.data import FeatureMap
from scbioformers.nn import computes
from scbioformers.results import (
    ConditionGRN,
    ModalityPair,
    ModelLike,
    Part,
    check_key_added,
    grn_slots,
    open_parts,
    target,
    write_grn,
    write_grn_between,
)
from scbioformers.settings import shows_progress
from scbioformers.tasks import ConsensusGRN, EdgeScorer, Method, draw_conditions, edge_table, infer_grn
from scbioformers.tl._grn_conditions import check_sizes, read_conditions, warn_of_limit
from scbioformers.tl._support import log_shared_starts

logger = logging.getLogger(__name__)


@computes
def grn(
    adata: AnnData | MuData,
    *,
    modality: ModalityPair | None = None,
    method: Method = "embedding",
    groupby: str | None = None,
    reference: Category | None = None,
    regulators: Names | None = None,
    top_k: int = 1000,
    n_cells: int | None = 1000,
    min_cells: int = 10,
    min_count: int = 3,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    contextual: bool = True,
    model: ModelLike | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    key: str = "bioformer",
    key_added: str = "grn",
    rng: int | np.random.Generator = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Infer a gene regulatory network for each condition (paper, section 3.4 and Fig. 2).

    Fit an ensemble first: ``bf.tl.fit(adata, n_models=5, config=bf.ModelConfig(svd_init=False))``. With
    ``svd_init=False``, its members start at random. Weights and ranks are averaged over the members. The support of an
    edge is the share of members that have it among their strongest edges. With a single member, it is NaN. Members that
    a fit with ``model=`` has added share the start of others and agree more, so their support is too high. A log
    message says so.

    In all signed weights, positive means activation: a knock-out of the regulator lowers the target. So the change
    that :func:`scbioformers.tl.perturb` predicts has the other sign.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data. Or a
        MuData, if the model was fitted to one.
    modality
        Only for a MuData: the modality whose features the network is of, such as ``"rna"``. The model reads the other
        modalities of the samples, too. Two of them, such as ``("rna", "prot")``, give a network between them: features
        of the first are regulators, those of the second are targets. Cells are the samples that are measured in these
        modalities, and ``groupby`` is a column of ``mdata.obs``. ``layer``, ``gene_symbols`` and ``feature_map`` are
        dicts by modality.
    method
        How edges are weighted.

        ``"embedding"``: cosine of the mean-centred gene embeddings, times the square root of the explained shares of
        both genes (of the regulator only, if the data is not counts). The explained share of a gene is the standard
        deviation of its predicted expression over the cells, divided by that of its measured expression, at most 1. The
        weight is signed: positive means that both genes rise and fall together. The cosine has no direction. With
        ``regulators`` the edges go from them to the other genes. Without ``regulators`` the network has no directions:
        the weight of two genes is the mean over both orders, and the table has each edge once.

        ``"knockout"``: in-silico knock-out. The count of the regulator is set to 0 in up to 32 cells that express it.
        The weight of a target is the mean decrease of its predicted log rate, times the explained share of the target.
        All weights of a regulator are then scaled, such that their Euclidean norm is the explained share of the
        regulator. The weight is signed and directed: positive means that the target falls without the regulator.

        ``"attention"``: attention that the target, queried like a masked gene, pays to the regulator. The average
        product correction subtracts the attention that is expected from the means of both genes. Weights of pairs in
        few cells are shrunk towards 0. The weight is directed, but has no sign. :func:`scbioformers.get.grn` with
        ``mutual=True`` returns each pair with the smaller of its two weights.
    groupby
        Column of ``adata.obs`` with the conditions. One network is computed for each category. Cells without a value
        are left out, and conditions with fewer than ``min_cells`` cells are skipped. The names in ``adata.varp`` and
        ``adata.var`` then end in a dot and the name of the condition. By default, one network is computed from all
        cells.
    reference
        Category of ``groupby``. The difference of each other network from this one is stored as well. All networks are
        then computed from the same number of cells, that of the smallest condition.
    regulators
        Genes that can be regulators, such as transcription factors. By default, all genes; the network of
        ``method="embedding"`` then has no directions.
    top_k
        Number of strongest edges of each condition in the table of edges. For the support, the strongest edges of a
        member are ``top_k`` pairs, but at most 10 % of all pairs.
    n_cells
        Maximum number of cells that are drawn from each condition. None uses all cells of a condition (with
        ``reference``: as many as the smallest condition has).
    min_cells
        Minimum number of cells of a network.
    min_count
        Minimum number of cells of a weight. A pair of genes gets no weight and no rank if its weight comes from fewer
        cells, or if fewer of the drawn cells express one of the two genes.
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
        ``"X"`` reads ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in the model, such as orthologues of another
        species. Names that it does not have stay as they are. If several genes have one name in the model, or a gene
        has several, the gene that most cells express is used. Results have the names of ``adata``.
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
        Weight of each pair, mean over the members. Rows are targets and columns are regulators. Positive means
        activation. Pairs without a weight, such as genes that were never seen together, are not stored, and read as NaN
        through :func:`scbioformers.get.grn_matrix`. A network without directions is symmetric.
    ``adata.varp[f"{key_added}_count"]`` : CSR int32 (n_vars, n_vars)
        Number of cells from which each weight was computed. For attention, these are the cells in which attention reads
        both genes. For knock-outs, they are the cells in which the regulator was knocked out. For embeddings, they are
        all drawn cells. The number is at most that of the drawn cells that express the rarer of the two genes. Pairs
        that were never seen together are not stored, so their number is 0.
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

    In a MuData, these are fields of the modality. A network between two modalities is in
    ``mdata.uns[key_added]``: the table ``edges`` with qualified names, such as ``"rna:CD4"`` and ``"prot:CD4"``,
    ``params``, and what would be in ``varp`` and ``var``. Read it with ``bf.get.grn(mdata, modality=("rna", "prot"))``.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` is not found.
    ConfigError
        If a parameter is out of range, ``reference`` is given without ``groupby``, ``method="attention"`` and the model
        has no attention, ``key_added`` would overwrite a part of another network, or the device is not available.
    DataError
        If a regulator is not a gene of the model (the message suggests similar names) or not measured, the reference or
        all conditions have fewer than ``min_cells`` cells, the values are on another scale than the training data, or
        ``adata`` has too few genes of the model.

    Warns
    -----
    BioformersWarning
        If conditions with fewer than ``min_cells`` cells are skipped, if a small condition limits the number of cells
        of all networks, or if no pair of genes of a condition reaches ``min_count``.

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
    parts = open_parts(
        adata,
        model,
        modality,
        layer=layer,
        gene_symbols=gene_symbols,
        feature_map=feature_map,
        key=key,
        device=device,
    )
    sources, targets = parts[0], parts[-1]
    fitted, between = targets.model, len(parts) > 1
    check_sizes(top_k, n_cells, min_cells, min_count)
    # unique, because duplicate entries of a sparse matrix are added up
    chosen = (
        np.flatnonzero(sources.own.measured)
        if regulators is None
        else np.unique(sources.own.positions(regulators, argument="regulators"))
    )
    conditions = read_conditions(adata, groupby, reference, min_cells, sources.measured & targets.measured)
    log_shared_starts(fitted)
    if between:
        check_key_added(adata, key_added)
    else:
        check_key_added(targets.own.data, key_added, grn_slots(key_added, groupby, conditions.names))
    directed = regulators is not None or method != "embedding" or between
    options: dict[str, Any] = {"contextual": contextual, "directed": directed, "min_count": min_count}
    options |= {"modality": targets.modality, "regulator_modality": sources.modality}
    scorer = EdgeScorer(fitted, method, chosen, _as_tuple(layers), _as_tuple(heads), **options)
    if conditions.reference is not None:
        warn_of_limit(conditions, groupby, n_cells)
    seed = seed_from(rng)
    adata = target(adata, copy)
    axis = _Axis.of(parts, chosen)
    networks, tables = {}, []
    drawn = list(draw_conditions(conditions.codes, n_cells, seed, equal=conditions.reference is not None))
    for name, rows in zip(conditions.names, drawn, strict=True):
        shown = name if shows_progress(progress_bar) else None
        inferred = infer_grn(scorer, targets.source, rows, targets.own.measured, top_k, seed, shown)
        networks[name] = _to_var_order(inferred, axis)
        table = edge_table(inferred, axis.target_names, axis.regulator_names, top_k)
        tables.append(table.assign(condition=name))
    _report_missing(networks, len(chosen), min_count)
    params: dict[str, Any] = {"method": method, "directed": directed, "groupby": groupby}
    params |= {"reference": conditions.reference, "conditions": conditions.names}
    params |= {"n_cells": dict(zip(conditions.names, map(len, drawn), strict=True))}
    params |= {"top_k": top_k, "min_cells": min_cells, "min_count": min_count, **targets.provenance}
    edges = pd.concat(tables, ignore_index=True)
    if isinstance(adata, MuData) and between:
        params |= {"modalities": [part.modality for part in parts], "gene_symbols": None}  # names are qualified ones
        write_grn_between(adata, key_added, axis.names, networks, edges, params)
    else:
        part = adata[targets.modality] if isinstance(adata, MuData) else adata
        write_grn(part, key_added, networks, edges, params)
    return adata if copy else None


def _as_tuple(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers)


def _report_missing(networks: dict[str, ConditionGRN], n_regulators: int, min_count: int) -> None:
    """Log how many regulators have no weight, and warn if a network has no weight at all."""
    for name, network in networks.items():
        if n_without := n_regulators - len(np.unique(network.weight.indices)):
            logger.info(
                "%d of %d regulators have no weight from at least %d cells (`min_count`) in %s.",
                n_without,
                n_regulators,
                min_count,
                name,
            )
    if empty := [name for name, network in networks.items() if not network.weight.nnz]:
        warn(
            f"The networks of {short_list(empty)} are empty: no pair of genes has a weight from at least {min_count} "
            "cells (`min_count`). Pass more cells, regulators that more cells express, or a smaller `min_count=`."
        )


@dataclass(frozen=True, eq=False)
class _Axis:
    """The genes that rows and columns of a stored network stand for."""

    names: list[str]
    """Names of all G genes."""
    measured: NDArray[np.int64]
    """Positions of the targets that are measured, among those of the model."""
    rows: NDArray[np.int64]
    """Place of each of them among the G genes."""
    columns: NDArray[np.int64]
    """(R,) place of each regulator."""
    target_names: list[str]
    """(T,) name of each target, measured or not."""
    regulator_names: list[str]
    """(R,) name of each regulator."""

    @classmethod
    def of(cls, parts: Sequence[Part], chosen: NDArray[np.int64]) -> _Axis:
        """All genes of the data, or of two modalities the measured ones of the model, by their qualified names."""
        sources, targets = parts[0].own, parts[-1].own
        measured = np.flatnonzero(targets.measured)
        if len(parts) == 1:
            names, stored = targets.genes.var_names.tolist(), targets.stored_names
            rows, columns = targets.columns[measured], targets.columns[chosen]
            return cls(names, measured, rows, columns, stored, [stored[i] for i in chosen])
        regulators, stored = ([f"{part.modality}:{name}" for name in part.own.names] for part in parts)
        known = np.flatnonzero(sources.measured)
        names = [*(regulators[i] for i in known), *(stored[i] for i in measured)]
        rows, columns = len(known) + np.arange(len(measured)), np.searchsorted(known, chosen)
        return cls(names, measured, rows, columns, stored, [regulators[i] for i in chosen])


def _to_var_order(inferred: ConsensusGRN, axis: _Axis) -> ConditionGRN:
    """Change the order of the genes from that of the model to that of the stored network."""
    rows, columns, n = axis.rows, axis.columns, len(axis.names)
    weight, count = inferred.consensus.weight[axis.measured], inferred.count[axis.measured]
    # a weight of 0 is stored, because a pair that is not stored has no weight; pairs of a gene with itself are not
    seen = (count > 0) & (rows[:, None] != columns)

    def sparse(values: NDArray[Any], stored: NDArray[np.bool_], dtype: type) -> sp.csr_matrix:
        target, regulator = np.nonzero(stored)
        entries: NDArray[Any] = values[stored].astype(dtype)
        return sp.csr_matrix((entries, (rows[target], columns[regulator])), shape=(n, n))

    attention = None
    if inferred.received is not None:
        attention = np.full(n, np.nan, np.float32)
        attention[columns] = inferred.received
    return ConditionGRN(
        sparse(weight, seen & np.isfinite(weight), np.float32), sparse(count, seen, np.int32), attention
    )
