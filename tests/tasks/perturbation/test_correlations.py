"""Correlations within groups, and that nothing of a target's own cells enters what is said of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import DataError
from scbioformers.tasks.perturbation import Correlations, Effects, fit_head, measure_correlations
from scbioformers.tasks.perturbation._fit import predict_by_token
from scbioformers.tasks.perturbation._stack import out_of_fold

N_GENES = 9
GENES = [f"G{i}" for i in range(N_GENES)]
TARGETS = [("G3",), ("elsewhere",), ("G0", "G3"), ("G0",), ("G7",)]
SINGLES = [0, 1, 3, 4]  # of the perturbations
N_CELLS = 300


@pytest.fixture
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genes with something in common, groups from -1 (left out) to 5 and two strata, all of other means."""
    random = np.random.default_rng(0)
    groups, strata = random.integers(-1, 6, N_CELLS), random.integers(0, 2, N_CELLS)
    x = random.gamma(1.0, size=(N_CELLS, N_GENES)) + random.gamma(1.0, size=(N_CELLS, 1))
    x += random.normal(size=(7, N_GENES))[groups] + random.normal(size=(2, N_GENES))[strata]
    x[:, 5] = 1.5  # does not vary
    return x, groups, strata


def measure(x: np.ndarray, groups: np.ndarray, strata: np.ndarray) -> Correlations:
    blocks = [sp.csr_matrix(x[:70]), sp.csr_matrix(x[70:71]), sp.csr_matrix(x[71:])]
    return measure_correlations(blocks, groups, strata, TARGETS, GENES)


def slow(x: np.ndarray, groups: np.ndarray, strata: np.ndarray, without: set[int]) -> pd.DataFrame:
    """Pearson of what is left of each cell after the mean of its group and stratum."""
    used = ~np.isin(groups, [-1, 3, *without])  # 3: the combination
    table = pd.DataFrame(x[used])
    return (table - table.groupby([groups[used], strata[used]]).transform("mean")).corr().fillna(0)


def test_pooled_within_groups(cells):
    found = measure(*cells)
    np.testing.assert_allclose(found.pooled(), slow(*cells, set()), atol=1e-10)
    used = ~np.isin(cells[1], [-1, 3])
    assert found.noise == pytest.approx((used.sum() - 2 * 5) ** -0.5)  # five groups in two strata


def test_rows_of_targets_lack_their_cells(cells):
    groups = cells[1]
    found = measure(*cells)
    for without in ((), (3,), (0, 2)):
        rows = found.of_targets(without)
        for k, perturbation in enumerate(SINGLES):
            left_out = {1 + perturbation, *(1 + SINGLES[fold] for fold in without)}
            if perturbation == 1:
                np.testing.assert_array_equal(rows[k], 0)  # the target is not measured
                continue
            expected = slow(*cells, left_out)[GENES.index(TARGETS[perturbation][0])].to_numpy()
            n = np.isin(groups, list({0, 1, 2, 4, 5} - left_out)).sum() - 2 * (5 - len(left_out))
            expected = np.sign(expected) * np.clip(np.abs(expected) - n**-0.5, 0, None)
            np.testing.assert_allclose(rows[k], expected, atol=1e-10)


@pytest.mark.parametrize("target", [0, 2, 3])
def test_own_cells_leave_no_trace(cells, target):
    """Other counts in the cells of a target, alone or with another: the same row, bit for bit, and other rows not."""
    x, groups, strata = cells
    name = TARGETS[SINGLES[target]][0]
    own = [1 + i for i, targets in enumerate(TARGETS) if name in targets]
    changed = np.where(np.isin(groups, own)[:, None], 7 * x**2, x)
    before, after = measure(x, groups, strata), measure(changed, groups, strata)
    others = [k for k in range(len(SINGLES)) if k != target and SINGLES[k] != 1]
    np.testing.assert_array_equal(after.of_targets()[target], before.of_targets()[target])
    assert (after.of_targets()[others] != before.of_targets()[others]).any(axis=1).all()
    np.testing.assert_array_equal(after.of_targets([target]), before.of_targets([target]))
    assert (after.pooled() != before.pooled()).any()


def test_failed_knock_outs_do_not_tell_of_themselves():
    """In half of the cells of G0 the knock-out worked: G0 and G1 are gone there. Elsewhere they are independent."""
    random = np.random.default_rng(1)
    x, groups = random.gamma(4.0, size=(2000, N_GENES)), np.arange(2000) % 5
    worked = (groups == 3) & (random.random(2000) < 0.5)
    x[np.ix_(worked, [0, 1])] = 0
    found = measure_correlations([sp.csr_matrix(x)], groups, np.zeros_like(groups), TARGETS[:2] + TARGETS[3:], GENES)
    assert found.pooled()[0, 1] > 0.15
    assert abs(found.of_targets()[2, 1]) < 0.04


def test_noise_falls_with_the_cells():
    """Independent genes: what is left of their correlations, and one of .1 that shows with enough cells."""
    random = np.random.default_rng(2)
    left, told = {}, {}
    for n in (200, 20_000):
        x = random.normal(size=(n, 40))
        x[:, 1] = 0.1 * x[:, 0] + np.sqrt(0.99) * x[:, 1]
        genes = [f"G{i}" for i in range(40)]
        found = measure_correlations([sp.csr_matrix(x)], np.zeros(n, int), np.zeros(n, int), [("G0",)], genes)
        row = found.of_targets()[0]
        left[n], told[n] = np.abs(row[2:]).mean(), row[1]
    assert left[20_000] < 0.2 * left[200]
    assert told[20_000] == pytest.approx(0.1, abs=0.025)


def test_no_cells():
    with pytest.raises(DataError, match="no cells"):
        measure_correlations([], np.zeros(0, int), np.zeros(0, int), TARGETS, GENES)


def screen(seed: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str]], list[str], Effects]:
    """14 targets among 30 genes, with effects that follow the correlations: two targets share a fold."""
    random = np.random.default_rng(seed)
    genes, targets = [f"G{i}" for i in range(30)], [(f"G{i}",) for i in range(14)]
    mixing = random.normal(size=(6, 30))
    groups = np.arange(1500) % 15
    x = random.normal(size=(1500, 6)) @ mixing + random.normal(size=(1500, 30))
    effects = -(mixing.T @ mixing)[:14] / 10 + 0.05 * random.normal(size=(14, 30))
    measured = Effects(effects, np.full((14, 30), 0.05), np.full(14, 100), np.full(30, 5.0), x.std(axis=0))
    return x, groups, targets, genes, measured


def test_evidence_of_a_target_has_not_seen_it():
    """Other cells and another effect of one target: it is predicted as before, to the last bit, in cross-validation."""
    x, groups, targets, genes, measured = screen(3)
    task = bf.Perturbation("key", "control")
    found = []
    for factor in (1.0, 3.0):
        changed = np.where((groups == 5)[:, None], x * np.linspace(1, factor, 30), x)
        correlations = measure_correlations([sp.csr_matrix(changed)], groups, np.zeros_like(groups), targets, genes)
        mean = measured.mean.copy()
        mean[4] *= factor

        def network(rows, names, mean=mean):
            """Worth a weight, and what it trains on shows in every answer."""
            return {name: measured.mean[int(name[1:])] + 0.05 * mean[rows].sum(axis=0) for name in names}

        head = fit_head(genes, targets, replace(measured, mean=mean), correlations, task, 1000.0, network)
        answers = predict_by_token(network, targets, list(range(14)), 30)
        predicted = out_of_fold(head.stack.training, mean, measured.se, correlations, answers)[0]
        found.append((predicted, head.stack.training))
    (before, known_before), (after, known_after) = found
    np.testing.assert_array_equal(after[4], before[4])
    np.testing.assert_array_equal(known_after.correlations[4], known_before.correlations[4])
    np.testing.assert_array_equal(known_after.network[4], known_before.network[4])
    assert (known_after.network != known_before.network).any(axis=1).sum() >= 10
    assert head.weights[-1] > 0
    assert (after != before).any(axis=1).sum() >= 12  # of those in other folds


def test_targets_never_seen_follow_all_cells():
    """A gene that no cell had perturbed is predicted by its correlations; a training target by those of other cells."""
    x, groups, targets, genes, measured = screen(4)
    correlations = measure_correlations([sp.csr_matrix(x)], groups, np.zeros_like(groups), targets, genes)
    head = fit_head(genes, targets, measured, correlations, bf.Perturbation("key", "control"), 1000.0)
    known = head.target_data(["G20", "G3"])
    error = (1500 - 15) ** -0.5
    pooled = correlations.pooled()[20]
    expected = np.sign(pooled) * np.clip(np.abs(pooled) - error, 0, None)
    np.testing.assert_allclose(known.correlations[0], expected, atol=1e-5)
    np.testing.assert_allclose(known.correlations[1], correlations.of_targets()[3], atol=1e-6)
    effect = head.predict([("G20",)])[0][0]
    free = np.arange(30) != 20
    assert np.corrcoef(effect[free], -pooled[free])[0, 1] > 0.7
