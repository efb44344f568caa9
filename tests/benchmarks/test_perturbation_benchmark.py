"""Run the perturbation benchmark through its command line, on a file in GEARS format."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf

SINGLES = [f"TF{i}" for i in range(1, 8)]
PAIRS = ["TF1+TF2", "TF3+TF4"]
METHODS = ("ours", "ours_no_network", "no_change", "training_mean", "target_falls", "linear")


@pytest.fixture
def perturbation(load_benchmark):
    return load_benchmark("perturbation")


@pytest.fixture
def gears_file(tmp_path) -> Path:
    """A file as GEARS stores it: log1p of counts per 10,000, gene identifiers, labels `A+ctrl`, `A+B` and `ctrl`."""
    cells = bf.datasets.simulate(400, 40, n_regulators=8, n_types=1, perturbations=SINGLES + PAIRS, rng=2)
    kept = (cells.X > 0).mean(axis=0).A1 > 0.15  # these genes are expressed in some control cells
    kept[cells.var_names.get_loc("TF2")] = False  # not every target is measured
    cells = cells[:, kept].copy()
    label = cells.obs["perturbation"].astype(str)
    condition = label.where(label.str.contains("+", regex=False), label + "+ctrl").replace("control+ctrl", "ctrl")
    counts = sp.csr_matrix(cells.X)
    cells.X = sp.csr_matrix(sp.diags(1e4 / counts.sum(axis=1).A1) @ counts).log1p().astype(np.float32)
    cells.obs = condition.to_frame("condition")
    cells.var["gene_name"] = cells.var_names.to_numpy()
    cells.var_names = [f"ENSG{i}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "perturb_processed.h5ad")
    return tmp_path / "perturb_processed.h5ad"


def test_scores_of_a_file(perturbation, gears_file, tmp_path, capsys):
    arguments = ["--data", gears_file, "--out", tmp_path / "out", "--parts", "scores", "--methods", ",".join(METHODS)]
    perturbation.main([str(each) for each in (*arguments, "--seeds", 1, "--quick", 1)])
    result = json.loads((tmp_path / "out" / "perturbation.json").read_text())["perturb_processed"]
    rows = [(row["method"], row["target"]) for row in result["rows"]]
    for method in METHODS:  # each target is tested once; pairs of targets in different folds are not tested
        tested = [target for name, target in rows if name == method]
        assert len(tested) == len(set(tested))
        assert set(SINGLES) <= set(tested) <= {*SINGLES, *PAIRS}
    falls = {row["target"]: row["delta_off"] for row in result["rows"] if row["method"] == "target_falls"}
    assert set(falls.values()) == {0.0}  # it predicts a change of the target only
    additive = {row["pair"]: row["rmse"] for row in result["pairs"] if row["method"] == "additive"}
    assert set(additive) == set(PAIRS)
    # compute the error of the additive baseline from the counts in the file
    cells = bf.datasets.read_gears(gears_file)
    depth = cells.X.sum(axis=1).A1
    control = (cells.obs["perturbation"] == "control").to_numpy()
    profile = np.log1p(cells.X.toarray() * (depth[control].mean() / depth)[:, None])
    mean = {name: profile[(cells.obs["perturbation"] == name).to_numpy()].mean(axis=0) for name in [*SINGLES, *PAIRS]}
    base = profile[control].mean(axis=0)
    free = ~cells.var_names.isin(["TF1", "TF2"])
    error = (mean["TF1"] + mean["TF2"] - base - mean["TF1+TF2"])[free]
    # not exactly equal: the benchmark uses the mean depth of the training cells, without the validation cells
    assert additive["TF1+TF2"] == pytest.approx(np.sqrt((error**2).mean()), rel=0.03)
    printed = capsys.readouterr().out
    assert "### perturb_processed" in printed
    assert "2 held-out combinations" in printed
    assert "Ours minus the others" in printed


def test_parts_are_known(perturbation, capsys):
    with pytest.raises(SystemExit):
        perturbation.main(["--data", "x", "--parts", "scores,other"])
    assert "other not in scores,simulated,coverage,speed" in capsys.readouterr().err


def test_cells_of_test_targets_do_not_change_the_head(perturbation, gears_file):
    """Change the cells and the effect of one target.

    Predictions are identical if the target is held out, and different if it is in the training data.
    """
    from benchmarks._perturbation_problem import fit_ours, prepare, read

    problem = prepare("simulated", *read(gears_file, gears_file.parent), [], 0)
    test = problem.targets.index(("TF3",))
    target_groups = [i + 1 for i, targets in enumerate(problem.targets) if "TF3" in targets]
    factor = np.where(np.isin(problem.design.groups, target_groups), 3.0, 1.0)
    mean = np.where(np.arange(len(problem.targets))[:, None] == test, 3.0, 1.0) * problem.effects.mean
    rows = [sp.csr_matrix(sp.diags(factor) @ sp.vstack(problem.rows)).power(2)]
    unchanged = replace(problem, rows=[sp.vstack(problem.rows, format="csr").power(2)])
    changed = replace(problem, rows=rows, effects=replace(problem.effects, mean=mean))
    singles = np.array([i for i, targets in enumerate(problem.targets) if len(targets) == 1])
    for train, same in ((singles[singles != test], True), (singles, False)):
        found = [fit_ours(each, train, "ours").predict([("TF3",)], unseen=True)[0] for each in (unchanged, changed)]
        assert np.array_equal(*found) == same
