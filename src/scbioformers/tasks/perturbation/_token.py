"""Prediction of effects by the network: the perturbed gene has an external token (paper, Eq. 7).

Only the token is trained here, on control cells paired with perturbed cells of the same batches and cell types. The
network was fitted to control cells and is not changed, so the embeddings of cells do not change either.
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
KINDS = ("knockout", "activation")  # a drug has no target gene, so no gene has the token
# training of the token (dev/experiments.md, 62)
STEPS, LR = 60, 0.1
N_TARGETS, N_CELLS = 16, 2  # targets in a step, and control cells for each target
RIDGE = 1.0  # penalty of the regression of embeddings on features
_BATCH = 64
_TARGET_STREAM, _CELL_STREAM = 0x7A26, 0xCE11


@dataclass(frozen=True, eq=False)
class TokenPredictor:
    """Trains the external token and predicts effects with it, from control cells and features of N targets."""

    model: BioFormer
    """Fitted model, of which the first member is used."""
    cells: Block
    """Control cells."""
    names: Sequence[str]
    """(N,), names of the targets."""
    features: NDArray[np.float32]
    """(N, F), features of the targets, scaled to unit length. 0 for targets without features."""
    kind: str
    """Kind of perturbation."""

    @property
    def network(self) -> Transformer:
        """The network of the first member."""
        return self.model.members[0]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.cls.device

    @property
    def can_predict(self) -> bool:
        """Whether the network can predict effects: not for drugs, and only with counts and attention."""
        return self.kind in KINDS and self.model.reading.counts and self.network.config.attention

    @cached_property
    def embeddings(self) -> Tensor:
        """(specials + M + N, D), feature embeddings of the network, followed by one embedding for each target.

        Targets that are not measured have no embedding in the network. It is predicted from their features by ridge
        regression, which is fitted to the measured genes.
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
    def positions(self) -> dict[str, tuple[int, int]]:
        """Position among the genes (-1 if not measured) and row of ``embeddings``, for each target.

        Targets that are not measured and have no features are left out.
        """
        measured = {name: i for i, name in enumerate(self.model.vocabulary.feature_names())}
        after = len(SPECIALS) + len(measured)
        found = {name: (-1, after + i) for i, name in enumerate(self.names) if self.features[i].any()}
        return found | {name: (i, len(SPECIALS) + i) for name, i in measured.items()}

    def perturbed_batch(self, cells: NDArray[np.int64], names: Sequence[str]) -> Batch:
        """Batch of control cells, each with one perturbed target.

        The count of the target is set to 0, or is doubled for an activation.
        """
        positions = np.array([self.positions[name] for name in names])
        block = self.cells.take(cells).scaled(positions[:, 0], 2 if self.kind == "activation" else 0)
        batch = self.model.tokenizer.inference_batch(block, cells)
        ids = torch.from_numpy(positions[:, 1])[:, None]
        is_target = batch.context_ids == ids
        # a target without a count has no token, so a token is added
        lacking = ~is_target.any(dim=1, keepdim=True)
        external = torch.cat([is_target, lacking], dim=1).long()  # 1 for the perturbed gene
        return replace(
            batch,
            context_ids=torch.cat([batch.context_ids, ids * lacking], dim=1),
            context_bins=torch.cat([batch.context_bins, torch.zeros_like(ids)], dim=1),
            context_external=external,
        ).to(self.device)

    def profiles(self, batch: Batch, token: Tensor) -> Tensor:
        """Decoded profiles (B, M), where ``token`` (D,) is the external token of the perturbed gene."""
        batch = replace(batch, external=torch.stack([torch.zeros_like(token), token]))
        output = functional_call(self.network, {"feature.weight": self.embeddings}, (batch,))
        return self.network.profile(output.latent, batch.phenotypes)

    @cached_property
    @torch.no_grad()
    def unperturbed(self) -> Tensor:
        """(cells, M), decoded profiles of the control cells without perturbation."""
        profiles = torch.zeros(len(self.cells.depth), len(self.model.vocabulary), device=self.device)
        for batch, output in run_network(self.model, self.network, [self.cells], _BATCH):
            profiles[batch.rows] = self.network.profile(output.latent, batch.phenotypes)
        return profiles

    def train(
        self, names: Sequence[str], effects: Array, se: Array, chances: Array, seed: int, bar: tqdm | None = None
    ) -> NDArray[np.float32]:
        """Train the token, so that the predicted changes of control cells equal the observed effects.

        Parameters
        ----------
        names
            (T,), single targets.
        effects, se
            (T, M), mean differences between perturbed cells and control cells of the same strata, with standard errors.
        chances
            (T, cells), probability of each control cell, so that strata are as frequent as among the perturbed cells.
        seed
            Seed of the targets and cells of each step.
        bar
            Progress bar, which moves by one at each of ``STEPS`` steps.

        Returns
        -------
        float32 (D,), zeros if the network cannot predict effects.
        """
        rows = np.array([i for i, name in enumerate(names) if name in self.positions], dtype=np.int64)
        if not self.can_predict or not rows.size:
            return np.zeros(self.network.config.width, np.float32)
        precision = 1 / (se**2 + np.median(effects**2) + 1e-12)
        for i in rows:
            if self.positions[names[i]][0] >= 0:
                precision[i, self.positions[names[i]][0]] = 0  # the change of the perturbed gene itself is an input
        weight, observed = torch.from_numpy(precision / precision.mean()).float(), torch.from_numpy(effects).float()
        steps = []
        for step in range(STEPS):
            chosen = rows[np.argsort(uniform(seed ^ _TARGET_STREAM, step, rows), kind="stable")[:N_TARGETS]]
            cells = np.concatenate([draw_cells(chances[i], seed, step, int(i)) for i in chosen])
            batch = self.perturbed_batch(cells, np.repeat(np.array(names, object)[chosen], N_CELLS).tolist())
            steps.append((batch, self.unperturbed[cells], observed[chosen], weight[chosen]))
        module = _TokenModule(self, bar)
        train_steps(module, steps, seed)
        return module.token.detach().numpy().copy()

    @torch.no_grad()
    def predict(
        self,
        names: Sequence[str],
        token: NDArray[np.float32],
        *,
        progress_bar: bool = False,
        bar: tqdm | None = None,
    ) -> dict[str, Array]:
        """Mean change (M,) of the decoded profiles of the control cells, for each target in ``positions``.

        A ``bar`` of the caller moves by one for each target.
        """
        changes: dict[str, Array] = {}
        if not self.can_predict:
            return changes
        n, vector = len(self.cells.depth), torch.from_numpy(token).to(self.device)
        targets = [name for name in names if name in self.positions]
        for name in tqdm(targets, desc="Perturbations", disable=not progress_bar):
            total = torch.zeros(len(self.model.vocabulary), dtype=torch.float64)
            for start in range(0, n, _BATCH):
                cells = np.arange(start, min(start + _BATCH, n))
                batch = self.perturbed_batch(cells, [name] * len(cells))
                change = self.profiles(batch, vector) - self.unperturbed[cells]
                total += change.cpu().double().sum(dim=0)
            changes[name] = (total / n).numpy()
            if bar is not None:
                bar.update()
        return changes


def draw_cells(chances: Array, seed: int, step: int, target: int) -> NDArray[np.int64]:
    """Draw ``N_CELLS`` control cells for one target of a step, with replacement and the given probabilities."""
    draws = uniform(seed ^ _CELL_STREAM, step, target, np.arange(N_CELLS))
    return np.searchsorted(np.cumsum(chances), draws * chances.sum(), side="right").clip(max=chances.size - 1)


class _TokenModule(L.LightningModule):
    """Lightning module whose only trainable parameter is the token."""

    def __init__(self, predictor: TokenPredictor, bar: tqdm | None) -> None:
        super().__init__()
        self.predictor, self.bar = predictor, bar
        self.token = torch.nn.Parameter(torch.zeros(predictor.network.config.width))

    def training_step(self, step: tuple[Batch, Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Weighted squared error of the mean change over the cells of each target."""
        if self.bar is not None:
            self.bar.update()
        batch, unperturbed, observed, weight = step
        change = self.predictor.profiles(batch, self.token) - unperturbed
        error = change.view(len(observed), N_CELLS, -1).mean(dim=1) - observed
        return (weight * error**2).mean()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """All tensors are already on the CPU, and Lightning cannot move a :class:`Batch`."""
        return batch

    def configure_optimizers(self) -> Any:
        """Adam with a cosine decay of the learning rate to zero."""
        optimizer = torch.optim.Adam([self.token], lr=LR)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, STEPS) / STEPS))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
