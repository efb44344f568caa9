"""The report on a MuData: what each modality holds, the bins that suit it, and which samples it has."""

import re
import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError

N = 40


def modality(x: np.ndarray, names: list[str] | None = None, cells: list[str] | None = None) -> ad.AnnData:
    names = names or [f"f{i}" for i in range(x.shape[1])]
    cells = cells or [f"c{i}" for i in range(len(x))]
    return ad.AnnData(x.astype(np.float32), obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=names))


def join(**modalities: ad.AnnData) -> mudata.MuData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata warns of names that modalities share
        return mudata.MuData(modalities)


RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.5, (N, 30))
COUNTS[0] = 1
PROTEINS = RNG.negative_binomial(3, 0.01, (N, 5)) + 1
CENTRED = np.log1p(PROTEINS) - np.log1p(PROTEINS).mean(axis=0)


@pytest.mark.parametrize(
    ("values", "binning", "reason"),
    [
        pytest.param(COUNTS, "value", r"counts of 30 features, \d\d% of them zero", id="counts of RNA"),
        pytest.param(PROTEINS, "quantile", "counts of 5 features, of which nearly no cell has none", id="proteins"),
        pytest.param(1000 * PROTEINS, "quantile", "counts of 5 features", id="counts 1,000 times the genes'"),
        pytest.param(CENTRED, "quantile", "centred values of 5 features", id="centred"),
        pytest.param(np.log1p(PROTEINS), "quantile", "values of 5 features that are not counts", id="log"),
        pytest.param(PROTEINS[:, :1], "quantile", "counts of 1 feature,", id="one feature"),
    ],
)
def test_what_is_found_decides_the_bins(values, binning, reason):
    report = bf.pp.check(join(rna=modality(COUNTS), other=modality(values)))
    assert report.binning == {"rna": "value", "other": binning}
    assert re.search(reason, report.modalities["other"].reason)
    assert report.problems == ()
    assert report.next_calls == (
        f"bf.tl.fit(mdata, modalities=['rna', 'other'], binning={{'rna': 'value', 'other': '{binning}'}})",
    )
    assert f"{report.modalities['other'].reason}: {binning} bins" in repr(report)


def test_many_features_on_a_log_scale_are_refused_where_the_counts_are_known():
    rna = modality(np.log1p(1e4 * COUNTS / COUNTS.sum(axis=1, keepdims=True)).repeat(20, axis=1))
    rna.layers["counts"] = COUNTS.repeat(20, axis=1).astype(np.float32)
    mdata = join(rna=rna, prot=modality(PROTEINS))
    report = bf.pp.check(mdata)
    assert report.binning == {"rna": "value", "prot": "quantile"}
    assert len(report.problems) == 1
    assert report.problems[0].startswith("rna: mdata.mod['rna'].X is on a log scale")
    assert "pass `layer='counts'`" in report.problems[0]
    assert bf.pp.check(mdata, layer={"rna": "counts"}).problems == ()


def test_the_samples_of_each_modality_are_counted():
    cells = [f"c{i}" for i in range(N)]
    mdata = join(rna=modality(COUNTS[:30], cells=cells[:30]), prot=modality(PROTEINS[20:], cells=cells[20:]))
    report = bf.pp.check(mdata)
    assert (report.n_obs, report.n_measured, report.n_in_all) == (N, {"rna": 30, "prot": 20}, 10)
    assert not any("samples are in none" in text for text in report.cautions)
    alone = bf.pp.check(mdata, modality="rna")
    assert "10 samples are in none of the modalities ['rna']. A fit skips them." in alone.cautions
    assert alone.next_calls == ("bf.tl.fit(mdata, modalities=['rna'], binning={'rna': 'value'})",)


def test_unmatched_names_of_samples_are_a_caution():
    mdata = join(rna=modality(COUNTS), prot=modality(PROTEINS, cells=[f"c{i}-1" for i in range(N)]))
    report = bf.pp.check(mdata)
    assert report.n_in_all == 0
    assert any("No sample is in two" in text and "'c0-1'" in text for text in report.cautions)


def test_duplicate_names_stay_apart():
    names = [f"f{i}" for i in range(29)] + ["CD4"]
    report = bf.pp.check(join(rna=modality(COUNTS, names), prot=modality(PROTEINS, ["CD4", "CD3", "CD8a", "a", "b"])))
    assert report.problems == ()
    assert any("'rna:CD4' and 'prot:CD4'" in text and "1 names" in text for text in report.cautions)


@pytest.mark.fault(23)
def test_an_empty_modality_is_a_problem():
    report = bf.pp.check(join(rna=modality(COUNTS), prot=modality(np.zeros((N, 0)))))
    assert report.problems[0].startswith("prot: The data has 40 cells and 0 genes")
    assert report.next_calls == ("bf.pp.check(mdata)  # again, after the problem is solved",)
    zeros = bf.pp.check(join(rna=modality(COUNTS), prot=modality(np.zeros((N, 3)))))
    assert zeros.problems[0].startswith("prot: All values of mdata.mod['prot'].X are zero")


def test_one_feature_is_a_caution():
    report = bf.pp.check(join(rna=modality(COUNTS), prot=modality(PROTEINS[:, :1])))
    assert any("'prot' has one feature" in text for text in report.cautions)


def test_arguments_by_modality():
    rna = modality(COUNTS)
    rna.var["chosen"] = np.arange(30) < 10
    mdata = join(rna=rna, prot=modality(PROTEINS))
    report = bf.pp.check(mdata, mask_var={"rna": "chosen"})
    assert {name: int(each.report.modelled.sum()) for name, each in report.modalities.items()} == {"rna": 10, "prot": 5}
    with pytest.raises(MissingKeyError, match=r"mdata\['protein'\]\. Modalities: \['rna', 'prot'\]"):
        bf.pp.check(mdata, modality=["rna", "protein"])
    with pytest.raises(ConfigError, match=r"`model` is compared with one modality"):
        bf.pp.check(mdata, model="somewhere")
    with pytest.raises(ConfigError, match=r"`modality` names parts of a MuData, found 'rna' and an AnnData"):
        bf.pp.check(rna, modality="rna")
    with pytest.raises(ConfigError, match="`layer` is a dict of modalities, found with an AnnData"):
        bf.pp.check(rna, layer={"rna": "counts"})
    with pytest.raises(DataError, match="Expected an AnnData"):
        bf.pp.check(COUNTS)


def test_the_data_are_not_changed():
    mdata = join(rna=modality(COUNTS), prot=modality(PROTEINS))
    before = {name: each.X.copy() for name, each in mdata.mod.items()}
    bf.pp.check(mdata)
    for name, each in mdata.mod.items():
        assert np.array_equal(each.X, before[name])
        assert not each.uns
