"""The parameters of ``bf.tl.fit``, checked alone and against the model that a fit starts from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from scbioformers.config import Binning, ModelConfig, TrainConfig
from scbioformers.core import ConfigError
from scbioformers.model import BioFormer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Parameters of a fit: as given, those of the model that it starts from, or the defaults."""

    binning: Binning
    config: ModelConfig
    train: TrainConfig
    n_models: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = {"binning": self.binning.to_dict(), "config": self.config.to_dict(), "train": self.train.to_dict()}
        return parts | {"n_models": self.n_models}


def fit_settings(
    start: BioFormer | None,
    config: str | ModelConfig | None,
    binning: str | Binning | None,
    train: TrainConfig | None,
    max_epochs: int | None,
    n_models: int | None,
) -> Settings:
    """Check the parameters of the fit, alone and against the model that it starts from."""
    given = ModelConfig.preset(config) if isinstance(config, str) else config
    if start is None:
        given, kind = given or ModelConfig.small(), to_binning(binning) or Binning()
        train = train or (TrainConfig.paper() if config == "paper" else TrainConfig())
    else:
        kind, train = frozen_binning(start, binning), train or TrainConfig.fine_tuning()
        if given is not None and replace(given, n_components=start.config.n_components) != start.config:
            raise ConfigError("`config` must be that of the model that is fine-tuned. Leave out `config`.")
        if train.masking != start.masking:
            raise ConfigError(
                f"`TrainConfig.masking` must be that of the model that is fine-tuned, expected {start.masking}, found "
                f"{train.masking}."
            )
        given = start.config
    train = train if max_epochs is None else replace(train, max_epochs=max_epochs)
    train.require_trained_parts(bag=given.bag)
    return Settings(kind, given, train, _n_members(start, n_models, train))


def require_encoder(config: ModelConfig, *binnings: Binning, several: bool = False, perturbed: bool = False) -> None:
    """Check that a decoder has what it can read: counts of one modality. Otherwise an encoder is needed."""
    if config.architecture == "encoder":
        return
    other = [binning.kind for binning in binnings if binning.kind != "value"]
    found = f"binning={other[0]!r}" if other else ""
    found = "a MuData" if several or len(binnings) > 1 else "`task`, a Perturbation" if perturbed else found
    if found:
        raise ConfigError(
            f"A decoder can read only counts of an AnnData, with binning='value' and without a task; found {found}. "
            "Pass `config=bf.ModelConfig(architecture='encoder')`, which is the default."
        )


def to_binning(given: str | Binning | None) -> Binning | None:
    """The binning that is given, or one of the kind that is given."""
    return Binning(kind=given) if isinstance(given, str) else given  # type: ignore[arg-type]


def frozen_binning(start: BioFormer, given: str | Binning | None) -> Binning:
    """The binning of the model. Another one that is given must be the same."""
    frozen, kind = start.binning, to_binning(given)
    if kind is not None and kind.mean_depth is None:
        quantiles = frozen.quantiles if kind.n_bins == frozen.n_bins and kind.kind == "quantile" else None
        kind = kind.freeze(mean_depth=frozen.mean_depth or 1.0, max_bin=frozen.max_bin or 1, quantiles=quantiles)
    if kind not in (None, frozen):
        raise ConfigError(f"`binning` must be that of the model that is fine-tuned, {frozen}. Leave out `binning`.")
    return frozen


def _n_members(start: BioFormer | None, n_models: int | None, train: TrainConfig) -> int:
    """Number of members: by default 1, or as many as the model has from which the fit starts."""
    known = 1 if start is None else len(start.members)
    n_models = known if n_models is None else n_models
    if n_models < 1:
        raise ConfigError(f"`n_models` must be at least 1, found {n_models}.")
    if n_models < known:
        _log.warning(
            "`model` has %d members. With `n_models=%d`, the first are trained further and the others are left out. "
            "Without `n_models`, all are kept.",
            known, n_models,
        )  # fmt: skip
    if start is not None and n_models > known and train.max_steps == 0:
        raise ConfigError(
            f"`n_models={n_models}` adds members to a model that has {known}. Their output layers are new, so they "
            "predict nothing before they are trained. Leave out `n_models`, or train with `max_steps` above 0."
        )
    return n_models
