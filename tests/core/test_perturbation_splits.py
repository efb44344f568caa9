"""Splits of perturbations: no target is in both training and test set."""

import pytest

from scbioformers.core import ConfigError, split_targets

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
