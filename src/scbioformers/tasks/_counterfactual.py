"""The same cells under another phenotype: their profiles, decoded from their latent with other values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from scbioformers.core import tqdm
from scbioformers.data import Block, BlockSource
from scbioformers.model import READ_CHUNK, BioFormer, run_network


@dataclass(frozen=True, eq=False)
class Decoded:
    """Profiles of n consecutive cells, log1p of the expected counts at the mean depth."""

    start: int
    """Row of the first cell."""
    own: NDArray[np.float32]
    """(members, n, M), under the phenotypes of the cells. The average phenotype where one is not known."""
    other: NDArray[np.float32]
    """(members, n, M), under the values that were asked for."""
    differs: NDArray[np.bool_]
    """(n,), cells that have another value of a phenotype that was changed. False where one of them is not known."""

    def of(self, features: slice) -> Decoded:
        """The profiles over some of the features."""
        return replace(self, own=self.own[..., features], other=self.other[..., features])


@torch.no_grad()
def decode_blocks(
    model: BioFormer,
    source: BlockSource,
    changed: Mapping[str, float],
    *,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Iterator[Decoded]:
    """Decode the latent of each cell twice: under its own phenotypes, and with some of them changed.

    The latent is computed from the cell as it is, with its own phenotypes. Most of them is not in it, as most of a
    technical batch is not, because the decoder is conditioned on them. What is left in it is moved to the other values.

    Parameters
    ----------
    changed
        Position of each phenotype that is changed, see :func:`scbioformers.data.positions`.
    """
    numbers = {phenotype.name: i for i, phenotype in enumerate(model.phenotypes)}
    shape = len(model.members), len(model.vocabulary)
    with tqdm(total=source.n_obs, desc="Decoding cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(READ_CHUNK):
            own, other = np.zeros((2, shape[0], len(block.depth), shape[1]), np.float32)
            for i, network in enumerate(model.members):
                for batch, output in run_network(model, network, [block], batch_size):
                    phenotypes, rows = batch.phenotypes.clone(), batch.rows.cpu().numpy() - block.start
                    own[i, rows] = network.profile(output.latent, phenotypes).cpu().numpy()
                    for name, position in changed.items():
                        phenotypes[:, numbers[name]] = position
                    latent = network.moved(output.latent, batch.phenotypes, phenotypes)
                    other[i, rows] = network.profile(latent, phenotypes).cpu().numpy()
            bar.update(len(block.depth))
            _, differs = which_have(model, block, changed)
            yield Decoded(block.start, own, other, differs)


def which_have(
    model: BioFormer, block: Block, changed: Mapping[str, float]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) cells that have these phenotypes, and cells that have others. Where one is not known, both are False."""
    names = [each.name for each in model.fields]
    own = block.fields[:, [names.index(name) for name in changed]]
    has = (own == np.array(list(changed.values()), np.float32)).all(axis=1)
    return has, ~has & ~np.isnan(own).any(axis=1)


@dataclass(eq=False)
class Effects:
    """Sums over the cells of each of K groups, from which mean effects and their standard errors follow."""

    n_groups: int
    n_members: int
    n_features: int
    n_cells: NDArray[np.int64] = field(init=False)
    _sums: NDArray[np.float64] = field(init=False)
    _predicted: NDArray[np.float64] = field(init=False)
    _squares: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.n_cells = np.zeros(self.n_groups, np.int64)
        self._sums = np.zeros((self.n_groups, self.n_members, self.n_features))
        self._predicted, self._squares = np.zeros((2, self.n_groups, self.n_features))

    def add(self, decoded: Decoded, groups: NDArray[np.integer]) -> None:
        """Add the cells whose phenotype differs, with the group (n,) of each. Cells of group -1 do not count."""
        groups = np.where(decoded.differs, groups, -1)
        change = decoded.other.astype(np.float64) - decoded.own
        mean = change.mean(axis=0)
        for group in np.unique(groups[groups >= 0]):
            rows = groups == group
            self.n_cells[group] += rows.sum()
            self._sums[group] += change[:, rows].sum(axis=1)
            self._predicted[group] += decoded.other[:, rows].mean(axis=0, dtype=np.float64).sum(axis=0)
            self._squares[group] += np.square(mean[rows]).sum(axis=0)

    def mean(self) -> NDArray[np.float64]:
        """(K, M), mean effect, NaN for groups without cells."""
        with np.errstate(invalid="ignore"):
            return self._sums.mean(axis=1) / self.n_cells[:, None]

    def predicted(self) -> NDArray[np.float64]:
        """(K, M), mean profile of the same cells under the values that were asked for, NaN for groups without cells."""
        with np.errstate(invalid="ignore"):
            return self._predicted / self.n_cells[:, None]

    def standard_error(self) -> NDArray[np.float64]:
        """(K, M), from the variance of the effects between cells and, in an ensemble, between members.

        NaN for groups of fewer than two cells.
        """
        n = np.where(self.n_cells > 1, self.n_cells, np.nan)[:, None]
        with np.errstate(invalid="ignore"):
            of_cells = np.maximum(self._squares / n - self.mean() ** 2, 0.0) / (n - 1)
            if self.n_members == 1:
                return np.sqrt(of_cells)
            members = (self._sums / n[:, None]).var(axis=1, ddof=1) / self.n_members
        return np.sqrt(of_cells + members)


def compare(predicted: Sequence[NDArray[np.floating]], observed: NDArray[np.floating]) -> list[tuple[float, float]]:
    """Pearson correlation and root mean squared error of each predicted effect (M,). NaN for a constant prediction."""
    found = []
    for each in predicted:
        constant = min(np.ptp(each), np.ptp(observed)) < 1e-12
        correlation = np.nan if constant else float(np.corrcoef(each, observed)[0, 1])
        found.append((correlation, float(np.sqrt(np.mean(np.square(each - observed))))))
    return found
