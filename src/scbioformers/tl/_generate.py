"""``bf.tl.generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from scbioformers.core import ConfigError, check_arguments, seed_from
from scbioformers.data import check_phenotype, check_phenotype_values
from scbioformers.model import on_device
from scbioformers.nn import choose_device, computes, use_threads
from scbioformers.results import ModelLike, find_model, generated_entry
from scbioformers.settings import shows_progress
from scbioformers.tasks import draw_conditions_of_cells, generate_counts, phenotype_values, require_decoder


@computes
def generate(
    data: ModelLike,
    n: int,
    *,
    phenotype: Mapping[str, Any] | None = None,
    depth: float | ArrayLike | None = None,
    batch_size: int = 64,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
) -> AnnData:
    """Draw new cells from a decoder, gene by gene in a random order (paper, section 2.2).

    Generated cells are of use where the truth must be known or many cells are needed: to plan the size of an
    experiment, or to test a method. They are no evidence for anything about real cells: what they show is what the
    model has learned. Privacy is not promised either, they may resemble cells of the training data.

    Parameters
    ----------
    data
        A decoder (``bf.tl.fit(adata, config="decoder")``): the AnnData that it was fitted on, a
        :class:`~scbioformers.BioFormer`, or the directory of a saved model.
    n
        Number of cells.
    phenotype
        Phenotypes of all cells, such as ``{"condition": "stim"}``. None is "not known". Phenotypes that are not named
        are drawn from the training cells, together with the depth.
    depth
        Depth of the cells, in counts over all genes of the training data: a number, or an array (n,). By default drawn
        from the training cells, of those that have the given phenotypes.
    batch_size
        Number of cells that are drawn together. The cells do not depend on it.
    rng
        Seed, or :class:`numpy.random.Generator`. The first cells are the same whatever their number is.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    key
        Key of the model in ``uns``, if ``data`` is an AnnData.

    Returns
    -------
    :class:`~anndata.AnnData` with the n cells and the M genes of the model:

    ``X`` : float32 :class:`~scipy.sparse.csr_matrix` (n, M)
        Counts. They are whole numbers, within the edges of the drawn bins at the depth of the cell.
    ``obs["generated"]`` : bool (n,)
        True. Concatenate with real cells, and it tells them apart.
    ``obs["depth"]`` : float64 (n,)
        Depth of each cell over all genes of the training data. Genes that are not modelled have the rest of it.
    ``obs[name]``
        Each phenotype of the model, as category or number.
    ``uns["generated"]["params"]`` : str
        JSON string with the hash of the model and the arguments.

    Batches are not generated: all cells are of the average one.

    Raises
    ------
    ConfigError
        If the model is an encoder, if it has no such phenotype or category, or if ``n`` or ``depth`` is not positive.
    MissingKeyError
        If there is no model.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, config="decoder", train=bf.TrainConfig(max_steps=2))
    >>> drawn = bf.tl.generate(adata, 10)
    >>> drawn.shape, bool(drawn.obs["generated"].all())
    ((10, 40), True)
    """
    check_arguments(generate, locals())
    check_phenotype_values(phenotype)
    found = find_model(data, None, key) if isinstance(data, AnnData) else find_model(None, data)
    require_decoder(found)
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1, found {value}.")
    depths = None if depth is None else _check_depth(depth, n)
    given = check_phenotype(found.fields, found.batch, phenotype)
    seed, shown = seed_from(rng), shows_progress(progress_bar)
    found = on_device(found, choose_device(device))
    use_threads(found.config.width)
    depths, positions = draw_conditions_of_cells(found, n, given, depths, seed)
    counts = generate_counts(found, depths, positions, seed, batch_size=batch_size, progress_bar=shown)
    obs = {"generated": True, "depth": depths, **phenotype_values(found, positions)}
    names = pd.Index([f"generated_{i}" for i in range(n)])
    params = {"phenotype": dict(phenotype or {}), "depth_given": depth is not None, "seed": seed}
    entry = generated_entry(found.hash, params)
    genes = pd.DataFrame(index=pd.Index(found.vocabulary.feature_names()))
    return AnnData(counts, obs=pd.DataFrame(obs, index=names), var=genes, uns={"generated": entry})


def _check_depth(depth: float | ArrayLike, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The depth as an array of one number, or of n numbers."""
    values = np.asarray(depth, np.float64)
    if values.shape not in ((), (n,)) or not (np.isfinite(values) & (values > 0)).all():
        raise ConfigError(
            f"`depth` must be a positive number, or an array of {n} of them, found {np.shape(depth)} from "
            f"{values.min():g} to {values.max():g}."
        )
    return values
