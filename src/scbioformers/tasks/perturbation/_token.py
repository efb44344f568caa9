"""The network's own answer to a perturbation: the perturbed gene carries an external token (Eq. 7).

The token is all that is trained here, on control cells paired with perturbed cells of the same batches and cell types:
the network itself was fitted to control cells, stays as it is, and so do the embeddings of cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from scbioformers.core import EXTERNAL, SPECIALS
from scbioformers.data import Block
from scbioformers.model import BioFormer, make_batches
from scbioformers.nn import Batch, Transformer

Array = NDArray[np.float64]
_CODES = {"knockout": EXTERNAL["knocked_down"], "activation": EXTERNAL["activated"]}
# of the training (experiment 62)
STEPS, LR = 60, 0.1
N_TARGETS, N_CELLS = 16, 2  # of a step, and control cells for each
RIDGE = 1.0
_BATCH = 64


@dataclass(frozen=True, eq=False)
class PerturbationToken:
    """A fitted network, control cells to start from, and what is known of the N targets that may be perturbed."""

    model: BioFormer
    cells: Block
    """Control cells."""
    names: Sequence[str]
    """(N,)."""
    features: NDArray[np.float32]
    """(N, F), of unit length, 0 where there are none."""
    kind: str
    """Of the perturbation; a drug has no gene that could carry a token."""

    @property
    def network(self) -> Transformer:
        """The first member."""
        return self.model.members[0].eval()

    @property
    def able(self) -> bool:
        """Whether the network can be told of a perturbation at all."""
        return self.kind in _CODES and self.model.reading.counts and self.network.config.attention

    @cached_property
    def embeddings(self) -> Tensor:
        """(specials + M + N, D), those of the network, then one for each target by its features.

        Targets that are not measured have no embedding of their own: theirs is what ridge regression over the measured
        genes makes of their features.
        """
        own = self.network.feature.weight.detach()
        genes = own[len(SPECIALS) :].double().numpy()
        at = {name: i for i, name in enumerate(self.names)}
        known = self.features[[at[name] for name in self.model.vocabulary.feature_names()]].astype(np.float64)
        mean = genes.mean(axis=0)
        inner = known.T @ known + RIDGE * np.eye(known.shape[1])
        found = mean + self.features @ np.linalg.solve(inner, known.T @ (genes - mean))
        return torch.cat([own, torch.from_numpy(found).to(own.dtype)])

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """For each target that can carry a token: its place among the genes (-1 if none), its row of embeddings."""
        measured = {name: i for i, name in enumerate(self.model.vocabulary.feature_names())}
        after = len(SPECIALS) + len(measured)
        found = {name: (-1, after + i) for i, name in enumerate(self.names) if self.features[i].any()}
        return found | {name: (i, len(SPECIALS) + i) for name, i in measured.items()}

    def read(self, cells: NDArray[np.int64], names: Sequence[str]) -> Batch:
        """Tokens of some control cells, in each of them another target knocked out (its count 0) or up (twice)."""
        places = np.array([self.places[name] for name in names])
        block = self.cells.take(cells).scaled(places[:, 0], 2 if self.kind == "activation" else 0)
        batch = self.model.tokenizer.inference_batch(block, cells)
        ids = torch.from_numpy(places[:, 1])[:, None]
        there = batch.context_ids == ids
        # what is not visible, as a count of 0 is not, becomes one more token
        lacking = ~there.any(dim=1, keepdim=True)
        external = torch.cat([there, lacking], dim=1).long() * _CODES[self.kind]
        return replace(
            batch,
            context_ids=torch.cat([batch.context_ids, ids * lacking], dim=1),
            context_bins=torch.cat([batch.context_bins, torch.zeros_like(ids)], dim=1),
            context_external=external,
        )

    def profiles(self, batch: Batch, token: Tensor) -> Tensor:
        """Decoded profiles (B, M) where the external token of the perturbed is ``token`` (D,)."""
        external = self.network.external.weight.detach()
        code = _CODES[self.kind]
        told = torch.cat([external[:code], token[None], external[code + 1 :]])
        weights = {"external.weight": told, "feature.weight": self.embeddings}
        return self.network.profile(functional_call(self.network, weights, (batch,)).latent)

    @cached_property
    @torch.no_grad()
    def unperturbed(self) -> Tensor:
        """(N, M), decoded profiles of the control cells as they are."""
        network, found = self.network, torch.zeros(len(self.cells.depth), len(self.model.vocabulary))
        for batch in make_batches(self.model, self.cells, _BATCH):
            found[batch.rows] = network.profile(network(batch).latent)
        return found

    def train(self, names: Sequence[str], effects: Array, se: Array, chances: Array) -> NDArray[np.float32]:
        """Train the token: changes from control cells should be those of the perturbed cells that they are paired with.

        Parameters
        ----------
        names
            Single targets, T.
        effects, se
            (T, M), mean changes of the perturbed cells from the control cells of their strata, with standard errors.
        chances
            (T, cells), how often each control cell is paired: as many of each batch and cell type as are perturbed.

        Returns
        -------
        float32 (D,); zeros where the network cannot be told.
        """
        token = torch.zeros(self.network.config.width, requires_grad=True)
        rows = [i for i, name in enumerate(names) if name in self.places]
        if not self.able or not rows:
            return token.detach().numpy()
        optimizer = torch.optim.Adam([token], lr=LR)
        random = np.random.default_rng(0)
        precision = 1 / (se**2 + np.median(effects**2) + 1e-12)
        for i in rows:
            if self.places[names[i]][0] >= 0:
                precision[i, self.places[names[i]][0]] = 0  # its own fall is known
        weight, wanted = torch.from_numpy(precision / precision.mean()).float(), torch.from_numpy(effects).float()
        for step in range(STEPS):
            chosen = random.choice(rows, size=min(N_TARGETS, len(rows)), replace=False)
            cells = np.concatenate([random.choice(chances.shape[1], size=N_CELLS, p=chances[i]) for i in chosen])
            batch = self.read(cells, np.repeat(np.array(names, object)[chosen], N_CELLS).tolist())
            change = self.profiles(batch, token) - self.unperturbed[cells]
            error = change.view(len(chosen), N_CELLS, -1).mean(dim=1) - wanted[chosen]
            (token.grad,) = torch.autograd.grad((weight[chosen] * error**2).mean(), token)
            optimizer.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.step()
        return token.detach().numpy().copy()

    @torch.no_grad()
    def answers(self, names: Sequence[str], token: NDArray[np.float32]) -> dict[str, Array]:
        """Mean change (M,) of the decoded profiles of the control cells, for the targets that can carry a token."""
        found: dict[str, Array] = {}
        if not self.able:
            return found
        n = len(self.cells.depth)
        told = torch.from_numpy(token)
        for name in names:
            if name in self.places:
                total = torch.zeros(len(self.model.vocabulary), dtype=torch.float64)
                for start in range(0, n, _BATCH):
                    cells = np.arange(start, min(start + _BATCH, n))
                    change = self.profiles(self.read(cells, [name] * len(cells)), told) - self.unperturbed[cells]
                    total += change.double().sum(dim=0)
                found[name] = (total / n).numpy()
        return found
