"""Temperature of the predicted bins, fitted to the validation cells."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from scbioformers.nn import Batch, Transformer

MAX_SCORED = 200_000  # maximum number of masked features that are scored, which bounds the memory


@torch.no_grad()
def fit_temperature(network: Transformer, batches: Iterable[Batch]) -> None:
    """Divide the log probabilities of the network by the number that gives validation cells the lowest loss.

    Each modality has two numbers of its own: for cells in which nothing of it is known, and for the others. A network
    is more certain than it should be, because the training cells were seen many times (Guo et al. 2017).
    """
    network.eval().temperature.fill_(1.0)
    scored: list[Tensor] = []
    targets: list[Tensor] = []
    places: list[Tensor] = []
    for batch in batches:
        batch = batch.to(network.cls.device)
        masked = batch.target_bins >= 0
        scored.append(network(batch).log_probs[masked].cpu().double())
        targets.append(batch.target_bins[masked].cpu())
        modality = network.modality_of(batch.masked_ids)
        place = 2 * modality + network.is_known(batch).long().gather(1, modality)
        places.append(place[masked].cpu())
        if sum(map(len, targets)) >= MAX_SCORED:
            break
    if not sum(map(len, targets)):
        return
    log_probs, target, place_of = torch.cat(scored), torch.cat(targets), torch.cat(places)

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(log_probs[own] / temperature, target[own]))

    for i, place in enumerate(network.temperature.view(-1)):
        own = place_of == i if network.temperature.ndim else torch.ones_like(place_of, dtype=torch.bool)
        if own.any():
            place.fill_(minimize_scalar(loss, bounds=(0.5, 2.0), method="bounded").x)
