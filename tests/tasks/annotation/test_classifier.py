"""The classifier of labels: who is learned from, folds, logits, temperature, and evidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from scbioformers.tasks.annotation import collect_evidence
from scbioformers.tasks.annotation._classifier import (
    ABSENT,
    STRENGTH,
    draw_folds,
    draw_training,
    fit_linear,
    fit_temperature,
)


def cells(n: int, n_classes: int, seed: int = 0, distance: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """n cells in 3 dimensions, around one centre for each class."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, n_classes, n)
    return generator.normal(size=(n, 3)) + distance * generator.normal(size=(n_classes, 3))[codes], codes


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(20, 200), st.integers(0, 3))
def test_the_cells_to_learn_from_are_within_the_limit_and_small_classes_are_whole(counts, limit, seed):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = draw_training(codes, len(counts), limit, seed)
    assert len(rows) == len(set(rows.tolist())) <= limit
    assert (np.diff(rows) > 0).all()
    if len(codes) <= limit:
        assert len(rows) == len(codes)
    kept = np.bincount(codes[rows], minlength=len(counts))
    small = np.array(counts) <= limit // (2 * len(counts))
    assert (kept[small] == np.array(counts)[small]).all()


def test_large_classes_keep_their_proportions():
    codes = np.repeat([0, 1, 2], [6000, 3000, 10])
    kept = np.bincount(codes[draw_training(codes, 3, 600, seed=1)])
    # 10 whole; of the others 100 each, and the 390 places that are left divided 5900 : 2900
    assert kept.tolist() == [100 + int(390 * 5900 / 8800), 100 + int(390 * 2900 / 8800), 10]


@given(st.lists(st.integers(0, 23), min_size=1, max_size=5), st.integers(0, 3))
def test_each_class_is_divided_equally_among_the_folds(counts, seed):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = draw_folds(codes, len(counts), seed)
    for c, n in enumerate(counts):
        of_class = np.bincount(folds[codes == c], minlength=5)
        assert of_class.max() - of_class.min() <= 1
        assert of_class.sum() == n
    total = np.bincount(folds, minlength=5)
    assert total.max() - total.min() <= 1


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn(n_classes):
    X, codes = cells(80, n_classes)
    weights, intercepts = fit_linear(X, codes, n_classes)
    expected = LogisticRegression(C=STRENGTH, max_iter=500).fit(X, codes).predict_proba(X)
    np.testing.assert_allclose(softmax(X @ weights.T + intercepts, axis=1), expected, atol=1e-6)


def test_a_class_without_cells_is_never_predicted():
    X, codes = cells(80, 2)
    weights, intercepts = fit_linear(X, 2 * codes, 3)
    p = softmax(X @ weights.T + intercepts, axis=1)
    assert intercepts[1] == ABSENT
    assert p[:, 1].max() < 1e-6
    np.testing.assert_allclose(p[:, [0, 2]], LogisticRegression(C=STRENGTH).fit(X, codes).predict_proba(X), atol=1e-4)


def test_one_class_with_cells_is_certain():
    weights, intercepts = fit_linear(np.ones((4, 3)), np.full(4, 1), 3)
    assert softmax(np.ones(3) @ weights.T + intercepts).tolist()[1] > 1 - 1e-9


def test_the_temperature_is_that_of_the_lowest_loss():
    generator = np.random.default_rng(0)
    true = generator.normal(size=(4000, 3)) * 2
    codes = np.array([generator.choice(3, p=softmax(row)) for row in true])
    temperature = fit_temperature(3 * true, codes)
    assert temperature == pytest.approx(3, rel=0.08)  # logits that are three times too large
    losses = {t: -log_softmax(3 * true / t, axis=1)[np.arange(4000), codes].mean() for t in np.linspace(1, 6, 101)}
    assert temperature == pytest.approx(min(losses, key=losses.get), abs=0.05)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0


def test_evidence_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    true, predicted, confidence = generator.integers(0, 4, 300), generator.integers(0, 4, 300), generator.random(300)
    first = np.arange(300) < 100
    found = collect_evidence(true, predicted, confidence, "abcd", "abcd", batches={"one": first, "two": ~first})
    assert np.array_equal(np.array(found["confusion"])[:, :-1], confusion_matrix(true, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert sum(found["count"]) == 300
    for name, rows in (("one", first), ("two", ~first)):
        part = found["batches"][name]
        assert part["n"] == rows.sum()
        assert part["accuracy"] == pytest.approx(accuracy_score(true[rows], predicted[rows]))
        assert part["macro_f1"] == pytest.approx(f1_score(true[rows], predicted[rows], average="macro"))


def test_the_calibration_error_by_hand():
    confidence = np.array([0.5] * 4 + [0.9] * 10)
    predicted = np.zeros(14, int)
    true = np.array([0, 1, 1, 1] + [0] * 10)
    found = collect_evidence(true, predicted, confidence, "ab", "ab")
    assert found["observed"] == [0.25, 1.0]
    assert found["calibration_error"] == pytest.approx((4 * 0.25 + 10 * 0.1) / 14)


def test_unknown_cells_and_foreign_labels_are_wrong_and_have_no_part_in_calibration():
    true, predicted = np.array([0, 0, 1, 2]), np.array([0, -1, 1, 0])
    found = collect_evidence(true, predicted, np.array([1.0, 0.1, 1.0, 1.0]), ["B", "T", "foreign"], ["B", "T", "NK"])
    assert found["confusion"] == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert found["accuracy"] == 0.5
    # B: 2 * 1 / (2 + 2); T: 2 * 1 / (1 + 1); foreign cannot be predicted
    assert found["macro_f1"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert sum(found["count"]) == 3


def test_evidence_of_unknown_cells_alone():
    found = collect_evidence(np.array([0]), np.array([-1]), np.array([0.4]), ["B"], ["B"])
    assert found["calibration_error"] is None
    assert found["accuracy"] == 0.0
