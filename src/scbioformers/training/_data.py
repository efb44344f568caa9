"""The Lightning data module, which converts buffers of cells to token batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from scbioformers.config import TrainConfig
from scbioformers.core import ReadError, hash_uniform
from scbioformers.data import Block, BlockSource, concatenate
from scbioformers.nn import Batch, join_batches
from scbioformers.tokens import JointTokenizer, Sampler, Tokenizer

_LENGTH_STREAM = 0x1E46
EVALUATION_EPOCH = 2**32 - 1  # fixed, so that validation masks are constant and differ from those of training epochs


class BatchDataset(IterableDataset[Batch | None]):
    """The token batches of one epoch, or a worker's part of each of them: None where it has no cell."""

    def __init__(
        self,
        source: BlockSource,
        tokenizer: Tokenizer | JointTokenizer,
        sampler: Sampler,
        config: TrainConfig,
        epoch: int,
        training: bool,
        n_done: int = 0,
    ) -> None:
        """``n_done`` batches of this epoch were used before training was interrupted. They are left out unread."""
        self.source, self.tokenizer, self.sampler = source, tokenizer, sampler
        self.config, self.epoch, self.training, self.n_done = config, epoch, training, n_done

    def __len__(self) -> int:
        return self.sampler.n_batches(self.epoch)

    def __iter__(self) -> Iterator[Batch | None]:
        sampler = self.sampler
        if worker := get_worker_info():
            sampler = replace(sampler, worker=worker.id, n_workers=worker.num_workers)
        step = 0
        for buffer in sampler.epoch(self.epoch):
            cells = self._read(buffer.ranges) if step + len(buffer.batches) > self.n_done else {}
            for part in buffer.batches:
                if step >= self.n_done:
                    yield replace(self._batch(cells, part.draws, step), weight=part.weight) if part.draws.size else None
                step += 1
            cells.clear()  # before the next cells are read

    def _read(self, ranges: tuple[tuple[int, int], ...]) -> dict[int, tuple[NDArray[np.int64], Block]]:
        """Rows and cells of each data set, by its number."""
        sets: dict[int, list[tuple[int, int]]] = {}
        for start, stop in ranges:
            sets.setdefault(int(np.searchsorted(self.source.starts, start, side="right")), []).append((start, stop))
        return {
            number: (
                np.concatenate([np.arange(start, stop) for start, stop in own]),
                concatenate([self.source.read(start, stop) for start, stop in own]),
            )
            for number, own in sets.items()
        }

    def _batch(self, cells: dict[int, tuple[NDArray[np.int64], Block]], draws: NDArray[np.int64], step: int) -> Batch:
        """The cells of one batch. Cells of different data sets are converted apart, because features may be absent.

        ``draws`` are rows plus ``n_obs`` for each earlier draw, so that a cell that is drawn again has other masks.
        """
        wanted, parts = draws % self.source.n_obs, []
        set_of = np.searchsorted(self.source.starts, wanted, side="right")
        for number in np.unique(set_of).tolist():
            own, (rows, block) = set_of == number, cells[number]
            parts.append(
                self.tokenizer.training_batch(
                    block.take(np.searchsorted(rows, wanted[own])),
                    draws[own],
                    seed=self.sampler.seed,
                    epoch=self.epoch if self.training else EVALUATION_EPOCH - self.epoch,
                    n_context=self._n_context(step),
                    n_masked=self.config.n_masked if self.training else 4 * self.config.n_masked,
                    bag_dropout=self.config.bag_dropout if self.training else 0.0,
                )
            )
        return join_batches(parts)

    def _n_context(self, step: int) -> int:
        if self.tokenizer.tokens == "all" or self.config.n_context is None:
            return self.tokenizer.n_features
        low, high = self.config.n_context
        if not self.training:
            return high
        drawn = float(hash_uniform(self.sampler.seed ^ _LENGTH_STREAM, self.epoch, step, 0))
        return round(math.exp(math.log(low) + drawn * (math.log(high) - math.log(low))))


class BatchLoader(DataLoader[Batch | None]):
    """Token batches, which do not depend on the number of workers. Each worker makes a part of every batch."""

    def __init__(self, dataset: BatchDataset, n_workers: int = 0) -> None:
        # with its own generator; otherwise a DataLoader draws from the global generator
        generator = torch.Generator().manual_seed(0)
        super().__init__(dataset, batch_size=None, num_workers=n_workers, generator=generator)
        self.n_batches = len(dataset)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        parts = super().__iter__()  # of the workers in turn
        while of_batch := list(islice(parts, max(1, self.num_workers))):
            yield join_batches([part for part in of_batch if part is not None])


@dataclass
class _Split:
    training: NDArray[np.bool_]
    validation: NDArray[np.bool_]


class TrainingData(L.LightningDataModule):
    """Training and validation batches of a source. ``training`` and ``validation`` are bool masks (n_obs,)."""

    def __init__(
        self,
        source: BlockSource,
        tokenizer: Tokenizer | JointTokenizer,
        config: TrainConfig,
        training: NDArray[np.bool_],
        validation: NDArray[np.bool_],
        seed: int,
    ) -> None:
        super().__init__()
        self.source, self.tokenizer, self.config = source, tokenizer, config
        self.split = _Split(training, validation)
        self.unread: ReadError | None = None  # why the training stopped, if cells could not be read
        starts = source.starts
        self.sampler = Sampler(training, config.batch_size, seed, starts=starts, power=config.source_power)

    def train_dataloader(self) -> BatchLoader:
        """Loader of the current epoch. It is created in every epoch, because order and masks depend on the epoch."""
        if self.trainer is None:
            return self._loader(self.split.training, 0, training=True)
        loop: Any = self.trainer.fit_loop
        n_done = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
        return self._loader(self.split.training, self.trainer.current_epoch, training=True, n_done=n_done)

    def val_dataloader(self) -> BatchLoader | list[None]:
        """Loader of the validation batches, which are the same in every epoch."""
        if not self.split.validation.any():
            return []
        return self._loader(self.split.validation, 0, training=False)

    def validation_batches(self) -> Iterator[Batch]:
        """All validation batches, in each process if several processes train.

        If cells have several modalities, they are drawn eight times: each time others are hidden.
        """
        sampler = replace(self.sampler, rows=self.split.validation, power=1.0)
        for draw in range(8 if len(self.tokenizer.modalities) > 1 else 1):
            yield from BatchLoader(
                BatchDataset(self.source, self.tokenizer, sampler, self.config, draw, training=False)
            )

    def _loader(self, rows: NDArray[np.bool_], epoch: int, training: bool, n_done: int = 0) -> BatchLoader:
        sampler = replace(self.sampler, rows=rows, power=self.sampler.power if training else 1.0)
        if self.trainer is not None:
            sampler = replace(sampler, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        dataset = BatchDataset(self.source, self.tokenizer, sampler, self.config, epoch, training, n_done)
        return BatchLoader(dataset, self.config.num_workers)
