"""Prediction of a phenotype by the model itself: it is masked in every cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from scbioformers.core import tqdm
from scbioformers.data import BlockSource
from scbioformers.model import READ_CHUNK, BioFormer, make_batches


@torch.no_grad()
def predict_phenotype(
    model: BioFormer, source: BlockSource, name: str, *, batch_size: int = 64, progress_bar: bool = False
) -> NDArray[np.float32]:
    """Probabilities (N, K) of the categories, or of the knots of a number, averaged over the members.

    The phenotype of a cell is masked, so it does not change its own prediction. Other phenotypes are read.
    """
    at = [each.name for each in model.phenotypes].index(name)
    found = np.zeros((source.n_obs, len(model.phenotypes[at].categories)), np.float32)
    with tqdm(total=source.n_obs, desc=f"Predicting {name}", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(READ_CHUNK):
            for batch in make_batches(model, block, batch_size):
                phenotypes = batch.phenotypes.clone()
                phenotypes[:, at] = torch.nan
                masked = replace(batch, phenotypes=phenotypes).to(model.members[0].cls.device)
                for network in model.members:
                    answer = network.answers(at, network(masked))
                    found[batch.rows.numpy()] += answer.cpu().numpy() / len(model.members)
            bar.update(len(block.depth))
    return found
