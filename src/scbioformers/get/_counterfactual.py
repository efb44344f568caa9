"""Read predictions under another phenotype, and the evidence for them."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import MissingKeyError, check_arguments
from scbioformers.data import names_modality, open_modality
from scbioformers.results import read_counterfactual, read_counterfactual_evidence


@names_modality
def counterfactual(
    adata: AnnData | MuData, *, modality: str | None = None, group: str | None = None, key: str = "counterfactual"
) -> pd.DataFrame:
    """Effects of a phenotype on the genes, the largest first.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.counterfactual`.
    modality
        The modality of a MuData that has the result. None is the only one.
    group
        Group of cells, a category of ``groupby``. None returns all groups, one after the other.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.counterfactual`.

    Returns
    -------
    DataFrame
        One row per group and modelled gene, with the columns ``group``, ``gene``, ``effect`` (difference of log1p of
        the expected counts at the mean depth), ``se`` (its standard error) and ``predicted`` (mean predicted profile of
        the same cells). Genes are in descending order of the absolute effect. Groups in which all cells have the
        phenotype are left out.

    Raises
    ------
    MissingKeyError
        If there is no such result, or no such group.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40, n_conditions=2)
    >>> bf.tl.fit(adata, phenotype_keys="condition", train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.counterfactual(adata, {"condition": "condition_2"})
    >>> list(bf.get.counterfactual(adata))
    ['group', 'gene', 'effect', 'se', 'predicted']
    """
    check_arguments(counterfactual, locals())
    adata = open_modality(adata, modality)
    effects, errors, means = read_counterfactual(adata, key)
    if group is not None and group not in effects:
        raise MissingKeyError(f"There is no group {group!r}. The groups are {list(effects)}.")
    parts = []
    for name in list(effects) if group is None else [group]:
        effect = effects[name].dropna()
        order = effect.abs().sort_values(ascending=False, kind="stable").index
        table = {
            "group": name,
            "gene": order,
            "effect": effect[order].to_numpy(),
            "se": errors[name][order].to_numpy(),
            "predicted": means[name][order].to_numpy(),
        }
        parts.append(pd.DataFrame(table))
    return pd.concat(parts, ignore_index=True)


def counterfactual_evidence(adata: AnnData, *, key: str = "counterfactual") -> pd.DataFrame:
    """How well the effect on each group was predicted without its cells that have the phenotype.

    Parameters
    ----------
    adata
        Data after ``bf.tl.counterfactual(..., evidence=True)``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.counterfactual`.

    Returns
    -------
    DataFrame
        One row per group and method, with the columns ``group``, ``method``, ``n_cells`` (cells that were left out of
        the fit), ``pearson`` and ``rmse`` (correlation with the measured effect over the genes, and root mean squared
        error). The methods are ``"model"``; ``"mean of the other groups"``, the mean of their measured effects; and
        ``"linear"``, a ridge regression of these effects on the profiles of the groups without the phenotype. Trust the
        model where it is better than both.

    Raises
    ------
    MissingKeyError
        If there is no such result, or if it was computed without evidence.

    Examples
    --------
    See :func:`scbioformers.tl.counterfactual`.
    """
    check_arguments(counterfactual_evidence, locals())
    return read_counterfactual_evidence(adata, key)
