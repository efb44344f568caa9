"""How a model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from scbioformers.config._masking import Masking
from scbioformers.core import ConfigError, check_fields, default_epochs

PARTS = ("embeddings", "blocks", "bag", "bins", "decoder")  # of the network, for `freeze`
PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed", "32", "64", "16", "bf16")  # 16 bits alone lose counts
OBJECTIVE_NAMES = ("masked_bins", "profile_counts", "profile_bins")
_NOT_STORED = ("checkpoint_dir", "resume", "checkpoint_minutes")  # they change no result, and name a place of a machine


@dataclass(frozen=True)
class TrainConfig:
    """Training parameters: number of steps, learning rate, masking, objectives and devices.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.TrainConfig(max_steps=100, devices=2).batch_size
    64
    """

    max_epochs: int | None = None
    """Maximum number of passes over the training cells.

    The default is 20. Above 8,000 cells it is lower, so that the number of steps stays the same. If 20 passes give
    fewer than 750 steps, it is higher, up to 100.
    """
    max_steps: int | None = None
    """Maximum number of steps. With 0 the model is initialised but not trained."""
    batch_size: int = 64
    """Number of cells in a batch, over all devices together. Each device has a part of it."""
    accumulate_grad_batches: int = 1
    """Number of batches in a step. Their gradients are averaged, so a step of more cells needs no more memory."""
    lr: float = 2e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to zero. See :meth:`paper`."""
    weight_decay: float = 1.0
    """Weight decay of weight matrices and embedding tables, multiplied by the learning rate at every step.

    With ``svd_init`` the feature embeddings are not decayed.
    """
    warmup_steps: int = 2000
    """Maximum number of warm-up steps. The warm-up is never longer than 10 % of all steps."""
    gradient_clip: float = 1.0
    """Maximum norm of the gradient. A larger gradient is scaled down to it."""
    n_context: tuple[int, int] | None = (32, 96)
    """Smallest and largest number of visible features per cell that attention uses in a training step.

    The number is drawn log-uniformly for every batch, and the features are chosen at random. ``None`` uses all visible
    features, as at inference. This takes two to three times as long and gave no improvement (dev/experiments.md, 15).
    """
    n_masked: int = 16
    """Maximum number of masked features per cell that are predicted in a training step.

    Validation uses four times as many.
    """
    bag_dropout: float = 0.9
    """Maximum share of the features that are left out of the bag in training. The share is drawn for each cell."""
    masking: Masking = field(default_factory=Masking)
    """Which features are masked."""
    objectives: dict[str, float] = field(default_factory=lambda: {"masked_bins": 1.0, "profile": 1.0})
    """Weight of each objective. ``"profile"`` is the loss of the profile that is predicted from ``<cls>``."""
    validation_fraction: float = 0.1
    """Share of the cells that is used for validation: for early stopping and for the choice of the best weights.

    Up to 100,000 cells, each cell is drawn on its own. Above, the validation cells are ranges of 1,024 consecutive
    rows, one from each of equal parts of the data, and at most 16 of them (16,384 cells). So they are read from few
    places of a file, and a validation does not cost more the more cells there are.
    """
    patience: int = 10
    """Number of validations without improvement after which training stops."""
    devices: int | str = 1
    """``devices`` of the Lightning trainer: a number of devices (of processes on a CPU) or ``"auto"``."""
    strategy: str = "auto"
    """``strategy`` of the Lightning trainer, e.g. ``"ddp"``."""
    num_nodes: int = 1
    """Number of machines."""
    precision: str = "32-true"
    """``precision`` of the Lightning trainer. On CPUs without AMX, bf16 is slower than float32.

    With ``"64-true"``, training is in float64. The fitted model is of float32, whatever the precision.
    """
    num_workers: int = 0
    """Number of processes that prepare batches. The batches do not depend on this number."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, when a fitted model is trained further.

    Some of ``"embeddings"`` (of features and values), ``"blocks"`` (of the transformer), ``"bag"`` (its projections),
    ``"bins"`` (the output for masked features) and ``"decoder"`` (the latent and the profile).
    """
    source_power: float = 0.5
    """If there are several data sets, the share of an epoch that each has is proportional to this power of its size."""
    checkpoint_dir: str | Path | None = None
    """Directory of checkpoints. With it, the same call continues a training that was ended from outside.

    The directory is for one fit. It may be removed when the fit has ended. See the page on training that survives.
    """
    resume: Literal["auto", "never"] = "auto"
    """``"auto"`` goes on from the checkpoint in ``checkpoint_dir``, if there is one. ``"never"`` replaces it."""
    checkpoint_minutes: float = 10.0
    """Minutes of training between two checkpoints. With 0, there is one before each step."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, low in (
            ("max_epochs", 1),
            ("max_steps", 0),
            ("batch_size", 1),
            ("accumulate_grad_batches", 1),
            ("warmup_steps", 0),
            ("n_masked", 1),
            ("patience", 1),
            ("num_nodes", 1),
            ("num_workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"TrainConfig.{name} must be at least {low}, found {value}.")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(
                f"TrainConfig.checkpoint_minutes must be 0 or a positive number, found {self.checkpoint_minutes}."
            )
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"TrainConfig.{name} must be positive, found {getattr(self, name)}.")
        if not 0.0 <= self.source_power <= 1.0:
            raise ConfigError(f"TrainConfig.source_power must lie in [0, 1], found {self.source_power}.")
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(f"TrainConfig.validation_fraction must lie in [0, 1), found {self.validation_fraction}.")
        if not 0.0 <= self.bag_dropout < 1.0:
            raise ConfigError(f"TrainConfig.bag_dropout must lie in [0, 1), found {self.bag_dropout}.")
        if self.n_context is not None and not 1 <= self.n_context[0] <= self.n_context[1]:
            raise ConfigError(
                f"TrainConfig.n_context must be None or two ascending positive integers, found {self.n_context}."
            )
        if unfrozen := sorted(set(self.freeze) - set(PARTS)):
            raise ConfigError(f"TrainConfig.freeze has {unfrozen}; the parts of the network are {list(PARTS)}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"TrainConfig.precision must be one of {list(PRECISIONS)}, found {self.precision!r}.")
        names = {"profile", *OBJECTIVE_NAMES}
        if unknown := sorted(set(self.objectives) - names) or (not self.objectives and ["nothing"]):
            raise ConfigError(f"TrainConfig.objectives has {unknown}; expected at least one of {sorted(names)}.")
        self.require_trained_parts(bag=True)

    def require_trained_parts(self, *, bag: bool) -> None:
        """Check that a part of the network learns: one that is not frozen, and that an objective uses.

        Parameters
        ----------
        bag
            Whether the network has a bag (``ModelConfig.bag``).

        Raises
        ------
        ConfigError
            If no part learns.
        """
        unused = {} if bag else {"bag": "is not part of this model (ModelConfig.bag=False)"}
        if not self.objectives.get("masked_bins"):
            unused["bins"] = f"is not trained by the objectives {sorted(self.objectives)}"
        if set(PARTS) - set(self.freeze) - set(unused):
            return
        why = [f" {part!r} {unused[part]}." for part in unused if part not in self.freeze]
        raise ConfigError(
            f"TrainConfig.freeze has {'all other' if why else 'all'} parts of the network, {list(self.freeze)}, so "
            f"nothing would be trained.{''.join(why)} Leave out a part. To train nothing, pass `max_steps=0`."
        )

    @classmethod
    def paper(cls) -> TrainConfig:
        """Learning rate and weight decay for the model size of the paper.

        The peak learning rate is 2e-4 (paper, section 3.2). The weight decay is the default of AdamW, 0.01.
        """
        return cls(lr=2e-4, weight_decay=0.01)

    @classmethod
    def fine_tuning(cls) -> TrainConfig:
        """Parameters for a model that was fitted before: a quarter of the learning rate (dev/experiments.md, 78)."""
        return cls(lr=5e-4)

    def epochs(self, n_cells: int) -> int:
        """Maximum number of passes over ``n_cells`` training cells."""
        if self.max_epochs is not None:
            return self.max_epochs
        return default_epochs(n_cells, self.batch_size * self.accumulate_grad_batches)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the fields on checkpoints. These change no result."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_STORED}
