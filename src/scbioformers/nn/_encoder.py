"""The encoder: each masked feature is predicted from all visible features of the cell (paper, section 2.2).

Letters in shapes are those of :mod:`scbioformers.nn._transformer`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from scbioformers.nn._batch import Batch
from scbioformers.nn._blocks import TransformerBlock
from scbioformers.nn._transformer import Output, Transformer


class Encoder(Transformer):
    """Predicts masked features from visible ones, which all attend to each other."""

    def query_tokens(self, batch: Batch, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of ``<cls>`` and the phenotypes, (B, 1 + P, D), and of the masked features, (B, H, D).

        A phenotype that is not known reads the bag as a masked feature does, so that it can be predicted.
        """
        depth = self.depth(batch.log_depth.view(len(batch), -1))[:, None]
        masked = self.features(batch.masked_ids) + self.mask + depth
        cls = self.cls.expand(len(batch), 1, -1)
        if self.config.bag:
            cls = cls + self.bag_to_cls(self.corrected(bag, batch))[:, None]
            read = self.bag_to_masked(bag)
            masked = masked + read[:, None]
        else:
            read = torch.zeros_like(bag)
        phenotypes = [each.tokens(at, read)[:, None] for each, at in self._phenotypes_at(batch.phenotypes)]
        return torch.cat([cls, *phenotypes], dim=1), masked

    def encode(self, batch: Batch, bag: Tensor, contextual: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the blocks.

        Returns outputs of ``<cls>`` and the phenotypes (B, 1 + P, D), of masked features (B, H, D) and, with
        ``contextual``, of visible features (B, C, D). The visible features are not used after the last block. So
        without ``contextual`` the last block updates only the others. The result is the same and the cost is much
        lower. If there is only one block, its keys are projected once for each distinct token.
        """
        distinct, which = self.context_tokens(batch)
        head, masked = self.query_tokens(batch, bag)
        n_head, n_context, n_masked = head.shape[1], which.shape[1], masked.shape[1]
        readable = torch.ones(len(batch), n_head, dtype=torch.bool, device=head.device)
        readable = torch.cat([readable, batch.context_ids > 0], dim=1)
        if self.config.attend_masked:
            readable = torch.cat([readable, batch.masked_ids > 0], dim=1)
        n_keys = readable.shape[1]
        mask = None if bool(readable.all()) else readable[:, None, None]  # (B, 1, 1, n_keys)
        last = cast("TransformerBlock", self.blocks[-1])
        if len(self.blocks) == 1 and not contextual:
            parts = [last.keys(head), functional.embedding(which, last.keys(distinct))]
            keys = torch.cat([*parts, last.keys(masked)] if self.config.attend_masked else parts, dim=1)
            x = self.norm(last(torch.cat([head, masked], dim=1), keys, mask))
            return x[:, :n_head], x[:, n_head:], None
        x = torch.cat([head, functional.embedding(which, distinct), masked], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, cast("TransformerBlock", block).keys(x[:, :n_keys]), mask)
        keys = last.keys(x[:, :n_keys])
        if not contextual:
            x = torch.cat([x[:, :n_head], x[:, n_head + n_context :]], dim=1)
        x = self.norm(last(x, keys, mask))
        visible = x[:, n_head : n_head + n_context] if contextual else None
        return x[:, :n_head], x[:, x.shape[1] - n_masked :], visible

    def attend(self, batch: Batch, layers: Collection[int]) -> Iterator[Tensor]:
        """Attention weights (B, A, C, C) between visible features, for each of ``layers``.

        Rows are queries. Each visible feature is used as a query in the form of a masked feature, as in training. A
        query does not attend to its own key. Queries also attend to ``<cls>`` and the phenotypes. These weights are not
        returned, so rows sum to less than 1.
        """
        ids = batch.context_ids
        bag = self.bag(batch) if self.config.bag else batch.visible.new_zeros(len(batch), self.config.width)
        distinct, which = self.context_tokens(batch)
        head, masked = self.query_tokens(replace(batch, masked_ids=ids), bag)
        n_head, n_keys = head.shape[1], head.shape[1] + ids.shape[1]
        readable = functional.pad(ids > 0, (n_head, 0), value=True)[:, None]  # (B, 1, n_keys)
        other = functional.pad(ids[:, :, None] != ids[:, None, :], (n_head, 0), value=True)  # (B, C, n_keys)
        mask = torch.cat([readable.expand(-1, n_keys, -1), readable & other], dim=1)[:, None]
        x = torch.cat([head, functional.embedding(which, distinct), masked], dim=1)
        for i, block in enumerate(cast("list[TransformerBlock]", self.blocks)):
            keys = block.keys(x[:, :n_keys])
            if i in layers and block.attention is not None and block.attention_norm is not None:
                queries = block.attention_norm(x[:, n_keys:])
                yield block.attention.weights(queries, keys, mask[:, :, n_keys:])[..., n_head:]
            if i < max(layers):
                x = block(x, keys, mask)

    def forward(self, batch: Batch, *, contextual: bool = False) -> Output:
        """Compute the outputs for a batch. With ``contextual``, also those of the visible features."""
        bag = self.bag(batch) if self.config.bag else batch.visible.new_zeros(len(batch), self.config.width)
        head, masked, context = self.encode(batch, bag, contextual)
        cls = head[:, 0]
        latent = self.latent_out(functional.gelu(self.latent_inner(cls)))
        if self.config.bag:
            latent = latent + self.bag_to_latent(self.corrected(bag, batch))
        latent = self.latent_norm(latent)
        log_rate = self.decode(latent, batch.batch_codes, batch.phenotypes)
        masked = masked + self.rate_features(log_rate, batch)
        log_probs = self.bin_log_probs(masked, batch)
        if self.training and batch.noise is not None:
            noisy = latent + self.config.latent_noise * batch.noise
            log_rate = self.decode(noisy, batch.batch_codes, batch.phenotypes)
        return Output(log_probs, context, cls, head[:, 1:], latent, log_rate)
