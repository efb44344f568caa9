"""Splits of perturbations: no target is in both training and test set."""

import numpy as np
import pytest

from scbioformers.core import ConfigError, split_combinations, split_groups, split_targets

NAMES = [f"T{i}" for i in range(11)]
TARGETS = [(name,) for name in NAMES] * 2 + [("T0", "T1"), ("T2", "T3"), ()]


@pytest.mark.parametrize("seed", range(5))
def test_folds_by_target_do_not_leak(seed):
    folds = split_targets(TARGETS, 5, seed)
    for fold in range(5):
        test = {name for hit, f in zip(TARGETS, folds, strict=True) if f == fold for name in hit}
        train = {name for hit, f in zip(TARGETS, folds, strict=True) if f not in (fold, -1) for name in hit}
        assert test
        assert not test & train
    assert folds[-1] == -1
    assert (folds[:11] == folds[11:22]).all()  # perturbations of the same target are in the same fold


def test_folds_depend_on_the_seed_and_not_on_the_order():
    assert (split_targets(TARGETS, 5, 0) != split_targets(TARGETS, 5, 1)).any()
    assert (split_targets(TARGETS[::-1], 5, 0)[::-1] == split_targets(TARGETS, 5, 0)).all()
    with pytest.raises(ConfigError, match="n_folds"):
        split_targets([("A",)], 2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_combinations_count_targets_that_are_perturbed_alone_in_training(seed):
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    targets = [(name,) for name in NAMES] + pairs
    test, seen = split_combinations(targets, 0.3, seed)
    alone = {hit[0] for hit, out in zip(targets, test, strict=True) if len(hit) == 1 and not out}
    assert [sum(name in alone for name in hit) for hit in targets] == seen.tolist()
    assert set(seen[test & (np.array(list(map(len, targets))) == 2)]) == {0, 1, 2}
    assert not any(set(hit) - alone for hit, out in zip(targets, test, strict=True) if not out)


def test_controls_of_the_held_out_group_stay_in_training():
    groups, control = np.array(["a", "a", "b", "b"]), np.array([True, False, True, False])
    train, test = split_groups(groups, control, "b")
    assert not (train & test).any()
    assert train[control].all()
    with pytest.raises(ConfigError, match="needs both"):
        split_groups(groups, control & (groups == "a"), "b")
