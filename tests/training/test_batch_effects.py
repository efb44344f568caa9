"""Effects of technical batches, from similar cells of different batches."""

import numpy as np
import pytest

import scbioformers.training._batch_effects as module
from scbioformers.training._batch_effects import batch_effects, compared_cells, paired_shift

N_GENES = 40


def draw_cells(types_of_batches, n_cells=100, seed=0):
    """Log profiles of cells of distinct types, with a known effect for each batch."""
    random = np.random.default_rng(seed)
    centres = random.normal(scale=1.0, size=(4, N_GENES))
    effects = random.normal(scale=0.3, size=(len(types_of_batches), N_GENES))
    profiles, codes = [], []
    for code, types in enumerate(types_of_batches):
        own = centres[random.choice(types, size=n_cells)] + random.normal(scale=0.2, size=(n_cells, N_GENES))
        profiles.append(own + effects[code])
        codes += [code] * n_cells
    return np.concatenate(profiles), np.array(codes), effects


def components_of(profiles):
    return np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)[2].T


def error(found, effects):
    """Root mean squared error of the differences between batches."""
    return np.sqrt(np.mean((found - found[0] - (effects - effects[0]))[1:] ** 2))


@pytest.mark.parametrize(
    "types",
    [
        pytest.param([[0, 1, 2], [1, 2, 3]], id="one-type-each-of-its-own"),
        pytest.param([[0, 0, 0, 0, 1], [0, 1, 1, 1, 1]], id="other-proportions"),
        pytest.param([[0, 1], [1, 2], [2, 0]], id="three-batches"),
    ],
)
def test_the_effect_is_found_where_the_types_of_batches_differ(types):
    profiles, codes, effects = draw_cells(types)
    shift, log_factor = batch_effects(profiles, np.exp(profiles), components_of(profiles), codes, len(types))
    means = np.array([profiles[codes == code].mean(axis=0) for code in range(len(types))])
    assert error(means, effects) > 0.3
    assert error(shift, effects) < 0.1
    assert error(log_factor, effects) < 0.1


def test_the_average_batch_has_no_factor():
    profiles, codes, _ = draw_cells([[0, 1], [1, 2], [2, 0]])
    _, log_factor = batch_effects(profiles, np.exp(profiles), components_of(profiles), codes, 3)
    np.testing.assert_allclose(log_factor.mean(axis=0), 0.0, atol=1e-12)


def test_the_shifts_balance_over_all_cells_of_two_batches():
    """The larger batch moves less, so the mean over all cells stays where it was."""
    profiles, codes, _ = draw_cells([[0, 1], [0, 1]])
    keep = np.arange(len(codes)) >= 80
    profiles, codes = profiles[keep], codes[keep]
    shift, _ = batch_effects(profiles, np.exp(profiles), components_of(profiles), codes, 2)
    norms = np.linalg.norm(shift, axis=1)
    assert norms[0] > 2 * norms[1]


def slow_mutual_neighbors(scores, codes, k):
    n = len(codes)
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in scores] for a in scores])
    found = np.zeros((n, n), bool)
    for i in range(n):
        for j in range(n):
            others = [m for m in range(n) if codes[m] != codes[i]]
            of_batch = [m for m in range(n) if codes[m] == codes[i]]
            near = sorted(others, key=lambda m: -cosine[i, m])[:k]
            back = sorted(of_batch, key=lambda m: -cosine[j, m])[:k]
            found[i, j] = codes[i] != codes[j] and j in near and i in back
    return found


def test_mutual_neighbors_are_those_of_a_search_cell_by_cell():
    random = np.random.default_rng(1)
    scores, codes = random.normal(size=(30, 5)), random.integers(0, 3, size=30)
    found = module._mutual_neighbors(scores, codes, 3, 4)
    np.testing.assert_array_equal(found, slow_mutual_neighbors(scores, codes, 4))


@pytest.mark.parametrize(
    ("codes", "n_batches"),
    [
        pytest.param(np.zeros(8, int), 1, id="one-batch"),
        pytest.param(np.ones(8, int), 3, id="categories-without-cells"),
    ],
)
def test_without_cells_of_other_batches_there_is_no_effect(codes, n_batches):
    profiles = np.random.default_rng(0).random((len(codes), N_GENES))
    found = batch_effects(profiles, profiles, np.eye(N_GENES), codes, n_batches)
    for effect in found:
        np.testing.assert_array_equal(effect, np.zeros((n_batches, N_GENES)))


def test_equal_cells_without_components_differ_by_their_batch_alone():
    profiles, codes = np.ones((10, N_GENES)), np.arange(10) % 2
    shift, log_factor = batch_effects(profiles, profiles, np.zeros((N_GENES, 0)), codes, 2)
    np.testing.assert_allclose(shift, 0.0, atol=1e-12)
    np.testing.assert_allclose(log_factor, 0.0, atol=1e-12)


def test_compared_cells_have_an_equal_limit_for_each_batch(monkeypatch):
    monkeypatch.setattr(module, "MAX_CELLS", 30)
    codes = np.repeat([0, 1, 2], [100, 5, 50])
    rows = compared_cells(codes, 3, seed=0)
    assert np.bincount(codes[rows]).tolist() == [10, 5, 10]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, compared_cells(codes, 3, seed=0))
    assert not np.array_equal(rows, compared_cells(codes, 3, seed=1))
    first = rows[codes[rows] == 0]
    assert first.max() > 20  # not the first cells of the batch


def test_all_cells_of_a_small_sample_are_compared():
    codes = np.random.default_rng(0).integers(0, 4, size=200)
    np.testing.assert_array_equal(compared_cells(codes, 4, seed=0), np.arange(200))


def test_paired_shift_is_the_difference_between_similar_cells_not_between_means():
    random = np.random.default_rng(0)
    # batch 1 has more cells of the second type, so the means of the batches differ by more than the batch does
    cell_type = np.r_[np.repeat([0, 1], [80, 40]), np.repeat([0, 1], [40, 80])]
    codes = np.repeat([0, 1], 120)
    scores = np.eye(2)[cell_type] * 5 + random.normal(0, 0.3, (240, 2))
    effect = np.array([1.0, -2.0, 0.5])
    values = np.outer(cell_type, [4.0, 4.0, 4.0]) + np.outer(codes, effect) + random.normal(0, 0.1, (240, 3))
    shift = paired_shift(values, scores, codes, 3)
    np.testing.assert_allclose(shift[1] - shift[0], effect, atol=0.15)
    np.testing.assert_allclose(shift[0], -shift[1], atol=0.15)  # the batches have the same number of cells
    assert not shift[2].any()  # it has no cells


def test_paired_shift_does_not_depend_on_the_order_of_the_cells():
    random = np.random.default_rng(1)
    codes, scores, values = np.arange(60) % 2, random.normal(size=(60, 4)), random.normal(size=(60, 3))
    order = random.permutation(60)
    expected = paired_shift(values, scores, codes, 2)
    np.testing.assert_allclose(paired_shift(values[order], scores[order], codes[order], 2), expected, atol=1e-12)
