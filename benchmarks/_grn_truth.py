"""Cells, regulators and true edges of the network benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.stats import false_discovery_control, norm

import scbioformers as bf
from benchmarks._common import select_genes

CD3_CD8 = ("CD3D", "CD3E", "CD3G", "CD8A", "CD8B")  # the program of the paper's Fig. 2
BEELINE_NETWORKS = ("chip_specific", "chip_nonspecific", "string")
EXPRESSED = 0.01  # share of the cells in which an expressed TF is found
# old symbols to new ones
RENAMED = {"MARCH8": "MARCHF8"}
CONTROL = "non-targeting"
MIN_CELLS = 10  # of a knock-out and of controls, in a replicate that is tested


@dataclass(frozen=True, eq=False)
class Problem:
    """Cells to infer a network from, and what is known of it."""

    name: str
    """Of the data set."""
    adata: AnnData
    """Cells and modelled genes, all of them ``highly_variable``."""
    log_scale: bool
    """Whether ``X`` is on a log scale already; counts otherwise."""
    binning: str
    """The binning that fits: segment bins on a log scale, value bins of counts."""
    regulators: list[str]
    """Genes that regulate in one of the truths."""
    truths: dict[str, pd.DataFrame]
    """True edges between modelled genes: ``source``, ``target``, with signs ``weight`` too."""
    universe: str
    """``"data"`` where every pair was measured, ``"truth"`` where only what the truth names is known."""

    @property
    def expression(self) -> object:
        """Log-normalised expression, cells x genes, as every baseline sees it."""
        return self.adata.X if self.log_scale else bf.metrics.log1p_normalize(self.adata.X)

    @property
    def columns(self) -> np.ndarray:
        """Columns of the regulators."""
        return self.adata.var_names.get_indexer(self.regulators)


def read_beeline(folder: Path) -> Problem:
    """Dendritic cells after LPS; three networks, one data set."""
    adata = sc.read_h5ad(folder / "beeline_mdc" / "expression.h5ad")
    truths = {}
    for name in BEELINE_NETWORKS:
        edges = pd.read_csv(folder / "beeline_mdc" / f"{name}.tsv.gz", sep="\t")
        truths[name] = edges.rename(columns={"Gene1": "source", "Gene2": "target"})[["source", "target"]]
    return _problem("beeline_mdc", adata, truths, log_scale=True, universe="truth")


def read_pbmc3k(folder: Path, n_genes: int = 2000) -> Problem:
    """Blood cells with CollecTRI: variable genes, expressed TFs, and the CD3/CD8 program."""
    adata = sc.read_h5ad(folder / "pbmc3k.h5ad")
    edges = pd.read_csv(folder / "collectri_human.tsv.gz", sep="\t")
    factors = set(edges["source"]) | set(pd.read_csv(folder / "human_tfs.txt")["TF"])
    select_genes(adata, n_genes)
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    expressed = adata.var_names.isin(factors) & (detected >= EXPRESSED)
    kept = adata.var["highly_variable"].to_numpy() | expressed | adata.var_names.isin(CD3_CD8)
    return _problem("pbmc3k", adata[:, kept].copy(), {"collectri": edges}, log_scale=False, universe="truth")


def read_papalexi(folder: Path, alpha: float = 0.05) -> Problem:
    """Control cells, and as truth what changes where a measured gene is knocked out.

    Networks see control cells alone, so that no method reads off the effects that are its truth.
    """
    adata = sc.read_h5ad(folder / "papalexi_eccite.h5ad")
    edges = knockout_edges(adata, key="perturbation", control=CONTROL, batch_key="batch", alpha=alpha)
    controls = adata[adata.obs["perturbation"] == CONTROL].copy()
    return _problem("papalexi_eccite", controls, {"knockouts": edges}, log_scale=False, universe="data")


def simulate(seed: int = 0, n_cells: int = 2000, n_genes: int = 500) -> Problem:
    """Simulated cells of five types with a known network."""
    adata = bf.datasets.simulate(n_cells=n_cells, n_genes=n_genes, rng=seed)
    return _problem("simulated", adata, {"network": adata.uns["grn_true"]}, log_scale=False, universe="data")


READERS: dict[str, Callable[[Path], Problem]] = {
    "beeline_mdc": read_beeline,
    "pbmc3k": read_pbmc3k,
    "papalexi_eccite": read_papalexi,
    "simulated": lambda folder: simulate(),
}


def knockout_edges(adata: AnnData, *, key: str, control: str, batch_key: str, alpha: float) -> pd.DataFrame:
    """Edges from every knocked-out gene that is measured to the genes that change with it, the gene itself left out.

    Cells with a knock-out are compared with control cells of their replicate by scanpy's Wilcoxon test. The z values
    of the replicates are pooled by Stouffer, weighted by the effective numbers of cells, and corrected over genes. What
    falls in a knock-out has a positive edge. ``weight`` is minus the pooled z.
    """
    log = adata.copy()
    log.X = bf.metrics.log1p_normalize(log.X)
    tables = []
    for label in log.obs[key].astype(str).unique():
        gene = RENAMED.get(label, label)
        if gene not in log.var_names:
            continue
        z = _pooled_z(log, key, label, control, batch_key)
        found = (false_discovery_control(2 * norm.sf(np.abs(z))) < alpha) & (log.var_names != gene)
        tables.append(pd.DataFrame({"source": gene, "target": log.var_names[found], "weight": -z[found]}))
    return pd.concat(tables, ignore_index=True)


def _pooled_z(log: AnnData, key: str, label: str, control: str, batch_key: str) -> np.ndarray:
    total, weights = np.zeros(log.n_vars), []
    for batch in log.obs[batch_key].unique():
        cells = log[(log.obs[batch_key] == batch) & log.obs[key].isin([label, control]).to_numpy()].copy()
        counts = cells.obs[key].astype(str).value_counts().reindex([label, control], fill_value=0)
        if counts.min() < MIN_CELLS:
            continue
        cells.obs["group"] = pd.Categorical(cells.obs[key].astype(str))
        # a gene that no cell of the replicate expresses has no rank to speak of, and z is 0 / 0
        with np.errstate(divide="ignore", invalid="ignore"):
            sc.tl.rank_genes_groups(cells, "group", groups=[label], reference=control, method="wilcoxon",
                                    tie_correct=True)  # fmt: skip
        table = sc.get.rank_genes_groups_df(cells, label).set_index("names").reindex(log.var_names)
        z, weight = table["scores"].fillna(0).to_numpy(), float(np.sqrt(1 / (1 / counts).sum()))
        total += weight * z
        weights.append(weight)
    return total / np.sqrt(np.square(weights).sum()) if weights else total


def _problem(name: str, adata: AnnData, truths: dict[str, pd.DataFrame], *, log_scale: bool, universe: str) -> Problem:
    adata.var["highly_variable"] = True
    inside = {key: _inside(edges, adata.var_names) for key, edges in truths.items()}
    sources = set().union(*(edges["source"] for edges in inside.values()))
    binning = "segment" if log_scale else "value"
    regulators = [gene for gene in adata.var_names if gene in sources]
    return Problem(name, adata, log_scale, binning, regulators, inside, universe)


def _inside(edges: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    names = set(genes)
    kept = edges["source"].isin(names) & edges["target"].isin(names) & (edges["source"] != edges["target"])
    return edges[kept].drop_duplicates(["source", "target"]).reset_index(drop=True)
