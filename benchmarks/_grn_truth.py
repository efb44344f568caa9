"""The data sets of the network benchmark: cells, regulators and true edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.stats import false_discovery_control, norm

import scbioformers as bf
from benchmarks._common import select_genes

CD3_CD8 = ("CD3D", "CD3E", "CD3G", "CD8A", "CD8B")  # program in Fig. 2 of the paper
BEELINE_NETWORKS = ("chip_specific", "chip_nonspecific", "string")
EXPRESSED = 0.01  # a transcription factor is expressed if it is detected in this share of the cells
# old to new gene symbols
RENAMED = {"MARCH8": "MARCHF8"}
CONTROL = "non-targeting"
MIN_CELLS = 10  # a replicate is tested if it has this many cells with the knock-out, and this many controls


@dataclass(frozen=True, eq=False)
class Problem:
    """Cells to infer a network from, and its known edges."""

    name: str
    """Name of the data set."""
    adata: AnnData
    """Cells x modelled genes. All genes are marked ``highly_variable``."""
    log_scale: bool
    """True if ``X`` is on a log scale, False if it has counts."""
    binning: str
    """Kind of binning: ``"segment"`` for a log scale, ``"value"`` for counts."""
    regulators: list[str]
    """Genes that are a regulator in one of the truths."""
    truths: dict[str, pd.DataFrame]
    """True edges between modelled genes: ``source``, ``target`` and, if signs are known, ``weight``."""
    universe: str
    """``"data"`` if every pair of genes was measured, ``"truth"`` if only genes in the truth have known edges."""

    @property
    def expression(self) -> object:
        """Log-normalised expression, cells x genes. All baselines use it."""
        return self.adata.X if self.log_scale else bf.metrics.log1p_normalize(self.adata.X)

    @property
    def columns(self) -> np.ndarray:
        """Column numbers of the regulators."""
        return self.adata.var_names.get_indexer(self.regulators)


def read_beeline(folder: Path, name: str) -> Problem:
    """One of BEELINE's sets on a log scale: cells with three networks. Genes are matched in upper case, as there."""
    adata = sc.read_h5ad(folder / name / "expression.h5ad")
    adata.var_names = adata.var_names.str.upper()
    truths = {}
    for network in BEELINE_NETWORKS:
        edges = pd.read_csv(folder / name / f"{network}.tsv.gz", sep="\t")
        edges = edges.rename(columns={"Gene1": "source", "Gene2": "target"})[["source", "target"]]
        truths[network] = edges.apply(lambda names: names.str.upper())
    return _problem(name, adata, truths, log_scale=True, universe="truth")


def read_mesc_retinoic(folder: Path) -> Problem:
    """Counts of mouse ES cells under retinoic acid. The truth are the targets of 12 factors in ESCAPE."""
    adata = sc.read_h5ad(folder / "mesc_retinoic" / "expression.h5ad")
    edges = pd.read_csv(folder / "mesc_retinoic" / "escape.tsv.gz", sep="\t")
    return _problem("mesc_retinoic", adata, {"escape": edges}, log_scale=False, universe="truth")


def read_pbmc3k(folder: Path, n_genes: int = 2000) -> Problem:
    """Blood cells with CollecTRI. Genes: highly variable ones, expressed transcription factors, CD3 and CD8."""
    return _collectri("pbmc3k", sc.read_h5ad(folder / "pbmc3k.h5ad"), folder, n_genes)


def read_with_collectri(folder: Path, name: str) -> Problem:
    """Counts of a development set with CollecTRI, with fewer genes than pbmc3k. Mouse genes are in upper case."""
    adata = bf.datasets.pbmc68k() if name == "pbmc68k" else sc.read_h5ad(folder / f"{name}.h5ad")
    adata.var_names = adata.var_names.str.upper()
    return _collectri(name, adata, folder, n_genes=600)


def _collectri(name: str, adata: AnnData, folder: Path, n_genes: int) -> Problem:
    edges = pd.read_csv(folder / "collectri_human.tsv.gz", sep="\t")
    factors = set(edges["source"]) | set(pd.read_csv(folder / "human_tfs.txt")["TF"])
    select_genes(adata, n_genes)
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    expressed = adata.var_names.isin(factors) & (detected >= EXPRESSED)
    kept = adata.var["highly_variable"].to_numpy() | expressed | adata.var_names.isin(CD3_CD8)
    return _problem(name, adata[:, kept].copy(), {"collectri": edges}, log_scale=False, universe="truth")


def read_papalexi(folder: Path, alpha: float = 0.05) -> Problem:
    """Control cells. The true targets of a gene are the genes that change when it is knocked out.

    Networks are inferred from the control cells only. Therefore no method has access to the effects that define the
    truth.
    """
    adata = sc.read_h5ad(folder / "papalexi_eccite.h5ad")
    edges = knockout_edges(adata, key="perturbation", control=CONTROL, batch_key="batch", alpha=alpha)
    controls = adata[adata.obs["perturbation"] == CONTROL].copy()
    return _problem("papalexi_eccite", controls, {"knockouts": edges}, log_scale=False, universe="data")


def simulate(seed: int = 0, n_cells: int = 2000, n_genes: int = 500) -> Problem:
    """Simulated cells of five cell types with a known network."""
    adata = bf.datasets.simulate(n_cells=n_cells, n_genes=n_genes, rng=seed)
    return _problem("simulated", adata, {"network": adata.uns["grn_true"]}, log_scale=False, universe="data")


READERS: dict[str, Callable[[Path], Problem]] = {
    **{name: partial(read_beeline, name=name) for name in ("beeline_mdc", "beeline_hhep")},
    "pbmc3k": read_pbmc3k,
    "papalexi_eccite": read_papalexi,
    "simulated": lambda folder: simulate(),
    "beeline_mesc": partial(read_beeline, name="beeline_mesc"),
    "mesc_retinoic": read_mesc_retinoic,
    **{name: partial(read_with_collectri, name=name) for name in ("pbmc68k", "kang_ifnb", "paul15")},
}
# defaults of the package are chosen on these sets, so they run only if they are named
DEVELOPMENT = ("beeline_mesc", "mesc_retinoic", "pbmc68k", "kang_ifnb", "paul15")


def mark_factors(problem: Problem, folder: Path) -> None:
    """Set ``var["factor"]``: ``"factor"`` for transcription factors, else NaN.

    They are those of the list of human factors, and in simulated cells the true regulators. Known edges are not used.
    """
    var = problem.adata.var
    if "regulator" in var:
        factors = var["regulator"].to_numpy()
    else:
        factors = var.index.str.upper().isin(pd.read_csv(folder / "human_tfs.txt")["TF"])
    var["factor"] = pd.Series(np.where(factors, "factor", None), var.index, dtype=object)


def knockout_edges(adata: AnnData, *, key: str, control: str, batch_key: str, alpha: float) -> pd.DataFrame:
    """Return edges from every knocked-out, measured gene to the genes that change; the gene itself is excluded.

    Cells with a knock-out are compared with control cells of the same replicate by the Wilcoxon test of scanpy. The z
    values of the replicates are combined by Stouffer's method, weighted by the effective numbers of cells. The p values
    are corrected over genes. A gene that decreases in a knock-out has a positive edge. ``weight`` is minus the
    combined z.
    """
    log = adata.copy()
    log.X = bf.metrics.log1p_normalize(log.X)
    tables = []
    for label in log.obs[key].astype(str).unique():
        gene = RENAMED.get(label, label)
        if gene not in log.var_names:
            continue
        z = _combined_z(log, key, label, control, batch_key)
        found = (false_discovery_control(2 * norm.sf(np.abs(z))) < alpha) & (log.var_names != gene)
        tables.append(pd.DataFrame({"source": gene, "target": log.var_names[found], "weight": -z[found]}))
    return pd.concat(tables, ignore_index=True)


def _combined_z(log: AnnData, key: str, label: str, control: str, batch_key: str) -> np.ndarray:
    total, weights = np.zeros(log.n_vars), []
    for batch in log.obs[batch_key].unique():
        cells = log[(log.obs[batch_key] == batch) & log.obs[key].isin([label, control]).to_numpy()].copy()
        counts = cells.obs[key].astype(str).value_counts().reindex([label, control], fill_value=0)
        if counts.min() < MIN_CELLS:
            continue
        cells.obs["group"] = pd.Categorical(cells.obs[key].astype(str))
        # if no cell of the replicate expresses a gene, its z is 0 / 0
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
