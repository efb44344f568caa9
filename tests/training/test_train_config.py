"""What a TrainConfig refuses, and how long it trains."""

import json

import pytest

from scbioformers.core import ConfigError
from scbioformers.training import TrainConfig
from scbioformers.training._config import FEW_CELLS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("max_steps", -1),
        ("batch_size", 0),
        ("n_hidden", 0),
        ("patience", 0),
        ("num_nodes", 0),
        ("num_workers", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("gradient_clip", -1.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
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
    assert config.epochs(1) == config.epochs(FEW_CELLS) > 1
    assert config.epochs(2 * FEW_CELLS) * 2 == pytest.approx(config.epochs(FEW_CELLS), abs=1)
    assert config.epochs(10**9) == 1
    assert TrainConfig(max_epochs=7).epochs(10**9) == 7


def test_to_dict_is_plain_json():
    config = TrainConfig(max_steps=3, n_context=(5, 6))
    assert json.loads(json.dumps(config.to_dict()))["n_context"] == [5, 6]
