"""Parts of the transformer: the embedding of bins, attention, and blocks (paper, sections 2.1.4 and 2.2).

Letters in shapes are those of :mod:`scbioformers.nn._transformer`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from scbioformers.config import ModelConfig


class ValueEmbedding(nn.Module):
    """Embedding of bins: a small network on the bin as a number, which keeps the order of the bins, or a table."""

    def __init__(self, kind: str, n_values: int, width: int) -> None:
        super().__init__()
        self.kind, self.n_values = kind, n_values
        if kind == "lookup":
            self.table = nn.Embedding(n_values, width)
        else:
            self.inner, self.out = nn.Linear(2, width), nn.Linear(width, width)

    def forward(self, bins: Tensor) -> Tensor:
        return functional.embedding(bins, self.values())

    def values(self) -> Tensor:
        """(V, D), embedding of each bin. There are far fewer bins than tokens, so each bin is embedded once."""
        if self.kind == "lookup":
            return self.table.weight
        bins = torch.arange(self.n_values, device=self.out.weight.device, dtype=self.out.weight.dtype)
        # the logarithmic input separates low bins, the linear input separates high bins
        scales = torch.stack((bins / max(self.n_values - 1, 1), torch.log1p(bins)), dim=-1)
        return self.out(functional.gelu(self.inner(scales)))


class Attention(nn.Module):
    """Multi-head attention. ``mask`` is True where a query may attend to a key."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def _split_heads(self, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, A, Tq, D/A), and keys and values (B, A, Tk, D/A)."""
        query = self.query(x).view(len(x), x.shape[1], self.n_heads, -1).transpose(1, 2)
        heads = keys.view(len(keys), keys.shape[1], 2 * self.n_heads, -1)
        key, value = heads.transpose(1, 2).chunk(2, dim=1)
        return query, key, value

    def weights(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Attention weights of queries ``x`` (B, Tq, D) over projected ``keys`` (B, Tk, 2D) -> (B, A, Tq, Tk)."""
        query, key, _ = self._split_heads(x, keys)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from queries ``x`` (B, Tq, D) to projected ``keys`` (B, Tk, 2D) -> (B, Tq, D)."""
        query, key, value = self._split_heads(x, keys)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block. Without attention it has only the feed-forward part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.n_heads, config.dropout) if config.attention else None
        self.attention_norm = nn.LayerNorm(width) if config.attention else None
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.feedforward * width)
        self.contract = nn.Linear(config.feedforward * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def keys(self, x: Tensor) -> Tensor:
        """Projected keys and values of tokens, (..., D) -> (..., 2D)."""
        if self.attention is None or self.attention_norm is None:
            return x.new_zeros(*x.shape[:-1], 0)
        return self.attention.key_value(self.attention_norm(x))

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Update tokens ``x`` (B, T, D), which attend to projected ``keys`` (B, Tk, 2D) -> (B, T, D)."""
        if self.attention is not None and self.attention_norm is not None:
            x = x + self.dropout(self.attention(self.attention_norm(x), keys, mask))
        # ReLU is several times faster than GELU on a CPU
        inner = functional.relu(self.expand(self.feedforward_norm(x)))
        return x + self.dropout(self.contract(inner))
