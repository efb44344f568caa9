"""Names of conditions: special characters, numbers and bools, and keys that would collide."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError

NAMES = ["CD4+/CD8 T", "", "Größe Ⅱ λ", "..", "a.b", "b", "nan", "\\"]


@pytest.fixture(scope="module")
def _named() -> ad.AnnData:
    """120 cells with 15 of each name, a column of numbers, of bools, and of intervals."""
    adata = bf.datasets.simulate(120, 12, n_regulators=3, rng=0)
    order = np.random.default_rng(0).permutation(120)
    adata.obs["name"] = pd.Categorical(np.repeat(np.array(NAMES, object), 15)[order], NAMES)
    adata.obs["day"] = np.repeat([0, 7, 14], 40)[order]
    adata.obs["dose"] = np.repeat([0.0, 0.5, np.nan], 40)[order]
    adata.obs["treated"] = (np.arange(120) % 2 == 0)[order]
    adata.obs["level"] = pd.cut(adata.obs["day"], [-1, 3, 20])
    config = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8)
    bf.tl.fit(adata, config=config, train=bf.TrainConfig(max_steps=2, batch_size=32))
    return adata


@pytest.fixture
def named(_named) -> ad.AnnData:
    return _named.copy()


def without_warning(call, *args, **kwargs):
    """A numeric column is taken as categories, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)
        return call(*args, **kwargs)


@pytest.mark.fault(53, 76)
def test_every_name_keeps_its_own_network_in_files(named, tmp_path):
    bf.tl.grn(named, groupby="name", reference="", regulators=["TF1", "TF2"], min_count=1, key_added="g/x")
    bf.tl.regulators(named, grn_key="g/x")
    del named.obs["level"]  # files have no intervals
    alone = {}
    for name in NAMES:
        part = named[named.obs["name"] == name].copy()
        bf.tl.grn(part, regulators=["TF1", "TF2"], min_count=1)
        alone[name] = bf.get.grn_matrix(part)
    for kind in ("h5ad", "zarr"):
        path = tmp_path / f"x.{kind}"
        getattr(named, f"write_{kind}")(path)
        read = getattr(ad, f"read_{kind}")(path)
        for name, expected in alone.items():
            found = bf.get.grn_matrix(read, condition=name, key="g/x")
            np.testing.assert_allclose(found.loc[expected.index, expected.columns], expected, atol=1e-6)
            assert set(bf.get.grn(read, condition=name, key="g/x")["condition"]) == {name}
            assert bf.get.grn_graph(read, condition=name, key="g/x").graph["condition"] == name
            assert set(bf.get.regulators(read, condition=name)["condition"]) == {name}
    assert bf.pl.grn_network(read, condition="", key="g/x", n_top=4).get_title() == "4 strongest edges in ''"
    labels = bf.pl.attention_heatmap(read, "TF1", key="g/x", conditions=["", "b"])[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["''", "b"]


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    ("column", "reference", "other", "names"),
    [
        pytest.param("day", 0, 7.0, ["0", "7", "14"], id="integers"),
        pytest.param("dose", 0, 0.5, ["0", "0.5"], id="floats"),
        pytest.param("treated", False, True, ["False", "True"], id="bools"),
        pytest.param("treated", "False", np.True_, ["False", "True"], id="text for bools"),
        pytest.param("level", "(-1, 3]", "(3, 20]", ["(-1, 3]", "(3, 20]"], id="intervals"),
    ],
)
def test_conditions_are_found_by_value(named, column, reference, other, names):
    without_warning(bf.tl.grn, named, groupby=column, reference=reference, regulators=["TF1", "TF2"])
    at = [str(reference), names[1]]
    assert bf.get.grn(named)["condition"].unique().tolist() == names
    pd.testing.assert_frame_equal(bf.get.grn(named, condition=other), bf.get.grn(named, condition=at[1]))
    for difference in (False, True):
        one, two = (bf.get.grn_matrix(named, condition=x, difference=difference) for x in (other, at[1]))
        pd.testing.assert_frame_equal(one, two)
    with pytest.raises(MissingKeyError, match="is the reference, so it has no difference"):
        bf.get.grn_matrix(named, condition=reference, difference=True)
    assert bf.get.grn_graph(named, condition=other).graph["condition"] == names[1]
    assert bf.pl.grn_network(named, condition=other, n_top=3).get_title() == f"3 strongest edges in {names[1]}"
    for chosen in (other, [other]):
        axes = bf.pl.attention_heatmap(named, "TF1", conditions=chosen)
        assert [[label.get_text() for label in ax.get_xticklabels()] for ax in axes] == [[names[1]]] * 2
    bf.tl.regulators(named, condition=other, gene_sets={"1": ["G1", "G2"]}, known=named.uns["grn_true"])
    for read in (bf.get.regulators, bf.get.set_regulators, bf.get.known_targets):
        assert set(read(named, condition=other)["condition"]) == {names[1]}
    assert not bf.get.set_regulators(named, gene_set=1).empty


@pytest.mark.fault(69)
def test_what_is_not_there_is_shown_with_what_is(named):
    with pytest.raises(DataError, match=r"`reference=1` is not among .*'treated'.*\['False', 'True'\]"):
        bf.tl.grn(named, groupby="treated", reference=1, regulators=["TF1"])
    bf.tl.grn(named, groupby="treated", regulators=["TF1"])
    calls = (bf.get.grn, bf.get.grn_matrix, bf.get.grn_graph, bf.tl.regulators, bf.pl.grn_network)
    for call in calls:
        with pytest.raises(MissingKeyError, match=r"`condition=1` is not among .*\['False', 'True'\]"):
            call(named, condition=1)
    with pytest.raises(MissingKeyError, match=r"`conditions=1` is not among .*\['False', 'True'\]"):
        bf.pl.attention_heatmap(named, "TF1", conditions=[1])


@pytest.mark.fault(69)
def test_programs_are_found_by_number(fitted):
    bf.tl.gene_programs(fitted, min_genes=2)
    bf.tl.program_enrichment(fitted, {"all": list(fitted.var_names)})
    pd.testing.assert_frame_equal(bf.get.gene_programs(fitted, program=1), bf.get.gene_programs(fitted, program="1"))
    assert set(bf.get.program_enrichment(fitted, program=1)["program"]) == {"1"}


@pytest.mark.fault(76)
@pytest.mark.parametrize("key", ["grn.b", "grn_count", "grn_count.b"])
def test_a_key_that_would_share_a_slot_with_another_network(named, key):
    """The condition "b" of the key "grn", and the key "grn.b", both mean ``varp["grn.b"]``."""
    groupby = None if key == "grn_count" else "name"
    bf.tl.grn(named, groupby=groupby, regulators=["TF1"], min_count=1)
    before = {name: matrix.copy() for name, matrix in named.varp.items()}
    with pytest.raises(ConfigError, match=r"would overwrite adata\.varp\[.*belongs to the result with the key 'grn'"):
        bf.tl.grn(named, regulators=["TF2"], key_added=key)
    assert set(named.varp) == set(before)
    assert all(abs(named.varp[name] - before[name]).max() == 0 for name in before)
    bf.tl.grn(named, regulators=["TF2"], key_added=f"{key}2", min_count=1)
    bf.tl.grn(named, regulators=["TF2"], min_count=1)  # the same key again
