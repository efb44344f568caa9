"""``bf.tl.perturb``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, Names, check_arguments, log1p_rows
from scbioformers.data import BlockSource, FeatureMap, ObsField
from scbioformers.nn import computes
from scbioformers.results import ModelLike, Perturbed, Query, check_perturb_key, open_query, target, write_perturb
from scbioformers.settings import shows_progress
from scbioformers.tasks.perturbation import (
    PerturbationHead,
    Targets,
    TokenPredictor,
    choose_probes,
    control_rows,
    observed_effects,
    requested_targets,
    require_head,
)

logger = logging.getLogger(__name__)


@computes
def perturb(
    adata: AnnData,
    perturbations: Names,
    *,
    model: ModelLike | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    feature_map: FeatureMap | None = None,
    key: str = "bioformer",
    key_added: str = "perturbed",
    device: str = "auto",
    progress_bar: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Predict the response to perturbations, also of genes that were never perturbed in the training data.

    It implements section 3.3 of the paper. The prediction starts from control cells. If ``adata`` has the perturbation
    column of the fit, these are the cells with the control label. Otherwise, all cells are control cells. If the
    training data contain the perturbation itself, it is *seen*. The result is then a weighted mean of the predicted and
    the measured effect. The weights depend on their standard errors. So a seen effect says nothing about the accuracy
    of predictions; the cross-validated prediction, which is stored beside it, does.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data.
    perturbations
        A gene, a combination of genes (``"STAT1+IRF1"``), a label of the training data, or a list of these. ``"all"``
        means every gene of the model and every target of the training data.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    groupby
        Column of ``adata.obs``. The effect is also predicted for the control cells of each category. It differs between
        categories because a gene cannot decrease by more than its mean expression.
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

    ``adata.layers[key_added]`` : float32 :class:`~numpy.ndarray` (n_obs, n_vars)
        Only for a single perturbation: predicted profiles of the control cells after the perturbation, as ``log1p`` of
        the counts at the mean depth of the training cells. NaN for other cells and for genes that are not modelled.
    ``adata.varm["perturb_effect"]``, ``adata.varm["perturb_effect_se"]`` : float64 :class:`~numpy.ndarray` (n_vars, K)
        Mean change of expression after each of K perturbations, in log1p units, and its standard error. NaN for genes
        that are not modelled. Read them with :func:`scbioformers.get.perturb`.
    ``adata.uns["perturb"]`` : dict
        ``names``: str array (K,). ``seen``: bool array (K,), whether the perturbation is in the training data.
        ``genes``: str array (G,), the modelled genes of ``adata``. Further effects in log1p units, float64 arrays whose
        rows have the names in ``cross_validated_names``, ``observed_names`` and ``group_names``:
        ``cross_validated_effects`` (n_seen, G), predicted without the cells of the perturbation; ``observed_effects``
        (n_observed, G), measured in ``adata``; ``group_effects`` (n_groups, G, K), with ``groupby``. Read them with
        :func:`scbioformers.get.perturb`. ``evidence`` (JSON string): cross-validated accuracy, read it with
        :func:`scbioformers.get.perturb_evidence`.
        ``own_genes`` and ``params``: JSON strings.

        If ``key_added`` is not the default, it replaces ``perturb`` in the keys of ``adata.uns`` and ``adata.varm``.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` is not found, or the model was fitted without ``task``.
    ConfigError
        If ``perturbations`` is empty or not a label or list of labels, ``key_added`` would overwrite a model or its
        input, or the device is not available.
    DataError
        If a perturbation is not known (the message suggests similar names) or cannot be parsed, ``adata`` or a category
        of ``groupby`` has no control cell, the values are on another scale than the training data, or ``adata`` has too
        few genes of the model.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, ["TF4", "TF1+TF2"])
    >>> adata.varm["perturb_effect"].shape
    (40, 2)
    """
    check_arguments(perturb, locals())
    query = open_query(
        adata, model, layer=layer, gene_symbols=gene_symbols, feature_map=feature_map, key=key, device=device
    )
    check_perturb_key(adata, key_added, query.layer)
    head = require_head(query.model, adata)
    requested = requested_targets(head, perturbations, query.names, query.index)
    controls = control_rows(adata, head)
    groups = _groups(adata, groupby, controls)
    adata = target(adata, copy)
    effect, error = _predict(query, head, requested, controls, shows_progress(progress_bar))
    columns = query.columns[query.measured]
    result = _result(query, head, requested, effect, error)
    observed = observed_effects(adata, query.source, head, requested.values(), query.index)
    result = replace(
        result,
        observed=_by_name(requested, observed, query),
        groups={
            name: np.maximum(effect, -mean)[:, query.measured].T
            for name, mean in _group_means(query.source, head.mean_depth, groups).items()
        },
    )
    profiles = None
    if len(requested) == 1:
        profiles = np.full(adata.shape, np.nan, np.float32)
        for rows, block in _profiles(query.source, head.mean_depth, controls):
            changed = np.maximum(block.toarray() + effect[0], 0)
            profiles[np.ix_(rows, columns)] = changed[:, query.measured]
    params = {"model_hash": query.model.hash, "layer": query.layer, "groupby": groupby, "kind": head.kind}
    params |= {"key": head.task.get("key"), "gene_symbols": query.genes.gene_symbols}
    write_perturb(adata, key_added, result, evidence=head.evidence, params=params, profiles=profiles)
    return adata if copy else None


def _result(
    query: Query,
    head: PerturbationHead,
    requested: dict[str, Targets],
    effect: NDArray[np.float64],
    error: NDArray[np.float64],
) -> Perturbed:
    """The result in the names of the data, without what is measured in these cells."""
    columns, names = query.columns[query.measured], query.stored_names
    full = np.full((2, query.genes.var_names.size, len(requested)), np.nan)
    full[:, columns] = effect[:, query.measured].T, error[:, query.measured].T
    at = {} if head.kind == "drug" else {gene: i for i, gene in enumerate(head.genes)}
    training = {targets: head.cross_validated[i].astype(np.float64) for i, targets in enumerate(head.perturbations)}
    return Perturbed(
        names=list(requested),
        own_genes=[[names[at[name]] for name in targets if name in at] for targets in requested.values()],
        seen=np.array([targets in training for targets in requested.values()]),
        effect=full[0],
        se=full[1],
        genes=[names[i] for i in np.flatnonzero(query.measured)],
        cross_validated=_by_name(requested, training, query),
        observed={},
        groups={},
    )


def _by_name(
    requested: dict[str, Targets], effects: Mapping[Targets, NDArray[np.float64]], query: Query
) -> dict[str, NDArray[np.float64]]:
    """Effects on the measured genes by the name of the perturbation, for those that have one."""
    return {name: effects[targets][query.measured] for name, targets in requested.items() if targets in effects}


def _predict(
    query: Query,
    head: PerturbationHead,
    requested: dict[str, Targets],
    controls: NDArray[np.int64],
    progress_bar: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Effects and standard errors (K, M). The network is only run if its prediction has a weight in the head."""
    answers: dict[str, NDArray[np.float64]] = {}
    if head.weight("network") > 0:
        singles = dict.fromkeys(name for targets in requested.values() for name in targets)
        unseen = [name for name in singles if (name,) not in head.perturbations]
        cells = query.source.rows(choose_probes(controls))
        predictor = TokenPredictor(query.model, cells, head.names, head.features, head.kind)
        answers = predictor.predict(unseen, head.token, progress_bar=progress_bar)
    return head.predict(list(requested.values()), answers)


def _groups(adata: AnnData, groupby: str | None, controls: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    if groupby is None:
        return {}
    if groupby not in adata.obs:
        columns = [str(name) for name in adata.obs]
        raise MissingKeyError(
            f"adata.obs has no column {groupby!r}. Pass one of these columns as `groupby=`: {columns}."
        )
    field = ObsField.register(adata, groupby)
    codes = field.transfer(adata)
    groups = {name: controls[codes[controls] == i] for i, name in enumerate(field.categories)}
    if without_control := [name for name, rows in groups.items() if not rows.size]:
        raise DataError(
            f"The categories {without_control[:5]} of adata.obs[{groupby!r}] have no control cell. Remove their cells, "
            "or pass a column with larger groups as `groupby=`."
        )
    return groups


def _profiles(
    source: BlockSource, mean_depth: float, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], sp.csr_matrix]]:
    """log1p profiles of the cells ``rows``, block by block. Yields the cells of each block and their profiles."""
    requested = np.zeros(source.n_obs, dtype=bool)
    requested[rows] = True
    for block in source.blocks():
        local = np.flatnonzero(requested[block.start : block.start + len(block.depth)])
        if local.size:
            yield block.start + local, log1p_rows(block.counts[local], block.depth[local], mean_depth)


def _group_means(
    source: BlockSource, mean_depth: float, groups: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """Mean log1p profile of each group. A cell is in at most one group."""
    if not groups:
        return {}
    group_of = np.full(source.n_obs, -1)
    for i, rows in enumerate(groups.values()):
        group_of[rows] = i
    sums = np.zeros((len(groups), source.n_features))
    for rows, profiles in _profiles(source, mean_depth, np.flatnonzero(group_of >= 0)):
        pick = sp.csr_matrix((np.ones(rows.size), (group_of[rows], np.arange(rows.size))), (len(groups), rows.size))
        sums += (pick @ profiles).toarray()
    return {name: total / len(rows) for (name, rows), total in zip(groups.items(), sums, strict=True)}
