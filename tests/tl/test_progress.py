"""Progress bars: they are drawn at every update, move in small steps, and end at their total."""

import io
import time

import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import tqdm
from scbioformers.tasks.perturbation import _token


class Stream(io.StringIO):
    """Remembers when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.perf_counter()]

    def write(self, text: str) -> int:
        self.times.append(time.perf_counter())
        return super().write(text)


def test_a_bar_whose_updates_become_slower_does_not_stand_still():
    """After 200 fast updates, tqdm would wait for some 30 slow ones."""
    stream = Stream()
    with tqdm(total=1000, file=stream) as bar:
        for _ in range(200):
            time.sleep(0.001)
            bar.update()
        for _ in range(5):
            time.sleep(0.15)
            bar.update()
    assert np.diff(stream.times).max() < 0.3


@pytest.fixture
def bars(monkeypatch):
    """(Text, number of steps in each update, total) of each bar that was closed."""
    found, steps, update, close = [], {}, tqdm.update, tqdm.close

    def spied_update(self, n=1):
        steps.setdefault(id(self), []).append(n)
        return update(self, n)

    def spied_close(self):
        if not self.disable:
            found.append((self.desc, steps.pop(id(self), []), self.total))
        close(self)

    monkeypatch.setattr(tqdm, "update", spied_update)
    monkeypatch.setattr(tqdm, "close", spied_close)
    return found


SHOWN = {"progress_bar": True}
VERBS = {
    "embed": lambda adata: bf.tl.embed(adata, batch_size=16, **SHOWN),
    "impute, denoise": lambda adata: bf.tl.impute(adata, batch_size=16, **SHOWN),
    "impute, held out": lambda adata: bf.tl.impute(adata, method="held_out", batch_size=16, **SHOWN),
    "grn, embedding": lambda adata: bf.tl.grn(adata, method="embedding", **SHOWN),
    "grn, knockout": lambda adata: bf.tl.grn(adata, method="knockout", **SHOWN),
    "grn, attention": lambda adata: bf.tl.grn(adata, method="attention", **SHOWN),
    "gene_programs, embedding": lambda adata: bf.tl.gene_programs(adata, **SHOWN),
    "gene_programs, attention": lambda adata: bf.tl.gene_programs(adata, use="attention", **SHOWN),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_bar_moves_with_every_batch_and_ends_at_its_total(fitted, bars, verb):
    VERBS[verb](fitted)
    assert bars
    for text, steps, total in bars:
        assert sum(steps) == total, text
        assert max(steps) <= 128, text  # cells of a batch


def test_the_bar_of_a_perturbation_task_moves_with_every_step(bars, monkeypatch):
    monkeypatch.setattr(_token, "STEPS", 2)
    screen = ["TF1", "TF2", "TF3", "TF4", "TF5"]
    adata = bf.datasets.simulate(n_cells=90, n_genes=30, n_regulators=6, perturbations=screen, rng=0)
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, config=config, task=task, train=bf.TrainConfig(max_steps=1), progress_bar=True)
    (steps, total) = next((steps, total) for text, steps, total in bars if text.startswith("Cross"))
    assert set(steps) == {1}
    assert sum(steps) == total == 11 * 2 + 4 * 5  # 10 pairs of groups and the whole; each target left out 4 times


def test_epochs_are_counted_from_one(simulated, tiny_config, capsys):
    train = bf.TrainConfig(max_epochs=3, batch_size=16)
    bf.tl.fit(simulated, config=tiny_config, train=train, progress_bar=True)
    printed = capsys.readouterr().out
    assert [f"Epoch {i}/3" in printed for i in range(5)] == [False, True, True, True, False]
    assert "Epoch 0" not in printed
