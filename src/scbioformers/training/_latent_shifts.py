"""What the latent still holds of the phenotypes after the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from scbioformers.data import Block
from scbioformers.model import BioFormer, run_network
from scbioformers.nn import Phenotype
from scbioformers.training._batch_effects import compared_cells, paired_shift


@torch.no_grad()
def fit_latent_shifts(model: BioFormer, parts: Sequence[Block], seed: int) -> None:
    """Set the mean difference of the latent between similar cells of different phenotypes, in each network.

    The decoder is conditioned on the phenotypes and their mean effects are subtracted from the bag. Still, cells of a
    type differ in their latent if their phenotypes differ, because some effects are those of single types. Without
    this shift, predicted effects are too small (``dev/experiments.md``, 89). Similar cells are mutual nearest
    neighbours of the corrected bag, or of ``<cls>`` without a bag. A number belongs to its next knot.

    Parameters
    ----------
    parts
        Sample of the training cells.
    """
    first = int(model.batch is not None)
    for i, field in enumerate(model.phenotypes):
        n = len(field.categories)
        positions = np.concatenate([part.fields[:, first + i] for part in parts])
        codes = np.clip(np.rint(np.nan_to_num(positions, nan=-1.0)), -1, n - 1).astype(np.int64)
        rows = np.flatnonzero(codes >= 0)
        rows = rows[compared_cells(codes[rows], n, seed)]
        if not rows.size:
            continue
        chosen, start = [], 0
        for part in parts:
            own = rows[(rows >= start) & (rows < start + len(part.depth))] - start
            start += len(part.depth)
            if own.size:
                chosen.append(part.take(own))
        for network in model.members:
            latents, scores = [], []
            for part in chosen:
                n_cells = len(part.depth)
                latent, score = np.zeros((n_cells, model.config.n_latent)), np.zeros((n_cells, model.config.width))
                for batch, output in run_network(model, network, [part], batch_size=128):
                    at = batch.rows.numpy() - part.start
                    bag = network.corrected(network.bag(batch), batch) if model.config.bag else output.cls
                    latent[at], score[at] = output.latent.numpy(), bag.numpy()
                latents.append(latent)
                scores.append(score)
            shift = paired_shift(np.concatenate(latents), np.concatenate(scores), codes[rows], n)
            cast("Phenotype", network.phenotypes[i]).latent_shift.copy_(torch.from_numpy(shift))
