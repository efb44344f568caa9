"""The network's own answer to a perturbation: the perturbed gene carries an external token (Eq. 7).

The token is all that is trained here, on control cells paired with perturbed cells of the same batches and cell types:
the network itself was fitted to control cells, stays as it is, and so do the embeddings of cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from scbioformers.core import SPECIALS, tqdm, uniform
from scbioformers.data import Block
from scbioformers.model import BioFormer, run_network
from scbioformers.nn import Batch, Transformer
from scbioformers.training import train_steps

Array = NDArray[np.float64]
KINDS = ("knockout", "activation")  # a drug has no gene that could carry a token
# of the training (experiment 62)
STEPS, LR = 60, 0.1
N_TARGETS, N_CELLS = 16, 2  # of a step, and control cells for each
RIDGE = 1.0
_BATCH = 64
_TARGET_STREAM, _CELL_STREAM = 0x7A26, 0xCE11


@dataclass(frozen=True, eq=False)
class TokenPredictor:
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
        return self.model.members[0]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.cls.device

    @property
    def able(self) -> bool:
        """Whether the network can be told of a perturbation at all."""
        return self.kind in KINDS and self.model.reading.counts and self.network.config.attention

    @cached_property
    def embeddings(self) -> Tensor:
        """(specials + M + N, D), those of the network, then one for each target by its features.

        Targets that are not measured have no embedding of their own: theirs is what ridge regression over the measured
        genes makes of their features.
        """
        own = self.network.feature.weight.detach().cpu()
        genes = own[len(SPECIALS) :].double().numpy()
        at = {name: i for i, name in enumerate(self.names)}
        known = self.features[[at[name] for name in self.model.vocabulary.feature_names()]].astype(np.float64)
        mean = genes.mean(axis=0)
        inner = known.T @ known + RIDGE * np.eye(known.shape[1])
        found = mean + self.features @ np.linalg.solve(inner, known.T @ (genes - mean))
        return torch.cat([own, torch.from_numpy(found).to(own.dtype)]).to(self.device)

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
        external = torch.cat([there, lacking], dim=1).long()  # 1 where the gene is perturbed
        return replace(
            batch,
            context_ids=torch.cat([batch.context_ids, ids * lacking], dim=1),
            context_bins=torch.cat([batch.context_bins, torch.zeros_like(ids)], dim=1),
            context_external=external,
        ).to(self.device)

    def profiles(self, batch: Batch, token: Tensor) -> Tensor:
        """Decoded profiles (B, M) where the external token of the perturbed is ``token`` (D,)."""
        batch = replace(batch, external=torch.stack([torch.zeros_like(token), token]))
        return self.network.profile(functional_call(self.network, {"feature.weight": self.embeddings}, (batch,)).latent)

    @cached_property
    @torch.no_grad()
    def unperturbed(self) -> Tensor:
        """(N, M), decoded profiles of the control cells as they are."""
        profiles = torch.zeros(len(self.cells.depth), len(self.model.vocabulary), device=self.device)
        for batch, output in run_network(self.model, self.network, [self.cells], _BATCH):
            profiles[batch.rows] = self.network.profile(output.latent)
        return profiles

    def train(self, names: Sequence[str], effects: Array, se: Array, chances: Array, seed: int) -> NDArray[np.float32]:
        """Train the token: changes from control cells should equal those of the perturbed cells they are paired with.

        Parameters
        ----------
        names
            Single targets, T.
        effects, se
            (T, M), mean changes of the perturbed cells from the control cells of their strata, with standard errors.
        chances
            (T, cells), how often each control cell is paired: as many of each batch and cell type as are perturbed.
        seed
            Of the targets and cells of each step.

        Returns
        -------
        float32 (D,); zeros where the network cannot carry a token.
        """
        rows = np.array([i for i, name in enumerate(names) if name in self.places], dtype=np.int64)
        if not self.able or not rows.size:
            return np.zeros(self.network.config.width, np.float32)
        precision = 1 / (se**2 + np.median(effects**2) + 1e-12)
        for i in rows:
            if self.places[names[i]][0] >= 0:
                precision[i, self.places[names[i]][0]] = 0  # the change of the perturbed gene itself is known
        weight, wanted = torch.from_numpy(precision / precision.mean()).float(), torch.from_numpy(effects).float()
        steps = []
        for step in range(STEPS):
            chosen = rows[np.argsort(uniform(seed ^ _TARGET_STREAM, step, rows), kind="stable")[:N_TARGETS]]
            cells = np.concatenate([draw_cells(chances[i], seed, step, int(i)) for i in chosen])
            batch = self.read(cells, np.repeat(np.array(names, object)[chosen], N_CELLS).tolist())
            steps.append((batch, self.unperturbed[cells], wanted[chosen], weight[chosen]))
        module = _TokenModule(self)
        train_steps(module, steps, seed)
        return module.token.detach().numpy().copy()

    @torch.no_grad()
    def predict(
        self, names: Sequence[str], token: NDArray[np.float32], *, progress_bar: bool = False
    ) -> dict[str, Array]:
        """Mean change (M,) of the decoded profiles of the control cells, for the targets that can carry a token."""
        changes: dict[str, Array] = {}
        if not self.able:
            return changes
        n, vector = len(self.cells.depth), torch.from_numpy(token).to(self.device)
        carriers = [name for name in names if name in self.places]
        for name in tqdm(carriers, desc="Perturbations", disable=not progress_bar):
            total = torch.zeros(len(self.model.vocabulary), dtype=torch.float64)
            for start in range(0, n, _BATCH):
                cells = np.arange(start, min(start + _BATCH, n))
                change = self.profiles(self.read(cells, [name] * len(cells)), vector) - self.unperturbed[cells]
                total += change.cpu().double().sum(dim=0)
            changes[name] = (total / n).numpy()
        return changes


def draw_cells(chances: Array, seed: int, step: int, target: int) -> NDArray[np.int64]:
    """``N_CELLS`` control cells for one target of a step, each drawn with its chance, with replacement."""
    draws = uniform(seed ^ _CELL_STREAM, step, target, np.arange(N_CELLS))
    return np.searchsorted(np.cumsum(chances), draws * chances.sum(), side="right").clip(max=chances.size - 1)


class _TokenModule(L.LightningModule):
    """The token as the one trainable parameter."""

    def __init__(self, predictor: TokenPredictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.token = torch.nn.Parameter(torch.zeros(predictor.network.config.width))

    def training_step(self, step: tuple[Batch, Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Weighted squared error of the mean change of the cells of each target."""
        batch, unperturbed, wanted, weight = step
        change = self.predictor.profiles(batch, self.token) - unperturbed
        error = change.view(len(wanted), N_CELLS, -1).mean(dim=1) - wanted
        return (weight * error**2).mean()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Everything is on the CPU already; Lightning moves only containers that it knows."""
        return batch

    def configure_optimizers(self) -> Any:
        """Adam with a cosine to zero."""
        optimizer = torch.optim.Adam([self.token], lr=LR)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, STEPS) / STEPS))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
