"""The part of ``bf.pp.check`` that compares the data with a model. It imports torch, so it is imported when needed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData

from scbioformers.core import BioformersWarning, DataError, Match, MissingKeyError
from scbioformers.data import TOTALS, DepthRule, FeatureMap, Inspection, absent_features, find_genes, found_depth
from scbioformers.model import BioFormer, score_cells
from scbioformers.nn import computes
from scbioformers.pp._model_report import DepthSource, ModelReport
from scbioformers.results import find_column, open_query

MAX_SCORED = 500  # cells, a few seconds


@computes
def compare_with_model(
    adata: AnnData,
    model: BioFormer,
    found: Inspection,
    gene_symbols: str | None,
    feature_map: FeatureMap | None,
) -> tuple[ModelReport | None, list[str], list[str]]:
    """What a verb with this model would read: a report, problems, and cautions.

    The report is None if the genes cannot be compared.
    """
    features = model.vocabulary.feature_names()
    column = find_column(model, adata, gene_symbols, feature_map)
    try:
        matched = find_genes(
            features, adata, column, found.gene_nnz, feature_map=feature_map, feature_share=model.gene_share
        )
    except DataError as error:
        return None, [str(error)], []
    problems: list[str] = []
    rule, scores = None, np.zeros(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            query = open_query(
                adata, model, layer=found.layer or "X", gene_symbols=gene_symbols, feature_map=feature_map
            )
            rows = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, MAX_SCORED)).astype(np.int64))
            block = query.source.rows(rows)
            rule, scores = block.rule, score_cells(query.model, block)
        except (DataError, MissingKeyError) as error:
            problems.append(str(error))
    cautions = [str(each.message) for each in caught if issubclass(each.category, BioformersWarning)]
    expressed = int(found.gene_nnz[matched.columns[matched.columns >= 0]].sum()) / max(found.n_obs, 1)
    report = _report(adata, model, matched, expressed, rule, scores[np.isfinite(scores)])
    if report.poorly_known:
        cautions.append(
            f"{report.share_low:.0%} of the cells are less likely than 95 % of the training cells (5 % expected): the "
            "model has hardly seen such cells. A model that is fitted to them describes them better."
        )
    return report, problems, cautions


def _report(
    adata: AnnData,
    model: BioFormer,
    matched: Match,
    expressed: float,
    rule: DepthRule | None,
    scores: np.ndarray[Any, Any],
) -> ModelReport:
    there = [field for field in model.fields if field.name in adata.obs]
    reference = model.score_quantiles
    compared = bool(reference.size and scores.size)
    return ModelReport(
        model=repr(model),
        n_features=len(model.vocabulary),
        n_found=int((matched.columns >= 0).sum()),
        expressed=expressed,
        depth_share=found_depth(matched, model.depth_share),
        absent=tuple(matched.names[i] for i in absent_features(matched, model.depth_share)),
        depth=_depth_source(model, rule),
        batch_key=None if model.batch is None else model.batch.name,
        phenotype_keys=tuple(field.name for field in model.phenotypes),
        missing_columns=tuple(field.name for field in model.fields if field not in there),
        unknown_categories={field.name: tuple(unseen) for field in there if (unseen := field.unseen(adata))},
        n_scored=len(scores),
        score=float(np.median(scores)) if scores.size else np.nan,
        known_score=float(np.quantile(reference, 0.5)) if reference.size else np.nan,
        share_low=float((scores < np.quantile(reference, 0.05)).mean()) if compared else np.nan,
    )


def _depth_source(model: BioFormer, rule: DepthRule | None) -> DepthSource | None:
    if rule is None or not model.reading.counts:
        return None if rule is None else "unused"
    if rule.modelled_only:
        return "modelled genes"
    return "total" if rule == TOTALS else "corrected total"
