"""``bf.tl.pretrain``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.config import Binning, ModelConfig, TrainConfig
from scbioformers.core import ConfigError, ModelFormatError, StorageError, Vocabulary, check_arguments, seed_from
from scbioformers.data import (
    ExternalTokens,
    ModalitySets,
    ObsField,
    RowReader,
    SharedCells,
    describe_data_sets,
    join_modalities,
    of_modality,
    open_data_sets,
    phenotype_codes,
    register_phenotypes,
    samples_of_sources,
    survey,
    warn_of_sources,
    with_chosen_features,
)
from scbioformers.model import BioFormer, network_bytes
from scbioformers.nn import choose_device, computes, use_threads
from scbioformers.results import check_storage
from scbioformers.settings import shows_progress
from scbioformers.tl._fit_cells import check_keys, warn_of_fields
from scbioformers.tl._fit_settings import require_encoder
from scbioformers.training import check_checkpoint_dir, fit_model, in_one_process

_log = logging.getLogger(__name__)

Source: TypeAlias = AnnData | MuData | str | Path | RowReader


@computes
def pretrain(
    sources: Source | Sequence[Source] | Mapping[str, Source],
    *,
    save_dir: str | Path,
    modalities: Sequence[str] | None = None,
    n_top_features: int | Mapping[str, int] = 4000,
    min_sources: int | Mapping[str, int] | None = None,
    features: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
    gene_symbols: str | Mapping[str, str | None] | None = None,
    phenotype_keys: str | Sequence[str] = (),
    external_key: str | Mapping[str, str] | None = None,
    binning: Literal["value", "segment", "quantile"] | Binning | Mapping[str, str | Binning] | None = None,
    config: Literal["small", "no_attention", "decoder", "paper"] | ModelConfig = "small",
    train: TrainConfig | None = None,
    max_epochs: int | None = None,
    n_models: int = 1,
    allow_non_integer: bool = False,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
) -> BioFormer:
    """Fit one model to many data sets, for other data sets to start from or to be read by (paper, section 4).

    The data sets may measure different genes. A gene that a data set does not measure is absent there, not zero: it has
    no token, no weight and no loss. The data sets are not told apart by the model, because they differ in cell types as
    well as in technique.

    Parameters
    ----------
    sources
        A folder with h5ad and h5mu files and zarr stores, or AnnData, MuData and paths: one, a list, or a mapping from
        names to them. Files of more than 500 MB, all together, are read in blocks of cells and never as a whole. A path
        may also be a collection that annbatch wrote. Cells in a storage of your own are read by a
        :class:`~scbioformers.RowReader`.
    save_dir
        Directory to which the model is saved.
    modalities
        Modalities to read, if a source is a MuData. None reads all. The model then has several modalities, as one of
        :func:`scbioformers.tl.fit` of a MuData, and a source may lack some of them. An AnnData is ``"rna"``, or
        ``"prot"`` if ``var["feature_types"]`` is "Antibody Capture". ``features``, ``layer``, ``gene_symbols``,
        ``external_key`` and ``binning`` are then dicts by modality, such as ``layer={"rna": "counts"}``. What they do
        not name has its default. If no source is a MuData, None reads all of them as genes.
    n_top_features
        Number of genes to model: those that vary most (flavor ``"seurat_v3"`` of scanpy), by the share of the data sets
        in which they are among the first. With several modalities, the number of each, or a dict by modality.
    min_sources
        Number of data sets that must measure a gene. By default half of them. With several modalities, half of those
        that have the modality; or a number for each, or a dict by modality.
    features
        Names of the genes to model, instead of this choice. Names that no data set has are left out, which is logged.
    layer
        Layer to read. None, and ``"X"``, read ``X``.
    gene_symbols
        Column of ``var`` with the names of the genes. Data sets without it are named by ``var_names``.
    phenotype_keys
        Columns of ``obs`` with phenotypes, such as the condition or the age, see :func:`scbioformers.tl.fit`. A column
        means the same in all data sets: its categories are those of all of them, and a number has one unit. A data set
        may lack a column. Its cells are then read as if their value was missing. Of a MuData, it is a column of
        ``mdata.obs``, or such as ``"rna:age"`` that of a modality.
    external_key
        Column of ``var`` with a category of each gene, see :func:`scbioformers.tl.fit`. A gene
        has that of the first data set that has one for it.
    binning
        Binning of the values, see :func:`scbioformers.tl.fit`, or that of another model,
        ``model.binnings["rna"]`` (not quantile bins, which belong to its features). The default is ``"value"``. If a
        source is a MuData, the default is chosen by the values of each modality, which is logged. Values with other
        bins than ``"value"`` must be on the same scale in all sources.
    config
        Architecture of the model: ``"small"``, ``"no_attention"``, ``"decoder"``, ``"paper"`` or a
        :class:`~scbioformers.ModelConfig`.
    train
        Parameters of the training. ``TrainConfig.source_power`` says how often the cells of small data sets are drawn.
    max_epochs
        Number of passes over as many cells as there are. It replaces ``max_epochs`` of ``train``.
    n_models
        Number of ensemble members. Their seeds are ``rng``, ``rng + 1``, ….
    allow_non_integer
        Accept values that are not integers, such as estimated counts.
    rng
        Seed, or :class:`numpy.random.Generator`, for all random choices. None draws a new seed.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    callbacks
        Callbacks of Lightning, which the trainer calls besides its own.
    logger
        Logger of Lightning that gets the losses, such as ``lightning.pytorch.loggers.CSVLogger``.

    Returns
    -------
    :class:`~scbioformers.BioFormer`
        The model, which is also in ``save_dir``. Pass it, or the directory, as ``model=`` to the other functions.

    Raises
    ------
    DataError
        If no data set can be used, too few measure the same genes, or a phenotype is a number in one data set and text
        in another.
    ReadError
        If cells cannot be read from their file during the training. If this happens after a validation, the model with
        the best weights is saved first.
    ConfigError
        If a parameter is out of range, or a path does not exist.
    MissingKeyError
        If no data set has one of ``modalities``, or a column of ``gene_symbols``, ``external_key`` or
        ``phenotype_keys``.
    StorageError
        If ``save_dir`` cannot be written. If this happens after the training, the message names a temporary directory
        with the model.

    Warns
    -----
    BioformersWarning
        If a data set, or one of its modalities, cannot be used, with the reason (the others are used); if two have the
        same cells; if the depth of the cells of a data set is estimated from its modelled genes; if no sample is
        measured in two of several modalities; or if each data set has one value of a phenotype.

    Examples
    --------
    >>> import tempfile
    >>> import scbioformers as bf
    >>> blood = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> other = bf.datasets.simulate(n_cells=50, n_genes=40, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train = bf.TrainConfig(max_steps=2)
    ...     model = bf.tl.pretrain({"blood": blood, "other": other}, save_dir=folder + "/atlas", train=train)
    >>> len(model.vocabulary)
    40

    One model of genes and proteins, from samples that have both and from samples of genes alone:

    >>> both = bf.datasets.simulate(n_cells=60, n_genes=40, n_proteins=6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = bf.tl.pretrain({"both": both, "genes": other}, save_dir=folder + "/atlas", train=train)
    >>> model.modalities
    ('rna', 'prot')
    """
    check_arguments(pretrain, locals())
    start = time.perf_counter()
    model_config = config if isinstance(config, ModelConfig) else ModelConfig.preset(config)
    train = train or (TrainConfig.paper() if config == "paper" else TrainConfig())
    train = train if max_epochs is None else replace(train, max_epochs=max_epochs)
    train.require_trained_parts(bag=model_config.bag)
    _check_positive(n_top_features=n_top_features, n_models=n_models, min_sources=min_sources)
    device, shown = choose_device(device), shows_progress(progress_bar)
    use_threads(model_config.width)
    check_checkpoint_dir(train, save_dir)
    check_storage(0, save_dir)  # the place; the size is known when the genes are chosen
    seed, keys = seed_from(rng), check_keys(None, phenotype_keys)
    given: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "binning": binning, "features": features}
    given |= {"phenotype_keys": keys, "allow_non_integer": allow_non_integer}
    with open_data_sets(sources, modalities, **given, seed=seed) as opened:
        require_encoder(model_config, *(each.binning for each in opened.values()))
        numbers = _of_each("n_top_features", n_top_features, opened, 4000), _of_each("min_sources", min_sources, opened)
        external_keys = of_modality("external_key", external_key, list(opened))
        chosen = with_chosen_features(opened, *numbers, seed)
        vocabulary, external = Vocabulary(()), []
        for name, own in chosen.items():
            vocabulary = vocabulary.extend(own.features or (), name)
            tokens = _external(external_keys[name], opened[name], own.features or ())
            external.append((tokens, len(own.features or ())))
        first = next(iter(chosen.values()))
        samples = samples_of_sources(chosen)
        phenotypes = register_phenotypes(samples, keys)
        n_bytes = network_bytes(model_config, len(vocabulary), first.binning, None, phenotypes)
        check_storage(n_models * n_bytes, save_dir)
        codes = phenotype_codes(phenotypes, samples)
        _warn_of_phenotypes(phenotypes, codes)
        source = join_modalities(chosen, codes)
        described = describe_data_sets(chosen, source)
        shared = SharedCells([each["name"] for each in described], source)
        surveyed = survey(source, train.validation_fraction, seed, shared.add)
        shared.warn()
        _log_sources(described, vocabulary)
        fitted = fit_model(
            source,
            vocabulary,
            first.binning,
            model_config,
            train,
            phenotypes=phenotypes,
            reading=first.reading,
            others={name: (own.binning, own.reading) for name, own in list(chosen.items())[1:]},
            external=ExternalTokens.join(external),
            n_models=n_models,
            seed=seed,
            surveyed=surveyed,
            device=device,
            progress_bar=shown,
            log_validations=True,
            callbacks=callbacks,
            lightning_logger=logger,
        )
    provenance = fitted.model.provenance | {"sources": described}
    model = replace(fitted.model, provenance=provenance)
    in_one_process(train, lambda: _save(model, save_dir))
    if fitted.unread is not None:
        raise fitted.unread  # now that the model is saved
    call = f"bf.tl.fit(adata, model={str(save_dir)!r})` or `bf.tl.embed(adata, model={str(save_dir)!r})"
    if len(model.modalities) > 1:
        call = f"bf.tl.embed(mdata, model={str(save_dir)!r})"
    _log.info("Pre-trained in %.0f s. The next call can be `%s`.", time.perf_counter() - start, call)
    return model


def _check_positive(**values: int | Mapping[str, int] | None) -> None:
    for name, given in values.items():
        for value in given.values() if isinstance(given, Mapping) else [given]:
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1, found {value}.")


def _of_each(argument: str, value: Any, names: Iterable[str], default: int | None = None) -> dict[str, Any]:
    """A number for each modality: that of a dict, or the same for all."""
    if isinstance(value, Mapping):
        return of_modality(argument, value, list(names), default)
    return dict.fromkeys(names, value)


def _warn_of_phenotypes(phenotypes: Sequence[ObsField], codes: Mapping[str, NDArray[np.float32]]) -> None:
    """Warn of phenotypes that cannot be told from another one, or from the sources."""
    warn_of_fields(phenotypes, np.concatenate(list(codes.values())), None)
    warn_of_sources(phenotypes, codes)


def _external(key: str | None, opened: ModalitySets, features: Sequence[str]) -> ExternalTokens | None:
    """External tokens of the features of a modality, if a column is named."""
    return None if key is None else ExternalTokens.of_data_sets(opened.data_sets, key, features)


def _log_sources(described: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> None:
    """Say what the model is trained on."""
    n_cells, sizes = sum(each["n_cells"] for each in described), []
    for name in vocabulary.modalities:
        n_having = sum(name in each.get("modalities", ()) for each in described)
        sizes.append(f"{len(vocabulary.only(name)):,} features of {name!r} in {n_having} of them")
    if len(sizes) == 1:
        sizes = [f"over {len(vocabulary):,} genes"]
    _log.info("Training on %s cells of %d data sets, %s.", f"{n_cells:,}", len(described), ", ".join(sizes))


def _save(model: BioFormer, save_dir: str | Path) -> None:
    """Save the model. If the place cannot be written any more, save it to a temporary one, so that it is not lost."""
    try:
        model.save(save_dir)
    except (StorageError, ModelFormatError) as error:
        place = Path(tempfile.mkdtemp(prefix="scbioformers-")) / "model"
        model.save(place)
        raise StorageError(f"{error} The fitted model is in {str(place)!r}: move this directory.") from error
