"""Key drivers, regulators of gene sets and known targets, for networks written by hand or by ``bf.tl.grn``."""

from math import comb

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, mannwhitneyu

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.results._slots import params_from_json, params_to_json, set_slot

SPECIAL = "CD4+/CD45RA+ |\\ naïve"


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """(30 targets, 4 regulators) for two conditions. In the first, regulator 2 represses genes 10 to 17."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 30, 4)).astype(np.float32)
    first[10:18, 2] = -5 - np.arange(8)
    for weight in (first, second):
        weight[np.arange(4), np.arange(4)] = np.nan
        weight[random.random(weight.shape) < 0.1] = np.nan
    return {"control": first, SPECIAL: second}


@pytest.fixture
def adata(weights) -> ad.AnnData:
    """32 genes with these networks, stored as ``bf.tl.grn`` stores them. g30 and g31 are not modelled."""
    adata = ad.AnnData(np.ones((3, 32), np.float32), var=pd.DataFrame(index=[f"g{i}" for i in range(32)]))
    for name, weight in weights.items():
        target, regulator = np.nonzero(np.isfinite(weight))
        at = (weight[target, regulator], (target, regulator))
        set_slot(adata, "varp", f"grn.{name}", sp.csr_matrix(at, shape=(32, 32)))
    params = {"method": "knockout", "groupby": "state", "reference": None, "conditions": list(weights)}
    params |= {"model_hash": "0"}
    set_slot(adata, "uns", "grn", {"edges": pd.DataFrame(), "params": params_to_json(params)})
    return adata


def names(numbers) -> list[str]:
    return [f"g{i}" for i in numbers]


def test_drivers(adata, weights):
    bf.tl.regulators(adata)
    for condition, weight in weights.items():
        table = bf.get.regulators(adata, condition=condition)
        strength = np.nansum(np.abs(weight.astype(float)), axis=0)
        assert table["regulator"].tolist() == names(np.argsort(-strength))
        np.testing.assert_allclose(table["strength"], np.sort(strength)[::-1])
        assert table["rank"].tolist() == [1, 2, 3, 4]
        seen = dict(zip(table["regulator"], table["n_targets"], strict=True))
        assert seen == {f"g{i}": int(np.isfinite(weight[:, i]).sum()) for i in range(4)}
    assert bf.get.regulators(adata)["condition"].unique().tolist() == list(weights)
    assert set(adata.uns["regulators"]) == {"drivers", "params"}
    for call in (bf.get.set_regulators, bf.get.known_targets):
        with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.regulators` with"):
            call(adata)


def test_drivers_by_attention_receive_the_most_attention(adata, weights):
    """The corrected weights do not matter: the correction removes the mean attention of a regulator."""
    received = {"control": [0.5, 4.0, 0.25, 1.0], SPECIAL: [3.0, 2.0, 1.0, 0.0]}
    params = params_from_json(adata.uns["grn"]["params"]) | {"method": "attention"}
    set_slot(adata, "uns", "grn", {"edges": pd.DataFrame(), "params": params_to_json(params)})
    for name, values in received.items():
        set_slot(adata, "var", f"grn_attention.{name}", np.array([*values, *[np.nan] * 28], np.float32))
    bf.tl.regulators(adata)
    table = bf.get.regulators(adata, condition="control")
    assert table["regulator"].tolist() == names([1, 3, 0, 2])
    assert table["attention"].tolist() == [4.0, 1.0, 0.5, 0.25]
    strength = np.nansum(np.abs(weights["control"].astype(float)), axis=0)
    np.testing.assert_allclose(table["strength"], strength[[1, 3, 0, 2]])
    assert bf.get.regulators(adata, condition=SPECIAL)["regulator"].tolist() == names(range(4))


def test_regulators_of_sets(adata, weights):
    sets = {"planted": names(range(10, 18)), SPECIAL: [*names(range(20, 26)), "unknown"], "none": ["x", "y"]}
    bf.tl.regulators(adata, gene_sets=sets, condition="control")
    table = bf.get.set_regulators(adata)
    assert table["gene_set"].unique().tolist() == ["planted", SPECIAL]
    weight = weights["control"].astype(float)
    for name, rows in (("planted", range(10, 18)), (SPECIAL, range(20, 26))):
        part = bf.get.set_regulators(adata, gene_set=name).set_index("regulator")
        assert part["rank"].tolist() == [1, 2, 3, 4]
        assert part["p"].is_monotonic_increasing
        for i in range(4):
            inside = weight[list(rows), i]
            outside = np.delete(weight[:, i], list(rows))
            inside, outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
            row = part.loc[f"g{i}"]
            assert row["n_genes"] == len(inside)
            assert row["weight"] == pytest.approx(inside.mean())
            assert row["strength"] == pytest.approx(np.abs(inside).mean())
            p = mannwhitneyu(np.abs(inside), np.abs(outside), alternative="greater", method="asymptotic").pvalue
            assert row["p"] == pytest.approx(p)
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p"]))
    best = bf.get.set_regulators(adata, gene_set="planted").iloc[0]
    assert best["regulator"] == "g2"
    assert best["weight"] < -5
    assert best["p_adjusted"] < 0.01


def test_all_regulators_are_tested_if_few_are_stored(adata):
    sets = {"planted": names(range(10, 18))}
    bf.tl.regulators(adata, gene_sets=sets)
    every = bf.get.set_regulators(adata)
    bf.tl.regulators(adata, gene_sets=sets, top_k=1)
    kept = bf.get.set_regulators(adata)
    pd.testing.assert_frame_equal(kept, every[every["rank"] == 1].reset_index(drop=True))


def test_known_targets(adata, weights):
    weight = np.nan_to_num(np.abs(weights["control"][:, 2]))
    top = np.argsort(-weight)[:10].tolist()
    known = [*top[:4], *[i for i in range(30) if i not in top and i != 2][:3]]
    edges = pd.DataFrame({"source": ["g2"] * 8 + ["nobody"], "target": [*names(known), "g31", "g5"]})
    bf.tl.regulators(adata, known=edges, k=10, condition="control")
    (row,) = bf.get.known_targets(adata).to_dict("records")
    assert (row["regulator"], row["k"], row["size"], row["set_size"], row["hits"]) == ("g2", 10, 10, 7, 4)
    # the background is 29 genes: 30 modelled genes without the regulator itself
    expected_p = sum(comb(7, i) * comb(22, 10 - i) for i in range(4, 8)) / comb(29, 10)
    assert row["p"] == pytest.approx(expected_p)
    assert row["p_adjusted"] == pytest.approx(expected_p)
    assert row["expected"] == pytest.approx(10 * 7 / 29)
    bf.tl.regulators(adata, known=edges)
    assert bf.get.known_targets(adata, condition=SPECIAL)["k"].tolist() == [10, 20]


@pytest.mark.fault(53)
def test_special_characters_survive_a_round_trip(adata, tmp_path):
    edges = pd.DataFrame({"source": "g2", "target": names(range(10, 18))})
    bf.tl.regulators(adata, gene_sets={SPECIAL: names(range(10, 18))}, known=edges, key_added="a/b")
    for kind in ("h5ad", "zarr"):
        getattr(adata, f"write_{kind}")(tmp_path / kind)
        found = getattr(ad, f"read_{kind}")(tmp_path / kind)
        for read in (bf.get.regulators, bf.get.set_regulators, bf.get.known_targets):
            pd.testing.assert_frame_equal(
                read(found, condition=SPECIAL, key="a/b"), read(adata, condition=SPECIAL, key="a/b"), check_dtype=False
            )
        assert not bf.get.set_regulators(found, gene_set=SPECIAL, key="a/b").empty


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        pytest.param(["G2"], {}, DataError, r"0 are measured but not modelled.*'G2' \(near 'G2': g2", id="gene"),
        pytest.param(["g30"], {}, DataError, r"1 are measured but not modelled.*'g30'", id="not-modelled"),
        pytest.param(
            None,
            {"condition": "x"},
            MissingKeyError,
            r"`condition='x'` is not among the conditions of this network.*'control'",
            id="condition",
        ),
        pytest.param(None, {"grn_key": "x"}, MissingKeyError, r"bf\.tl\.grn", id="network"),
        pytest.param(None, {"top_k": 0}, ConfigError, "`top_k` must be at least 1", id="top-k"),
        pytest.param(
            None,
            {"known": pd.DataFrame({"source": ["G1"], "target": ["g2"]})},
            DataError,
            r"None of 1 known edges.*near 'G1': g1",
            id="edges",
        ),
        pytest.param(
            None, {"known": pd.DataFrame({"tf": ["g1"]})}, DataError, "'source' and 'target', found", id="edge-columns"
        ),
        pytest.param(
            None,
            {"known": pd.DataFrame({"source": ["g1"], "target": ["g2"]}), "k": 0},
            ConfigError,
            "`k` must be integers of at least 1",
            id="k",
        ),
    ],
)
def test_wrong_arguments_write_nothing(adata, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        bf.tl.regulators(adata, gene_sets=args, **kwargs)
    assert "regulators" not in adata.uns


def test_reading_missing_results(adata):
    with pytest.raises(MissingKeyError, match=r"bf\.tl\.regulators"):
        bf.get.regulators(adata)
    bf.tl.regulators(adata, gene_sets=["g1", "g2"])
    with pytest.raises(MissingKeyError, match=r"`condition='x'` is not among the conditions of this result.*'control'"):
        bf.get.regulators(adata, condition="x")
    with pytest.raises(MissingKeyError, match=r"`gene_set='x'` is not among .*\['genes'\]"):
        bf.get.set_regulators(adata, gene_set="x")


def test_regulators_of_a_fitted_network(fitted):
    bf.tl.grn(fitted)
    fitted.var["a%2Fb"] = pd.Categorical([None, *["x"] * 19, *["y"] * 20])
    bf.tl.regulators(fitted, gene_sets="a/b", known=fitted.uns["grn_true"])
    full = bf.get.grn_matrix(fitted)
    table = bf.get.regulators(fitted).set_index("regulator")
    np.testing.assert_allclose(table.loc[full.columns, "strength"], full.abs().sum(), rtol=1e-5)
    assert set(bf.get.set_regulators(fitted)["gene_set"]) == {"x", "y"}
    assert params_from_json(fitted.uns["regulators"]["params"])["model_hash"] == bf.get.model(fitted).hash
    copied = bf.tl.regulators(fitted, key_added="other", copy=True)
    assert "other" in copied.uns
    assert "other" not in fitted.uns


def test_a_column_of_var_may_have_any_name(simulated):
    """The user wrote the column: its name is not escaped."""
    bf.tl.fit(simulated, config=bf.ModelConfig(width=16, n_heads=2), train=bf.TrainConfig(max_steps=1))
    bf.tl.grn(simulated, regulators=["TF1", "TF2"])
    simulated.var["sets/x%"] = np.where(np.arange(simulated.n_vars) < 20, "first", "second")
    bf.tl.regulators(simulated, gene_sets="sets/x%")
    assert set(bf.get.set_regulators(simulated)["gene_set"]) == {"first", "second"}
