"""Gene programs on arrays: the graph, the choice of the resolution, and what is said of each gene."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

from scbioformers.core import cosine_similarity
from scbioformers.data import AnnDataSource
from scbioformers.tasks import agreement, find_programs, score_cells
from scbioformers.tasks._gene_programs import (
    RESOLUTIONS,
    by_size,
    centrality,
    chance_similarity,
    mutual_neighbors,
    support,
)

SIZES = (20, 14, 9, 6, 3)


def planted(seed: int, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of 100 genes: five groups around directions of their own, and 48 genes on their own."""
    random = np.random.default_rng(7)
    truth = np.repeat(np.arange(-1, len(SIZES)), (100 - sum(SIZES), *SIZES))
    centre = random.normal(size=(len(SIZES), 40))
    own = random.normal(size=(100, 40))
    clean = np.where(truth[:, None] < 0, own, centre[truth])
    return cosine_similarity(clean + noise * np.random.default_rng(seed).normal(size=clean.shape)), truth


def test_mutual_neighbors_against_a_slow_search():
    similarity, _ = planted(0)
    graph = mutual_neighbors(similarity, 6)
    near = []
    for i in range(100):
        others = sorted((j for j in range(100) if j != i), key=lambda j: -similarity[i, j])
        near.append({j for j in others[:6] if similarity[i, j] > 0})
    expected = {(i, j) for i in range(100) for j in near[i] if i < j and i in near[j]}
    first, second = graph.nonzero()
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected | {(j, i) for i, j in expected}
    np.testing.assert_array_equal(graph[first, second].A1, similarity[first, second])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_genes(n):
    found = find_programs([np.ones((n, n))], n_neighbors=10, min_genes=2)
    assert found.label.tolist() == ([-1] if n == 1 else [0] * n)


def test_genes_that_are_like_nothing_are_in_no_program():
    similarity = np.kron(np.eye(3), np.ones((6, 6)))
    similarity[:, -6:] = similarity[-6:] = 0
    similarity[-6:, :6] = similarity[:6, -6:] = -1  # opposites are no neighbours either
    found = find_programs([similarity], n_neighbors=5, min_genes=3)
    assert found.label.tolist() == [0] * 6 + [1] * 6 + [-1] * 6
    assert np.isnan(found.weight[-6:]).all()
    assert np.isnan(found.support[-6:]).all()


def test_clusters_are_numbered_by_size():
    label = np.array([4, 4, 8, 8, 8, 1, 0, 0])
    assert by_size(label, 2).tolist() == [1, 1, 0, 0, 0, -1, 2, 2]
    assert by_size(label, 3).tolist() == [-1, -1, 0, 0, 0, -1, -1, -1]
    assert by_size(label, 4).tolist() == [-1] * 8


def test_agreement():
    first, same = np.array([0, 0, 0, 1, 1, 1, -1, -1]), np.array([1, 1, 1, 0, 0, 0, -1, -1])
    assert agreement([first, same, first]) == 1
    other = np.array([0, 0, 1, 1, 1, 0, -1, -1])
    # genes in none are alone, thus no pair: by hand from pairs together in both, in one, in all
    both, mean, chance = 2, (6 + 6) / 2, 6 * 6 / 28
    assert agreement([first, other]) == pytest.approx((both - chance) / (mean - chance))
    assert agreement([first, same, other]) == pytest.approx((1 + 2 * agreement([first, other])) / 3)
    assert np.isnan(agreement([first, np.zeros(8, int)]))  # all in one would agree with anything like it
    assert np.isnan(agreement([np.full(8, -1)] * 2))


def test_planted_programs_are_found():
    members = [planted(seed)[0] for seed in range(4)]
    truth = planted(0)[1]
    found = find_programs(members, n_neighbors=8, min_genes=5)
    large = (truth >= 0) & (truth < 4)
    assert adjusted_rand_score(truth[large], found.label[large]) > 0.9
    assert (found.label[truth == 4] == -1).all() or len(set(found.label[truth == 4])) == 1
    assert np.nanmean(found.support[large]) > 0.9
    alone = find_programs(members[:1], n_neighbors=8, min_genes=5)
    assert adjusted_rand_score(truth[large], alone.label[large]) > 0.8


def test_the_mean_of_members_is_nearer_the_truth_than_one():
    members = [planted(seed, noise=1.3)[0] for seed in range(8)]
    inside = planted(0)[1] >= 0
    truth = planted(0)[1][inside]
    together = find_programs(members, n_neighbors=8, min_genes=5).label[inside]
    single = [find_programs([x], n_neighbors=8, min_genes=5).label[inside] for x in members]
    assert adjusted_rand_score(truth, together) > 0.1 + np.mean([adjusted_rand_score(truth, x) for x in single])


def test_the_resolution_is_the_one_on_which_the_members_agree_most():
    members = [planted(seed, noise=1.0)[0] for seed in range(3)]
    found = find_programs(members, n_neighbors=8, min_genes=5)
    assert found.stability["resolution"].tolist() == list(RESOLUTIONS)
    best = found.stability.set_index("resolution")["ari"].idxmax()
    assert found.resolution == best
    fixed = find_programs(members, n_neighbors=8, min_genes=5, resolution=best)
    assert np.array_equal(fixed.label, found.label)
    assert fixed.stability["ari"].tolist() == [found.stability["ari"].max()]


@pytest.mark.parametrize("n_members", [1, 3])
def test_same_seed_same_programs(n_members):
    members = [planted(seed, noise=1.0)[0] for seed in range(n_members)]
    before = np.random.get_state()[1].copy()
    first, second = (find_programs(members, n_neighbors=8, min_genes=5, seed=2**62 + 5) for _ in range(2))
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(first.support, second.support, equal_nan=True)
    assert first.stability.equals(second.stability)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("min_genes", [2, 5, 12])
def test_no_program_is_smaller(min_genes):
    found = find_programs([planted(seed)[0] for seed in range(2)], n_neighbors=8, min_genes=min_genes)
    sizes = np.bincount(found.label[found.label >= 0])
    assert (sizes >= min_genes).all()
    assert (np.diff(sizes) <= 0).all()


def test_weight_is_the_cosine_with_the_centroid():
    random = np.random.default_rng(0)
    members = []
    for _ in range(3):
        x = random.normal(size=(12, 6)) + np.repeat(random.normal(size=(2, 6)), 6, axis=0)
        members.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    side_by_side = np.hstack(members)
    label = np.repeat([1, 0], 6)
    label[0] = -1
    found = centrality(np.mean([x @ x.T for x in members], axis=0), label)
    assert np.isnan(found[0])
    for gene in range(1, 12):
        centroid = side_by_side[label == label[gene]].mean(axis=0)
        gene_vector = side_by_side[gene]
        cosine = gene_vector @ centroid / np.linalg.norm(gene_vector) / np.linalg.norm(centroid)
        assert found[gene] == pytest.approx(cosine)


def test_support_is_the_share_of_companions_that_members_agree_on():
    label = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    same, moved = np.array([1, 1, 1, 1, 0, 0, 0, -1]), np.array([0, 0, 0, 1, 1, 1, 1, -1])
    scattered = np.array([0, 0, 0, 0, -1, -1, -1, -1])  # genes in no program have no companions
    found = support(label, [same, moved, scattered])
    np.testing.assert_allclose(found, [8 / 9] * 3 + [6 / 9] + [2 / 3] * 3 + [np.nan])


def test_the_threshold_is_what_random_directions_reach():
    random = np.random.default_rng(0)
    x = random.normal(size=(800, 20))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    least = chance_similarity(x @ x.T)
    beyond = ((x @ x.T) >= least).sum() - 800
    assert beyond / 800 == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("mean_depth", [500.0, None])
def test_scores_against_dense_arithmetic(mean_depth, monkeypatch):
    random = np.random.default_rng(0)
    x = random.poisson(random.gamma(1.0, 2.0, size=12), size=(50, 12)).astype(np.float32)
    x[7] = 0  # an empty cell
    x[:, 4] = 0  # a gene that does not vary
    label = np.array([0, 0, 0, -1, 1, 1, 1, 1, 2, 2, -1, -1])
    source = AnnDataSource(ad.AnnData(sp.csr_matrix(x)))
    found = score_cells(source, label, mean_depth)
    values = x.astype(float)
    if mean_depth is not None:
        depth = x.sum(axis=1, keepdims=True)
        values = np.log1p(np.divide(x, depth, out=np.zeros_like(values), where=depth > 0) * mean_depth)
    z = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1)
    expected = np.column_stack([z[:, label == program].mean(axis=1) for program in range(3)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    blocks = source.blocks
    monkeypatch.setattr(source, "blocks", lambda: blocks(7))
    np.testing.assert_allclose(score_cells(source, label, mean_depth), expected, atol=1e-5)


def test_scores_without_a_program():
    assert score_cells(AnnDataSource(ad.AnnData(np.ones((3, 2), np.float32))), np.array([-1, -1]), 2.0).shape == (3, 0)
