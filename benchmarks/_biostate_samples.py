"""Samples of RNA and proteins for :mod:`benchmarks.biostate`: what is read, labelled, split and left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse

import scbioformers as bf
from benchmarks._common import select_genes

Values = NDArray[np.floating]
# A cell of cite_malt has a protein if its count is above this number, which lies between the two modes of the protein.
HIGH = {"CD3": 300, "CD4": 300, "CD8a": 300, "CD19": 80}


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples that were measured in both modalities, in the same order."""

    rna: AnnData
    """Counts of all genes."""
    prot: AnnData
    """Counts, or scaled values."""
    labels: NDArray[np.str_]
    """(N,) label of each sample, empty where it has none."""

    def take(self, rows: NDArray[np.bool_]) -> Samples:
        """Some of the samples."""
        return Samples(self.rna[rows].copy(), self.prot[rows].copy(), self.labels[rows])

    @property
    def genes(self) -> NDArray[np.bool_]:
        """(G,), the highly variable genes."""
        return self.rna.var["highly_variable"].to_numpy(bool)

    @property
    def controls(self) -> NDArray[np.bool_]:
        """(M,), proteins that are isotype controls."""
        return self.prot.var_names.str.contains("control")

    def profiles(self, depth: float | None = None) -> sparse.csr_matrix:
        """log1p profiles of the highly variable genes. The depth of a cell is that of all genes."""
        totals = np.asarray(self.rna.X.sum(axis=1)).ravel()
        counts = self.rna[:, self.genes].X
        return sparse.csr_matrix(bf.metrics.log1p_normalize(counts, depth=totals, target_sum=depth))

    def proteins(self) -> Values:
        """(N, M) values of the proteins: counts as centred log ratios, scaled values as they are."""
        values = dense(self.prot.X)
        return centred_log_ratio(values) if values.min() >= 0 else values


def dense(X: object) -> Values:
    """A matrix as an array."""
    return np.asarray(X.toarray() if sparse.issparse(X) else X)


def centred_log_ratio(counts: Values) -> Values:
    """log1p of the counts minus its mean in each cell (Stoeckius et al., Nature Methods 2017)."""
    logs = np.log1p(counts)
    return logs - logs.mean(axis=1, keepdims=True)


def gate(counts: pd.DataFrame) -> NDArray[np.str_]:
    """Labels of cells by their counts of CD3, CD4, CD8a and CD19. Cells in no gate have an empty label."""
    has = {name: counts[name] > high for name, high in HIGH.items()}
    t = has["CD3"] & ~has["CD19"]
    labels = np.select(
        [has["CD19"] & ~has["CD3"], t & has["CD4"] & ~has["CD8a"], t & has["CD8a"] & ~has["CD4"]],
        ["B", "CD4 T", "CD8 T"],
        "",
    )
    return np.asarray(labels, str)


def read_samples(data: Path, name: str, *, gated: bool) -> Samples:
    """Read a data set. With ``gated``, cells without labels get those of gates, whose proteins are removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata 0.3 warns of its next release
        mdata = mudata.read_h5mu(data / f"{name}.h5mu")
    rna, prot = mdata["rna"].copy(), mdata["prot"].copy()
    labels = np.full(rna.n_obs, "")
    if "cell_type" in rna.obs:
        labels = rna.obs["cell_type"].to_numpy(str)
    elif gated:
        labels = gate(pd.DataFrame(dense(prot.X), columns=prot.var_names))
        prot = prot[:, ~prot.var_names.isin(list(HIGH))].copy()
    select_genes(rna)
    return Samples(rna, prot, labels)


def split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """80 % of the samples for training, and the others. The genes are chosen on the first."""
    training = np.random.default_rng(seed).random(len(samples.labels)) < 0.8
    first, second = samples.take(training), samples.take(~training)
    select_genes(first.rna)
    second.rna.var["highly_variable"] = first.genes
    return first, second


def as_mudata(parts: Mapping[str, AnnData]) -> MuData:
    """A MuData of copies of the modalities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuData({name: part.copy() for name, part in parts.items()})


def leave_out(samples: Samples, seed: int) -> NDArray[np.str_]:
    """(N,) what is left of each sample: "RNA" of 20 %, "proteins" of 10 %, "both" of the others."""
    order, pattern = np.random.default_rng(seed).permutation(len(samples.labels)), np.full(len(samples.labels), "both")
    pattern = pattern.astype("<U8")
    pattern[order[: len(order) // 5]] = "RNA"
    pattern[order[len(order) // 5 : len(order) // 5 + len(order) // 10]] = "proteins"
    return pattern
