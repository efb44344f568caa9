"""Compare gene programs of pbmc3k with Gene Ontology terms, and its regulators with ReMap and CollecTRI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.cluster import KMeans

import scbioformers as bf
from benchmarks._common import markdown_table, mean_and_range
from benchmarks._grn_fits import N_MEMBERS, fit_once
from benchmarks._grn_truth import CD3_CD8, Problem, read_pbmc3k
from scbioformers.tasks import agreement, find_programs

# Number of runs, whether the embeddings are initialised from the SVD of the data, training steps, networks of a run.
# Different runs share no member.
FITS: dict[str, tuple[int, bool, int | None, int]] = {
    "default": (2, True, None, 1),
    "ensemble": (2, False, None, N_MEMBERS),
    "ensemble from the SVD": (1, True, None, N_MEMBERS),
    "zero steps": (1, True, 0, 1),
    "untrained": (2, False, 0, 1),
    "untrained ensemble": (1, False, 0, N_MEMBERS),
}
DETAILED = ("default", "ensemble", "ensemble from the SVD")  # methods with a table of single programs
MIN_GENES, MAX_GENES = 5, 500  # size of a tested term
ALPHA = 0.05  # significance level of adjusted p values
N_DRAWS = 20  # number of draws of random programs
TOP_K = (10, 20)  # number of top targets of a regulator, fixed before the evaluation
N_BEST_PROGRAMS, N_BEST_REGULATORS = 5, 4
EXAMPLE = "BHLHE40"  # the regulator of the paper's Fig. 2

Groups = dict[str, list[str]]


@dataclass(frozen=True)
class Result:
    """The results of one run of a method."""

    method: str
    run: int
    programs: pd.DataFrame
    """Columns ``program``, ``gene``, ``weight`` and ``support``."""
    stability: float
    """Adjusted Rand index between the members (for one member: between random parts of its graph)."""
    terms: pd.DataFrame
    """Result of :func:`scbioformers.get.program_enrichment`."""
    known: Mapping[str, pd.DataFrame]
    """Results of :func:`scbioformers.get.known_targets`, by the source of the known edges."""
    drivers: pd.DataFrame
    """Result of :func:`scbioformers.get.set_regulators` for the programs."""


def report(data: Path, folder: Path, *, overwrite: bool) -> None:
    """Print the tables. The fitted models are stored in ``folder``."""
    problem, terms = read_pbmc3k(data), read_terms(data)
    remap = pd.read_csv(data / "remap_top500_per_tf.tsv.gz", sep="\t").rename(columns={"tf": "source"})
    known = {"ReMap": remap, "CollecTRI": problem.truths["collectri"]}
    results = []
    for method, (n_runs, *how) in FITS.items():
        for run in range(n_runs):
            model = fit_once(folder, problem, run, *how, overwrite=overwrite)
            results.append(evaluate(problem.adata.copy(), model, method, run, terms, known))
    sets = select_terms(terms, problem.adata.var_names)
    print(f"{problem.adata.n_obs} cells, {problem.adata.n_vars} genes, {len(sets)} terms\n")
    print(program_table(problem, results, sets), best_table(results), cd3_cd8_table(results), sep="\n\n", flush=True)
    tests = {(source, method): [result.known[source] for result in results if result.method == method]
             for source in known for method in FITS}  # fmt: skip
    print("", regulator_table(tests | baseline_tests(problem, known)), sep="\n")


def read_terms(data: Path) -> pd.DataFrame:
    """Return biological processes with columns ``source`` (term) and ``target`` (gene), without ancestor terms."""
    pairs = pd.read_csv(data / "gene_ontology" / "human_symbol2go.tsv.gz", sep="\t")
    names = pd.read_csv(data / "gene_ontology" / "go_terms.tsv.gz", sep="\t")
    processes = pairs[pairs["ontology"] == "BP"].merge(names, on="go_id")
    return processes.rename(columns={"term": "source", "symbol": "target"})[["source", "target"]].drop_duplicates()


def select_terms(terms: pd.DataFrame, genes: Sequence[str]) -> Groups:
    """Return the terms that have ``MIN_GENES`` to ``MAX_GENES`` genes in the data."""
    sets = terms[terms["target"].isin(genes)].groupby("source")["target"].agg(list)
    return sets[sets.map(len).between(MIN_GENES, MAX_GENES)].to_dict()


def evaluate(
    adata: AnnData, model: bf.BioFormer, method: str, run: int, terms: pd.DataFrame, known: Mapping[str, pd.DataFrame]
) -> Result:
    """Find the programs, their terms and regulators, and the known targets of every regulator."""
    bf.tl.gene_programs(adata, model=model, progress_bar=False)
    bf.tl.program_enrichment(adata, terms, min_genes=MIN_GENES, max_genes=MAX_GENES)
    bf.tl.grn(adata, regulators=regulators_of(known, adata), model=model, progress_bar=False)
    found = {}
    for source, edges in known.items():
        bf.tl.regulators(adata, known=edges, k=TOP_K)
        found[source] = bf.get.known_targets(adata)
    drivers = pd.DataFrame()
    if adata.var["gene_program"].notna().any():
        bf.tl.regulators(adata, gene_sets="gene_program")
        drivers = bf.get.set_regulators(adata)
    stability = float(pd.DataFrame(adata.uns["gene_program"]["stability"])["ari"].max())
    programs, tested = bf.get.gene_programs(adata), bf.get.program_enrichment(adata)
    return Result(method, run, programs, stability, tested, found, drivers)


def regulators_of(known: Mapping[str, pd.DataFrame], adata: AnnData) -> list[str]:
    """Return the genes of the data that are a regulator in any source."""
    sources = {gene for edges in known.values() for gene in edges["source"]}
    return [gene for gene in adata.var_names if gene in sources]


# Programs


def program_table(problem: Problem, results: list[Result], sets: Groups) -> str:
    """Table of number, size and agreement of the programs, and of how many have an enriched term.

    The baselines are random programs, k-means and clustered correlations.
    """
    genes = problem.adata.var_names
    rows = []
    for method in FITS:
        runs = [result for result in results if result.method == method]
        groups = [groups_of(result.programs) for result in runs]
        between = agreement([labels(each, genes) for each in groups])
        support = [r.programs["support"].mean() for r in runs]
        agreed = [mean_of_known(values) for values in ([r.stability for r in runs], [between], support)]
        with_term = [r.terms.loc[r.terms["p_adjusted"] < ALPHA, "program"].nunique() for r in runs]
        rows.append([method, *sizes(groups), *agreed, counts(with_term)])
        if method in DETAILED:
            rows += null_rows(method, groups, sets, genes)
            clusters = [kmeans(problem, each, seed) for seed, each in enumerate(groups)]
            name, with_term = f"k-means of PCA loadings, number as {method}", enriched(clusters, sets, genes)
            rows.append([name, *sizes(clusters), "–", "–", "–", with_term])
    correlation, unit = np.corrcoef(problem.expression.toarray(), rowvar=False), unit_loadings(problem)
    rows.append(clustered_row("Pearson correlation", correlation, sets, genes))
    rows.append(clustered_row("cosine of PCA loadings", unit @ unit.T, sets, genes))
    return markdown_table(["method", "programs", "genes", "median size", "largest size", "agreement within a run",
                           "agreement between runs", "support", "programs with a term"], rows)  # fmt: skip


def groups_of(programs: pd.DataFrame) -> Groups:
    """Return the genes of each program."""
    return {str(name): part["gene"].tolist() for name, part in programs.groupby("program", sort=False)}


def labels(groups: Groups, genes: Sequence[str]) -> np.ndarray:
    """Return the program number of each gene, -1 for none."""
    number = {gene: i for i, members in enumerate(groups.values()) for gene in members}
    return np.array([number.get(gene, -1) for gene in genes])


def mean_of_known(values: Sequence[float]) -> str:
    """Return mean and range of the values that are not NaN."""
    return mean_and_range([value for value in values if not np.isnan(value)], 2)


def sizes(runs: list[Groups]) -> list[str]:
    """Return the number of programs, the number of their genes, and the median and largest size."""
    lengths = [[len(members) for members in groups.values()] or [0] for groups in runs]
    numbers = [(len(groups), sum(n), np.median(n), max(n)) for groups, n in zip(runs, lengths, strict=True)]
    return [counts(column) for column in zip(*numbers, strict=True)]


def counts(values: Sequence[float]) -> str:
    """Return the values as comma-separated text."""
    return ", ".join(f"{value:g}" for value in values)


def enriched(runs: list[Groups], sets: Groups, genes: Sequence[str]) -> str:
    """Return the number of programs with an enriched term, for each run."""
    return counts([n_enriched(groups, sets, genes) for groups in runs])


def n_enriched(groups: Groups, sets: Groups, genes: Sequence[str]) -> int:
    """Return the number of groups with an enriched term."""
    table = bf.metrics.enrichment(groups, sets, genes)
    return int(table.loc[table["p_adjusted"] < ALPHA, "group"].nunique())


def null_rows(method: str, runs: list[Groups], sets: Groups, genes: Sequence[str]) -> list[list[str]]:
    """Rows for random programs of the same sizes, drawn from all genes or from the genes of the programs only."""
    rng = np.random.default_rng(0)
    rows = []
    for name, pools in (
        ("all genes", [list(genes)] * len(runs)),
        ("genes of programs", [[gene for members in groups.values() for gene in members] for groups in runs]),
    ):
        found = []
        for groups, pool in zip(runs, pools, strict=True):
            for _ in range(N_DRAWS):
                drawn, bounds = rng.permutation(pool), np.cumsum([len(members) for members in groups.values()])
                parts = np.split(drawn[: bounds[-1]], bounds[:-1])
                found.append(n_enriched({str(i): part.tolist() for i, part in enumerate(parts)}, sets, genes))
        rows.append([f"random, from {name}, sizes as {method}", *["–"] * 7, mean_and_range(found, 2)])
    return rows


def unit_loadings(problem: Problem) -> np.ndarray:
    """Return the loadings of the genes on 50 principal components (genes x 50), each row scaled to length 1."""
    adata = AnnData(problem.expression)
    sc.pp.pca(adata, n_comps=50)
    loadings = adata.varm["PCs"] * np.sqrt(adata.uns["pca"]["variance"])
    return loadings / np.linalg.norm(loadings, axis=1, keepdims=True)


def kmeans(problem: Problem, groups: Groups, seed: int) -> Groups:
    """Cluster the PCA loadings into the same number of clusters.

    The genes nearest to their centroid are kept, as many in total as ``groups`` has.
    """
    unit = unit_loadings(problem)
    means = KMeans(len(groups), n_init=10, random_state=seed).fit(unit)
    centroids = means.cluster_centers_ / np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True)
    cosine = (unit * centroids[means.labels_]).sum(axis=1)
    kept = np.argsort(-cosine, kind="stable")[: sum(map(len, groups.values()))]
    found = pd.Series(means.labels_[kept], problem.adata.var_names[kept])
    return {str(name): part.index.tolist() for name, part in found.groupby(found) if len(part) >= MIN_GENES}


def clustered_row(name: str, similarity: np.ndarray, sets: Groups, genes: Sequence[str]) -> list[str]:
    """Row for another similarity of genes, clustered with the algorithm of ``tl.gene_programs``."""
    programs = find_programs([similarity], n_neighbors=10, min_genes=MIN_GENES)
    label = pd.Series(programs.label, genes)
    groups = {str(name): part.index.tolist() for name, part in label[label >= 0].groupby(label)}
    within, support = (mean_and_range([x], 2) for x in (programs.stability["ari"].max(), np.nanmean(programs.support)))
    return [f"{name}, same clustering", *sizes([groups]), within, "–", support, enriched([groups], sets, genes)]


def best_table(results: list[Result]) -> str:
    """Table of the programs with the smallest p value of a term, first run only."""
    rows = []
    for result in results:
        if result.run or result.method not in DETAILED:
            continue
        for test in result.terms.drop_duplicates("program").head(N_BEST_PROGRAMS).itertuples():
            part = result.programs[result.programs["program"] == test.program]
            drivers = result.drivers.loc[result.drivers["gene_set"] == test.program, "regulator"]
            rows.append([result.method, test.program, ", ".join(part["gene"].head(5)), str(len(part)),
                         mean_and_range([part["support"].mean()], 2), test.gene_set, f"{test.hits} of {test.set_size}",
                         f"{test.p_adjusted:.1g}", ", ".join(drivers.head(4))])  # fmt: skip
    header = ["method", "program", "genes nearest to the centroid", "size", "support", "best term", "hits",
              "adjusted p", "regulators"]  # fmt: skip
    return markdown_table(header, rows)


def cd3_cd8_table(results: list[Result]) -> str:
    """Table of the programs that contain the T cell genes shown in the paper."""
    rows = []
    for result in results:
        if result.method not in DETAILED:
            continue
        part = result.programs[result.programs["gene"].isin(CD3_CD8)]
        for program, genes in part.groupby("program", sort=False):
            named = zip(genes["gene"], genes["support"], strict=True)
            rows.append([result.method, str(result.run), program, str((result.programs["program"] == program).sum()),
                         ", ".join(f"{gene} ({mean_and_range([support], 2)})" for gene, support in named)])  # fmt: skip
    return markdown_table(["method", "run", "program", "size", "CD3 and CD8 genes (support)"], rows)


# Regulators


def baseline_tests(problem: Problem, known: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], list[pd.DataFrame]]:
    """Test two baselines: correlation, and the genes with the highest expression as targets of every regulator."""
    genes, regulators = problem.adata.var_names, regulators_of(known, problem.adata)
    columns = genes.get_indexer(regulators)
    weights = {
        "\\|Pearson\\|": bf.metrics.pearson_edges(problem.expression, columns),
        "expression": bf.metrics.expression_edges(problem.expression, columns, of="target"),
    }
    names = {"genes": genes, "regulators": regulators}
    return {(source, method): [bf.metrics.edge_enrichment(weight, edges, k=TOP_K, **names)]
            for source, edges in known.items() for method, weight in weights.items()}  # fmt: skip


def regulator_table(tests: Mapping[tuple[str, str], list[pd.DataFrame]]) -> str:
    """Table of the number of regulators whose known targets are enriched among their top targets."""
    rows = []
    for (source, method), runs in sorted(tests.items(), key=lambda test: test[0][0], reverse=True):
        found = [[table[table["k"] == k] for table in runs] for k in TOP_K]
        enriched = [counts([(table["p_adjusted"] < ALPHA).sum() for table in of_k]) for of_k in found]
        best = found[-1][0].sort_values("p", kind="stable").head(N_BEST_REGULATORS).itertuples()
        named = ", ".join(f"{e.regulator} ({e.hits}, {e.p_adjusted:.1g})" for e in best)
        example = runs[0][runs[0]["regulator"] == EXAMPLE].itertuples()
        hits = ", ".join(f"{e.hits} of {e.k} (p {e.p:.2g})" for e in example)
        rows.append([source, method, str(len(found[0][0])), *enriched, named, hits or "–"])
    header = ["known edges", "method", "tested", *(f"enriched, k = {k}" for k in TOP_K),
              f"best at k = {TOP_K[-1]} (hits, adjusted p)", EXAMPLE]  # fmt: skip
    return markdown_table(header, rows)
