"""The decoder: features are read in an order, and each is predicted from those before it (GPT-like).

The paper says in section 2.2 that this design exists, and no more. Here it is as follows. A sequence is a start token,
the phenotypes and the expressed features in a random order. A *prefix* is what comes before a place of the order: the
values of its features, zeros included, of which only the expressed ones are tokens. For each feature that is asked, two
more tokens attend to the tokens of its prefix: ``<cls>``, from which the rate of the feature is decoded, and the masked
feature itself. The bag, the depth and the rates are those of the prefix. So nothing looks ahead.

A batch of a training step has a prefix for each masked feature, and one more for the profile of the cell. In a batch
without prefixes, everything that is visible is the prefix of all masked features.

Letters in shapes are those of :mod:`scbioformers.nn._transformer`. S = H + 1 prefixes, or 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS, uniform
from scbioformers.nn._batch import Batch
from scbioformers.nn._blocks import TransformerBlock
from scbioformers.nn._phenotypes import rows_at
from scbioformers.nn._sizes import Sizes
from scbioformers.nn._transformer import Output, Transformer, batch_vectors

N_ORDERS = 4  # random orders over which attention is averaged, each also from its end
_ORDER_STREAM = 0x0DE2


class Decoder(Transformer):
    """Predicts each masked feature from the features before it."""

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        width = config.width
        self.start = nn.Parameter(torch.empty(width))
        # of the depth, and of the share of the features that are known, which says how well the depth is known
        self.depth = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))

    def is_known(self, batch: Batch) -> Tensor:
        """(B, 1), True: what a network of several modalities is asked does not matter for a decoder."""
        return torch.ones(len(batch), 1, dtype=torch.bool, device=batch.known.device)

    def start_tokens(self, phenotypes: Tensor) -> Tensor:
        """Embeddings of the start token and of the phenotypes (B, P), -> (B, 1 + P, D). They know no feature."""
        start = self.start.expand(len(phenotypes), -1)
        nothing = torch.zeros_like(start)
        known = [each.tokens(at, nothing) for each, at in self._phenotypes_at(phenotypes)]
        return torch.stack([start, *known], dim=1)

    def read_tokens(self, prefixes: Batch, bag: Tensor) -> Tensor:
        """Embeddings of ``<cls>`` and the phenotypes of N prefixes, -> (N, 1 + P, D). They are not attended to."""
        cls, read = self.cls.expand(len(prefixes), -1), torch.zeros_like(bag)
        if self.config.bag:
            cls, read = cls + self.bag_to_cls(self.corrected(bag, prefixes)), self.bag_to_masked(bag)
        phenotypes = [each.tokens(at, read) for each, at in self._phenotypes_at(prefixes.phenotypes)]
        return torch.stack([cls, *phenotypes], dim=1)

    def share_known(self, prefixes: Batch) -> Tensor:
        """(N,), number of features that are known in each prefix, relative to those that the model was fitted to."""
        return prefixes.known.to(prefixes.visible.dtype).sum(dim=1) / self.bag_size

    def prefix_of_queries(self, log_depth: Tensor, share_known: Tensor, bag: Tensor) -> Tensor:
        """What the tokens of masked features have of N prefixes, (N, D): their depth and their bag."""
        state = self.depth(torch.stack([log_depth, share_known], dim=1))
        return state + self.bag_to_masked(bag) if self.config.bag else state

    def latents(self, cls: Tensor, prefixes: Batch, bag: Tensor) -> Tensor:
        """(N, L), latents of N prefixes from the outputs of their ``<cls>`` (N, D)."""
        latent = self.latent_out(functional.gelu(self.latent_inner(cls)))
        if self.config.bag:
            latent = latent + self.bag_to_latent(self.corrected(bag, prefixes))
        return self.latent_norm(latent)

    def rates(self, latents: Tensor, features: Tensor, prefixes: Batch) -> Tensor:
        """(N,), as ``decode``, but of one feature for each of N latents."""
        inner = self.from_latent[0](latents)
        for each, at in self._phenotypes_at(prefixes.phenotypes):
            inner = inner + rows_at(each.inner.weight, at)
        inner = self.from_latent[1](inner)
        rate = (inner * functional.embedding(features, self.rate.weight)).sum(dim=1) + self.rate.bias[features]
        rate = rate + (latents * functional.embedding(features, self.linear_rate.weight)).sum(dim=1)
        columns = [rows_at(each.rate.weight, at) for each, at in self._phenotypes_at(prefixes.phenotypes)]
        if self.sizes.n_batches:
            columns.append(batch_vectors(self.batch_rate.weight, prefixes.batch_codes).expand(len(rate), -1))
        for effects in columns:
            rate = rate + effects.gather(1, features[:, None])[:, 0]
        return rate

    def forward(self, batch: Batch, *, contextual: bool = False) -> Output:
        """Compute the outputs for a batch. ``<cls>``, the latent and the profile are those of the last prefix.

        With ``contextual``, also the outputs of the visible features. Each has read those before it.
        """
        prefixes = unfold(batch)
        n_cells, n_queries = batch.masked_ids.shape
        n_prefixes = len(prefixes) // n_cells
        shape = n_cells, n_prefixes
        bag = self.bag(prefixes) if self.config.bag else prefixes.visible.new_zeros(len(prefixes), self.config.width)
        read = self.read_tokens(prefixes, bag).view(*shape, -1, self.config.width)  # (B, S, 1 + P, D)
        state = self.prefix_of_queries(prefixes.log_depth, self.share_known(prefixes), bag).view(*shape, -1)
        asked = slice(0, n_queries) if n_prefixes > 1 else slice(0, 1)
        queries = self.features(batch.masked_ids) + self.mask + state[:, asked]
        read, queries, context = self.run(batch, read, queries, asked, contextual)
        latents = self.latents(read[:, :, 0].flatten(0, 1), prefixes, bag).view(*shape, -1)
        latent = latents[:, -1]
        log_rate = self.decode(latent, batch.batch_codes, batch.phenotypes)
        features = (batch.masked_ids - len(SPECIALS)).clamp(min=0)
        if n_prefixes > 1:
            own = _repeated(batch, n_queries)
            rates = self.rates(latents[:, asked].flatten(0, 1), features.flatten(), own).view_as(features)
        else:
            rates = log_rate.gather(1, features)
        depth = batch.log_depth.view(n_cells, -1)[:, asked].expand_as(rates)
        small = batch.small_count_bins.view(n_cells, n_prefixes, *batch.small_count_bins.shape[-2:])[:, asked]
        log_probs = self.bin_log_probs(queries + self.embed_rates(rates, features, depth, small), batch)
        if self.training and batch.noise is not None:
            noisy = latent + self.config.latent_noise * batch.noise
            log_rate = self.decode(noisy, batch.batch_codes, batch.phenotypes)
        return Output(log_probs, context, read[:, -1, 0], read[:, -1, 1:], latent, log_rate)

    def run(
        self, batch: Batch, read: Tensor, queries: Tensor, asked: slice, contextual: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the blocks, on read-out tokens (B, S, 1 + P, D) and masked features (B, H, D). Both attend to prefixes.

        Tokens of visible features attend to those up to themselves. As in the encoder, they are not updated by the last
        block, and if there is only one block, its keys are projected once for each distinct token.
        """
        distinct, which = self.context_tokens(batch)
        start = self.start_tokens(batch.phenotypes)
        n_start, n_keys = start.shape[1], start.shape[1] + which.shape[1]
        n_before = n_start + (_n_visible(batch) if batch.prefixes is None else batch.prefixes)  # (B, S)
        last, n_queries = cast("TransformerBlock", self.blocks[-1]), queries.shape[1]
        of_queries = n_before[:, asked].expand(-1, n_queries)
        readable = torch.cat([n_before.repeat_interleave(n_start, dim=1), of_queries], dim=1)
        tail = torch.cat([read.flatten(1, 2), queries], dim=1)
        if len(self.blocks) == 1 and not contextual:
            keys = torch.cat([last.keys(start), functional.embedding(which, last.keys(distinct))], dim=1)
            x = self.norm(last(tail, keys, first_keys(readable, n_keys)))
        else:
            x = torch.cat([start, functional.embedding(which, distinct), tail], dim=1)
            own = torch.arange(1, n_keys + 1, device=x.device).expand(len(x), -1)
            readable = torch.cat([own, readable], dim=1)
            for block in self.blocks[:-1]:
                keys = cast("TransformerBlock", block).keys(x[:, :n_keys])
                x = block(x, keys, first_keys(readable, n_keys))
            keys = last.keys(x[:, :n_keys])
            if not contextual:
                x, readable = x[:, n_keys:], readable[:, n_keys:]
            x = self.norm(last(x, keys, first_keys(readable, n_keys)))
        context = x[:, n_start:n_keys] if contextual else None
        x = x[:, x.shape[1] - tail.shape[1] :]
        n_read = x.shape[1] - n_queries
        return x[:, :n_read].reshape(read.shape), x[:, n_read:], context

    def attend(self, batch: Batch, layers: Collection[int]) -> Iterator[Tensor]:
        """Attention weights (B, A, C, C) between visible features, for each of ``layers``.

        Rows are queries. They are the mean over random orders, in each of which a feature attends to those before it.
        Each order is also used from its end, so that each pair is seen in half of them.
        """
        ids = batch.context_ids
        keys = uniform(_ORDER_STREAM, np.arange(N_ORDERS)[:, None, None], ids.cpu().numpy())
        keys = np.where(ids.cpu().numpy() > 0, np.stack([keys, -keys]), 2.0)
        places = torch.from_numpy(keys.argsort(axis=-1, kind="stable").argsort(axis=-1)).to(ids.device).flatten(0, 1)
        sums = [batch.visible.new_zeros(()) for _ in layers]
        for place in places:
            for i, weights in enumerate(self._attend_in_order(batch, layers, place)):
                sums[i] = sums[i] + weights / N_ORDERS
        yield from sums

    def _attend_in_order(self, batch: Batch, layers: Collection[int], place: Tensor) -> Iterator[Tensor]:
        """Attention weights (B, A, C, C) in the order in which visible features have these places (B, C)."""
        ids, order = batch.context_ids, place.argsort(dim=1)
        tensors = {name: getattr(batch, name).gather(1, order) for name in ("context_ids", "context_bins")}
        own = replace(batch, **tensors, masked_ids=tensors["context_ids"])
        prefixes = unfold(own)
        bag = self.bag(prefixes) if self.config.bag else prefixes.visible.new_zeros(len(ids), self.config.width)
        state = self.prefix_of_queries(prefixes.log_depth, self.share_known(prefixes), bag)
        queries = self.features(own.masked_ids) + self.mask + state[:, None]
        distinct, which = self.context_tokens(own)
        start = self.start_tokens(batch.phenotypes)
        n_start, n_keys = start.shape[1], start.shape[1] + ids.shape[1]
        up_to = torch.arange(1, n_keys + 1, device=ids.device).expand(len(ids), -1)
        mask = first_keys(torch.cat([up_to, up_to[:, n_start:] - 1], dim=1), n_keys)
        back = place[:, None, :, None], place[:, None, None, :]
        x = torch.cat([start, functional.embedding(which, distinct), queries], dim=1)
        for i, block in enumerate(cast("list[TransformerBlock]", self.blocks)):
            keys = block.keys(x[:, :n_keys])
            if i in layers and block.attention is not None and block.attention_norm is not None:
                weights = block.attention.weights(block.attention_norm(x[:, n_keys:]), keys, mask[:, :, n_keys:])
                weights = weights[..., n_start:]
                weights = weights.gather(2, back[0].expand_as(weights))
                yield weights.gather(3, back[1].expand_as(weights))
            if i < max(layers):
                x = block(x, keys, mask)

    def at_likely_depths(self, counts: Tensor, batch: Batch) -> Tensor:
        """Probabilities of small counts (B, H, C), as those of their bins (B, H, V)."""
        if batch.prefixes is None:
            return super().at_likely_depths(counts, batch)
        return (counts[:, :, None] @ batch.small_count_bins[:, : counts.shape[1]])[:, :, 0]


def first_keys(n: Tensor, n_keys: int) -> Tensor:
    """(B, 1, T, n_keys), True for the first ``n`` (B, T) keys, which each token may attend to."""
    return (torch.arange(n_keys, device=n.device) < n[..., None])[:, None]


def unfold(batch: Batch) -> Batch:
    """The prefixes of all cells as cells of a batch, B S. Tokens are those of the cells, they are not repeated."""
    if batch.prefixes is None:
        return batch
    own = _repeated(batch, batch.prefixes.shape[1])
    return replace(own, **{name: getattr(batch, name).flatten(0, 1) for name in ("visible", "known", "log_depth")})


def _repeated(batch: Batch, n: int) -> Batch:
    """The batch with the fields of obs repeated ``n`` times, one cell after the other."""
    names = ("rows", "batch_codes", "phenotypes")
    return replace(batch, **{name: getattr(batch, name).repeat_interleave(n, dim=0) for name in names})


def _n_visible(batch: Batch) -> Tensor:
    """(B, 1), number of tokens of visible features."""
    return (batch.context_ids > 0).sum(dim=1, keepdim=True)
