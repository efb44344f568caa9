"""The head of labels: learned from arrays, compared with a slow implementation, stored and read back."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.special import softmax
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from scbioformers.core import ModelFormatError
from scbioformers.model import Head
from scbioformers.tasks.annotation import AnnotationHead, _fit, fit_annotation
from scbioformers.tasks.annotation._classifier import STRENGTH, draw_folds
from scbioformers.tasks.annotation._known_cells import distance, energy, fit_classes, standards, unlikeness

NAMES = ("B", "NK", "γδ T")
GIVEN = {"n_latent": 4, "label_key": "type", "network": "abc"}


def draw(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n cells of 3 classes in 6 dimensions of different scales."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 3, n)
    centres = np.random.default_rng(7).normal(size=(3, 6)) * 2
    features = (generator.normal(size=(n, 6)) + centres[codes]) * [1, 2, 3, 1, 0.5, 1] + 10
    return features.astype(np.float32), codes


def standardise(X: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Slow: the first two columns have the mean variance 0.09, the others 1."""
    other = X if other is None else other
    scaled = np.empty(other.shape)
    for columns, wanted in (([0, 1], 0.3), ([2, 3, 4, 5], 1.0)):
        unit = np.sqrt(np.mean([np.var(X[:, j]) for j in columns]))
        for j in columns:
            scaled[:, j] = (other[:, j] - X[:, j].mean()) / unit * wanted
    return scaled


def test_out_of_fold_probabilities_equal_a_slow_implementation():
    features, codes = draw()
    fitted = fit_annotation(features, codes, NAMES, **GIVEN, seed=3)
    X = standardise(features.astype(np.float64))
    folds, slow, hits = draw_folds(codes, 3, 3), np.empty(len(codes)), 0
    for i in range(len(codes)):
        train = folds != folds[i]
        fit = LogisticRegression(C=STRENGTH, max_iter=500).fit(X[train], codes[train])
        logits = fit.decision_function(X[i : i + 1])[0]
        slow[i] = softmax(logits / fitted.head.temperature)[codes[i]]
        hits += logits.argmax() == codes[i]
    np.testing.assert_allclose(fitted.probability, slow, atol=1e-4)
    assert fitted.head.evidence["accuracy"] == pytest.approx(hits / len(codes))
    assert fitted.head.evidence["source"] == "cross-validation"


def test_predictions_are_those_of_scikit_learn():
    features, codes = draw()
    head = fit_annotation(features, codes, NAMES, **GIVEN).head
    X = features.astype(np.float64)
    other, _ = draw(50, seed=1)
    fit = LogisticRegression(C=STRENGTH, max_iter=500).fit(standardise(X), codes)
    expected = softmax(fit.decision_function(standardise(X, other)) / head.temperature, axis=1)
    np.testing.assert_allclose(head.predict(other)[0], expected, atol=1e-4)


def test_the_distance_is_that_of_mahalanobis():
    X, codes = draw()
    X = X.astype(np.float64)
    means, axes = fit_classes(X, codes)
    centres = np.stack([X[codes == c].mean(axis=0) for c in range(3)])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(X - centres[codes]).covariance_)
    other = draw(20, seed=2)[0].astype(np.float64)
    expected = [min(mahalanobis(x, centre, precision) for centre in centres) for x in other]
    np.testing.assert_allclose(distance(other, means, axes), expected, rtol=1e-3)
    # a class without cells has no mean
    assert fit_classes(X, 2 * codes)[0].shape == (3, 6)


def test_one_cell_for_each_class():
    X = np.random.default_rng(0).normal(size=(4, 3))
    means, axes = fit_classes(X, np.arange(4))
    np.testing.assert_allclose(distance(X, means, axes), 0, atol=1e-6)
    np.testing.assert_allclose(distance(X + np.array([3, 0, 0]), X[:1], axes)[0], 3, rtol=1e-3)


def test_one_of_a_hundred_ordinary_cells_is_unlike_the_labelled_ones():
    features, codes = draw(2000)
    head = fit_annotation(features, codes, NAMES, **GIVEN).head
    others, _ = draw(4000, seed=5)
    assert (head.predict(others)[1] > head.threshold).mean() == pytest.approx(0.01, abs=0.006)
    for direction in np.eye(6, dtype=np.float32)[2:]:  # the first two columns are only classified
        for far in (others + 100 * direction, others - 100 * direction):
            assert (head.predict(far)[1] > head.threshold).all()  # also where the logits are high


def test_unlikeness_by_hand():
    known = np.array([1.0, 3.0]), np.array([-6.0, -2.0])
    standard = standards(*known)
    assert standard.tolist() == [[2, 1], [-4, 2]]
    # distance 2 sd above the mean; energy 1 sd above, and 10 sd below, which counts as 1
    found = unlikeness(np.array([4.0, 4.0]), np.array([-2.0, -24.0]), standard)
    assert found.tolist() == [3, 1]
    assert energy(np.log([[1.0, 3.0]])).tolist() == pytest.approx([-np.log(4)])


def test_probabilities_are_calibrated():
    features, codes = draw(600)
    head = fit_annotation(features, codes, NAMES, **GIVEN).head
    others, truth = draw(4000, seed=6)
    p = head.predict(others)[0]
    assert (p.argmax(axis=1) == truth).mean() == pytest.approx(p.max(axis=1).mean(), abs=0.02)


def test_blocks_do_not_matter_and_the_seed_does(monkeypatch):
    features, codes = draw()
    fitted = fit_annotation(features, codes, NAMES, **GIVEN)
    again = fit_annotation(features, codes, NAMES, **GIVEN)
    assert again.head.to_head().hash == fitted.head.to_head().hash
    assert fit_annotation(features, codes, NAMES, **GIVEN, seed=1).head.to_head().hash != again.head.to_head().hash
    whole = fitted.head.predict(features)
    parts = [fitted.head.predict(part) for part in np.array_split(features, 7)]
    for i in (0, 1):
        np.testing.assert_allclose(np.concatenate([part[i] for part in parts]), whole[i], rtol=1e-5)


def test_more_labelled_cells_than_are_learned_from(monkeypatch):
    monkeypatch.setattr(_fit, "MAX_CELLS", 60)
    features, codes = draw(300)
    fitted = fit_annotation(features, codes, NAMES, **GIVEN, batches={"one": np.arange(300) < 150})
    evidence = fitted.head.evidence
    assert np.sum(evidence["confusion"]) <= 60
    assert evidence["batches"]["one"]["n"] < np.sum(evidence["confusion"])
    # the cells that were not learned from have the probability of the whole head
    whole = fitted.head.predict(features)[0][np.arange(300), codes]
    assert (fitted.probability == whole).sum() >= 240
    assert np.isfinite(fitted.probability).all()


def test_labels_of_one_cell_have_no_probability():
    features, codes = draw(40)
    codes[5] = 3
    fitted = fit_annotation(features, codes, [*NAMES, "single"], **GIVEN)
    assert np.flatnonzero(np.isnan(fitted.probability)).tolist() == [5]
    assert np.isfinite(fitted.head.predict(features)[0]).all()


def stored() -> Head:
    features, codes = draw()
    colours = {"B": "#ff0000"}
    return fit_annotation(features, codes, NAMES, **GIVEN, colours=colours).head.to_head()


def test_round_trip():
    head = stored()
    again = Head(json.loads(json.dumps(head.config)), head.arrays)
    found = AnnotationHead.from_head(again, "type", "abc")
    assert found.to_head().hash == head.hash
    assert found.categories == NAMES
    assert found.colours == {"B": "#ff0000"}
    assert all(array.dtype == np.float32 for array in head.arrays.values())


@pytest.mark.fault(85)
def test_another_network():
    with pytest.raises(ModelFormatError, match=r"for 'type' was made for another network \(hash abc\).*\(hash xyz\)"):
        AnnotationHead.from_head(stored(), "type", "xyz")


@pytest.mark.parametrize(
    ("config", "arrays"),
    [
        pytest.param({"categories": ["B"]}, {}, id="one label"),
        pytest.param({"categories": ["B", "B", "NK"]}, {}, id="the same label twice"),
        pytest.param({"temperature": 0.0}, {}, id="no temperature"),
        pytest.param({"threshold": float("nan")}, {}, id="no threshold"),
        pytest.param({"use": ["nonsense"]}, {}, id="an unknown embedding"),
        pytest.param({"categories": None}, {}, id="no labels"),
        pytest.param({}, {"weights": np.zeros((3, 5), np.float32)}, id="too few weights"),
        pytest.param({}, {"standard": np.zeros((2, 2), np.float32)}, id="no standard deviation"),
        pytest.param({}, {"scale": np.zeros(1, np.float32)}, id="no scale"),
        pytest.param({}, {"class_axes": np.eye(7, dtype=np.float32)}, id="more axes than columns"),
        pytest.param({}, {"class_means": np.zeros((0, 4), np.float32)}, id="no classes"),
        pytest.param({}, {"mean": np.full(6, np.inf, np.float32)}, id="infinity"),
    ],
)
def test_damaged_heads(config, arrays):
    head = stored()
    damaged = Head(head.config | config, head.arrays | arrays)
    with pytest.raises(ModelFormatError, match=r"head for 'type' is inconsistent.*bf.tl.annotate"):
        AnnotationHead.from_head(damaged, "type", "abc")
