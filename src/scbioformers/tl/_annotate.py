"""``bf.tl.annotate``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import check_arguments, seed_from, short_list
from scbioformers.data import FeatureMap, Labels, check_phenotype_values
from scbioformers.model import embed_blocks
from scbioformers.nn import computes
from scbioformers.results import (
    ModalitiesQuery,
    ModelLike,
    Query,
    annotation_key,
    check_annotation_key,
    check_head_storage,
    open_data,
    read_label_colours,
    store_head,
    target,
    write_annotation,
)
from scbioformers.settings import shows_progress
from scbioformers.tasks.annotation import (
    MAX_CELLS,
    USE,
    AnnotationHead,
    Features,
    FittedLabels,
    LabelledCells,
    collect_evidence,
    draw_training,
    fit_annotation,
    head_name,
)
from scbioformers.tl._annotate_labels import check_labels, choose_labels, warn_of_unknown
from scbioformers.tl._annotate_phenotype import annotate_phenotype

logger = logging.getLogger(__name__)


@computes
def annotate(
    adata: AnnData | MuData,
    label_key: str,
    *,
    model: ModelLike | None = None,
    modalities: Sequence[str] | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    phenotype: Mapping[str, Any] | None = None,
    probabilities: bool = False,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Label cells: from some labelled cells to the others, or from a reference to a query.

    Any categorical column of ``adata.obs`` can be learned: cell types, stages, conditions. There are four cases.

    The model was fitted with ``label_key`` among its ``phenotype_keys``
        The model itself predicts it, with this phenotype masked in every cell. Of a number, ``adata.obs[key_added]`` is
        the expected value (float32). The evidence is that of the validation cells of the fit, or of all cells of other
        data that have a value.

    Without ``model``
        The labels of the cells that have one are learned on the embedding of the model in ``adata.uns[key]``. The
        other cells get a label. The result of this step, a *head*, is stored beside the model. If no cell is labelled,
        a head of an earlier call is used.
    ``model`` with a head for ``label_key``
        The cells of ``adata`` are labelled as the reference was. An existing column ``adata.obs[label_key]`` is not
        used, except as truth to compare with (:func:`scbioformers.get.annotation_evidence`).
    ``model`` without such a head
        As without ``model``, on the embedding of the given model. It and its directory do not change. The head is
        stored in ``adata.uns[key]``, with the model or with the path of its directory.

    So a reference is labelled once, and its AnnData, or the directory of ``bf.get.model(reference).save(directory)``,
    is the ``model`` for other cells.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data. Or a
        MuData, if the model was fitted to one. Its samples are labelled by all modalities that they have, and all
        columns and results are those of the MuData.
    label_key
        Column of ``adata.obs`` with the labels. Cells with a missing value, ``""``, ``"unassigned"``, ``"unknown"`` or
        ``"nan"`` (in any case) have no label.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    modalities
        Modalities of the MuData to read. None reads those of the model. The model reads the others as not measured.
        ``layer``, ``gene_symbols`` and ``feature_map`` are dicts by modality.
    layer
        Layer to read. By default, the layer that the model was fitted on if ``adata`` has it, else ``adata.X``.
        ``"X"`` reads ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in the model, such as orthologues of another
        species. Names that it does not have stay as they are. If several genes have one name in the model, or a gene
        has several, the gene that most cells express is used.
    phenotype
        Values of phenotypes of the model that are set in all cells, such as ``{"condition": "stim"}``, instead of those
        in ``adata.obs``. None stands for "not known".
    probabilities
        Also store the probabilities of all labels.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    key
        Key of the model in ``adata.uns``.
    key_added
        Key under which the results are stored (see Returns). By default ``f"bioformer_{label_key}"``, so several
        columns of labels can stand side by side.
    rng
        Seed, or :class:`numpy.random.Generator`, of the folds, and of the choice of at most 20,000 labelled cells to
        learn from. None draws a new seed.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.obs[key_added]`` : categorical (n_obs,)
        The label. Cells from which labels were learned keep theirs. The categories, their order and their colours
        (``adata.uns[f"{key_added}_colors"]``, if the reference has colours) are those of the reference. A cell that is
        unlike all labelled cells is ``"unknown"``, a category that is only there if it is used.
    ``adata.obs[f"{key_added}_probability"]`` : float32 (n_obs,)
        Calibrated probability of the label, 0 to 1. For cells from which the labels were learned, it is that of their
        given label by a classifier that was fitted without them: a low value points to a label that may be wrong. For
        ``"unknown"`` cells it is the highest of all labels. NaN if the label has no other cell to learn from.
    ``adata.obsm[f"{key_added}_probabilities"]`` : :class:`~pandas.DataFrame`, float32 (n_obs, K)
        Probability of each of the K labels by the classifier, only with ``probabilities=True``.
        :func:`scbioformers.get.annotation` reads it back.
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON string with the hashes of the model and of the head, ``label_key``, …) and ``evidence``, which
        :func:`scbioformers.get.annotation_evidence` reads and :func:`scbioformers.pl.annotation` shows.
    ``adata.uns[key]["heads"]`` : dict
        The head, beside the model, if labels were learned. The hash of the model does not change.

    Raises
    ------
    MissingKeyError
        If the model, the layer, the column of labels or a column of ``adata.obs`` that the model uses is not found.
    DataError
        If there are neither labels nor a head, all labels are the same, or they are numbers. Also if the values are on
        another scale than the training data, or ``adata`` has too few genes of the model.
    ConfigError
        If ``key_added`` would overwrite the labels, a model or the counts, ``adata.uns[key]`` holds another model than
        the given one, the given model is too large for ``adata.uns``, or the device is not available.
    ModelFormatError
        If the head was made for another network, or is damaged.

    Warns
    -----
    BioformersWarning
        If a label has fewer than five cells, or genes of the model are missing in ``adata``. Also if more than half of
        the cells of other data are ``"unknown"``: these data differ from the labelled cells as a whole.

    Notes
    -----
    The label comes from a multinomial logistic regression on the latent and the ``<cls>`` vector. The second has less
    weight, because it differs more between data sets. In five folds over the labelled cells, each cell is predicted by
    a regression without it. These predictions give the evidence, and a *temperature*, by which all logits are divided
    so that the probabilities are right.

    A cell is ``"unknown"`` if it is further from the labelled cells than 99 % of these are when they are left out. So 1
    in 100 cells of the known types is expected to be called unknown. Two numbers are added for it, each in standard
    deviations of the labelled cells: the Mahalanobis distance to the nearest label in the latent, and how badly all
    labels fit (the energy, ``-logsumexp`` of the logits). Cells of a type that the model has not seen in its fit can be
    near to a known type, so not all of them are found. Cells without a count are always ``"unknown"``.

    Data of another technique move in the latent as a whole, beyond this distance. Then ``"unknown"`` says little about
    a single cell. With ``probabilities=True``, the most probable label of each cell, whatever its distance, is
    ``bf.get.annotation(adata, label_key).iloc[:, 2:].idxmax(axis=1)``. Check such labels with marker genes.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> adata.obs["type"] = adata.obs["cell_type"].where(adata.obs["cell_type"].cat.codes < 3)
    >>> bf.tl.annotate(adata, "type")
    >>> adata.obs["bioformer_type"].notna().all()
    np.True_
    """
    check_arguments(annotate, locals())
    check_phenotype_values(phenotype)
    key_added, seed = annotation_key(label_key, key_added), seed_from(rng)
    query = open_data(
        adata,
        model,
        modalities=modalities,
        layer=layer,
        gene_symbols=gene_symbols,
        feature_map=feature_map,
        key=key,
        device=device,
        phenotype=phenotype,
    )
    check_annotation_key(adata, key_added, label_key)
    if any(each.name == label_key for each in query.model.phenotypes):
        options: dict[str, Any] = {"probabilities": probabilities, "progress_bar": shows_progress(progress_bar)}
        return annotate_phenotype(adata, label_key, query, key_added, **options, copy=copy)
    head, labels = choose_labels(adata, label_key, query, key)
    empty = np.concatenate([block.n_expressed for block in query.source.blocks()]) == 0
    learned_from = np.flatnonzero((labels.codes >= 0) & ~empty)
    if head is None:
        check_labels(labels, learned_from, label_key)
        check_head_storage(adata, key, query.model, model)
    adata = target(adata, copy)
    use, shown = USE if head is None else head.use, shows_progress(progress_bar)
    embedding = embed_blocks(query.model, query.source, use=use, progress_bar=shown)
    blocks: Iterator[tuple[int, NDArray[np.float32]]] = ((block.start, block.values) for block in embedding)
    learned: FittedLabels | None = None
    if head is None:
        learned_from = learned_from[draw_training(labels.codes[learned_from], len(labels.categories), MAX_CELLS, seed)]
        features = Features()
        for _, values in blocks:
            features.add(values)
        blocks = features.blocks()
        learned = fit_annotation(
            features.take(learned_from),
            labels.codes[learned_from],
            labels.categories,
            n_latent=query.model.config.n_latent * len(query.model.members),
            label_key=label_key,
            network=query.model.hash,
            colours=read_label_colours(adata, label_key),
            batches=_batches(adata, query, learned_from),
            seed=seed,
        )
        head = learned.head
        store_head(adata, key, query.model, model, head_name(label_key), head.to_head())
    found = LabelledCells.of(head, blocks, empty, None if learned is None else labels.codes, all_labels=probabilities)
    if learned is not None:
        found.probability[learned_from] = learned.probability
    params: dict[str, Any] = {"model_hash": query.model.hash, "head_hash": head.to_head().hash, "label_key": label_key}
    params |= {"layer": query.layer, "learned": learned is not None, "seed": None if learned is None else seed}
    evidence = head.evidence if learned is not None else _compare(adata, query, head, found, labels)
    write_annotation(
        adata,
        key_added,
        found.codes,
        head.categories,
        found.probability,
        probabilities=found.probabilities,
        colours=head.colours,
        params=params,
        evidence=evidence,
    )
    _log_summary(found, evidence, label_key, key_added, labels, head)
    if learned is None:
        warn_of_unknown(found.codes[~empty], label_key, key_added, probabilities)
    return adata if copy else None


def _batches(
    adata: AnnData | MuData, query: Query | ModalitiesQuery, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Which of the cells ``rows`` belong to each batch of the model. Empty if it has none, or the data have not."""
    batch = query.model.batch
    if batch is None or batch.name not in adata.obs:
        return {}
    codes = batch.transfer(adata, allow_missing=True)[rows]
    return {name: codes == i for i, name in enumerate(batch.categories)}


def _compare(
    adata: AnnData | MuData,
    query: Query | ModalitiesQuery,
    head: AnnotationHead,
    found: LabelledCells,
    labels: Labels,
) -> Mapping[str, Any]:
    """The evidence for labels of other cells: how they agree with given ones, else that of the reference.

    Given labels of which the reference has none are not compared: they name the types in another way.
    """
    rows = np.flatnonzero(labels.codes >= 0)
    if not set(labels.categories) & set(head.categories):
        return {**head.evidence, "source": "reference"}
    evidence = collect_evidence(
        labels.codes[rows],
        found.codes[rows],
        found.probability[rows].astype(np.float64),
        labels.categories,
        head.categories,
        batches=_batches(adata, query, rows),
    )
    return {"source": "query", **evidence}


def _log_summary(
    found: LabelledCells, evidence: Mapping[str, Any], label_key: str, key: str, labels: Labels, head: AnnotationHead
) -> None:
    """Say how many cells are labelled, and from which cells the score comes: not always from those just labelled."""
    n_cells, n_given, score = len(found.codes), int((labels.codes >= 0).sum()), evidence["macro_f1"]
    labelled = f"{n_cells} cells are labelled by the reference"
    if evidence["source"] == "cross-validation":
        labelled = f"{n_given} cells keep their label, {n_cells - n_given} are labelled"
        scored = f"In a cross-validation over the labelled cells, the macro-F1 is {score:.3f}."
    elif evidence["source"] == "query":
        foreign = sorted(set(evidence["rows"]) - set(evidence["columns"]))
        scored = f"Compared with the {n_given} labels in adata.obs[{label_key!r}], the macro-F1 is {score:.3f}."
        if foreign:
            scored += f" The reference has no label {short_list(foreign)}, so these cells count as wrong."
    else:
        scored = f"These cells have no {label_key!r} to compare with."
        if labels.categories:
            scored = (
                f"adata.obs[{label_key!r}] has other names, {short_list(labels.categories, 3)}, than the reference, "
                f"{short_list(head.categories, 3)}. So they are not compared."
            )
        scored += (
            f" In a cross-validation over the cells of the reference, the macro-F1 was {score:.3f}; in other data it "
            "can be much lower."
        )
    if unknown := int((found.codes < 0).sum()):
        labelled += f", of which {unknown} are unlike all cells with a known label (unknown)"
    logger.info(
        "adata.obs[%r]: %s. %s The next call can be `bf.pl.annotation(adata, %r)`.",
        key,
        labelled,
        scored,
        label_key,
    )
