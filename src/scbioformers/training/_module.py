"""The Lightning module: objectives, optimiser and learning rate schedule of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch

from scbioformers.config import TrainConfig
from scbioformers.nn import BY_MODALITY, OBJECTIVES, Batch, Output, Phenotype, Transformer, mean_of_modalities

# learning rates relative to that of the other parameters
EMBEDDING_LR = 0.1  # feature embeddings initialised by SVD, which overfit otherwise (dev/experiments.md, 14)
DISPERSION_LR = 20.0  # the initial dispersion ignores cell types and is far from the optimum (dev/experiments.md, 21)
BATCH_LR = 5.0  # what the decoder learns late about the batch, the latent learns first


class TrainingModule(L.LightningModule):
    """Trains a :class:`~scbioformers.nn.Transformer` on token batches."""

    def __init__(
        self,
        network: Transformer,
        config: TrainConfig,
        total_steps: int,
        objectives: dict[str, float],
        modalities: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.total_steps, self.objectives, self.modalities = total_steps, objectives, modalities

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Weighted sum of the objectives, a mean over the cells of the batch."""
        return self._losses(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same losses for the validation cells, whose masks are fixed."""
        self._losses(batch, "val")

    def _losses(self, batch: Batch, stage: str) -> torch.Tensor:
        output = self.network(batch)
        losses = {name: self._loss(name, output, batch, stage) for name in self.objectives}
        # not an int: Lightning takes the mean of the numbers of several processes, and would round it down
        n_cells: Any = float(len(batch) if batch.weight else 0)
        total = torch.stack([self.objectives[name] * loss for name, loss in losses.items()]).sum()
        self.log_dict(
            {f"{stage}_loss": total.detach(), **{f"{stage}_{name}": loss.detach() for name, loss in losses.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=n_cells,
            sync_dist=True,
        )
        self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=n_cells)
        # the mean of the gradients of all processes is then that of the global batch
        return total * batch.weight

    def _loss(self, name: str, output: Output, batch: Batch, stage: str) -> torch.Tensor:
        """One objective. If there are several modalities, its mean over the cells of each is logged too."""
        if name not in BY_MODALITY or not self.network.sizes.parts:
            return OBJECTIVES[name](self.network, output, batch)
        losses, counts = BY_MODALITY[name](self.network, output, batch)
        for i, modality in enumerate(self.modalities):
            n_cells: Any = float(counts[:, i].sum()) if batch.weight else 0.0
            value = (losses[:, i] * counts[:, i]).sum().detach() / max(n_cells, 1.0)
            options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
            self.log(f"{stage}_{name}_{modality}", value, batch_size=n_cells, **options)
        return mean_of_modalities(losses, counts)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the batch, and convert its numbers to those of the network. Lightning cannot do this."""
        return batch.to(device, self.network.cls.dtype)

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine decay of the learning rate to zero (paper, section 3.2)."""
        network, lr = self.network, self.config.lr
        factors: list[tuple[torch.Tensor, float]] = [(network.log_dispersion, DISPERSION_LR)]
        if network.sizes.n_batches:
            factors.append((network.batch_rate.weight, BATCH_LR))
        factors += [(cast("Phenotype", each).rate.weight, BATCH_LR) for each in network.phenotypes]
        if network.config.svd_init:
            factors.append((network.feature.weight, EMBEDDING_LR))
        rest = [p for p in network.parameters() if p.requires_grad and not any(p is own for own, _ in factors)]
        factors = [(p, factor) for p, factor in factors if p.requires_grad]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            *({"params": [p], "lr": lr * factor, "weight_decay": 0.0} for p, factor in factors),
        ]
        # under mixed precision, Lightning cannot clip the gradients of a fused optimizer
        fused = "mixed" not in self.config.precision
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr, fused=fused)
        warmup = max(1, min(self.config.warmup_steps, self.total_steps // 10))

        def lr_factor(step: int) -> float:
            progress = min(1.0, step / max(self.total_steps, 1))
            return min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
