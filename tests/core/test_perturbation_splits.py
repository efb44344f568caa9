"""No target is on both sides of a split."""

import numpy as np
import pytest

from scbioformers.core import ConfigError, split_combinations, split_groups, split_targets

NAMES = [f"T{i}" for i in range(11)]
TARGETS = [(name,) for name in NAMES] * 2 + [("T0", "T1"), ("T2", "T3"), ()]


@pytest.mark.parametrize("seed", range(5))
def test_folds_by_target_do_not_leak(seed):
    folds = split_targets(TARGETS, 5, seed)
    for fold in range(5):
        test = {name for each, f in zip(TARGETS, folds, strict=True) if f == fold for name in each}
        train = {name for each, f in zip(TARGETS, folds, strict=True) if f not in (fold, -1) for name in each}
        assert test
        assert not test & train
    assert folds[-1] == -1
    assert (folds[:11] == folds[11:22]).all()  # siblings stay together


def test_folds_depend_on_the_seed_and_not_on_the_order():
    assert (split_targets(TARGETS, 5, 0) != split_targets(TARGETS, 5, 1)).any()
    assert (split_targets(TARGETS[::-1], 5, 0)[::-1] == split_targets(TARGETS, 5, 0)).all()
    with pytest.raises(ConfigError, match="n_folds"):
        split_targets([("A",)], 2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_combinations_tell_how_many_targets_were_seen(seed):
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    targets = [(name,) for name in NAMES] + pairs
    test, seen = split_combinations(targets, 0.3, seed)
    alone = {each[0] for each, out in zip(targets, test, strict=True) if len(each) == 1 and not out}
    assert [sum(name in alone for name in each) for each in targets] == seen.tolist()
    assert set(seen[test & (np.array(list(map(len, targets))) == 2)]) == {0, 1, 2}
    assert not any(set(each) - alone for each, out in zip(targets, test, strict=True) if not out)


def test_groups_keep_their_controls():
    groups, control = np.array(["a", "a", "b", "b"]), np.array([True, False, True, False])
    train, test = split_groups(groups, control, "b")
    assert not (train & test).any()
    assert train[control].all()
    with pytest.raises(ConfigError, match="needs both"):
        split_groups(groups, control & (groups == "a"), "b")
