"""Prefixes of a decoder that grow by one feature at a time, with a cache of keys: each token is read once."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from scbioformers.core import SPECIALS
from scbioformers.nn._batch import Batch
from scbioformers.nn._blocks import TransformerBlock
from scbioformers.nn._decoder import Decoder, first_keys

_MORE = 64  # keys for which memory is taken at a time


class GrowingPrefix:
    """What a decoder knows of B cells whose features are added one after the other.

    The predictions are those of the network for the same prefixes. A zero adds no key, it changes the bag alone.

    Parameters
    ----------
    network
        The decoder, in evaluation mode.
    log_depth
        (B,), log of the depth of the whole cells relative to the training mean.
    small_count_bins
        (B, C, V), probability of each bin for small counts.
    phenotypes
        (B, P), their positions, NaN where one is not known.
    """

    def __init__(self, network: Decoder, log_depth: Tensor, small_count_bins: Tensor, phenotypes: Tensor) -> None:
        n, device = len(log_depth), network.cls.device
        ids, floats = torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0)
        self.network = network
        # of the fields of a batch, only those of the cells are used, not those of tokens
        self.cells = Batch(
            rows=torch.arange(n), context_ids=ids, context_bins=ids, masked_ids=ids, target_bins=ids,
            visible=floats, known=floats.bool(), present=floats.bool(), target_counts=floats, log_depth=log_depth,
            small_count_bins=small_count_bins, batch_codes=torch.full((n,), -1), phenotypes=phenotypes,
            target_phenotypes=torch.full_like(phenotypes, torch.nan), size_factor=log_depth.exp(),
        ).to(device)  # fmt: skip
        self.n_known = 0
        self.sums = torch.zeros(n, network.config.width, dtype=torch.float64, device=device)
        start = network.start_tokens(self.cells.phenotypes)
        self.n_keys = torch.full((n,), start.shape[1], device=device)
        self.keys: list[Tensor] = []  # of each block, (B, K, 2D)
        up_to = torch.arange(1, start.shape[1] + 1, device=device).expand(n, -1)
        for block in self._blocks:
            self.keys.append(functional.pad(block.keys(start), (0, 0, 0, _MORE)))
            start = block(start, self.keys[-1][:, : start.shape[1]], first_keys(up_to, start.shape[1]))

    @property
    def _blocks(self) -> list[TransformerBlock]:
        return cast("list[TransformerBlock]", list(self.network.blocks))

    def ask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a feature of each cell, by its vocabulary id (B,).

        Returns the log probabilities of its bins (B, V), and the probabilities of the answers of the head (B, V + C).
        """
        network, n = self.network, len(ids)
        share = torch.full((n,), self.n_known / float(network.bag_size), device=ids.device)
        bag = (self.sums / network.bag_scale / share.clamp(min=0.05)[:, None]).float()
        if not network.config.bag:
            bag = torch.zeros_like(bag)
        read = network.read_tokens(self.cells, bag)[:, :1]
        state = network.prefix_of_queries(self.cells.log_depth, share, bag)
        query = (network.features(ids) + network.mask + state)[:, None]
        x = torch.cat([read, query], dim=1)
        n_keys = int(self.n_keys.max())
        mask = first_keys(self.n_keys[:, None].expand(-1, 2), n_keys)
        for block, keys in zip(self._blocks, self.keys, strict=True):
            x = block(x, keys[:, :n_keys], mask)
        x = network.norm(x)
        latents = network.latents(x[:, 0], self.cells, bag)
        features = ids - len(SPECIALS)
        rates = network.rates(latents, features, self.cells)[:, None]
        small = self.cells.small_count_bins[:, None]
        rated = network.embed_rates(rates, features[:, None], self.cells.log_depth[:, None], small)
        batch = Batch(**{**vars(self.cells), "masked_ids": ids[:, None]})
        masked = x[:, 1:] + rated
        return network.bin_log_probs(masked, batch)[:, 0], network.answer_log_probs(masked, batch)[:, 0].exp()

    def add(self, ids: Tensor, bins: Tensor, levels: Tensor) -> None:
        """Add a feature of each cell, all (B,): vocabulary id, bin, and log1p of the count at the mean depth."""
        network = self.network
        departure = levels - network.profile_mean[ids - len(SPECIALS)]
        self.sums += departure[:, None].double() * network.feature.weight[ids].double()
        self.n_known += 1
        cells = torch.nonzero(bins > 0)[:, 0]
        if not len(cells):
            return
        x = (network.features(ids[cells]) + network.values(bins[cells]))[:, None]
        at = self.n_keys[cells]
        if int(at.max()) >= self.keys[0].shape[1]:
            self.keys = [functional.pad(keys, (0, 0, 0, _MORE)) for keys in self.keys]
        n_keys = int(at.max()) + 1
        for i, block in enumerate(self._blocks):
            self.keys[i][cells, at] = block.keys(x)[:, 0]
            if i + 1 < len(self.keys):
                x = block(x, self.keys[i][cells, :n_keys], first_keys(at[:, None] + 1, n_keys))
        self.n_keys[cells] += 1
