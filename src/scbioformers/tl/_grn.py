"""``bf.tl.grn``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import BioformersWarning, ConfigError, DataError, seed_from
from scbioformers.data import ObsField
from scbioformers.results import ConditionGRN, ModelLike, Query, open_query, target, write_grn
from scbioformers.tasks import ConsensusGRN, EdgeScorer, Method, draw_conditions, edge_table, infer_grn

logger = logging.getLogger(__name__)

ALL_CELLS = "all cells"
MIN_CELLS = 10


def grn(
    adata: AnnData,
    *,
    method: Method = "embedding",
    groupby: str | None = None,
    reference: str | None = None,
    regulators: Sequence[str] | None = None,
    top_k: int = 1000,
    n_cells: int | None = 1000,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    contextual: bool = True,
    model: ModelLike | None = None,
    layer: str | None = None,
    key: str = "bioformer",
    key_added: str = "grn",
    rng: int | np.random.Generator = 0,
    progress_bar: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Gene regulatory network of each condition, every edge with its support (paper, section 3.4 and Fig. 2).

    Fit an ensemble first (``bf.tl.fit(adata, n_models=5, config=bf.ModelConfig(svd_init=False))``, so that its members
    start at random): ranks are averaged over the members, and the support of an edge is the share of them that hold it.
    With one member it says nothing.

    Parameters
    ----------
    adata
        The data that the model was fitted on, or other cells on the same scale.
    method
        ``"embedding"``: cosine of the mean-centred gene embeddings, times the root of both genes' shares of spread over
        the cells that the model explains (0 to 1; without counts, as on a log scale, that of the regulator alone);
        signed (positive: activation), and the cosine is the same in both directions, so name the `regulators`.
        ``"knockout"``: the count of the regulator becomes zero, in up to 32 cells that express it; the weight is the
        mean of what the log of every gene's predicted rate loses, times that gene's explained share, all targets of a
        regulator scaled to the length of its own; signed and directed. ``"attention"``: what an expressed gene, queried
        as if it were masked, reads of the others, less what both genes alone lead to expect (average-product
        correction); it has no sign, and it is directed.
    groupby
        Column of ``adata.obs``: a network for each category, from equal numbers of cells. Cells without a value are
        left out.
    reference
        One of the categories: also the signed difference of each network from that one.
    regulators
        Genes that can be regulators, e.g. transcription factors; by default all genes.
    top_k
        Edges of each condition in the table. A member "holds" as many, at most a tenth of the pairs: with few
        regulators it would hold all.
    n_cells
        Cells drawn of each condition; None takes as many as the smallest has.
    layers, heads
        Of attention, counted from 0; by default the mean of all.
    contextual
        Of embeddings: how the predicted rate of a gene answers to the state of the cells of the condition. False takes
        the bare cosine of those of the input, which are the same in all conditions.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    key
        Where the model is in ``uns``.
    key_added
        Name of the result.
    rng
        Seed or generator of the cells that are drawn.
    progress_bar
        Show a progress bar.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. An earlier network of the same name is removed with all its conditions. With ``groupby`` the
    names in ``varp`` end in a dot and the condition. Sets the following fields:

    ``adata.varp[key_added]`` : CSR float32 (n_vars, n_vars)
        Weight by target (row) and regulator (column), mean over the members. What is not stored was never seen.
    ``adata.varp[f"{key_added}_count"]`` : CSR int32 (n_vars, n_vars)
        Cells behind each weight: those in which attention reads both genes (with ``tokens="all"`` zeros too), those in
        which the regulator was knocked out, all of the condition for embeddings.
    ``adata.varp[f"{key_added}_difference"]`` : CSR float32 (n_vars, n_vars)
        With ``reference``, for the other conditions: weight minus weight in the reference, of pairs seen in both.
    ``adata.var[f"{key_added}_attention"]`` : float32 (n_vars,)
        With ``method="attention"``: what is paid to each regulator in a cell, summed over the genes that ask, mean over
        the cells and members; NaN for other genes. :func:`scbioformers.tl.regulators` ranks key drivers by it.
    ``adata.uns[key_added]`` : dict
        ``edges``, the ``top_k`` of each condition: ``source``, ``target``, ``weight``, ``rank`` (from 1), ``support``
        (0 to 1), ``count``, ``condition``; :func:`scbioformers.get.grn` reads it. ``params`` (JSON).

    Raises
    ------
    MissingKeyError
        If there is no model, or a column is not there.
    ConfigError
        If a parameter is out of range, or the model has no attention.
    DataError
        If a regulator is unknown or not measured (near names are given), no condition has 10 cells, or the data is on
        another scale than the model's.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, n_models=2, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], progress_bar=False)
    >>> sorted(set(bf.get.grn(adata)["source"]))
    ['TF1', 'TF2']
    """
    query = open_query(adata, model, layer=layer, key=key)
    if top_k < 1 or (n_cells is not None and n_cells < MIN_CELLS):
        raise ConfigError(f"`top_k` must be at least 1 and `n_cells` at least {MIN_CELLS}; got {top_k} and {n_cells}.")
    measured = query.measured
    # each once: doubled entries of a sparse matrix add up
    chosen = np.flatnonzero(measured) if regulators is None else np.unique(query.positions(regulators))
    names, codes = _conditions(adata, groupby, reference)
    scorer = EdgeScorer(query.model, method, chosen, _numbers(layers), _numbers(heads), contextual)
    seed = seed_from(rng)
    adata = target(adata, copy)
    networks, tables = {}, []
    drawn = list(draw_conditions(codes, n_cells, seed))
    for name, rows in zip(names, drawn, strict=True):
        shown = name if progress_bar else None
        found = infer_grn(scorer, query.source.rows(rows), measured, top_k, seed, shown)
        networks[name] = _on_variables(found, query, chosen, adata.n_vars)
        tables.append(edge_table(found, query.model.vocabulary.feature_names(), chosen, top_k).assign(condition=name))
    params = {"method": method, "groupby": groupby, "reference": reference, "conditions": names, "top_k": top_k}
    params |= {"n_cells": len(drawn[0]), "n_members": len(query.model.members), "model_hash": query.model.hash}
    edges = pd.concat(tables, ignore_index=True)
    write_grn(adata, key_added, networks, edges, params | {"layer": query.layer})
    return adata if copy else None


def _numbers(chosen: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if chosen is None else tuple(chosen)


def _conditions(adata: AnnData, groupby: str | None, reference: str | None) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the conditions, and the code of each cell, -1 for none."""
    if groupby is None:
        if reference is not None:
            raise ConfigError("`reference` is one of the categories of `groupby`, which was not given.")
        if adata.n_obs < MIN_CELLS:
            raise DataError(f"A network takes at least {MIN_CELLS} cells; there are {adata.n_obs}.")
        return [ALL_CELLS], np.zeros(adata.n_obs, np.int64)
    field = ObsField.register(adata, groupby, allow_missing=True)
    codes = field.transfer(adata, allow_missing=True).astype(np.int64)
    sizes = np.bincount(codes[codes >= 0], minlength=len(field.categories))
    if reference is not None and reference not in field.categories:
        raise DataError(f"`reference` {reference!r} is no category of adata.obs[{groupby!r}]: {field.categories[:10]}.")
    small = {name: int(n) for name, n in zip(field.categories, sizes, strict=True) if n < MIN_CELLS}
    kept = [i for i, name in enumerate(field.categories) if name not in small]
    if not kept or reference in small:
        raise DataError(f"A network takes at least {MIN_CELLS} cells of a condition; adata.obs[{groupby!r}]: {small}.")
    if small:
        warnings.warn(
            f"No network for conditions with fewer than {MIN_CELLS} cells: {small}.", BioformersWarning, stacklevel=3
        )
    new = np.full(len(field.categories) + 1, -1)  # the last is for cells without a value
    new[kept] = np.arange(len(kept))
    return [field.categories[i] for i in kept], new[codes]


def _on_variables(found: ConsensusGRN, query: Query, regulators: NDArray[np.int64], n_vars: int) -> ConditionGRN:
    """From the genes of the model to the variables of the data."""
    there = np.flatnonzero(query.measured)
    rows, columns = query.columns[there], query.columns[regulators]
    weight, count = found.consensus.weight[there], found.count[there]
    # what was seen is stored even where it is 0, a gene with itself not
    target, regulator = np.nonzero((count > 0) & (rows[:, None] != columns[None]))

    def sparse(values: NDArray[Any], dtype: type) -> sp.csr_matrix:
        entries: NDArray[Any] = values[target, regulator].astype(dtype)
        return sp.csr_matrix((entries, (rows[target], columns[regulator])), shape=(n_vars, n_vars))

    attention = None
    if found.received is not None:
        attention = np.full(n_vars, np.nan, np.float32)
        attention[columns] = found.received
    return ConditionGRN(sparse(weight, np.float32), sparse(count, np.int32), attention)
