"""The configuration of the architecture."""

import dataclasses
import json

import pytest

from scbioformers.config import ModelConfig
from scbioformers.core import ConfigError


@pytest.mark.parametrize("config", [ModelConfig.small(), ModelConfig.paper(), ModelConfig(width=16, attention=False)])
def test_round_trip_through_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_name_of_another_version_is_an_error():
    stored = ModelConfig().to_dict() | {"n_experts": 4}
    with pytest.raises(ConfigError, match=r"ModelConfig has no \['n_experts'\]; it has .*'width'"):
        ModelConfig.from_dict(stored)


def test_the_paper_preset_is_the_papers_architecture():
    paper = ModelConfig.preset("paper")
    assert (paper.n_layers, paper.n_heads, paper.width, paper.feedforward, paper.dropout) == (8, 8, 512, 4, 0.1)
    assert (paper.tokens, paper.attend_masked, paper.attention) == ("all", True, True)


def test_presets_by_name():
    assert ModelConfig.preset("small") == ModelConfig.small() == ModelConfig()
    assert ModelConfig.preset("no_attention") == ModelConfig(attention=False) != ModelConfig()
    with pytest.raises(ConfigError, match=r"there are \['decoder', 'no_attention', 'paper', 'small'\]"):
        ModelConfig.preset("large")


@pytest.mark.parametrize(
    "name", ["n_layers", "n_heads", "width", "feedforward", "n_latent", "n_components", "max_tokens"]
)
@pytest.mark.parametrize("value", [0, -2])
def test_sizes_are_at_least_one(name, value):
    with pytest.raises(ConfigError, match=rf"ModelConfig\.{name} must be at least 1, found {value}"):
        ModelConfig(**{name: value})


@pytest.mark.fault(39)
@pytest.mark.parametrize(("width", "n_heads", "nearest"), [(130, 4, 128), (15, 8, 16), (3, 8, 8)])
def test_heads_divide_the_width_and_the_error_says_which_width_would_do(width, n_heads, nearest):
    with pytest.raises(ConfigError, match=rf"width={width} must be divisible by n_heads={n_heads}.*: {nearest}\."):
        ModelConfig(width=width, n_heads=n_heads)
    assert ModelConfig(width=nearest, n_heads=n_heads).width == nearest


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_share(value):
    with pytest.raises(ConfigError, match=r"dropout must lie in \[0, 1\)"):
        ModelConfig(dropout=value)


@pytest.mark.parametrize("name", ["value_embedding", "tokens"])
def test_unknown_choices_are_named(name):
    with pytest.raises(ConfigError, match=f"`ModelConfig.{name}` must be '.*' or '.*', found 'other'"):
        ModelConfig(**{name: "other"})


def test_it_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 3


def test_negative_noise_is_refused():
    with pytest.raises(ConfigError, match=r"ModelConfig\.latent_noise must not be negative, found -1"):
        ModelConfig(latent_noise=-1.0)
