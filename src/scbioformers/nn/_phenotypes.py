"""Phenotypes in the network: their tokens, what the profile is conditioned on, and their own prediction.

A category has a row in each table. So has each knot of a numeric phenotype: between two knots, rows are interpolated,
and beyond the last one they are extrapolated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def rows_at(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of a table (n, D) at the positions (B,), -> (B, D). Between two rows they are interpolated.

    Where the position is NaN, which stands for a phenotype that is not known, it is the mean of all rows.
    """
    known, last = ~positions.isnan(), len(table) - 1
    place = positions.nan_to_num()
    low = place.floor().clamp(0, max(last - 1, 0)).long()
    share = (place - low).to(table.dtype)[:, None]
    lower, upper = (functional.embedding(at, table) for at in (low, (low + 1).clamp(max=last)))
    return torch.where(known[:, None], (1 - share) * lower + share * upper, table.mean(dim=0))


class Phenotype(nn.Module):
    """One phenotype of n categories, or of a number with n knots."""

    shift: Tensor
    latent_shift: Tensor

    def __init__(self, n: int, width: int, n_features: int, n_latent: int) -> None:
        super().__init__()
        self.token = nn.Embedding(n, width)
        self.unknown = nn.Parameter(torch.empty(width))
        self.register_buffer("shift", torch.zeros(n, width))  # of the bag; not trained: it would learn the phenotype
        self.register_buffer("latent_shift", torch.zeros(n, n_latent))  # fitted after the training
        self.rate = nn.Embedding(n, n_features)
        self.inner = nn.Embedding(n, width)
        self.answer = nn.Linear(width, n)

    def tokens(self, positions: Tensor, masked: Tensor) -> Tensor:
        """Embedding of the phenotype of each cell, (B,) -> (B, D). ``masked`` (B, D) is added where it is not known."""
        known = ~positions.isnan()[:, None]
        return torch.where(known, rows_at(self.token.weight, positions), self.unknown + masked)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """(B,), cross-entropy of the predicted categories, in nats. 0 where the target (B,) is NaN.

        ``output`` (B, D) is that of the token. A number between two knots is shared by them.
        """
        n = self.answer.out_features
        log_probs, known = functional.log_softmax(self.answer(output), dim=-1), ~targets.isnan()
        wanted = rows_at(torch.eye(n, dtype=log_probs.dtype, device=targets.device), targets.clamp(0, n - 1))
        return torch.where(known, -(wanted * log_probs).sum(dim=-1), 0.0)
