"""Predicted responses, ranked, and predicted cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import DataError, MissingKeyError
from scbioformers.results import read_perturb, read_perturb_evidence, read_perturb_names, read_perturbed_profiles

_HINT = "Run `bf.tl.perturb(adata, …)` first."


def perturb(adata: AnnData, *, perturbation: str | None = None, key: str = "perturbed") -> pd.DataFrame:
    """What :func:`scbioformers.tl.perturb` predicted, ranked.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.perturb`.
    perturbation
        One of the predicted perturbations: its genes are ranked. None ranks the perturbations.
    key
        The name given as ``key_added``.

    Returns
    -------
    For a perturbation: columns gene, effect, se, z, lower and upper (95 %), largest ``|z|`` first. Else: columns
    perturbation, size (root mean square of the effects over the genes), size_se, gene (with the largest effect beside
    the perturbed ones) and effect, largest first.

    Raises
    ------
    MissingKeyError
        If nothing was predicted, or not this perturbation.
    DataError
        If ``adata`` is no AnnData.

    Examples
    --------
    See :func:`scbioformers.get.perturb_evidence`.
    """
    stored = read_perturb(adata, key)
    names, effect, se = stored.names, stored.effect, stored.se
    genes = np.array([str(name) for name in adata.var_names], dtype=object)
    kept = np.isfinite(effect).all(axis=1)
    effect, se, genes = effect[kept], se[kept], genes[kept]
    if perturbation is not None:
        if perturbation not in names:
            raise MissingKeyError(f"{perturbation!r} was not predicted. There: {names[:10]}. {_HINT}")
        at = names.index(perturbation)
        table = pd.DataFrame({"gene": genes, "effect": effect[:, at], "se": se[:, at]})
        table["z"] = table["effect"] / np.maximum(table["se"], 1e-12)
        table["lower"], table["upper"] = table["effect"] - 1.96 * table["se"], table["effect"] + 1.96 * table["se"]
        return table.sort_values("z", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    rows = []
    for at, name in enumerate(names):
        free = ~np.isin(genes, name.split("+"))
        values, error = effect[free, at], se[free, at]
        size = float(np.sqrt(np.mean(values**2)))
        # of a root of a mean of squares, to first order
        size_se = float(np.sqrt(np.sum((values * error) ** 2)) / max(size * len(values), 1e-12))
        top = int(np.argmax(np.abs(values)))
        rows.append((name, size, size_se, genes[free][top], float(values[top])))
    table = pd.DataFrame(rows, columns=["perturbation", "size", "size_se", "gene", "effect"])
    return table.sort_values("size", ascending=False, kind="stable", ignore_index=True)


def perturb_evidence(adata: AnnData, *, key: str = "perturbed") -> dict[str, Any]:
    """How well the model predicted targets that were left out of its training, beside the baselines.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.perturb`.
    key
        The name given as ``key_added``.

    Returns
    -------
    ``"targets"``: a data frame, a row for each training target: correlation off target (``delta_…``) and centroid
    accuracy (``centroid_…``) of the model, of its network alone and of the baselines, and the signal (mean square of
    the z-scores, 1 for none); ``"strength"``: the share of the way from the training mean that the model goes;
    ``"weights"``: how much each piece counts, as fitted, what the network says of the target's token being the last;
    ``"n_folds"``.

    Raises
    ------
    MissingKeyError
        If nothing was predicted.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.perturb(adata, "TF4")
    >>> list(bf.get.perturb(adata, perturbation="TF4"))
    ['gene', 'effect', 'se', 'z', 'lower', 'upper']
    >>> bf.get.perturb_evidence(adata)["targets"].shape
    (3, 12)
    """
    evidence = read_perturb_evidence(adata, key)
    return evidence | {"targets": pd.DataFrame(evidence["targets"])}


def perturbed_cells(adata: AnnData, *, key: str = "perturbed") -> AnnData:
    """Control cells and the same cells as they are predicted to be, ready for scanpy.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.perturb` for one perturbation.
    key
        The name given as ``key_added``.

    Returns
    -------
    A new AnnData: ``X`` float32, log1p profiles of the modelled genes; ``obs["predicted"]``: the perturbation.

    Raises
    ------
    MissingKeyError
        If there is no such layer.
    DataError
        If the layer holds no predicted cell.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.perturb(adata, "TF4")
    >>> bf.get.perturbed_cells(adata).obs["predicted"].unique().tolist()
    ['TF4']
    """
    layer, names = read_perturbed_profiles(adata, key), read_perturb_names(adata, key)
    rows = np.flatnonzero(np.isfinite(layer).any(axis=1))
    if not rows.size or len(names) != 1:
        raise DataError(f"adata.layers[{key!r}] is not of the last prediction ({len(names)} perturbations). {_HINT}")
    genes = np.flatnonzero(np.isfinite(layer[rows]).all(axis=0))
    obs = adata.obs.iloc[rows].copy()
    obs["predicted"] = pd.Categorical([names[0]] * len(rows))
    return AnnData(layer[np.ix_(rows, genes)], obs=obs, var=adata.var.iloc[genes].copy())
