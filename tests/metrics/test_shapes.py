"""Arrays of a wrong length, to every public function of ``bf.metrics``: an error with both shapes, never broadcast."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scbioformers as bf
from scbioformers.core import DataError, check_shapes

N, M, K, T = 24, 4, 3, 5
random = np.random.default_rng(0)
COUNTS = sparse.csr_matrix(random.integers(0, 4, size=(N, M)).astype(float))
PROBABILITY = random.dirichlet(np.ones(5), size=N)
NAMES = list("ABCD")
EDGES = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"]})


def values(*shape):
    return random.normal(size=shape)


def bools(*shape):
    return random.random(shape) < 0.2


FEATURES = {"training": (values(T, M), "TM"), "features": (values(T, 6), "TF"), "new_features": (values(K, 6), "KF")}
EVENTS = {"probability": (PROBABILITY[:, 0], "N"), "outcome": (bools(N), "N")}
REGULATORS = {"X": (values(N, M), "NM")}
#: Arrays of each function with one letter for each axis, and other arguments. Equal letters: equal lengths.
CASES = {
    "additive": ({"singles": (values(K, 2, M), "KSM")}, {}),
    "calibration_curve": (EVENTS, {}),
    "calibration_error": (EVENTS, {}),
    "compare_with_null": ({"null": (values(9), "N")}, {"observed": 1.0}),
    "edge_enrichment": (
        {"weights": (values(M, 2), "GR"), "genes": (NAMES, "G"), "regulators": (NAMES[:2], "R")}, {"truth": EDGES},
    ),
    "embedding_scores": ({"X": (values(N, 3), "ND"), "labels": (np.repeat([0, 1], N // 2), "N")}, {}),
    "expression_edges": (REGULATORS, {}),
    "genie3_edges": (REGULATORS, {"n_trees": 1}),
    "grn_scores": (
        {"weights": (values(M, 2), "GR"), "genes": (NAMES, "G"), "regulators": (NAMES[:2], "R")}, {"truth": EDGES},
    ),
    "interval_coverage": ({"cdf_below": (PROBABILITY[:, 0], "N"), "cdf_at": (PROBABILITY[:, :2].sum(1), "N")}, {}),
    "jaccard_top": ({"a": (values(M, M), "GR"), "b": (values(M, M), "GR")}, {"k": 3}),
    "knn_features": (FEATURES, {}),
    "linear_bilinear": (
        {"training": (values(T, M), "TM"), "own": (bools(T, M), "TM"), "new_own": (bools(K, M), "KM")}, {},
    ),
    "log1p_normalize": ({"counts": (COUNTS.toarray(), "NM"), "depth": (np.full(N, 9.0), "N")}, {}),
    "masked_scores": (
        {"log_probabilities": (np.log(PROBABILITY), "HV"), "target": (np.arange(N) % 5, "H"),
         "genes": (np.arange(N) % 3, "H")}, {"cutoff": 2},
    ),
    "mlp_features": (FEATURES, {}),
    "natural_log_probabilities": ({"log_probabilities": (np.log(PROBABILITY), "HV"), "odds": (np.ones(N), "H")}, {}),
    "no_change": ({"training": (values(T, M), "TM")}, {"n": 2}),
    "paired_bootstrap": ({"ours": (values(K), "K"), "theirs": (values(K), "K")}, {}),
    "pca": ({"X": (values(N, M), "NM")}, {"n_components": 2}),
    "pca_binned": ({"bins": (values(N, M), "NM")}, {"n_components": 2}),
    "pca_log1p": ({"counts": (COUNTS.toarray(), "NM"), "depth": (np.full(N, 9.0), "N")}, {"n_components": 2}),
    "pearson_edges": (REGULATORS, {}),
    "perturbation": (
        {"predicted": (values(K, M), "KM"), "observed": (values(K, M), "KM"), "control": (values(M), "M"),
         "perturbed_mean": (values(M), "M"), "own": (bools(K, M), "KM"), "ranking": (values(K, M), "KM"),
         "others": (values(T, M), "LM"), "others_own": (bools(T, M), "LM")}, {},
    ),
    "poisson_loss": ({"rate": (np.ones((N, M)), "NM"), "held": (COUNTS, "NM")}, {}),
    "ridge_features": (FEATURES, {}),
    "similarity_between": (
        {"first": (values(K, M), "KM"), "second": (values(K, M), "KM"), "own": (bools(K, M), "KM")}, {},
    ),
    "spearman_edges": (REGULATORS, {}),
    "split_half": ({"first": (values(K, M), "KM"), "second": (values(K, M), "KM"), "own": (bools(K, M), "KM")}, {}),
    "target_falls": ({"own": (bools(K, M), "KM")}, {}),
    "thin_counts": ({"counts": (COUNTS, "NM")}, {"fraction": 0.5, "seed": 0}),
    "top_label_calibration_error": ({"probabilities": (PROBABILITY, "NV"), "target": (np.arange(N) % 5, "N")}, {}),
    "training_mean": ({"training": (values(T, M), "TM")}, {"n": 2}),
    "MaskedCells": (
        {"visible": (COUNTS, "NM"), "depth": (np.full(N, 9.0), "N"), "cells": (np.arange(8), "H"),
         "genes": (np.arange(8) % M, "H"), "bins": (np.ones(8, int), "H")}, {},
    ),
}  # fmt: skip
MASKED = ["bin_histogram", "constant_bin", "knn_smoothing", "linear_predictions", "linear_regression", "low_rank",
          "negative_binomial", "softmax_regression"]  # fmt: skip
TABLES = {"degree_preserving_null", "enrichment"}  # no arrays


def resized(array, axis, length):
    """The array with another length of one axis; what is too much repeats the first entries."""
    at = np.arange(length) % np.shape(array)[axis]
    if isinstance(array, list):
        return [array[i] if j < len(array) else f"new{j}" for j, i in enumerate(at)]
    return array[at] if axis == 0 else array.take(at, axis) if isinstance(array, np.ndarray) else array[:, at]


def wrong_calls():
    for name, (arrays, others) in CASES.items():
        letters = [letter for _, axes in arrays.values() for letter in axes]
        for argument, (array, axes) in arrays.items():
            for axis, letter in enumerate(axes):
                n = np.shape(array)[axis]
                for length in sorted({n - 1, n + 1, 1}) if letters.count(letter) > 1 else ():
                    changed = resized(array, axis, length)
                    with_it = {each: value for each, (value, _) in arrays.items()} | {argument: changed}
                    partners = [np.shape(value) for each, (value, found) in arrays.items()
                                if each != argument and letter in found]  # fmt: skip
                    yield pytest.param(name, with_it | others, np.shape(changed), partners,
                                       id=f"{name}-{argument}-{axis}-{length}")  # fmt: skip


def says(message, shape) -> bool:
    """Whether a message has a shape; a list of names is told by its number."""
    return str(shape) in message or (len(shape) == 1 and re.search(rf"\b{shape[0]} (genes|regulators)\b", message))


@pytest.mark.fault(79)
def test_every_public_function_is_tried():
    functions = {name for name in bf.metrics.__all__ if inspect.isfunction(getattr(bf.metrics, name))}
    assert functions == {*CASES, *MASKED, *TABLES} - {"MaskedCells"}
    for name, (arrays, others) in CASES.items():  # the calls that are made wrong below are right
        getattr(bf.metrics, name)(**{each: value for each, (value, _) in arrays.items()}, **others)


@pytest.mark.fault(79)
@pytest.mark.parametrize(("name", "arguments", "shape", "partners"), list(wrong_calls()))
def test_a_wrong_length_is_an_error_with_both_shapes(name, arguments, shape, partners):
    with pytest.raises(DataError) as caught:
        getattr(bf.metrics, name)(**arguments)
    assert says(str(caught.value), shape)
    assert any(says(str(caught.value), partner) for partner in partners)


@pytest.mark.fault(79)
@pytest.mark.parametrize("name", CASES)
def test_a_missing_axis_is_an_error(name):
    arrays, others = CASES[name]
    for argument, (array, axes) in arrays.items():
        if isinstance(array, np.ndarray) and len(axes) > 1:
            arguments = {each: value for each, (value, _) in arrays.items()} | {argument: array[0]}
            with pytest.raises(DataError, match=re.escape(f"has the shape {array[0].shape}")):
                getattr(bf.metrics, name)(**arguments, **others)


@pytest.mark.fault(79)
@pytest.mark.parametrize("name", MASKED)
def test_other_genes_than_in_training(name):
    def masked(n_genes):
        visible = sparse.csr_matrix(np.ones((N, n_genes)))
        return bf.metrics.MaskedCells(visible, np.full(N, 9.0), np.arange(N), np.arange(N) % 2, np.ones(N, int))

    binning = bf.Binning(normalize=False).freeze(mean_depth=9.0, max_bin=3)
    train = bf.metrics.TrainingCells(COUNTS, np.full(N, 9.0), binning, (masked(M),))
    for n_genes in (M - 1, M + 1, 2):
        with pytest.raises(
            DataError, match=rf"`test.visible` has the shape \({N}, {n_genes}\); expected .*\({N}, {M}\)"
        ):
            getattr(bf.metrics, name)(train, masked(n_genes), **({"value": 1} if name == "constant_bin" else {}))
    for depth, draw in ((np.ones(1), masked(M)), (np.full(N, 9.0), masked(M - 1))):
        with pytest.raises(DataError, match=rf"has the shape .*because `counts` has the shape \({N}, {M}\)"):
            bf.metrics.TrainingCells(COUNTS, depth, binning, (draw,))


@pytest.mark.fault(79)
def test_defaults_of_the_centroid_score_have_the_rows_of_the_predictions():
    arrays = {each: value for each, (value, _) in CASES["perturbation"][0].items()}
    for left_out in ("others", "others_own"):
        with pytest.raises(DataError, match=rf"has the shape \({T}, {M}\); expected \({K}, {M}\)"):
            bf.metrics.perturbation(**{each: value for each, value in arrays.items() if each != left_out})


def test_check_shapes():
    check_shapes(a=(COUNTS, "NM"), b=(None, "X"), c=([1.0] * N, "N"))
    with pytest.raises(DataError, match=r"`b` has the shape \(3,\); expected \(K, M\)\.$"):
        check_shapes(b=(np.zeros(3), "KM"))
    with pytest.raises(DataError, match=r"`c` has the shape \(1, 1\); expected \(24,\), because `a` has the shape"):
        check_shapes(a=(COUNTS, "NM"), c=([[1.0]], "N"))
    with pytest.raises(DataError, match=r"`a` has rows of different lengths"):
        check_shapes(a=([[1.0], [1.0, 2.0]], "NM"))
