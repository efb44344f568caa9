"""Data sets of the network benchmark: readers on tiny files, roles of the sets, and a run through the command line."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

SYMBOLS = ["Tf1", "C1orf9", "TF2", "G1", "g2", "LONE"]  # as in a file of expression; a network may spell them otherwise
# three networks of one set: names of the columns, edges
NETWORKS = {
    "chip_specific": (["Gene1", "Gene2", "Score"], [("TF1", "C1orf9", 3), ("TF1", "G2", 5), ("TF1", "G2", 9)]),
    "chip_nonspecific": (["source", "target"], [("TF2", "G1"), ("TF2", "TF2"), ("TF2", "ELSEWHERE"), ("X", "G1")]),
    "string": (["source", "target"], [("TF1", "TF2"), ("TF2", "TF1"), ("TF1", "G1")]),
}
KEPT = {
    "chip_specific": {("TF1", "C1ORF9"), ("TF1", "G2")},
    "chip_nonspecific": {("TF2", "G1")},
    "string": {("TF1", "TF2"), ("TF2", "TF1"), ("TF1", "G1")},
}


@pytest.fixture
def grn(load_benchmark):
    return load_benchmark("grn")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folders of two sets: one of BEELINE's on a log scale, and counts with ESCAPE."""
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (30, len(SYMBOLS))).astype(np.float32))
    for name in ("beeline_mesc", "mesc_retinoic"):
        (tmp_path / name).mkdir()
        x = counts.log1p() if name == "beeline_mesc" else counts
        adata = ad.AnnData(x, var=pd.DataFrame(index=SYMBOLS))
        adata.write_h5ad(tmp_path / name / "expression.h5ad")
    for network, (columns, rows) in NETWORKS.items():
        path = tmp_path / "beeline_mesc" / f"{network}.tsv.gz"
        pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False)
    escape = pd.DataFrame({"source": ["Tf1", "Tf1", "TF2"], "target": ["G1", "g2", "C1orf9"]})
    escape.to_csv(tmp_path / "mesc_retinoic" / "escape.tsv.gz", sep="\t", index=False)
    return tmp_path


def pairs(edges: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(edges["source"], edges["target"], strict=True))


def test_a_set_of_beeline(grn, folder):
    """Either names of the columns are read, genes are matched in upper case; loops, copies and other genes go."""
    problem = grn.READERS["beeline_mesc"](folder)
    assert {name: set(pairs(edges)) for name, edges in problem.truths.items()} == KEPT
    assert all(len(edges) == len(KEPT[name]) for name, edges in problem.truths.items())
    assert problem.regulators == ["TF1", "TF2"]
    assert problem.columns.tolist() == [0, 2]
    assert (problem.name, problem.universe, problem.binning) == ("beeline_mesc", "truth", "segment")
    expression = ad.read_h5ad(folder / "beeline_mesc" / "expression.h5ad").X
    assert (problem.expression != expression).nnz == 0  # not transformed again


def test_counts_with_escape(grn, folder):
    problem = grn.READERS["mesc_retinoic"](folder)
    assert pairs(problem.truths["escape"]) == [("Tf1", "G1"), ("Tf1", "g2"), ("TF2", "C1orf9")]
    assert problem.regulators == ["Tf1", "TF2"]
    assert (problem.universe, problem.binning) == ("truth", "value")
    counts = ad.read_h5ad(folder / "mesc_retinoic" / "expression.h5ad").X.toarray()
    depth = counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.expm1(problem.expression.toarray()), counts / depth * np.median(depth), rtol=1e-5)


def test_development_sets_run_only_if_they_are_named(grn):
    assert grn.arguments_of(["--data", "x"]).sets == [
        "beeline_mdc",
        "beeline_hhep",
        "pbmc3k",
        "papalexi_eccite",
        "simulated",
    ]
    named = grn.arguments_of(["--data", "x", "--sets", "mesc_retinoic,beeline_hhep"])
    assert named.sets == ["mesc_retinoic", "beeline_hhep"]
    assert set(grn.DEVELOPMENT) == {"beeline_mesc", "mesc_retinoic", "pbmc68k", "kang_ifnb", "paul15"}


def test_a_run_and_the_mean_of_several_truths(grn, folder, capsys):
    out = folder / "out"
    arguments = ["--data", folder, "--out", out, "--sets", "beeline_mesc", "--methods", "pearson,spearman"]
    grn.main([str(each) for each in arguments])
    results = json.loads((out / "grn.json").read_text())
    assert [(result["set"], result["method"], result["seed"]) for result in results] == [
        ("beeline_mesc", "pearson", 0),
        ("beeline_mesc", "spearman", 0),
    ]
    printed = capsys.readouterr().out
    assert (
        "### beeline_mesc (development, 30 cells, 6 genes, 2 regulators; ranked pairs: genes of the truth)" in printed
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    of_pearson = {row[0]: float(row[2]) for row in rows if row[1] == "pearson" and len(row) == 2 + len(grn.SCORES)}
    scores = [results[0]["scores"][name]["auprc_ratio"] for name in NETWORKS]
    assert of_pearson["mean"] == pytest.approx(sum(scores) / 3, abs=5e-4)
    assert [of_pearson[name] for name in NETWORKS] == pytest.approx(scores, abs=5e-4)


def test_the_score_of_a_truth(grn, folder):
    """BEELINE's rules: regulators of a truth x its genes, without loops; ratio to the share of true pairs."""
    problem = grn.READERS["beeline_mesc"](folder)
    # pairs of "string": TF1, TF2 -> TF1, TF2, G1 without loops: 4 pairs, 3 true; the false one (TF2 -> G1) comes first
    weights = np.zeros((6, 2))
    weights[3, 1], weights[3, 0], weights[2, 0], weights[0, 1] = -4.0, 3.0, 2.0, 1.0
    names = {"genes": problem.adata.var_names, "regulators": problem.regulators}
    import scbioformers as bf

    found = bf.metrics.grn_scores(weights, problem.truths["string"], universe=problem.universe, **names)
    precision = (1 / 2 + 2 / 3 + 3 / 4) / 3
    assert found.auprc_ratio == pytest.approx(precision / 0.75)


def test_factors_are_marked_from_the_list_and_not_from_known_edges(grn, folder):
    """Genes of the list in any case, also without a known edge. A regulator that is not in the list is not marked."""
    pd.DataFrame({"TF": ["TF1", "LONE", "G2"]}).to_csv(folder / "human_tfs.txt", index=False)
    problem = grn.READERS["mesc_retinoic"](folder)
    grn.mark_factors(problem, folder)
    assert problem.adata.var["factor"].dropna().to_dict() == dict.fromkeys(["Tf1", "g2", "LONE"], "factor")
    assert not [name for name in grn.arguments_of(["--data", "x"]).methods if "marked" in name]
