"""Read predicted responses to perturbations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import Category, DataError, MissingKeyError, category_text, check_arguments, short_list
from scbioformers.results import (
    perturb_genes,
    read_perturb,
    read_perturb_evidence,
    read_perturb_names,
    read_perturbed_profiles,
    show_genes,
)


def perturb(
    adata: AnnData,
    *,
    perturbation: str | int | None = None,
    group: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "perturbed",
) -> pd.DataFrame:
    """Predicted effects of perturbations as a ranked table (paper, section 3.3).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`.
    perturbation
        Perturbation whose genes are ranked. None ranks the perturbations.
    group
        Category of ``groupby`` of :func:`scbioformers.tl.perturb`, for the effects relative to its control cells. None
        gives the effects relative to all control cells.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.

    Returns
    -------
    DataFrame
        With ``perturbation``, one row per gene, sorted by decreasing ``|z|``. All values are float64. The columns are:

        - ``gene`` (str).
        - ``effect``: mean change of expression, in log1p units. For a perturbation that is in the training data, the
          measured effect is a part of it.
        - ``se``: standard error of the effect.
        - ``z``: effect divided by its standard error.
        - ``lower`` and ``upper``: limits of the 95 % interval.
        - ``predicted``: the effect that is predicted without cells of this perturbation. For a perturbation that is in
          the training data, it is cross-validated. NaN with ``group``.
        - ``observed``: the effect that is measured in ``adata``. NaN if no cell of ``adata`` has this perturbation,
          or if ``group`` is given.

        Without ``perturbation``, one row per perturbation, sorted by decreasing ``size``. The columns are:

        - ``perturbation`` (str).
        - ``size``: root mean square of the effects over all genes that are not perturbed, in log1p units.
        - ``size_se``: standard error of the size, to first order.
        - ``gene`` (str) and ``effect``: the gene with the largest absolute effect, without the perturbed genes.
        - ``seen`` (bool): whether exactly this perturbation is in the training data.

    Raises
    ------
    MissingKeyError
        If no prediction is stored under ``key``, or ``perturbation`` or ``group`` was not predicted.
    DataError
        If ``adata`` is not an AnnData.

    Examples
    --------
    See :func:`scbioformers.get.perturb_evidence`.
    """
    check_arguments(perturb, locals())
    stored = read_perturb(adata, key)
    data_genes = perturb_genes(adata, key, gene_symbols)
    names = data_genes.var_names
    kept = np.isfinite(stored.effect).all(axis=1)
    effect, se, genes = stored.effect[kept], stored.se[kept], names[kept]
    if group is not None:
        effect = _aligned(stored.groups[_group(group, list(stored.groups))], stored.genes, genes)
    if perturbation is not None:
        spelled = data_genes.spelled([str(perturbation)], stored.names)
        column = _column(spelled.get(str(perturbation), perturbation), stored.names)
        table = pd.DataFrame({"gene": genes, "effect": effect[:, column], "se": se[:, column]})
        table["z"] = table["effect"] / np.maximum(table["se"], 1e-12)
        table["lower"], table["upper"] = table["effect"] - 1.96 * table["se"], table["effect"] + 1.96 * table["se"]
        table["predicted"], table["observed"] = effect[:, column], np.nan
        for field, effects in (("predicted", stored.cross_validated), ("observed", stored.observed)):
            if stored.names[column] in effects:
                table[field] = _aligned(effects[stored.names[column]], stored.genes, genes)
        if group is not None:
            table[["predicted", "observed"]] = np.nan
        table = table.sort_values("z", key=np.abs, ascending=False, kind="stable", ignore_index=True)
        return show_genes(table, data_genes, ["gene"])
    rows = []
    for column, (name, own) in enumerate(zip(stored.names, stored.own_genes, strict=True)):
        other = ~np.isin(genes, own)
        values, error = effect[other, column], se[other, column]
        size = float(np.sqrt(np.mean(values**2)))
        # first-order error propagation for the root mean square
        size_se = float(np.sqrt(np.sum((values * error) ** 2)) / max(size * len(values), 1e-12))
        top = int(np.argmax(np.abs(values)))
        rows.append((name, size, size_se, genes[other][top], float(values[top]), bool(stored.seen[column])))
    table = pd.DataFrame(rows, columns=["perturbation", "size", "size_se", "gene", "effect", "seen"])
    table = table.sort_values("size", ascending=False, kind="stable", ignore_index=True)
    return table.assign(gene=table["gene"].map(data_genes.shown_by_stored(genes)))


def _aligned(values: NDArray[np.float64], genes: list[str], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Values of the wanted genes, NaN where there are none: the genes of the data may have changed since."""
    at = pd.Index(genes).get_indexer(pd.Index(wanted))
    return np.where((at >= 0).reshape(-1, *[1] * (values.ndim - 1)), values[at], np.nan)


def _column(perturbation: Any, names: list[str]) -> int:
    if category_text(perturbation) in names:
        return names.index(category_text(perturbation))
    raise MissingKeyError(
        f"{perturbation!r} was not predicted. Pass one of these as the perturbation: {short_list(names, 10)}. "
        f"Or run `bf.tl.perturb(adata, {perturbation!r})`."
    )


def _group(group: Any, groups: list[str]) -> str:
    if not groups:
        raise MissingKeyError(
            "The effects were predicted without groups. Run bf.tl.perturb again with a column of adata.obs as "
            "`groupby`."
        )
    if category_text(group) not in groups:
        raise MissingKeyError(f"`group={group!r}` was not predicted. Pass one of these: {short_list(groups)}.")
    return category_text(group)


def perturb_evidence(adata: AnnData, *, key: str = "perturbed") -> dict[str, Any]:
    """Cross-validated accuracy of the predicted effects, for the model and for baselines.

    Each target gene of the training data is predicted from the perturbations of the other targets.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.

    Returns
    -------
    dict
        - ``"targets"``: DataFrame with one row per target of the training data. ``delta_…`` is the Pearson correlation
          of the predicted and observed changes, without the perturbed gene. ``centroid_…`` is the centroid accuracy (0
          to 1, 0.5 by chance). Both are given for the model, for its network alone (``network``) and for the baselines.
          ``signal`` is the mean square of the observed z-scores. It is about 1 if the perturbation has no effect.
        - ``"strength"``: float from 0 to 1. 0 predicts the mean effect of the training perturbations for every target.
          1 predicts the weighted sum of the components.
        - ``"weights"``: dict, fitted weight of each component of the prediction. ``"network"`` is the weight of the
          effect that the transformer predicts.
        - ``"n_folds"``: int, number of folds.

    Raises
    ------
    MissingKeyError
        If no prediction is stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, "TF4")
    >>> list(bf.get.perturb(adata, perturbation="TF4"))
    ['gene', 'effect', 'se', 'z', 'lower', 'upper', 'predicted', 'observed']
    >>> bf.get.perturb_evidence(adata)["targets"].shape
    (3, 12)
    """
    check_arguments(perturb_evidence, locals())
    evidence = read_perturb_evidence(adata, key)
    return evidence | {"targets": pd.DataFrame(evidence["targets"])}


def perturbed_cells(adata: AnnData, *, key: str = "perturbed") -> AnnData:
    """Control cells with their predicted expression after the perturbation, as a new AnnData.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb` with exactly one perturbation.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.

    Returns
    -------
    AnnData
        One row per control cell and one column per modelled gene. ``X`` is float32, the predicted profiles as ``log1p``
        of the counts at the mean depth of the training cells. ``obs["predicted"]`` is the perturbation.

    Raises
    ------
    MissingKeyError
        If no prediction or no predicted layer is stored under ``key``.
    DataError
        If the last call of :func:`scbioformers.tl.perturb` predicted several perturbations, or the layer has no values.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, "TF4")
    >>> bf.get.perturbed_cells(adata).obs["predicted"].unique().tolist()
    ['TF4']
    """
    check_arguments(perturbed_cells, locals())
    layer, names = read_perturbed_profiles(adata, key), read_perturb_names(adata, key)
    rows = np.flatnonzero(np.isfinite(layer).any(axis=1))
    if len(names) != 1:
        raise DataError(
            f"Predicted cells are stored for one perturbation only, and the last prediction had {len(names)}. Run "
            f"`bf.tl.perturb(adata, {names[0]!r})` first."
        )
    if not rows.size:
        raise DataError(f"adata.layers[{key!r}] has no predicted cell. Run `bf.tl.perturb(adata, {names[0]!r})` first.")
    genes = np.flatnonzero(np.isfinite(layer[rows]).all(axis=0))
    obs = adata.obs.iloc[rows].copy()
    obs["predicted"] = pd.Categorical([names[0]] * len(rows))
    return AnnData(layer[np.ix_(rows, genes)], obs=obs, var=adata.var.iloc[genes].copy())
