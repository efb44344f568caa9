"""Simulated conditions, times and proteins: the truth is checked against cells that are compared as groups."""

import hashlib
import warnings

import anndata as ad
import mudata
import networkx as nx
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import ConfigError
from scbioformers.datasets import simulate

SMALL = {"n_genes": 40, "n_regulators": 6, "n_types": 3}


def digest(adata: ad.AnnData) -> str:
    """A hash of the counts, the columns of obs, the edges, and the effects of perturbations (6 decimals)."""
    edges = adata.uns["grn_true"]
    found = hashlib.sha256("".join(edges["source"] + ">" + edges["target"]).encode())
    columns = [adata.obs[key].cat.codes for key in ("cell_type", "batch", "perturbation")]
    for values in (adata.X.indptr, adata.X.indices, adata.X.data, *columns):
        found.update(np.asarray(values).astype("<i8").tobytes())
    if "perturbation_true" in adata.uns:
        found.update((adata.uns["perturbation_true"].to_numpy() * 1e6).round().astype("<i8").tobytes())
    return found.hexdigest()[:16]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulate(9000, **SMALL, n_conditions=3, n_times=5, expected=True, rng=1)


@pytest.fixture(scope="module")
def mdata() -> mudata.MuData:
    return simulate(3000, **SMALL, n_batches=2, n_proteins=12, expected=True, rng=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(
            {"n_cells": 2100, **SMALL, "n_batches": 3, "perturbations": ["TF1", "TF2+TF3"], "rng": 7},
            "b744bd148d6bfc9a",
            id="two-chunks-batches-perturbations",
        ),
        pytest.param({"n_cells": 200, "n_genes": 50, "n_regulators": 5}, "157153f3a7f92486", id="defaults"),
        pytest.param(
            {"n_cells": 100, "n_genes": 40, "n_regulators": 5, "rng": np.random.default_rng(3)},
            "306ba22e486f8658",
            id="generator",
        ),
    ],
)
def test_cells_of_a_seed_stay_as_they_were_before_there_were_conditions(arguments, expected):
    # the hashes are those of the former release
    adata = simulate(**arguments)
    assert digest(adata) == expected
    assert list(adata.obs) == ["cell_type", "batch", "perturbation"]
    assert not adata.layers
    assert set(adata.uns) <= {"grn_true", "perturbation_true"}


def test_each_part_leaves_the_other_draws_of_a_seed_as_they_are():
    plain = simulate(300, **SMALL, n_batches=2)
    for extra in ({"n_conditions": 3}, {"n_times": 4}, {"n_conditions": 3, "n_times": 4}):
        adata = simulate(300, **SMALL, n_batches=2, **extra)
        pd.testing.assert_frame_equal(adata.uns["grn_true"], plain.uns["grn_true"])
        pd.testing.assert_frame_equal(adata.obs[list(plain.obs)], plain.obs)
        assert (adata.X != plain.X).nnz > 0
    one, both = simulate(300, **SMALL, n_times=4), simulate(300, **SMALL, n_times=4, n_conditions=2)
    pd.testing.assert_series_equal(one.obs["time"], both.obs["time"])
    pd.testing.assert_series_equal(one.uns["time_true"].loc["TF1"], both.uns["time_true"].loc["TF1"])


def test_the_same_seed_gives_the_same_mudata():
    first, again = (simulate(100, **SMALL, n_conditions=2, n_times=3, n_proteins=5, rng=4) for _ in range(2))
    for name in ("rna", "prot"):
        np.testing.assert_array_equal(first[name].X.toarray(), again[name].X.toarray())
    pd.testing.assert_frame_equal(first.obs, again.obs)
    other = simulate(100, **SMALL, n_conditions=2, n_times=3, n_proteins=5, rng=5)
    assert list(first["prot"].var_names) != list(other["prot"].var_names)


def test_counts_have_the_expected_means(cells, mdata, total_scores):
    for adata in (cells, mdata["rna"], mdata["prot"]):
        assert adata.layers["expected"].dtype == np.float32
        scores = total_scores(adata)
        assert np.abs(scores).max() < 4
        assert 0.6 < scores.std() < 1.5


def test_cells_are_divided_equally(cells):
    assert set(cells.obs["condition"].value_counts()) == {3000}
    assert set(cells.obs["time"].value_counts()) == {1800}
    assert cells.obs["time"].dtype == np.float64
    assert sorted(cells.obs["time"].unique()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    joint = pd.crosstab(cells.obs["condition"], cells.obs["time"]).to_numpy()
    assert (np.abs(joint - 600) < 5 * np.sqrt(600)).all()


@pytest.mark.parametrize(
    ("key", "first", "others"),
    [("condition", "condition_1", ["condition_2", "condition_3"]), ("time", 0.0, [1.0, 2.0, 3.0, 4.0])],
)
def test_true_changes_are_differences_between_groups_of_cells(cells, centred_log, key, first, others):
    # different cells are compared here, and the same cells in the truth
    z = centred_log(cells.layers["expected"])
    true = cells.uns[f"{key}_true"]
    assert list(true.columns) == [f"{other:g}" if key == "time" else other for other in others]
    assert list(true.index) == list(cells.var_names)
    level, cell_type = cells.obs[key].to_numpy(), cells.obs["cell_type"].to_numpy()
    for other, column in zip(others, true.columns, strict=True):
        seen = z[level == other].mean(axis=0) - z[level == first].mean(axis=0)
        changed = true[column].to_numpy()
        np.testing.assert_allclose(seen, changed - changed.mean(), atol=0.2)
        assert np.corrcoef(seen, changed)[0, 1] > 0.99
        for name, table in cells.uns[f"{key}_true_by_type"].items():
            rows = cell_type == name
            seen = z[rows & (level == other)].mean(axis=0) - z[rows & (level == first)].mean(axis=0)
            np.testing.assert_allclose(seen, table[column] - table[column].mean(), atol=0.2)


@pytest.mark.parametrize("key", ["condition", "time"])
def test_the_mean_change_is_that_of_the_types(cells, key):
    share = cells.obs["cell_type"].value_counts(normalize=True)
    tables = cells.uns[f"{key}_true_by_type"]
    assert set(tables) == {"type_1", "type_2", "type_3"}
    mean = sum(share[name] * table for name, table in tables.items())
    pd.testing.assert_frame_equal(mean, cells.uns[f"{key}_true"])


def test_a_type_without_cells_has_no_table():
    adata = simulate(2, 20, n_types=5, n_regulators=3, n_conditions=2)
    assert set(adata.uns["condition_true_by_type"]) == set(adata.obs["cell_type"])
    assert np.isfinite(adata.uns["condition_true"].to_numpy()).all()


def test_conditions_change_some_regulators_and_what_they_regulate():
    adata = simulate(500, 200, n_regulators=30, n_conditions=6, rng=3)
    network = nx.from_pandas_edgelist(adata.uns["grn_true"], create_using=nx.DiGraph)
    first = [name for name in adata.var_names[:30] if not network.in_degree(name)]
    true, by_type = adata.uns["condition_true"], adata.uns["condition_true_by_type"]
    own = true.loc[first].to_numpy()  # no other regulator changes these
    changed = np.abs(own) > 1e-9
    assert ((np.abs(own[changed]) >= 1 - 1e-9) & (np.abs(own[changed]) <= 2 + 1e-9)).all()
    assert 0.15 < changed.mean() < 0.5
    assert (own > 0.9).any()
    assert (own < -0.9).any()
    for column in true.columns:
        assert (true[column].abs() > 1e-9).any()
        # a target changes only if one of its regulators does
        changed_genes = set(true.index[true[column].abs() > 1e-9])
        for gene in adata.var_names[30:]:
            assert gene not in changed_genes or changed_genes & set(network.predecessors(gene))
    spread = np.std([table.to_numpy() for table in by_type.values()], axis=0)
    assert spread[adata.var_names.isin(first)].max() < 1e-9
    assert (spread[30:] > 0.1).mean() > 0.1  # targets respond by type


def test_activity_is_smooth_in_time_and_starts_at_zero():
    adata = simulate(300, 40, n_regulators=8, n_times=9, rng=2)
    true = adata.uns["time_true"].to_numpy()
    path = np.column_stack([np.zeros(len(true)), true])
    regulator = path[0]  # TF1 has no regulator: its activity is the sine wave itself
    assert np.ptp(regulator) > 0.3
    # the bound for the largest amplitude and frequency, 1.5 sin(1.5 pi t), in steps of 1/8
    assert np.abs(np.diff(regulator, n=2)).max() < 1.5 * (1.5 * np.pi / 8) ** 2
    held_out = np.interp(4.0, [3.0, 5.0], path[:, [3, 5]][0])
    assert held_out == pytest.approx(regulator[4], abs=0.27)
    assert np.abs(np.diff(path, axis=1)).mean() < 0.5 * np.abs(path).max(axis=1).mean()


def test_a_knock_down_holds_in_every_condition_and_at_every_time():
    arguments = {"n_conditions": 3, "n_times": 4, "perturbations": ["TF1+TF2"], "expected": True}
    adata = simulate(400, **SMALL, **arguments)
    first, second = adata.layers["expected"][:, :2].astype(float).T
    ratio = np.log(first / second)
    knocked_down = adata.obs["perturbation"].to_numpy() == "TF1+TF2"
    assert ratio[knocked_down].std() < 1e-5  # both have z = -3
    assert ratio[~knocked_down].std() > 0.5


def protein_activity(mdata: mudata.MuData) -> pd.DataFrame:
    """z of the genes that have a protein, from the expected protein counts: cells x proteins."""
    prot = mdata["prot"]
    var, mean = prot.var, prot.layers["expected"].astype(float)
    control = var["isotype_control"].to_numpy()
    size = (mean[:, control] / var["background"].to_numpy()[control]).mean(axis=1, keepdims=True)
    foreground = (mean / size - var["background"].to_numpy())[:, ~control]
    of_proteins = var[~control]
    z = np.log(foreground / of_proteins["baseline"].to_numpy()) / of_proteins["gain"].to_numpy()
    return pd.DataFrame(z, columns=of_proteins.index)


def test_proteins_follow_their_genes(mdata):
    assert mdata["prot"].shape == (3000, 14)
    assert list(mdata["prot"].var_names[-2:]) == ["isotype_1", "isotype_2"]
    assert set(mdata["prot"].var_names[:-2]) < set(mdata["rna"].var_names)
    z = protein_activity(mdata)
    batch = mdata.obs["batch"].to_numpy()
    genes = mdata["rna"].var_names.get_indexer(z.columns)
    log = np.log(mdata["rna"].layers["expected"].astype(float)[:, genes])
    for name in ("batch_1", "batch_2"):  # a batch adds a number to each gene
        difference = (z.to_numpy() - log)[batch == name]
        difference = difference - difference[:, :1]  # what all genes of a cell share
        assert difference.std(axis=0).max() < 0.01
    assert z.std().min() > 0.3


def test_protein_counts_show_the_activity_of_their_genes(mdata):
    prot = mdata["prot"]
    log, z = np.log1p(prot.X.toarray()), protein_activity(mdata)
    correlation = [np.corrcoef(log[:, i], z[name])[0, 1] for i, name in enumerate(z.columns)]
    assert np.median(correlation) > 0.6
    assert min(correlation) > 0.2
    isotypes = np.abs(np.corrcoef(np.column_stack([log[:, -2:], z]).T)[:2, 2:])
    assert isotypes.max() < 0.1


def test_proteins_follow_half_a_step_later():
    mdata = simulate(4000, **SMALL, n_times=9, n_proteins=12, expected=True, rng=6)
    z, rna = protein_activity(mdata), mdata["rna"]
    genes = rna.var_names.get_indexer(z.columns)
    difference = z.to_numpy() - np.log(rna.layers["expected"].astype(float)[:, genes])
    difference = pd.DataFrame(difference - difference[:, :1]).groupby(mdata.obs["time"].to_numpy()).mean().to_numpy()
    lag = (difference - difference[0])[1:]
    true = rna.uns["time_true"].to_numpy()[genes].T
    half_step = -np.diff(np.vstack([np.zeros(len(genes)), true]), axis=0) / 2
    np.testing.assert_allclose(lag, half_step - half_step[:, :1], atol=0.15)
    assert np.corrcoef(lag.ravel(), (half_step - half_step[:, :1]).ravel())[0, 1] > 0.95


def test_the_rna_is_that_of_the_same_call_without_proteins(mdata):
    rna = simulate(3000, **SMALL, n_batches=2, expected=True, rng=2)
    assert (mdata["rna"].X != rna.X).nnz == 0
    np.testing.assert_array_equal(mdata["rna"].layers["expected"], rna.layers["expected"])
    pd.testing.assert_frame_equal(mdata["rna"].obs, rna.obs)
    pd.testing.assert_frame_equal(mdata.obs, rna.obs)
    pd.testing.assert_frame_equal(mdata["rna"].uns["grn_true"], rna.uns["grn_true"])


@pytest.mark.filterwarnings("ignore:.*future.infer_string:DeprecationWarning")  # raised by anndata 0.13 with pandas 3.1
@pytest.mark.filterwarnings("error")  # the mark above has precedence
def test_proteins_do_not_warn():
    assert simulate(20, **SMALL, n_proteins=3)["prot"].n_vars == 5


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
@pytest.mark.filterwarnings("ignore:Cannot join columns:UserWarning")
def test_a_mudata_is_equal_after_write_and_read(tmp_path):
    mdata = simulate(60, 20, n_regulators=3, n_times=3, n_proteins=4, expected=True)
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    for name in ("rna", "prot"):
        np.testing.assert_array_equal(read[name].X.toarray(), mdata[name].X.toarray())
        np.testing.assert_array_equal(read[name].layers["expected"], mdata[name].layers["expected"])
        pd.testing.assert_frame_equal(read[name].var, mdata[name].var, check_names=False)
    assert list(read.obs["cell_type"]) == list(mdata.obs["cell_type"])
    assert list(read.obs["time"]) == list(mdata.obs["time"])
    pd.testing.assert_frame_equal(read["rna"].uns["time_true"], mdata["rna"].uns["time_true"], check_names=False)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_truth_is_equal_after_write_and_read(tmp_path, kind):
    adata = simulate(20, 10, n_types=2, n_regulators=3, n_conditions=2)
    getattr(adata, f"write_{kind}")(tmp_path / "cells")
    read = getattr(ad, f"read_{kind}")(tmp_path / "cells")
    pd.testing.assert_frame_equal(read.uns["condition_true"], adata.uns["condition_true"], check_names=False)
    assert set(read.uns["condition_true_by_type"]) == {"type_1", "type_2"}
    for name, table in read.uns["condition_true_by_type"].items():
        pd.testing.assert_frame_equal(table, adata.uns["condition_true_by_type"][name], check_names=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_conditions": 0}, "n_conditions=0 must be at least 1", id="no-condition"),
        pytest.param({"n_times": -1}, "n_times=-1 must be at least 1", id="negative-times"),
        pytest.param({"n_proteins": -1}, "n_proteins=-1 must be from 0 to n_genes=500", id="negative-proteins"),
        pytest.param({"n_proteins": 501}, "n_proteins=501 must be from 0 to n_genes=500", id="more-than-genes"),
        pytest.param({"n_times": 2.5}, "`n_times` must be an integer", id="type"),
        pytest.param({"expected": 1}, "`expected` must be", id="not-a-bool"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        simulate(**arguments)


def test_warnings_of_the_user_are_as_before():
    before = list(warnings.filters)
    simulate(20, **SMALL, n_proteins=3)
    assert list(warnings.filters) == before
