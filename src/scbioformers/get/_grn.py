"""Read gene regulatory networks as tables and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import (
    Category,
    ConfigError,
    MissingKeyError,
    check_arguments,
    short_list,
    warn,
)
from scbioformers.data import names_modality
from scbioformers.results import (
    ModalityPair,
    find_condition,
    open_grn,
    read_grn_edges,
    read_grn_params,
    read_grn_weights,
    read_mutual_pairs,
    result_genes,
    show_genes,
)


@names_modality
def grn(
    adata: AnnData | MuData,
    *,
    modality: ModalityPair | None = None,
    condition: Category | None = None,
    mutual: bool = False,
    gene_symbols: str | None = None,
    key: str = "grn",
) -> pd.DataFrame:
    """Strongest edges of a network from :func:`scbioformers.tl.grn`, in the format of decoupler.

    With ``mutual=True`` these are the pairs of genes with the strongest mutual attention (paper, section 3.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`. If genes were removed since then, only the edges between the remaining
        genes are returned, and their ranks are computed again.
    modality
        The modality of a MuData that has the network, or the two modalities of a network between them, such as
        ``("rna", "prot")``. None is the only one.
    condition
        Condition to return, a category of ``groupby``. Numbers and bools may be given as such. None returns all.
    mutual
        Only for a network by ``method="attention"``. Return one row for each pair of genes that have a weight in both
        directions. The weight of the pair is the smaller one of the two, so it is high only if both genes attend to
        each other. The pairs are chosen from all weights of the network, and the strongest are returned, at most
        ``top_k`` of :func:`scbioformers.tl.grn` in each condition. If ``regulators`` were passed there, only two
        regulators have weights in both directions.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.

    Returns
    -------
    DataFrame
        One row per edge. The columns are:

        - ``source`` (str): the regulator.
        - ``target`` (str): the target gene. In a network without directions (see :func:`scbioformers.tl.grn`), and with
          ``mutual``, an edge has one row, and which gene is the source has no meaning.
        - ``weight`` (float): weight of the edge, in the unit of the method of :func:`scbioformers.tl.grn`. Positive
          means that the regulator activates the target: a knock-out of the regulator lowers the target. Attention has
          no sign.
        - ``rank`` (int64): 1 is the strongest edge of the condition.
        - ``support`` (float, 0 to 1): share of the ensemble members that have the edge among their strongest edges. NaN
          if the model has a single member, and with ``mutual``, because weights of single members are not stored. It is
          too high if members share a start: if ``n_starts`` in ``adata.uns[key]["params"]`` is less than ``n_members``.
        - ``count`` (int): number of cells from which the weight was computed, at most the number of cells that express
          the rarer of the two genes. With ``mutual``, it is the smaller one of both directions.
        - ``condition`` (str).

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for ``condition``.
    ConfigError
        If ``mutual`` is True and the network is not one by attention.

    Warns
    -----
    BioformersWarning
        If ``mutual`` is True and there are pairs that have a weight in one direction only. They are left out.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, method="attention", top_k=100)
    >>> bf.get.grn(adata).shape, bf.get.grn(adata, mutual=True).shape
    ((100, 7), (100, 7))
    """
    check_arguments(grn, locals())
    adata = open_grn(adata, modality, key)
    params = read_grn_params(adata, key)
    conditions = params["conditions"] if condition is None else [find_condition(params, condition)]
    edges = _mutual_edges(adata, key, params, conditions) if mutual else read_grn_edges(adata, key)
    edges = edges[edges["condition"].isin(conditions)]
    genes = result_genes(adata, key, gene_symbols)
    edges = edges[edges["source"].isin(genes.var_names) & edges["target"].isin(genes.var_names)].reset_index(drop=True)
    edges["rank"] = edges.groupby("condition", observed=True)["rank"].rank(method="first").astype(np.int64)
    return show_genes(edges, genes, ["source", "target"])


@names_modality
def grn_matrix(
    adata: AnnData | MuData,
    *,
    modality: ModalityPair | None = None,
    condition: Category | None = None,
    difference: bool = False,
    gene_symbols: str | None = None,
    key: str = "grn",
) -> pd.DataFrame:
    """Weights of all pairs of a network from :func:`scbioformers.tl.grn`, as a matrix.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    modality
        The modality of a MuData that has the network, or the two modalities of a network between them, such as
        ``("rna", "prot")``. None is the only one.
    condition
        Condition to return. Required if the network was computed with ``groupby``.
    difference
        Return the difference from the reference condition (weight minus weight in the reference).
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.

    Returns
    -------
    DataFrame
        float32 (n_targets, n_regulators), one row per target gene and one column per regulator. A positive weight means
        that the regulator activates the target. The value is NaN for pairs without a weight, such as genes that were
        never seen together, and for a gene with itself. Genes without any weight are left out.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or if ``condition`` has no network or no difference.
    ConfigError
        If the network was computed with ``groupby`` and ``condition`` is None.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"])
    >>> bf.get.grn_matrix(adata).shape
    (40, 2)
    """
    check_arguments(grn_matrix, locals())
    adata = open_grn(adata, modality, key)
    params = read_grn_params(adata, key)
    condition = require_one(condition, params)
    if difference and (params["reference"] is None or condition == params["reference"]):
        raise MissingKeyError(_no_difference(params))
    table = read_grn_weights(adata, key, condition, difference=difference)
    shown = result_genes(adata, key, gene_symbols).shown_by_stored(table.genes)
    targets, regulators = ([shown[name] for name in names] for names in (table.genes, table.regulators))
    return pd.DataFrame(table.weight.astype(np.float32), targets, regulators).dropna(how="all")


def _mutual_edges(adata: AnnData, key: str, params: dict[str, Any], conditions: Sequence[str]) -> pd.DataFrame:
    """Pairs of genes by the smaller weight of both directions, of each condition."""
    added = "" if key == "grn" else f", key_added={key!r}"
    call = f'`bf.tl.grn(adata, method="attention"{added})`'
    if params["method"] != "attention":
        raise ConfigError(
            f"`mutual=True` requires a network by attention, found one by {params['method']!r}. Run {call} first."
        )
    tables, n_one_way = zip(*(read_mutual_pairs(adata, key, name) for name in conditions), strict=True)
    if sum(n_one_way):
        warn(
            "Only pairs of two regulators have a weight in both directions, because the network was computed for some "
            f"`regulators`. The other {sum(n_one_way)} pairs are left out. Run {call} without `regulators=` for all "
            "pairs."
        )
    return pd.concat(tables, ignore_index=True)


def _no_difference(params: dict[str, Any]) -> str:
    reference, others = params["reference"], [name for name in params["conditions"] if name != params["reference"]]
    if reference is None:
        return "No differences are stored. Run `bf.tl.grn` again with `groupby=` and `reference=`."
    return f"{reference!r} is the reference, so it has no difference. Pass one of these as `condition=`: {others}."


def require_one(condition: Category | None, params: dict[str, Any]) -> str | None:
    """Name of the condition, None if the network is that of all cells."""
    if condition is not None:
        return find_condition(params, condition)
    if params["groupby"] is not None:
        raise ConfigError(
            "The networks were computed for each condition, so one must be chosen. Pass one of these as `condition=`: "
            f"{short_list(params['conditions'])}."
        )
    return None
