"""The data and the methods of the transfer benchmark: a pool of data sets, and a query of which n cells are given."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData, concat
from numpy.typing import NDArray
from scipy import sparse

import scbioformers as bf
from benchmarks._common import fit_scvi, warm_up
from benchmarks._masked_methods import (
    EVALUATION_SEED,
    TEST_SHARE,
    LogProbabilities,
    Problem,
    predict_ours,
    predict_scvi,
    read_cells,
)
from benchmarks._masking import masked_cells, training_cells
from scbioformers.baselines import MaskedCells, TrainingCells
from scbioformers.config import count_range
from scbioformers.core import uniform, validation_rows
from scbioformers.data import AnnDataSource, Block, DepthRule, choose_features, join_data_sets, open_data_sets
from scbioformers.results import open_query

N_GENES = 2000
POOL_SHARE = 0.1  # of the cells of the pool, kept from all methods: what fine-tuning forgets is measured on them
_SUBSET_STREAM = 0x5B5E
_REFERENCES: dict[tuple[Any, ...], Any] = {}  # scVI fitted to the pool, which is the same for every n


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted model of ours, with the history and the seconds of its fit."""

    model: bf.BioFormer
    history: pd.DataFrame
    seconds: float


def read_data(data: Path, pool: Sequence[str], query: str) -> tuple[dict[str, AnnData], AnnData]:
    """The data sets of the pool and the query. The modelled genes are marked in ``var["highly_variable"]``.

    They are chosen on the pool: the most variable of those that all its data sets and the query measure.
    """
    read = {name: read_set(data, name) for name in (*pool, query)}
    given = {name: read[name] for name in pool}
    with open_data_sets(given) as found:
        data_sets = found["rna"].data_sets
        ranked = choose_features(data_sets, 10 * N_GENES, len(pool), seed=0)
    genes = [name for name in ranked if name in read[query].var_names][:N_GENES]
    for adata in read.values():
        adata.var["highly_variable"] = adata.var_names.isin(genes)
    return given, read[query]


def read_set(data: Path, name: str) -> AnnData:
    """Read a data set, with symbols as names."""
    at_top = data / f"{name}.h5ad"
    adata = sc.read_h5ad(at_top if at_top.exists() else data / "blood_pool" / f"{name}.h5ad")
    if "gene_symbols" in adata.var:
        adata.var_names = adata.var["gene_symbols"].astype(str)
    if name == "paul15":  # mouse: upper-case symbols stand for the orthologues
        adata.var_names = adata.var_names.str.upper()
    adata.var_names_make_unique()
    return adata


@dataclass(frozen=True, eq=False)
class Transfer:
    """A pool, and a query of which n training cells and all test cells are used. All methods have the same targets."""

    pool: dict[str, AnnData]
    query: AnnData
    n_cells: int | None
    """Number of training cells of the query, None for all."""
    seed: int
    panel: dict[str, AnnData] = field(default_factory=dict)
    """Data sets with some of the genes, which are added to the pool of our model. The baselines cannot use them."""
    own_binning: bool = False
    """Whether a model of the pool has the binning and the depth of the pool, not those of the query's cells alone."""
    _runs: dict[str, Run] = field(default_factory=dict)

    @property
    def genes(self) -> list[str]:
        """Names of the modelled genes, in the order of the query."""
        return self.query.var_names[self.query.var["highly_variable"]].tolist()

    @cached_property
    def problem(self) -> Problem:
        """Training and test cells of the query. The binning is that of the training cells."""
        held_out = validation_rows(self.query.n_obs, TEST_SHARE, self.seed)
        rows, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        order = np.argsort(uniform(self.seed ^ _SUBSET_STREAM, rows), kind="stable")
        rows = np.sort(rows[order[: self.n_cells]])
        train, tested = self.query[rows].copy(), self.query[test].copy()
        return Problem(train, tested, rows, test, self.seed, bf.Masking(), bf.Binning())

    def _binning(self, *, with_pool: bool) -> bf.Binning:
        """The binning of a baseline: that of our model with the same data."""
        if with_pool and self.own_binning:
            return self.pretrained(attention=True).model.binnings["rna"]
        return self.problem.binning

    def _cells(self, adata: AnnData, *, with_pool: bool) -> Block:
        """Cells of the query for a baseline. Their depth is that which our model with the same data reads."""
        if with_pool and self.own_binning:
            return read_by(self.pretrained(attention=True).model, adata)
        return read_cells(adata)

    def _apart(self, adata: AnnData) -> NDArray[np.bool_]:
        return validation_rows(adata.n_obs, POOL_SHARE, self.seed)

    @cached_property
    def given(self) -> dict[str, AnnData]:
        """The cells of the pool that the methods are given."""
        return {name: adata[~self._apart(adata)].copy() for name, adata in self.pool.items()}

    @cached_property
    def _rules(self) -> dict[str, DepthRule]:
        """How the depth of the cells of the pool is read: as our model reads it."""
        with open_data_sets(self.pool) as found:
            data_sets = found["rna"].data_sets
            joined = join_data_sets(data_sets, self.genes)
            return {each.name: source.rule for each, source in zip(data_sets, joined.sources, strict=True)}

    def _block(self, name: str, adata: AnnData) -> Block:
        """Counts of the modelled genes, and the depth, of cells of a data set of the pool."""
        columns = adata.var_names.get_indexer(pd.Index(self.genes))
        return AnnDataSource(adata, columns=columns, rule=self._rules[name]).read(0, adata.n_obs)

    # our model

    def scratch(self, *, attention: bool) -> Run:
        """A model fitted to the training cells of the query alone."""
        return self._run(f"scratch {attention}", lambda folder: self._fit(config=bf.ModelConfig(attention=attention)))

    def pretrained(self, *, attention: bool) -> Run:
        """The model of the pool, in the binning of the query's training cells."""
        return self._run(f"pretrained {attention}", lambda folder: self._pretrain(folder, attention))

    def tuned(self, *, attention: bool) -> Run:
        """The model of the pool after a fit to the training cells of the query."""
        model = self.pretrained(attention=attention).model
        return self._run(f"tuned {attention}", lambda folder: self._fit(model=model))

    def _run(self, name: str, fit: Callable[[Path], tuple[bf.BioFormer, pd.DataFrame]]) -> Run:
        if name not in self._runs:
            warm_up()
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                model, history = fit(Path(folder) / "model")
            self._runs[name] = Run(model, history, time.perf_counter() - start)
        return self._runs[name]

    def _pretrain(self, folder: Path, attention: bool) -> tuple[bf.BioFormer, pd.DataFrame]:
        model = bf.tl.pretrain(
            self.given | self.panel,
            save_dir=folder,
            features=self.genes,
            binning=bf.Binning() if self.own_binning else self.problem.binning,
            config=bf.ModelConfig(attention=attention),
            rng=self.seed,
        )
        return model, pd.DataFrame(model.provenance["history"][0])

    def _fit(
        self, model: bf.BioFormer | None = None, config: bf.ModelConfig | None = None
    ) -> tuple[bf.BioFormer, pd.DataFrame]:
        adata = self.problem.train.copy()
        bf.tl.fit(adata, model=model, config=config, rng=self.seed)
        return bf.get.model(adata), bf.get.history(adata)

    def bits(self, model: bf.BioFormer) -> float:
        """Bits of the masked entries of the test cells."""
        cells = read_by(model, self.problem.test)
        return self._bits(lambda targets: predict_ours(model, cells, targets), model.binnings["rna"], cells)

    def _bits(self, predict: Callable[[MaskedCells], LogProbabilities], binning: bf.Binning, cells: Block) -> float:
        """Bits of the bins, or of the counts if the methods have binnings of their own."""
        given = cells.counts, cells.depth, self.problem.test_rows
        targets = masked_cells(self.problem.masking, binning, *given, seed=EVALUATION_SEED, epoch=0)
        if self.own_binning:
            return count_bits(predict(targets), targets, binning, cells.depth)
        return bits(predict(targets), targets)

    def bits_of_pool(self, model: bf.BioFormer) -> float:
        """Bits of the cells of the pool that were kept apart, mean over its data sets."""
        found = []
        for name, adata in self.pool.items():
            rows = np.flatnonzero(self._apart(adata))
            block = self._block(name, adata[rows].copy())
            options = {"seed": EVALUATION_SEED, "epoch": 0}
            cells = masked_cells(bf.Masking(), model.binnings["rna"], block.counts, block.depth, rows, **options)
            found.append(bits(predict_ours(model, block, cells), cells))
        return float(np.mean(found))

    def embed(self, model: bf.BioFormer) -> NDArray[np.floating]:
        """Embedding of all cells of the query."""
        adata = self.query.copy()
        bf.tl.embed(adata, model=model)
        return np.asarray(adata.obsm["X_bioformer"])

    # baselines

    def _training(self, binning: bf.Binning, blocks: Sequence[Block]) -> TrainingCells:
        counts = sparse.vstack([block.counts for block in blocks], format="csr")
        depth = np.concatenate([block.depth for block in blocks])
        rows = np.arange(depth.size)
        return training_cells(bf.Masking(), binning, counts, depth, rows, seed=self.seed)

    def softmax_regression(self, *, with_pool: bool) -> float:
        """Bits of softmax regression on the training cells of the query, and with those of the pool."""
        binning, test = self._binning(with_pool=with_pool), self._cells(self.problem.test, with_pool=with_pool)
        blocks = [self._cells(self.problem.train, with_pool=with_pool)]
        if with_pool:
            blocks += [self._block(name, adata) for name, adata in self.given.items()]
        training = self._training(binning, blocks)
        return self._bits(lambda targets: bf.metrics.softmax_regression(training, targets), binning, test)

    def scvi(self, *, with_pool: bool) -> tuple[float, NDArray[np.floating]]:
        """Bits of scVI and its embedding of all cells of the query.

        With the pool, scVI is fitted to it with the data set as batch, and then to the query by architecture surgery
        (Lotfollahi et al. 2022): only the weights of the new batch are trained.
        """
        var = self.query.var.loc[self.genes]
        if with_pool:
            model, obs = self._scvi_surgery(), {"source": "query"}
        else:
            model, obs = fit_scvi(self.problem.train, self.seed), {}
        binning, test = self._binning(with_pool=with_pool), self._cells(self.problem.test, with_pool=with_pool)
        training = self._training(binning, [self._cells(self.problem.train, with_pool=with_pool)])
        found = self._bits(lambda targets: predict_scvi(model, var, training, targets, **obs), binning, test)
        whole = self.query[:, self.genes].copy()
        whole.obs["source"] = "query"
        return found, model.get_latent_representation(whole)

    def _scvi_surgery(self) -> Any:
        import scvi

        key = self.seed, *self.genes
        if key not in _REFERENCES:
            _REFERENCES[key] = self._scvi_reference()
        query = self.problem.train[:, self.genes].copy()
        query.obs["source"] = "query"
        scvi.settings.seed = self.seed
        model = scvi.model.SCVI.load_query_data(query, _REFERENCES[key])
        epochs = min(200, round(8e6 / query.n_obs))
        options = {"plan_kwargs": {"weight_decay": 0.0}, "accelerator": "cpu", "enable_progress_bar": False}
        model.train(max_epochs=epochs, **options)
        return model

    def _scvi_reference(self) -> Any:
        import scvi

        scvi.settings.seed, scvi.settings.verbosity = self.seed, logging.WARNING
        parts = {name: adata[:, self.genes].copy() for name, adata in self.given.items()}
        pool = concat(parts, label="source")
        scvi.model.SCVI.setup_anndata(pool, batch_key="source")
        reference = scvi.model.SCVI(pool, n_layers=2, n_latent=30, gene_likelihood="nb")
        reference.train(max_epochs=min(200, round(8e6 / pool.n_obs)), accelerator="cpu", enable_progress_bar=False)
        return reference


def read_by(model: bf.BioFormer, adata: AnnData) -> Block:
    """Counts and depth of the cells as the model reads them. Genes that differ from its own can change the depth."""
    query = open_query(adata, model)
    return query.source.read(0, adata.n_obs)


def bits(predicted: LogProbabilities, cells: MaskedCells) -> float:
    """Mean negative log probability of the true bins, in bits."""
    return float(-predicted[np.arange(cells.bins.size), cells.bins].mean(dtype=np.float64) / np.log(2))


def count_bits(
    predicted: LogProbabilities, cells: MaskedCells, binning: bf.Binning, depth: NDArray[np.floating]
) -> float:
    """Mean negative log probability of the true counts, in bits, so that different binnings can be compared.

    The probability of a bin is shared equally by the counts that fall into it in a cell of this depth (N,). Bins that
    no count of the cell falls into are left out.
    """
    lowest, highest = count_range(binning, depth / float(binning.mean_depth or 1.0))
    n_counts = np.maximum(highest - lowest + 1, 0)[cells.cells]
    p = np.where(n_counts > 0, np.exp(predicted.astype(np.float64)), 0.0)
    at = np.arange(cells.bins.size), cells.bins
    return float(-np.log2(p[at] / p.sum(axis=1) / n_counts[at]).mean())
