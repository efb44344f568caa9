"""How a model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scbioformers.config._masking import Masking
from scbioformers.core import ConfigError, default_epochs

OBJECTIVE_NAMES = ("masked_bins", "profile_counts", "profile_bins")


@dataclass(frozen=True)
class TrainConfig:
    """Length, pace and place of the training.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.TrainConfig(max_steps=100, devices=2).batch_size
    64
    """

    max_epochs: int | None = None
    """Passes over the cells; by default 20, fewer above 8,000 cells so that the number of steps stays the same, and up
    to 100 where 20 would make less than 750 steps."""
    max_steps: int | None = None
    """Stop after so many steps; 0 leaves the model as it is initialised."""
    batch_size: int = 64
    """Cells per step, over all devices together."""
    lr: float = 2e-3
    """Peak learning rate of AdamW: linear warm-up, then a cosine to zero. See :meth:`paper`."""
    weight_decay: float = 1.0
    """Of matrices and tables, times the learning rate at every step; the feature embeddings are not decayed."""
    warmup_steps: int = 2000
    """At most; never more than 10 % of the steps."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    n_context: tuple[int, int] | None = (32, 96)
    """Visible features that attention reads in a step, at random: a number drawn anew for every batch, log-uniformly
    between the two. None reads all, as inference does, at two to three times the cost and no gain (experiment 15)."""
    n_masked: int = 32
    """Masked features of a cell that are scored in a step, at most."""
    bag_dropout: float = 0.9
    """In training the bag lacks a random share of the features, drawn for each cell between none and this."""
    masking: Masking = field(default_factory=Masking)
    """What is masked."""
    objectives: dict[str, float] = field(default_factory=lambda: {"masked_bins": 1.0, "profile": 1.0})
    """Weight of each objective; ``"profile"`` is the objective of ``<cls>``."""
    validation_fraction: float = 0.1
    """Share of the cells that only tells when to stop and which weights are best."""
    patience: int = 10
    """Validations without improvement before training stops."""
    devices: int | str = 1
    """As Lightning takes it: a number of devices (on a CPU: processes) or ``"auto"``."""
    strategy: str = "auto"
    """Lightning's strategy, e.g. ``"ddp"``."""
    num_nodes: int = 1
    """Machines."""
    precision: str = "32-true"
    """As Lightning takes it; on CPUs without AMX bf16 is slower."""
    num_workers: int = 0
    """Processes that prepare batches; the batches do not depend on it."""

    def __post_init__(self) -> None:
        for name, low in (
            ("max_epochs", 1),
            ("max_steps", 0),
            ("batch_size", 1),
            ("warmup_steps", 0),
            ("n_masked", 1),
            ("patience", 1),
            ("num_nodes", 1),
            ("num_workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"TrainConfig.{name} must be at least {low}, got {value}.")
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"TrainConfig.{name} must be positive, got {getattr(self, name)}.")
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(f"TrainConfig.validation_fraction must lie in [0, 1), got {self.validation_fraction}.")
        if not 0.0 <= self.bag_dropout < 1.0:
            raise ConfigError(f"TrainConfig.bag_dropout must lie in [0, 1), got {self.bag_dropout}.")
        if self.n_context is not None and not 1 <= self.n_context[0] <= self.n_context[1]:
            raise ConfigError(f"TrainConfig.n_context must be two ascending counts, got {self.n_context}.")
        names = {"profile", *OBJECTIVE_NAMES}
        if unknown := sorted(set(self.objectives) - names) or (not self.objectives and ["nothing"]):
            raise ConfigError(f"TrainConfig.objectives names {unknown}; there are {sorted(names)}.")

    @classmethod
    def paper(cls) -> TrainConfig:
        """The paper's pace, for its size: peak learning rate 2e-4 (section 3.2), and AdamW's usual weight decay."""
        return cls(lr=2e-4, weight_decay=0.01)

    def epochs(self, n_cells: int) -> int:
        """Passes over ``n_cells`` training cells."""
        if self.max_epochs is not None:
            return self.max_epochs
        return default_epochs(n_cells, self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)
