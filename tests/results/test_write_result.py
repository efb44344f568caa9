"""Results neither overwrite a model or counts, nor leave parts of an earlier result under the same key."""

import logging

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import ConfigError
from scbioformers.results import check_key_added, check_perturb_key
from scbioformers.results._slots import get_slot, write_result


def small() -> ad.AnnData:
    return ad.AnnData(np.ones((3, 2), np.float32))


PARTS = {
    "layers": np.zeros((3, 2)),
    "obs": np.arange(3),
    "var": np.arange(2),
    "obsm": np.zeros((3, 4)),
    "varm": np.zeros((2, 4)),
    "varp": sp.csr_matrix((2, 2)),
}


@pytest.mark.fault(61)
@pytest.mark.parametrize("stored", [False, True], ids=["memory", "h5ad"])
def test_an_earlier_result_is_removed_whole(tmp_path, stored, caplog):
    adata = small()
    for slot, value in PARTS.items():  # of the user, not of a result
        getattr(adata, slot)["mine"] = value
    whole = {slot: {"a/b": value, "a/b_std": value} for slot, value in PARTS.items()}
    write_result(adata, "a/b", {"params": "{}"}, whole)
    write_result(adata, "other", {"params": "{}"}, {slot: {"other": value} for slot, value in PARTS.items()})
    if stored:
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad")
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        write_result(adata, "a/b", {"params": "new"}, {"layers": {"a/b": np.ones((3, 2))}})
    for slot in PARTS:
        kept = {str(name) for name in getattr(adata, slot) if name is not None}
        assert kept == {"mine", "other"} | ({"a%2Fb"} if slot == "layers" else set())
        assert f"Removing adata.{slot}['a%2Fb_std']" in caplog.text
    assert "Overwriting adata.layers['a%2Fb']" in caplog.text
    assert adata.layers["a%2Fb"].min() == 1
    assert get_slot(adata, "uns", "a/b")["params"] == "new"


VERBS = {
    "embed": bf.tl.embed,
    "impute": bf.tl.impute,
    "grn": bf.tl.grn,
    "gene_programs": bf.tl.gene_programs,
    "regulators": bf.tl.regulators,
    "program_enrichment": lambda adata, **kwargs: bf.tl.program_enrichment(adata, {"a": ["TF1", "TF2"]}, **kwargs),
    "bin_value": bf.pp.bin_value,
    "bin_segment": bf.pp.bin_segment,
}


@pytest.fixture(scope="module")
def results(_fitted_once) -> ad.AnnData:
    """A model, networks and programs; nobody may change it."""
    adata = _fitted_once.copy()
    bf.tl.grn(adata)
    bf.tl.gene_programs(adata)
    return adata


@pytest.mark.fault(60)
@pytest.mark.parametrize("verb", VERBS)
def test_a_model_is_not_overwritten(results, verb):
    before = results.copy()
    with pytest.raises(ConfigError, match=r"adata\.uns\['bioformer'\] holds a fitted model.*another name as `key_add"):
        VERBS[verb](results, key_added="bioformer")
    assert bf.get.model(results).hash == bf.get.model(before).hash
    for slot in ("uns", "layers", "obs", "var", "obsm", "varm", "varp"):
        assert list(getattr(results, slot)) == list(getattr(before, slot))


@pytest.mark.fault(60)
def test_a_model_under_another_key_is_not_overwritten_either(results):
    adata = results.copy()
    adata.uns["perturb"] = adata.uns["bioformer"]
    for key in ("perturb", "perturbed"):  # the default key of perturb is "perturbed"; it writes uns["perturb"]
        with pytest.raises(ConfigError, match=r"uns\['perturb'\] holds a fitted model"):
            check_perturb_key(adata, key, None)
    check_perturb_key(adata, "effect", None)
    adata.uns["a%2Fb"] = adata.uns["bioformer"]
    with pytest.raises(ConfigError, match=r"uns\['a/b'\] holds a fitted model"):
        bf.tl.embed(adata, key_added="a/b")
    check_key_added(adata, "bioformer", new_model=True)  # `fit` replaces its own model


@pytest.mark.fault(60)
@pytest.mark.parametrize("verb", ["impute", "bin_value", "bin_segment"])
@pytest.mark.parametrize("name", ["counts", "ambiguous"])
def test_counts_are_not_overwritten(fitted, verb, name):
    fitted.layers[name] = fitted.X.copy()
    with pytest.raises(ConfigError, match=rf"adata\.layers\['{name}'\], which seems to hold raw counts"):
        VERBS[verb](fitted, key_added=name)
    assert (fitted.layers[name] != fitted.X).nnz == 0


@pytest.mark.fault(60)
def test_what_a_model_reads_is_not_overwritten(simulated, tiny_config):
    simulated.layers["scaled"] = simulated.X.multiply(0.3).tocsr()
    simulated.var["mine"] = np.arange(40) < 30
    train = bf.TrainConfig(max_steps=1, batch_size=16)
    bf.tl.fit(simulated, layer="scaled", mask_var="mine", binning="segment", config=tiny_config, train=train)
    before = simulated.copy()
    with pytest.raises(ConfigError, match=r"layers\['scaled'\], which a model was fitted with"):
        bf.tl.impute(simulated, output="bins", key_added="scaled")
    with pytest.raises(ConfigError, match=r"layers\['scaled'\], which a model was fitted with, or which is read now"):
        bf.pp.bin_segment(simulated, layer="scaled", key_added="scaled")
    with pytest.raises(ConfigError, match=r"var\['mine'\], which a model was fitted with"):
        bf.tl.gene_programs(simulated, key_added="mine")
    assert (simulated.layers["scaled"] != before.layers["scaled"]).nnz == 0
    assert simulated.var.equals(before.var)


@pytest.mark.fault(60)
def test_a_result_does_not_overwrite_what_it_is_computed_from(results):
    with pytest.raises(ConfigError, match=r"computed from adata\.uns\['grn'\]"):
        bf.tl.regulators(results, key_added="grn")
    with pytest.raises(ConfigError, match=r"computed from adata\.uns\['gene_program'\]"):
        VERBS["program_enrichment"](results, key_added="gene_program")


@pytest.mark.fault(47)
def test_layers_of_an_earlier_call_are_overwritten(simulated, caplog):
    """Bins are whole numbers, as counts are. A layer with bins can be computed again under any name."""
    for key in ("bin_value", "mine"):
        bf.pp.bin_value(simulated, key_added=key)
        with caplog.at_level(logging.INFO, logger="scbioformers"):
            bf.pp.bin_segment(simulated, key_added=key)
        assert f"Overwriting adata.layers['{key}']" in caplog.text
    again = ad.AnnData(simulated.X, layers={"bin_value": simulated.layers["bin_value"]})  # `ad.concat` drops uns
    bf.pp.bin_value(again)
