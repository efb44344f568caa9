import random
import sys
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import chi2
from sklearn.model_selection import StratifiedKFold

from scbioformers.core._errors import BioformersWarning, ConfigError, DataError, MissingDependencyError
from scbioformers.metrics import embedding_scores


def blobs(n_blobs=4, size=16, n_dimensions=3, distance=100.0, seed=0):
    """Tight clusters that are far apart on the coordinate axes; cells in the order of their clusters."""
    rng = np.random.default_rng(seed)
    centers = distance * rng.permutation(np.eye(n_blobs, n_dimensions) - np.eye(n_blobs, n_dimensions, -n_dimensions))
    blob = np.repeat(np.arange(n_blobs), size)
    return centers[blob] + rng.normal(size=(n_blobs * size, n_dimensions)), blob


def overlapping(n=300, seed=0, distance=1.0):
    """Three overlapping clusters, so that no score is at an extreme. A larger `distance` separates them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["B", "NK", "T"], size=n, p=[0.2, 0.3, 0.5])
    centers = {"B": [0, 0, 0, 0], "NK": [3, 0, 0, 0], "T": [1, 2.5, 0, 0]}
    return distance * np.array([centers[label] for label in labels]) + rng.normal(size=(n, 4)), labels.astype(object)


def test_perfect_clusters_score_one():
    X, blob = blobs()
    scores = embedding_scores(X, blob)
    for name in ("nmi", "ari", "nmi_res1", "ari_res1", "kmeans_nmi", "kmeans_ari", "knn_f1", "linear_f1"):
        assert getattr(scores, name) == pytest.approx(1.0), name
    assert scores.asw > 0.98
    assert scores.ilisi is None
    assert scores.kbet is None


def test_random_labels_score_about_zero():
    X, _ = overlapping()
    scores = embedding_scores(X, np.random.default_rng(1).integers(3, size=len(X)))
    for name in ("nmi", "ari", "nmi_res1", "ari_res1", "kmeans_nmi", "kmeans_ari"):
        assert abs(getattr(scores, name)) < 0.06, name
    assert abs(scores.knn_f1 - 1 / 3) < 0.1
    assert abs(scores.linear_f1 - 1 / 3) < 0.1
    assert abs(scores.asw - 0.5) < 0.02


def test_nmi_and_ari_by_hand():
    # Leiden finds the four clusters of 16 cells at every resolution; each has two labels of 8 cells with equal means
    X, blob = blobs()
    scores = embedding_scores(X, 2 * blob + np.tile([0, 1], len(blob) // 2))
    assert scores.nmi == pytest.approx(2 * np.log(4) / (np.log(4) + np.log(8)))
    # pairs in the same label and cluster: 8 C(8,2) = 224; in the same cluster: 4 C(16,2) = 480; all: C(64,2) = 2016
    assert scores.ari == pytest.approx((224 - 224 * 480 / 2016) / ((224 + 480) / 2 - 224 * 480 / 2016))
    assert scores.nmi_res1 == pytest.approx(scores.nmi)
    assert scores.resolution == 0.2  # the lowest of the tied resolutions
    assert scores.avg_bio == pytest.approx((scores.nmi + scores.ari + scores.asw) / 3)


def test_best_resolution_scores_at_least_as_high_as_resolution_1():
    scores = embedding_scores(*overlapping())
    assert scores.nmi >= scores.nmi_res1
    assert scores.resolution in {0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0}
    assert scores.nmi < 0.99


def test_asw_equals_a_slow_implementation():
    X, labels = overlapping(60)
    distance = np.linalg.norm(X[:, None] - X[None], axis=2)
    widths = []
    for cell, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(X)) != cell)
        a = distance[cell, own].mean()
        b = min(distance[cell, labels == other].mean() for other in set(labels) - {label})
        widths.append((b - a) / max(a, b))
    assert embedding_scores(X, labels).asw == pytest.approx((np.mean(widths) + 1) / 2)


def test_knn_f1_equals_a_slow_implementation():
    X, labels = overlapping()
    names, codes = np.unique(labels, return_inverse=True)
    predicted = np.full(len(X), -1)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=3).split(X, codes):
        for cell in test:
            nearest = train[np.argsort(np.linalg.norm(X[train] - X[cell], axis=1))[:15]]
            predicted[cell] = np.bincount(codes[nearest], minlength=3).argmax()
    f1 = [
        2 * np.sum((predicted == k) & (codes == k)) / (np.sum(predicted == k) + np.sum(codes == k))
        for k in range(len(names))
    ]
    assert embedding_scores(X, labels, seed=3).knn_f1 == pytest.approx(np.mean(f1))


def test_linear_probe_is_standardised():
    X, labels = overlapping()
    stretched = X * np.array([1.0, 1.0, 1e5, 1e-5])
    plain, scaled = embedding_scores(X, labels), embedding_scores(stretched, labels)
    assert scaled.linear_f1 == pytest.approx(plain.linear_f1)
    assert scaled.knn_f1 < plain.knn_f1 - 0.1


def test_same_seed_gives_same_scores_and_global_random_states_are_unchanged():
    X, labels = overlapping()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    first = embedding_scores(X, labels, seed=5)
    assert random.getstate() == python_state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])
    random.random()
    assert embedding_scores(X, labels, seed=5) == first
    assert embedding_scores(X, labels, seed=6) != first


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(sparse.csr_matrix, id="csr"),
        pytest.param(pd.DataFrame, id="dataframe"),
        pytest.param(lambda X: X.tolist(), id="list"),
    ],
)
def test_input_formats(convert):
    X, labels = overlapping()
    expected = embedding_scores(X, labels)
    assert embedding_scores(convert(X), pd.Series(labels, dtype="category")) == expected


def test_to_dict_has_every_score_in_order():
    scores = embedding_scores(*overlapping())
    assert list(scores.to_dict()) == [field.name for field in fields(scores)]
    assert scores.to_dict()["avg_bio"] == scores.avg_bio


@pytest.mark.parametrize(
    ("X", "labels", "message"),
    [
        pytest.param(np.zeros(30), ["a", "b"] * 15, "shape", id="1-D"),
        pytest.param(np.zeros((30, 0)), ["a", "b"] * 15, "shape", id="no-dimension"),
        pytest.param(np.zeros((19, 2)), ["a"] * 10 + ["b"] * 9, "at least 20", id="few-cells"),
        pytest.param(
            np.full((30, 2), np.nan), ["a", "b"] * 15, "60 NaN or infinite values, the first in row 0", id="nan"
        ),
        pytest.param(
            np.zeros((30, 2)), ["a", "b"], r"`labels` has the shape \(2,\); expected \(30,\)", id="other-length"
        ),
        pytest.param(np.zeros((30, 2)), ["a", None] * 15, "`labels` is missing for 15 cells", id="missing-label"),
        pytest.param(np.zeros((30, 2)), ["a"] * 30, "1 category", id="one-label"),
        pytest.param(np.zeros((30, 2)), np.arange(30), "every cell", id="identifiers"),
    ],
)
def test_bad_input_raises(X, labels, message):
    with pytest.raises(DataError, match=message):
        embedding_scores(X, labels)


def test_bad_batch_and_implementation_raise():
    X, labels = overlapping(60)
    with pytest.raises(DataError, match="`batch` has 1 category"):
        embedding_scores(X, labels, batch=np.zeros(60))
    with pytest.raises(ConfigError, match="`implementation` must be 'sklearn' or 'scib', found 'fast'"):
        embedding_scores(X, labels, implementation="fast")


def test_small_label_warns():
    X, labels = overlapping(60)
    labels[:3] = "rare"
    with pytest.warns(BioformersWarning, match=r"fewer cells than the 5 folds.*'rare' \(3\)"):
        embedding_scores(X, labels)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        pytest.param("scib_metrics", {"batch": np.tile([0, 1], 30)}, id="scib-metrics"),
        pytest.param("scib", {"implementation": "scib"}, id="scib"),
    ],
)
def test_missing_package_error_names_the_command(monkeypatch, module, arguments):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "scbioformers\[bench\]"'):
        embedding_scores(*overlapping(60), **arguments)


def test_implementation_scib_gives_the_same_scores():
    pytest.importorskip("scib")
    X, labels = overlapping()
    ours, theirs = embedding_scores(X, labels), embedding_scores(X, labels, implementation="scib")
    for name, score in ours.to_dict().items():
        assert theirs.to_dict()[name] == (None if score is None else pytest.approx(score, abs=1e-9)), name


def test_scores_are_close_to_those_of_scib_with_its_own_clusters():
    # scib clusters the graph of the embedding; the clusters are clear, so they do not depend on the seed
    scib = pytest.importorskip("scib")
    import scanpy as sc
    from anndata import AnnData

    X, labels = overlapping(distance=1.7)
    adata = AnnData(obs=pd.DataFrame({"label": pd.Categorical(labels)}, index=np.arange(len(X)).astype(str)))
    adata.obsm["X_emb"] = X
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X_emb")
    leiden = {"flavor": "igraph", "directed": False, "n_iterations": -1}
    best, nmi = scib.metrics.cluster_optimal_resolution(adata, "label", "cluster", verbose=False, **leiden)
    ours = embedding_scores(X, labels)
    assert 0.7 < nmi < 0.99
    assert ours.resolution == best
    assert ours.nmi == pytest.approx(nmi, abs=0.02)
    assert ours.ari == pytest.approx(scib.metrics.ari(adata, "cluster", "label"), abs=0.02)
    assert ours.asw == pytest.approx(scib.metrics.silhouette(adata, "label", "X_emb"))


def test_batch_scores_at_the_extremes():
    pytest.importorskip("scib_metrics")
    X, labels = overlapping()
    batch = np.random.default_rng(2).integers(2, size=len(X))
    mixed = embedding_scores(X, labels, batch=batch)
    apart = embedding_scores(X + 100.0 * batch[:, None], labels, batch=batch)
    assert mixed.ilisi > 0.8
    assert mixed.kbet > 0.9
    assert apart.ilisi == pytest.approx(0.0, abs=1e-3)
    assert apart.kbet == 0.0


def test_kbet_equals_a_slow_implementation_within_labels():
    pytest.importorskip("scib_metrics")
    X, labels = overlapping()
    rng = np.random.default_rng(2)
    batch = np.where(rng.random(len(X)) < 0.6, "one", "two")
    X = X + 0.6 * (batch == "two")[:, None]
    accepted = []
    for label in np.unique(labels):
        of_label, second = X[labels == label], (batch == "two")[labels == label]
        k = int(np.clip(len(of_label) / 2 // 4, 10, 70)) + 1
        expected = k * np.array([1 - second.mean(), second.mean()])
        passed = 0
        for cell in of_label:
            n_second = second[np.argsort(np.linalg.norm(of_label - cell, axis=1))[:k]].sum()
            passed += chi2.sf(np.sum((np.array([k - n_second, n_second]) - expected) ** 2 / expected), df=1) >= 0.05
        accepted.append(passed / len(of_label))
    assert 0.1 < np.mean(accepted) < 0.9
    assert embedding_scores(X, labels, batch=batch).kbet == pytest.approx(np.mean(accepted), abs=0.01)
