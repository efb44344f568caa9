"""Evidence for predictions under another phenotype: fits without the cells of a group that have it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.baselines import linear_effect, mean_effect
from scbioformers.config import Binning, Masking, ModelConfig, TrainConfig
from scbioformers.core import ConfigError, DataError, tqdm
from scbioformers.data import MemorySource, check_phenotype
from scbioformers.results import Query, find_fit, open_query
from scbioformers.tasks import Effects, compare, decode_blocks, which_have
from scbioformers.tl._fit import fit

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
MIN_CELLS = 20  # with and without the phenotype, so that the measured effect is more than noise
METHODS = ("model", "mean of the other groups", "linear")


def collect_counterfactual_evidence(
    adata: AnnData,
    query: Query,
    phenotype: Mapping[str, Any],
    groups: NDArray[np.str_],
    codes: NDArray[np.int64],
    key: str,
    progress_bar: bool,
) -> pd.DataFrame:
    """Table with a row for each group and method: ``group``, ``method``, ``n_cells``, ``pearson`` and ``rmse``.

    ``n_cells`` is the number of cells that were left out. The measured effect is the difference of the mean profiles of
    the cells of the group with and without the phenotype.
    """
    if query.model_given:
        raise ConfigError(
            "`evidence=True` fits the model again, which needs the AnnData of its fit. Leave out `model`."
        )
    changed = check_phenotype(query.model.fields, query.model.batch, phenotype)
    parts = [which_have(query.model, block, changed) for block in query.source.blocks()]
    has, lacks = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    n = np.array([[(rows & (codes == i)).sum() for rows in (has, lacks)] for i in range(len(groups))])
    scored = np.flatnonzero((n >= MIN_CELLS).all(axis=1))
    if len(scored) < 2:
        raise DataError(
            f"{len(scored)} of {len(groups)} groups have at least {MIN_CELLS} cells with and without this phenotype, "
            "expected two: the effect on a group is compared with that on the others. Pass another `groupby`, or leave "
            "out `evidence`."
        )
    logger.info("Evidence: %d fits, one without the cells of each group that have the phenotype.", len(scored))
    profiles = _profiles(query)
    controls, effects = np.zeros((2, len(scored), profiles.shape[1]))
    for row, i in enumerate(scored):
        controls[row] = profiles[lacks & (codes == i)].mean(axis=0)
        effects[row] = profiles[has & (codes == i)].mean(axis=0) - controls[row]
    table, began = [], time.perf_counter()
    for row, i in enumerate(tqdm(scored, desc="Evidence", unit="fit", disable=not progress_bar)):
        own = codes == i
        predicted = _fit_without(adata, query, phenotype, has & own, lacks & own, key)
        others = np.arange(len(scored)) != row
        baselines = mean_effect(effects[others]), linear_effect(controls[others], effects[others], controls[row])
        for method, (pearson, rmse) in zip(METHODS, compare([predicted, *baselines], effects[row]), strict=True):
            table.append((str(groups[i]), method, int(n[i, 0]), pearson, rmse))
        if row == 0 and len(scored) > 1:
            minutes = (time.perf_counter() - began) * (len(scored) - 1) / 60
            logger.info("The other %d fits will take about %.1f minutes.", len(scored) - 1, minutes)
    return pd.DataFrame(table, columns=["group", "method", "n_cells", "pearson", "rmse"])


def _profiles(query: Query) -> NDArray[np.float32]:
    """(N, M), measured profiles on the scale of the decoded ones."""
    tokenizer = query.model.tokenizer
    return np.concatenate([tokenizer.profiles(block).toarray().astype(np.float32) for block in query.source.blocks()])


def _fit_without(
    adata: AnnData,
    query: Query,
    phenotype: Mapping[str, Any],
    left_out: NDArray[np.bool_],
    asked: NDArray[np.bool_],
    key: str,
) -> Array:
    """(M,), effect on the cells ``asked`` of a model that was fitted without those that are ``left_out``."""
    params, _ = find_fit(adata, key)
    if params["started_from"] is not None:
        raise ConfigError(
            "`evidence=True` fits the model again, and this one was trained further from another model, which these "
            "fits would not know. Leave out `evidence`, or fit a model without `model=`."
        )
    modelled = np.zeros(adata.n_vars, bool)
    modelled[query.columns[query.measured]] = True
    kept = adata[~left_out].copy()
    kept.uns = {}
    known: dict[str, Any] = {"layer": query.layer, "gene_symbols": params["gene_symbols"]}
    with _without_messages():
        fit(
            kept,
            **known,
            mask_var=modelled,
            batch_key=params["batch_key"],
            phenotype_keys=params["phenotype_keys"],
            binning=Binning.from_dict({**params["binning"], "mean_depth": None, "max_bin": None}),
            config=ModelConfig.from_dict(params["config"]),
            train=TrainConfig(**{**params["train"], "masking": Masking.from_dict(params["train"]["masking"])}),
            n_models=params["n_models"],
            rng=params["seed"],
            allow_non_integer=query.model.reading.allow_non_integer,
            progress_bar=False,
        )
    again = open_query(kept, None, **known)
    model, cells = again.model, MemorySource(again.source.rows(np.flatnonzero(asked[~left_out])))
    effects = Effects(1, len(model.members), len(model.vocabulary))
    for block in decode_blocks(model, cells, check_phenotype(model.fields, model.batch, phenotype)):
        effects.add(block, np.zeros(len(block.differs), np.int64))
    return effects.mean()[0]


@contextmanager
def _without_messages() -> Iterator[None]:
    """Leave out what each of many fits would log, such as a next call, which is none for a model that is not kept."""
    package = logging.getLogger("scbioformers")
    level = package.level
    package.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        package.setLevel(level)
