"""Weights of pairs: correction, similarity, ranks and consensus, against slow loops and cases by hand."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from scbioformers.core import Consensus, average_product_correction, cosine_similarity, rank_pairs


def with_gaps(shape=(7, 5), seed=0) -> np.ndarray:
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape)
    weight[random.random(shape) < 0.2] = np.nan
    return weight


def test_correction_equals_a_slow_implementation():
    weight = with_gaps()
    found = average_product_correction(weight)
    total = [w for row in weight for w in row if not np.isnan(w)]
    for i in range(7):
        for j in range(5):
            row = [w for w in weight[i] if not np.isnan(w)]
            column = [w for w in weight[:, j] if not np.isnan(w)]
            expected = weight[i, j] - np.mean(row) * np.mean(column) / np.mean(total)
            np.testing.assert_allclose(found[i, j], expected)


def test_correction_removes_row_and_column_effects():
    rows, columns = np.array([1.0, 2, 5]), np.array([0.1, 0.4])
    product = np.outer(rows, columns)
    np.testing.assert_allclose(average_product_correction(product), 0, atol=1e-15)
    product[1, 1] += 3
    assert average_product_correction(product).argmax() == 3
    found = average_product_correction(np.array([[np.nan, 1.0], [np.nan, np.nan]]))
    assert np.isnan(found).tolist() == [[True, False], [True, True]]
    assert average_product_correction(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_cosine():
    embedding = np.random.default_rng(0).normal(size=(9, 4)) + 5
    found = cosine_similarity(embedding)
    np.testing.assert_allclose(found, sklearn_cosine(embedding - embedding.mean(axis=0)), atol=1e-12)
    np.testing.assert_allclose(cosine_similarity(embedding + 100), found, atol=1e-9)
    assert np.array_equal(cosine_similarity(np.ones((3, 2))), np.zeros((3, 3)))


def test_ranks():
    strength = with_gaps()
    seen = np.isfinite(strength)
    found = rank_pairs(strength)
    assert np.array_equal(found > 0, seen)
    assert np.array_equal(found[seen], rankdata(-strength[seen]))
    assert rank_pairs(np.array([[1.0, 2.0, 1.0, np.nan, 2.0]])).tolist() == [[3, 1, 4, 0, 2]]
    assert rank_pairs(np.full((2, 2), np.nan)).tolist() == [[0, 0], [0, 0]]


def test_consensus_by_hand():
    consensus = Consensus(n_best=2)
    for weight in ([4.0, -3, 2, 1], [-1.0, -3, 2, 4], [1.0, -4, 3, 2]):  # ranks 1 2 3 4, 4 2 3 1, 4 1 2 3
        consensus.add(np.array([weight]), np.abs(np.array([weight])))
    np.testing.assert_allclose(consensus.weight, [[4 / 3, -10 / 3, 7 / 3, 7 / 3]])
    np.testing.assert_allclose(consensus.support, [[1 / 3, 1, 1 / 3, 1 / 3]])
    # sums of ranks 9, 5, 8, 8: the last two also have equal strength, so their order decides
    assert consensus.rank.tolist() == [[4, 1, 2, 3]]


@pytest.mark.fault(80)
def test_a_single_run_has_no_support():
    consensus = Consensus(n_best=1)
    consensus.add(np.array([[1.0, 3.0]]), np.array([[1.0, 3.0]]))
    assert consensus.rank.tolist() == [[2, 1]]
    assert np.isnan(consensus.support).all()
    consensus.add(np.array([[5.0, 3.0]]), np.array([[5.0, 3.0]]))
    assert consensus.support.tolist() == [[0.5, 0.5]]


def test_ties_of_the_consensus_are_ordered_by_strength():
    consensus = Consensus(n_best=1)
    for weight in ([1.0, 5.0], [3.0, 2.0]):
        consensus.add(np.array([weight]), np.array([weight]))
    assert consensus.rank.tolist() == [[2, 1]]
    assert consensus.support.tolist() == [[0.5, 0.5]]


def test_excluded_pairs_have_no_rank():
    consensus = Consensus(n_best=5)
    weight = with_gaps()
    for sign in (1, -1):
        consensus.add(sign * weight, np.abs(weight))
    assert np.array_equal(consensus.rank, rank_pairs(np.abs(weight)))
    assert np.array_equal(np.isnan(consensus.weight), np.isnan(weight))
    assert consensus.support[np.isnan(weight)].max() == 0
    assert consensus.support.sum() == pytest.approx(5)
