"""The transformer, top to bottom: embedding, blocks, heads (paper, sections 2.1.4 and 2.2).

Letters in the shape comments: B cells, C context (visible) tokens, H hidden tokens, T = 1 + F + C + H all tokens,
F obs fields, M modelled molecules, D width, L latent, A attention heads, V bin values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scbioformers.core import EXTERNAL, SPECIALS
from scbioformers.nn._config import ModelConfig
from scbioformers.tokens import Batch


@dataclass(frozen=True)
class Sizes:
    """The sizes that come from the data rather than from the user."""

    n_molecules: int
    n_values: int
    field_sizes: tuple[int, ...] = ()
    counts: bool = True
    """Whether the profile is of counts (a rate) or of bins (a share of the highest)."""


@dataclass(frozen=True)
class Output:
    """What the network says of a batch."""

    logits: Tensor
    """(B, H, V) over the bins of the hidden molecules."""
    molecules: Tensor | None
    """(B, C, D) contextual embeddings of the visible molecules, if asked for."""
    cls: Tensor
    """(B, D)."""
    latent: Tensor
    """(B, L)."""
    log_rate: Tensor
    """(B, M) log of the expected count at the mean depth."""


class ValueEmbedding(nn.Module):
    """A bin to a vector: a small network on the scalar (keeps magnitudes ordered), or a table."""

    def __init__(self, kind: str, n_values: int, width: int) -> None:
        super().__init__()
        self.kind, self.n_values = kind, n_values
        if kind == "lookup":
            self.table = nn.Embedding(n_values, width)
        else:
            self.hidden, self.out = nn.Linear(2, width), nn.Linear(width, width)

    def forward(self, bins: Tensor) -> Tensor:
        return functional.embedding(bins, self.values())

    def values(self) -> Tensor:
        """(V, D), one row per bin: bins are few and tokens many, so the network runs on the bins."""
        if self.kind == "lookup":
            return self.table.weight
        bins = torch.arange(self.n_values, device=self.out.weight.device, dtype=self.out.weight.dtype)
        # linear and logarithmic in the bin, so that both 1 against 2 and 10 against 20 can be told apart
        scales = torch.stack((bins / max(self.n_values - 1, 1), torch.log1p(bins)), dim=-1)
        return self.out(functional.gelu(self.hidden(scales)))


class Attention(nn.Module):
    """Multi-head self-attention; ``mask`` says which keys each query may read, so a decoder needs no other code."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Queries ``x`` (B, Tq, D) read ``context`` (B, Tk, D) -> (B, Tq, D)."""
        batch, length, width = x.shape
        query = self.query(x).view(batch, length, self.n_heads, -1).transpose(1, 2)  # (B, A, Tq, D/A)
        keys = self.key_value(context).view(batch, context.shape[1], 2 * self.n_heads, -1)
        key, value = keys.transpose(1, 2).chunk(2, dim=1)  # (B, A, Tk, D/A) each
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block; without attention only its feed-forward half remains."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.n_heads, config.dropout) if config.attention else None
        self.attention_norm = nn.LayerNorm(width) if config.attention else None
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.feedforward * width)
        self.contract = nn.Linear(config.feedforward * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, n_keys: int, mask: Tensor | None, wanted: Tensor | None = None) -> Tensor:
        """Update all tokens, or the ``wanted`` ones only; the first ``n_keys`` are what they read."""
        queries = x if wanted is None else x[:, wanted]
        if self.attention is not None and self.attention_norm is not None:
            context = self.attention_norm(x[:, :n_keys])
            queries = queries + self.dropout(self.attention(self.attention_norm(queries), context, mask))
        # ReLU is several times faster than GELU on a CPU
        inner = functional.relu(self.expand(self.feedforward_norm(queries)))
        return queries + self.dropout(self.contract(inner))


class Network(nn.Module):
    """Token batches to bin logits of the hidden molecules and, through ``<cls>``, the profile of the cell."""

    bag_mean: Tensor
    bag_scale: Tensor

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, n_specials = config.width, len(SPECIALS)
        self.molecule = nn.Embedding(n_specials + sizes.n_molecules, width, padding_idx=0)
        self.value = ValueEmbedding(config.value_embedding, sizes.n_values, width)
        self.external = nn.Embedding(len(EXTERNAL), width, padding_idx=0)  # 0 is none: no change, ever
        self.fields = nn.ModuleList(nn.Embedding(n, width) for n in sizes.field_sizes)
        self.cls = nn.Parameter(torch.empty(width))
        self.mask = nn.Parameter(torch.empty(width))
        self.depth = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        if config.bag:
            self.field_shifts = nn.ModuleList(nn.Embedding(n, width) for n in sizes.field_sizes)
            self.bag_to_cls = nn.Linear(width, width, bias=False)
            self.bag_to_hidden = nn.Linear(width, width, bias=False)
            self.bag_to_latent = nn.Linear(width, config.n_latent, bias=False)
        self.register_buffer("bag_mean", torch.zeros(width))
        self.register_buffer("bag_scale", torch.ones(width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.bin_hidden, self.bin_out = nn.Linear(width, width), nn.Linear(width, sizes.n_values)
        self.bin_bias = nn.Embedding(n_specials + sizes.n_molecules, sizes.n_values)
        self.latent_hidden, self.latent_out = nn.Linear(width, width), nn.Linear(width, config.n_latent)
        self.latent_norm = nn.LayerNorm(config.n_latent, elementwise_affine=False)
        self.from_latent = nn.Sequential(nn.Linear(config.n_latent, width), nn.GELU())
        self.rate = nn.Linear(width, sizes.n_molecules)
        self.linear_rate = nn.Linear(config.n_latent, sizes.n_molecules, bias=False)
        self.log_dispersion = nn.Parameter(torch.empty(sizes.n_molecules))

    def bag(self, visible: Tensor) -> Tensor:
        """Normalised, expression-weighted sum of the embeddings of *every* visible molecule, (B, M) -> (B, D)."""
        return (visible @ self.molecule.weight[len(SPECIALS) :] - self.bag_mean) / self.bag_scale

    def shift(self, bag: Tensor, fields: Tensor) -> Tensor:
        """Take out of the bag what the obs fields of the cell explain, (B, D) -> (B, D)."""
        for i, table in enumerate(self.field_shifts):
            bag = bag + table(fields[:, i])
        return bag

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (Eq. 7): ``<cls>``, fields, visible molecules, hidden molecules -> (B, T, D) and key mask (B, T)."""
        context = self.molecule(batch.context_ids) + self.value(batch.context_bins)
        hidden = self.molecule(batch.hidden_ids) + self.mask
        if batch.context_external is not None and batch.hidden_external is not None:
            context = context + self.external(batch.context_external)
            hidden = hidden + self.external(batch.hidden_external)
        hidden = hidden + self.depth(batch.log_depth[:, None])[:, None]
        cls = self.cls.expand(len(batch), 1, -1)
        if self.config.bag:
            bag = self.bag(batch.visible)
            cls = cls + self.bag_to_cls(self.shift(bag, batch.fields))[:, None]
            hidden = hidden + self.bag_to_hidden(bag)[:, None]
        fields = [table(batch.fields[:, i])[:, None] for i, table in enumerate(self.fields)]
        x = torch.cat([cls, *fields, context, hidden], dim=1)
        head = torch.ones(len(batch), 1 + len(fields), dtype=torch.bool, device=x.device)
        return x, torch.cat([head, batch.context_ids > 0, batch.hidden_ids > 0], dim=1)

    def forward(self, batch: Batch, *, contextual: bool = False) -> Output:
        """Read a batch; ``contextual`` asks for the outputs of the visible molecules too.

        They are what nobody reads after the last block, so without ``contextual`` that block updates ``<cls>`` and the
        hidden molecules alone, which changes nothing else and costs a fraction.
        """
        x, readable = self.embed(batch)
        n_context, n_hidden = batch.context_ids.shape[1], batch.hidden_ids.shape[1]
        start = x.shape[1] - n_hidden
        n_keys = x.shape[1] if self.config.attend_hidden else start
        mask = None if bool(readable[:, :n_keys].all()) else readable[:, None, None, :n_keys]  # (B, 1, 1, n_keys)
        wanted = None
        if not contextual:
            wanted = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(start, x.shape[1])]).to(x.device)
        for block in self.blocks[:-1]:
            x = block(x, n_keys, mask)
        x = self.norm(self.blocks[-1](x, n_keys, mask, wanted))
        hidden = x[:, x.shape[1] - n_hidden :]
        molecules = x[:, start - n_context : start] if contextual else None
        logits = self.bin_out(functional.gelu(self.bin_hidden(hidden))) + self.bin_bias(batch.hidden_ids)
        latent = self.latent_out(functional.gelu(self.latent_hidden(x[:, 0])))
        if self.config.bag:
            latent = latent + self.bag_to_latent(self.shift(self.bag(batch.visible), batch.fields))
        latent = self.latent_norm(latent)
        noisy = latent
        if self.training and batch.noise is not None:
            noisy = latent + self.config.latent_noise * batch.noise
        return Output(logits, molecules, x[:, 0], latent, self.decode(noisy, batch.fields))

    def decode(self, latent: Tensor, fields: Tensor) -> Tensor:
        """The latent to the log of the expected count of every molecule at the mean depth, (B, L) -> (B, M)."""
        told = [table(fields[:, i]) for i, table in enumerate(self.fields)]
        return self._decode(latent, told)

    def profile(self, latent: Tensor) -> Tensor:
        """Decoded profile at averaged conditions, (B, L) -> (B, M): log1p of the counts expected at the mean depth."""
        rate = self._decode(latent, [cast("nn.Embedding", table).weight.mean(dim=0) for table in self.fields])
        return functional.softplus(rate) if self.sizes.counts else torch.sigmoid(rate)

    def _decode(self, latent: Tensor, told: list[Tensor]) -> Tensor:
        h = self.from_latent(latent)
        for condition in told:
            h = h + condition
        return self.rate(h) + self.linear_rate(latent)
