"""What a TrainConfig refuses, and how long it trains."""

import json
import math

import pytest

from scbioformers.config import TrainConfig
from scbioformers.core import ConfigError
from scbioformers.core._schedule import FEW_CELLS, MAX_EPOCHS, MIN_STEPS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("max_steps", -1),
        ("batch_size", 0),
        ("n_masked", 0),
        ("patience", 0),
        ("num_nodes", 0),
        ("num_workers", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("gradient_clip", -1.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("bag_dropout", 1.0),
        ("bag_dropout", -0.1),
        ("n_context", (0, 5)),
        ("n_context", (9, 5)),
        ("objectives", {}),
        ("objectives", {"masked_bin": 1.0}),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"TrainConfig\.{name} "):
        TrainConfig(**{name: value})


def test_the_number_of_steps_does_not_grow_beyond_few_cells():
    config = TrainConfig()
    assert config.epochs(FEW_CELLS) == 20
    assert config.epochs(2 * FEW_CELLS) == 10
    assert config.epochs(10**9) == 1
    assert TrainConfig(max_epochs=7).epochs(10**9) == 7


def test_few_cells_are_read_more_often_for_enough_steps():
    config = TrainConfig(batch_size=64)
    found = {n: config.epochs(n) for n in range(1, FEW_CELLS + 1, 63)}
    assert found[1] == MAX_EPOCHS == 100
    assert config.epochs(15 * 64) == 50  # 15 steps each
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for n, epochs in found.items():
        steps = math.ceil(n / 64)
        assert epochs * steps >= MIN_STEPS or epochs == MAX_EPOCHS
        assert (epochs - 1) * steps < MIN_STEPS or epochs == 20  # and no more than that
    assert TrainConfig(batch_size=16).epochs(15 * 64) == 20
    assert TrainConfig(max_epochs=7).epochs(1) == 7


def test_the_paper_paces_its_size():
    assert (TrainConfig.paper().lr, TrainConfig.paper().warmup_steps) == (2e-4, 2000)


def test_to_dict_is_plain_json():
    for n_context, expected in ((None, None), ((5, 6), [5, 6])):
        config = TrainConfig(max_steps=3, n_context=n_context)
        assert json.loads(json.dumps(config.to_dict()))["n_context"] == expected
