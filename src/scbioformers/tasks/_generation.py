"""Cells that are drawn from a decoder, feature by feature in a random order (paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from scbioformers.config import count_range
from scbioformers.core import N_DEPTHS, SPECIALS, ConfigError, tqdm, uniform
from scbioformers.model import BioFormer
from scbioformers.nn import N_SMALL_COUNTS, Decoder, GrowingPrefix
from scbioformers.training import DRAWN_FROM

Floats = NDArray[np.float64]
_CELL_STREAM, _ORDER_STREAM, _BIN_STREAM, _COUNT_STREAM = 0x6E4C, 0x6E40, 0x6E4B, 0x6E4D


def require_decoder(model: BioFormer) -> None:
    """Check that cells can be generated.

    Raises
    ------
    ConfigError
        If the model is an encoder.
    """
    if model.config.architecture != "decoder":
        raise ConfigError(
            "The model is an encoder (ModelConfig.architecture='encoder'), which does not generate cells. Fit a "
            "decoder: `bf.tl.fit(adata, config='decoder')`."
        )


def draw_conditions_of_cells(
    model: BioFormer, n: int, phenotype: Mapping[str, float], depth: Floats | None, seed: int
) -> tuple[Floats, NDArray[np.float32]]:
    """Depths (n,) and positions of phenotypes (n, P), those of training cells where they are not given.

    Both are drawn together, from the training cells that have the given categories, if there are any.
    """
    names = [each.name for each in model.phenotypes]
    known = model.heads[DRAWN_FROM].arrays["cells"].astype(np.float64)
    alike = np.ones(len(known), bool)
    for name, position in phenotype.items():
        if not np.isnan(position):
            alike &= np.abs(known[:, 1 + names.index(name)] - position) < 0.5
    known = known[alike] if alike.any() else known
    drawn = known[(uniform(seed ^ _CELL_STREAM, np.arange(n)) * len(known)).astype(np.int64)]
    positions = drawn[:, 1:].astype(np.float32)
    for name, position in phenotype.items():
        positions[:, names.index(name)] = position
    return drawn[:, 0] if depth is None else np.broadcast_to(depth, n).astype(np.float64), positions


@torch.no_grad()
def generate_counts(
    model: BioFormer,
    depth: Floats,
    phenotypes: NDArray[np.float32],
    seed: int,
    *,
    batch_size: int = 256,
    progress_bar: bool = False,
) -> csr_matrix:
    """Counts (N, M) of new cells with these depths (N,) and positions of phenotypes (N, P).

    The features of a cell are drawn one after the other, in a random order of its own. A bin is drawn from the mean of
    the probabilities of the members, and then a count in this bin. Cells of a batch advance together. What is drawn
    depends only on the seed, the cell and the feature.
    """
    parts, n_features = [], len(model.vocabulary)
    with tqdm(total=len(depth), desc="Generating cells", unit="cell", disable=not progress_bar) as bar:
        for start in range(0, len(depth), batch_size):
            cells = np.arange(start, min(start + batch_size, len(depth)))
            draws = CountDraws(model, depth[cells], cells, seed)
            prefixes = [draws.prefix(cast("Decoder", member), phenotypes[cells]) for member in model.members]
            order = np.argsort(uniform(seed ^ _ORDER_STREAM, cells[:, None], np.arange(n_features)), axis=1)
            counts, done = np.zeros((len(cells), n_features), np.float32), float(bar.n)
            for features in order.T:
                bins, values = draws.draw(prefixes, features)
                counts[np.arange(len(cells)), features] = values
                for prefix in prefixes:
                    device = prefix.sums.device
                    ids, levels = features + len(SPECIALS), np.log1p(values / draws.size).astype(np.float32)
                    prefix.add(*(torch.from_numpy(x).to(device) for x in (ids, bins, levels)))
                done += len(cells) / n_features
                bar.advance_to(done)
            parts.append(csr_matrix(counts))
    return vstack(parts, format="csr") if parts else csr_matrix((0, n_features), dtype=np.float32)


class CountDraws:
    """Draws bins and counts of B cells of a known depth."""

    def __init__(self, model: BioFormer, depth: Floats, cells: NDArray[np.int64], seed: int) -> None:
        self.model, self.cells, self.seed = model, cells, seed
        self.size = depth / float(model.binning.mean_depth or 1.0)
        self.lowest, self.highest = count_range(model.binning, self.size)
        depths = np.repeat(depth[:, None], N_DEPTHS, axis=1)
        self.small_count_bins = model.first_tokenizer.small_count_bins(depths)
        self.log_odds = float(np.log(model.zero_rate))

    def prefix(self, network: Decoder, phenotypes: NDArray[np.float32]) -> GrowingPrefix:
        """The empty prefixes of these cells."""
        log_depth = torch.from_numpy(np.log(self.size).astype(np.float32))
        small = torch.from_numpy(self.small_count_bins)
        return GrowingPrefix(network.eval(), log_depth, small, torch.from_numpy(phenotypes))

    def draw(
        self, prefixes: list[GrowingPrefix], features: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Bins and counts (B,) of one feature of each cell."""
        ids = torch.from_numpy(features + len(SPECIALS)).to(prefixes[0].sums.device)
        found = [tuple(x.cpu().double().numpy() for x in prefix.ask(ids)) for prefix in prefixes]
        probabilities = np.mean([self.natural(log_probs) for log_probs, _ in found], axis=0)
        answers = np.mean([answers for _, answers in found], axis=0)
        return self.pick(probabilities, answers, features)

    def natural(self, log_probs: Floats) -> Floats:
        """Probabilities (B, V) of bins at the natural odds of zeros. Bins without a whole count have probability 0."""
        log_probs = np.where(self.lowest <= self.highest, log_probs, -np.inf)
        log_probs[:, 0] -= self.log_odds
        probabilities = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))

    def pick(
        self, probabilities: Floats, answers: Floats, features: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw a bin (B,) of ``probabilities`` (B, V), and a count (B,) in it.

        A small count of the bin has its probability among the ``answers`` (B, V + C) of the head. The probability of
        the bin itself is shared by its other counts.
        """
        rows = np.arange(len(features))
        first, second = (uniform(self.seed ^ s, self.cells, features) for s in (_BIN_STREAM, _COUNT_STREAM))
        bins = (np.cumsum(probabilities, axis=1) <= first[:, None]).sum(axis=1)
        highest_possible = probabilities.shape[1] - 1 - (probabilities[:, ::-1] > 0).argmax(axis=1)
        bins = np.minimum(bins, highest_possible)  # sums of probabilities are rounded
        lowest, highest = self.lowest[rows, bins], self.highest[rows, bins]
        n_values = probabilities.shape[1]
        small = answers[:, n_values:] * self.small_count_bins[rows, :, bins]
        others = np.maximum(lowest, N_SMALL_COUNTS + 1)
        mass = np.where(others <= highest, answers[rows, bins], 0.0)
        total = np.maximum(small.sum(axis=1) + mass, 1e-300)
        place = second * total
        edges = np.cumsum(small, axis=1)
        count = 1.0 + (edges <= place[:, None]).sum(axis=1)
        share = np.clip((place - edges[:, -1]) / np.maximum(mass, 1e-300), 0.0, 1.0 - 1e-12)
        count = np.where(count > N_SMALL_COUNTS, others + np.floor(share * (highest - others + 1)), count)
        return bins, np.where(bins > 0, np.clip(count, lowest, highest), 0.0)


def phenotype_values(model: BioFormer, positions: NDArray[np.float32]) -> dict[str, Any]:
    """Columns of ``obs`` (N,) from positions (N, P): categories as text, and numbers. None or NaN: not known."""
    columns: dict[str, Any] = {}
    for phenotype, at in zip(model.phenotypes, positions.T, strict=True):
        if phenotype.knots:
            knots = np.array(phenotype.knots)
            low = np.clip(np.floor(np.nan_to_num(at)), 0, max(len(knots) - 2, 0)).astype(np.int64)
            high = np.minimum(low + 1, len(knots) - 1)
            columns[phenotype.name] = knots[low] + (at - low) * (knots[high] - knots[low])
        else:
            columns[phenotype.name] = [None if np.isnan(i) else phenotype.categories[int(i)] for i in at]
    return columns
