"""Simulated phenotypes: conditions and times, which change the activity of regulators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.datasets._network import Network, categorical, numbered

RESPONDING = 1 / 3  # probability that a condition changes the activity of a regulator
DELAY = 0.5  # steps of time by which proteins follow their genes


@dataclass
class Phenotype:
    """A column of ``obs`` whose levels shift the activity of regulators. There is no column if it has one level."""

    key: str
    column: pd.Categorical[str] | NDArray[np.float64]  # (n_cells,) what `obs` holds
    level: NDArray[np.integer]  # (n_cells,)
    labels: list[str]  # (n_levels,)
    shift: NDArray[np.float64]  # (n_levels, n_genes), 0 in the first level
    delayed_shift: NDArray[np.float64]  # (n_levels, n_genes): the shift that proteins follow
    n_types: int
    changes: NDArray[np.float64] = field(init=False)  # (n_types, n_levels, n_genes), sums of changes since level 0

    def __post_init__(self) -> None:
        self.changes = np.zeros((self.n_types, *self.shift.shape))

    def of(self, rows: slice) -> NDArray[np.float64]:
        """Return the shifts of these cells, cells x genes."""
        return self.shift[self.level[rows]]

    def delayed_of(self, rows: slice) -> NDArray[np.float64]:
        """Return the shifts that the proteins of these cells follow."""
        return self.delayed_shift[self.level[rows]]

    def add_truth(self, network: Network, own: NDArray[np.float64], cell_type: NDArray[np.integer]) -> None:
        """Add the changes of more cells. `own` is their activity in level 0 before regulation, cells x genes."""
        if len(self.labels) == 1:
            return
        first = network.propagate(own)
        for level in range(1, len(self.labels)):
            np.add.at(self.changes[:, level], cell_type, network.propagate(own + self.shift[level]) - first)

    def write(self, adata: AnnData) -> None:
        """Write the column of ``obs`` and the true mean changes. ``obs`` has the types already."""
        if len(self.labels) == 1:
            return

        def mean_change(changes: NDArray[np.float64], n_cells: int) -> pd.DataFrame:
            return pd.DataFrame(changes[1:].T / n_cells, index=adata.var_names, columns=self.labels[1:])

        n_cells = adata.obs["cell_type"].value_counts(sort=False)  # in the order of the categories
        adata.obs[self.key] = self.column
        adata.uns[f"{self.key}_true"] = mean_change(self.changes.sum(axis=0), adata.n_obs)
        adata.uns[f"{self.key}_true_by_type"] = {
            name: mean_change(changes, n)
            for name, changes, n in zip(n_cells.index, self.changes, n_cells, strict=True)
            if n
        }


def draw_conditions(random: np.random.Generator, network: Network, n_cells: int, n_conditions: int) -> Phenotype:
    """A condition changes the activity of one regulator in three, and at least of one, by 1 to 2 up or down."""
    n_regulators = len(network.weights)
    size = n_conditions, n_regulators
    lot = random.random(size)
    responds = lot <= np.maximum(RESPONDING, lot.min(axis=1, keepdims=True))
    shift = np.zeros((n_conditions, len(network.names)))
    shift[:, :n_regulators] = responds * random.uniform(1.0, 2.0, size) * random.choice([-1.0, 1.0], size)
    shift[0] = 0.0
    level = random.permutation(np.arange(n_cells) % n_conditions)
    labels = numbered("condition_", n_conditions)
    column = categorical(level, labels)
    return Phenotype("condition", column, level, labels, shift, shift, len(network.type_activity))


def draw_times(random: np.random.Generator, network: Network, n_cells: int, n_times: int) -> Phenotype:
    """The activity of each regulator follows a sine wave, of which all times see a quarter to three quarters."""
    n_regulators = len(network.weights)
    amplitude = random.uniform(0.5, 1.5, n_regulators)
    half_periods = random.uniform(0.5, 1.5, n_regulators)
    phase = random.uniform(0.0, 2 * np.pi, n_regulators)

    def shift_at(times: NDArray[np.float64]) -> NDArray[np.float64]:
        progress = np.maximum(times, 0.0)[:, None] / max(n_times - 1, 1)  # nothing changes before time 0
        shift = np.zeros((n_times, len(network.names)))
        shift[:, :n_regulators] = amplitude * (np.sin(np.pi * half_periods * progress + phase) - np.sin(phase))
        return shift

    times = np.arange(n_times, dtype=np.float64)
    level = random.permutation(np.arange(n_cells) % n_times)
    labels = [f"{time:g}" for time in times]
    delayed_shift = shift_at(times - DELAY)
    return Phenotype("time", times[level], level, labels, shift_at(times), delayed_shift, len(network.type_activity))
