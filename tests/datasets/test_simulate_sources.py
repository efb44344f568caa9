"""Simulated sources: one network, and what was measured of it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import ConfigError
from scbioformers.datasets import simulate, simulate_sources

SMALL = {"n_genes": 60, "n_regulators": 8, "n_types": 3}
NAMES = ["symbol", "ensembl", "orthologue"]


@pytest.fixture(scope="module")
def full() -> dict[str, ad.AnnData]:
    """Three sources that measure all genes."""
    return simulate_sources((2500, 2000, 1500), **SMALL, measured=1, expected=True, rng=1)


@pytest.fixture(scope="module")
def named() -> dict[str, ad.AnnData]:
    """Fewer cells of the sources in `full`, with panels and other names."""
    return simulate_sources([90, 80, 70], **SMALL, measured=[1.0, 0.8, 0.3], gene_names=NAMES, rng=1)


def symbols(adata: ad.AnnData) -> list[str]:
    """Names in the network, by the truth that the source comes with."""
    if "gene_symbols" in adata.var:
        return adata.var["gene_symbols"].tolist()
    if "orthologues" in adata.uns:
        table = adata.uns["orthologues"].set_index("gene")["orthologue"]
        return table.loc[adata.var_names].tolist()
    return adata.var_names.tolist()


def test_counts_have_the_expected_means(full, total_scores):
    for adata in full.values():
        scores = total_scores(adata)
        assert np.abs(scores).max() < 4
        assert 0.7 < scores.std() < 1.4


def test_depth_decreases_to_a_quarter(full):
    median = [np.median(adata.layers["expected"].sum(axis=1)) for adata in full.values()]
    np.testing.assert_allclose(median, [120, 60, 30], rtol=0.05)


def test_a_panel_is_the_columns_of_the_same_cells(full):
    shares = {"source_1": 0.5, "source_2": 0.8, "source_3": 0.3}
    panels = simulate_sources((2500, 2000, 1500), **SMALL, measured=list(shares.values()), expected=True, rng=1)
    measured = {}
    for name, adata in panels.items():
        assert adata.n_vars == shares[name] * 60
        measured[name] = set(adata.var_names)
        whole = full[name][:, adata.var_names]
        assert (adata.X != whole.X).nnz == 0
        np.testing.assert_array_equal(adata.layers["expected"], whole.layers["expected"])
        pd.testing.assert_frame_equal(adata.obs, full[name].obs)
        share = whole.layers["expected"].sum() / full[name].layers["expected"].sum()
        assert adata.X.sum() / full[name].X.sum() == pytest.approx(share, rel=0.02)
        assert share < 0.95
    assert measured["source_1"] - measured["source_2"]
    assert measured["source_3"] - measured["source_1"]  # panels are chosen for each source


def test_panels_of_a_source_are_nested():
    small, large = (simulate_sources([30], **SMALL, measured=share)["source_1"] for share in (0.3, 0.5))
    assert set(small.var_names) < set(large.var_names)
    tiny = simulate_sources([30], **SMALL, measured=1e-6)["source_1"]
    assert tiny.n_vars == 1


def test_sources_do_not_depend_on_the_size_names_and_panels_of_the_others(named):
    other = simulate_sources([90, 200, 10], **SMALL, measured=[1.0, 0.5, 0.3], rng=1)
    assert (named["source_1"].X != other["source_1"].X).nnz == 0
    again = simulate_sources([90, 80, 70], **SMALL, measured=[1.0, 0.8, 0.3], gene_names=NAMES, rng=1)
    for name, adata in named.items():
        assert (adata.X != again[name].X).nnz == 0
        pd.testing.assert_frame_equal(adata.var, again[name].var)
    changed = simulate_sources([90, 80, 70], **SMALL, measured=[1.0, 0.8, 0.3], gene_names=NAMES, rng=2)
    assert (named["source_1"].X != changed["source_1"].X).nnz > 0


def test_the_network_is_that_of_simulate_with_the_same_seed(full, centred_log):
    # with one type, and no technical effects, the mean profile is that of the network
    arguments = SMALL | {"n_types": 1, "expected": True, "rng": 5}
    source = simulate_sources([2000], **arguments, measured=1)["source_1"]
    cells = simulate(2000, **arguments)
    pd.testing.assert_frame_equal(source.uns["grn_true"], cells.uns["grn_true"])
    first, second = (centred_log(adata.layers["expected"]).mean(axis=0) for adata in (source, cells))
    np.testing.assert_allclose(first, second, atol=0.15)
    assert (source.X[:100] != cells.X[:100]).nnz > 0  # other cells


def test_sources_differ_in_their_technical_effects(full, centred_log):
    cell_type = {name: adata.obs["cell_type"].to_numpy() for name, adata in full.items()}
    z = {name: centred_log(adata.layers["expected"]) for name, adata in full.items()}
    assert (full["source_1"].var["source_effect"] == 0).all()
    for name in ("source_2", "source_3"):
        effect = full[name].var["source_effect"].to_numpy()
        assert effect.std() == pytest.approx(0.5, rel=0.25)
        for kind in ("type_1", "type_2", "type_3"):
            seen = z[name][cell_type[name] == kind].mean(axis=0)
            seen -= z["source_1"][cell_type["source_1"] == kind].mean(axis=0)
            np.testing.assert_allclose(seen, effect - effect.mean(), atol=0.35)
            assert np.corrcoef(seen, effect)[0, 1] > 0.98


def test_sources_differ_in_composition(full):
    share = pd.DataFrame({name: adata.obs["cell_type"].value_counts(normalize=True) for name, adata in full.items()})
    assert share.shape == (3, 3)
    for first, second in (("source_1", "source_2"), ("source_1", "source_3"), ("source_2", "source_3")):
        assert (share[first] - share[second]).abs().max() > 0.1  # 0.02 is the standard error


def test_names_are_mapped_back_to_the_same_network(named):
    first = named["source_1"]
    assert list(first.var_names[:9]) == [*(f"TF{i}" for i in range(1, 9)), "G1"]
    for adata in named.values():
        assert adata.var_names.is_unique
        assert list(adata.var["regulator"]) == [name.startswith("TF") for name in symbols(adata)]
        panel = [first.var_names.get_loc(name) for name in symbols(adata)]
        assert panel == sorted(panel)
    ensembl, other = named["source_2"], named["source_3"]
    assert ensembl.var_names.str.fullmatch(r"ENSG\d{11}").all()
    table = other.uns["orthologues"]
    assert list(table["orthologue"]) == list(first.var_names)
    same = table["gene"].str.upper() == table["orthologue"]
    assert 0.6 < same.mean() < 0.95  # upper case finds most, not all
    assert not set(table["gene"]) & set(table["orthologue"])
    in_network = dict(zip(table["gene"], table["orthologue"], strict=True))
    edges = other.uns["grn_true"].replace({"source": in_network, "target": in_network})
    pd.testing.assert_frame_equal(edges, first.uns["grn_true"])
    of_symbols = dict(zip(ensembl.var_names, symbols(ensembl), strict=True))
    edges = ensembl.uns["grn_true"].replace({"source": of_symbols, "target": of_symbols})
    known = ensembl.uns["grn_true"][["source", "target"]].isin(list(of_symbols)).all(axis=1)
    assert 0.4 < known.mean() < 0.9  # edges of genes that the source does not measure are there, too
    pd.testing.assert_frame_equal(edges[known], first.uns["grn_true"][known])


def test_renamed_genes_have_the_same_counts(named):
    plain = simulate_sources([90, 80, 70], **SMALL, measured=[1.0, 0.8, 0.3], rng=1)
    for name, adata in named.items():
        assert symbols(adata) == list(plain[name].var_names)
        assert (adata.X != plain[name].X).nnz == 0


def test_sources_can_be_joined(named):
    joined = ad.concat(named.values())
    assert joined.obs_names.is_unique
    assert list(joined.obs["source"].value_counts(sort=False)) == [90, 80, 70]
    assert list(joined.obs["cell_type"].cat.categories) == ["type_1", "type_2", "type_3"]


def test_write_and_read(named, tmp_path):
    for name, adata in named.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        read = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        assert (read.X != adata.X).nnz == 0
        pd.testing.assert_frame_equal(read.uns["grn_true"], adata.uns["grn_true"], check_names=False)
        assert symbols(read) == symbols(adata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_cells": []}, r"len\(n_cells\)=0 must be at least 1", id="no-source"),
        pytest.param({"n_cells": [10, 0]}, r"n_cells\[1\]=0 must be at least 1", id="empty-source"),
        pytest.param({"n_cells": 100}, "`n_cells` must be a list of integers", id="one-number"),
        pytest.param({"n_genes": 20}, "n_regulators=20 must be below n_genes=20", id="no-targets"),
        pytest.param({"measured": 0.0}, r"measured=0\.0 must be above 0", id="nothing-measured"),
        pytest.param({"measured": [1, 1, 40]}, "measured=40 must be above 0 and up to 1", id="percent"),
        pytest.param({"measured": float("nan")}, "measured=nan must be above 0", id="nan"),
        pytest.param({"measured": [1.0, 0.5]}, "`measured` has 2 values for 3 sources: pass one", id="measured-length"),
        pytest.param({"measured": []}, "`measured` has 0 values for 3 sources", id="measured-empty"),
        pytest.param({"gene_names": ["symbol"] * 4}, "`gene_names` has 4 values for 3", id="names-length"),
        pytest.param({"gene_names": "mouse"}, "`gene_names` must be 'symbol', 'ensembl', 'orthologue'", id="kind"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        simulate_sources(**arguments)
