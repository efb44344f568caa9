"""``bf.tl.perturb``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, log1p_rows
from scbioformers.data import BlockSource, ObsField
from scbioformers.results import GroupEffects, ModelLike, Query, open_query, target, write_perturb
from scbioformers.tasks.perturbation import (
    PerturbationHead,
    PerturbationToken,
    Targets,
    choose_probes,
    requested_targets,
    require_head,
)

logger = logging.getLogger(__name__)


def perturb(
    adata: AnnData,
    perturbations: str | Sequence[str],
    *,
    model: ModelLike | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    key: str = "bioformer",
    key_added: str = "perturbed",
    copy: bool = False,
) -> AnnData | None:
    """Predict responses to perturbations, also of genes that no cell of the training data had perturbed (section 3.3).

    Control cells are the start: in the data that was fitted those with the control label, in data without that column
    all cells. What was itself observed in training is weighed with the prediction by its standard error.

    Parameters
    ----------
    adata
        The data that the model was fitted on, or unperturbed cells on the same scale.
    perturbations
        A gene, a combination (``"STAT1+IRF1"``), a label of the training data, several of these, or ``"all"``: every
        measured gene and every target of the training data.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    groupby
        Column of ``adata.obs``: also predict the change from the control cells of each group, which have their own
        floor: what is not expressed cannot fall.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    key
        Where the model is in ``uns``.
    key_added
        Name of the layer and of the entry in ``uns``; effects are called after it, ``"perturb_effect"`` by default.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.layers[key_added]`` : float32 :class:`~numpy.ndarray` (N, n_vars)
        For one perturbation: log1p profiles (at the mean depth of training) of the control cells as they would be, NaN
        in other cells and in genes that are not modelled.
    ``adata.varm["perturb_effect"]``, ``adata.varm["perturb_effect_se"]`` : float64 :class:`~numpy.ndarray` (n_vars, K)
        Mean change in log1p units of each perturbation, and its standard error; NaN for genes that are not modelled.
    ``adata.uns["perturb"]`` : dict
        ``names`` (K,), ``evidence`` (JSON: scores of the cross-validation over targets beside the baselines, and
        ``strength``, the share of the way from the training mean), ``params`` (JSON), ``groups`` by ``groupby``.

    Raises
    ------
    MissingKeyError
        If there is no model, it was fitted without perturbations, or a column is not there.
    ConfigError
        If no perturbation is named.
    DataError
        If a perturbation is unknown (near names are given) or cannot be parsed, or there is no control cell, in all or
        in a group.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.perturb(adata, ["TF4", "TF1+TF2"])
    >>> adata.varm["perturb_effect"].shape
    (40, 2)
    """
    query = open_query(adata, model, layer=layer, key=key)
    head = require_head(query.model)
    requested = requested_targets(head, perturbations)
    controls = _controls(adata, head.task)
    groups = _groups(adata, groupby, controls)
    adata = target(adata, copy)
    effect, error = _predict(query, head, requested, controls)
    measured, columns = query.measured, query.columns[query.measured]
    full = np.full((2, adata.n_vars, len(requested)), np.nan)
    full[:, columns] = effect[:, measured].T, error[:, measured].T
    group_effects = None
    if groups:
        means = _group_means(query.source, head.mean_depth, groups)
        effects = {name: np.maximum(effect, -means[name])[:, measured].T for name in groups}
        group_effects = GroupEffects(np.array(head.genes, dtype=object)[measured].tolist(), effects)
    profiles = None
    if len(requested) == 1:
        profiles = np.full(adata.shape, np.nan, np.float32)
        for rows, block in _profiles(query.source, head.mean_depth, controls):
            changed = np.maximum(block.toarray() + effect[0], 0)
            profiles[np.ix_(rows, columns)] = changed[:, measured]
    params = {"model_hash": query.model.hash, "layer": query.layer, "groupby": groupby, "kind": head.kind}
    write_perturb(
        adata,
        key_added,
        list(requested),
        *full,
        evidence=head.evidence,
        params=params,
        groups=group_effects,
        profiles=profiles,
    )
    return adata if copy else None


def _predict(
    query: Query, head: PerturbationHead, requested: dict[str, Targets], controls: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Effects and standard errors, the network's own prediction included where it has a weight."""
    answers: dict[str, NDArray[np.float64]] = {}
    if head.stack.weights[-1] > 0:  # the last piece is the network's
        singles = dict.fromkeys(name for targets in requested.values() for name in targets)
        unseen = [name for name in singles if (name,) not in head.perturbations]
        cells = query.source.rows(choose_probes(controls))
        answers = PerturbationToken(query.model, cells, head.names, head.features, head.kind).answers(
            unseen, head.token
        )
    return head.predict(list(requested.values()), answers)


def _controls(adata: AnnData, task: Mapping[str, Any]) -> NDArray[np.int64]:
    key, control = str(task.get("key")), str(task.get("control"))
    if key not in adata.obs:
        return np.arange(adata.n_obs)
    rows = np.flatnonzero(adata.obs[key].astype(str).to_numpy() == control)
    if not rows.size:
        there = sorted(set(adata.obs[key].astype(str)))[:10]
        raise DataError(
            f"No cell has the control label {control!r} in adata.obs[{key!r}]. There: {there}. If all cells are "
            f"unperturbed, drop that column."
        )
    return rows


def _groups(adata: AnnData, groupby: str | None, controls: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    if groupby is None:
        return {}
    if groupby not in adata.obs:
        raise MissingKeyError(f"Did not find adata.obs[{groupby!r}]. There: {[str(name) for name in adata.obs]}.")
    field = ObsField.register(adata, groupby)
    codes = field.transfer(adata)
    found = {name: controls[codes[controls] == i] for i, name in enumerate(field.categories)}
    if lacking := [name for name, rows in found.items() if not rows.size]:
        raise DataError(
            f"The groups {lacking[:5]} of adata.obs[{groupby!r}] have no control cell to start from. Leave out their "
            "cells, or use coarser groups."
        )
    return found


def _profiles(
    source: BlockSource, mean_depth: float, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], sp.csr_matrix]]:
    """log1p profiles of some rows, block by block, with the rows that each block has of them."""
    wanted = np.zeros(source.n_obs, dtype=bool)
    wanted[rows] = True
    for block in source.blocks():
        at = np.flatnonzero(wanted[block.start : block.start + len(block.depth)])
        if at.size:
            yield block.start + at, log1p_rows(block.counts[at], block.depth[at], mean_depth)


def _group_means(
    source: BlockSource, mean_depth: float, groups: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """Mean log1p profile of the rows of each group, which share no row."""
    group_of = np.full(source.n_obs, -1)
    for i, rows in enumerate(groups.values()):
        group_of[rows] = i
    sums = np.zeros((len(groups), source.n_features))
    for rows, profiles in _profiles(source, mean_depth, np.flatnonzero(group_of >= 0)):
        pick = sp.csr_matrix((np.ones(rows.size), (group_of[rows], np.arange(rows.size))), (len(groups), rows.size))
        sums += (pick @ profiles).toarray()
    return {name: total / len(rows) for (name, rows), total in zip(groups.items(), sums, strict=True)}
