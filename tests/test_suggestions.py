"""Every statement that a message about the data suggests is run on data that trigger the message, and solves it."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersError
from scbioformers.data import ObsField

pytestmark = [
    pytest.mark.fault(62),
    pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique"),
    pytest.mark.filterwarnings("ignore:Transforming to str index"),
]


def make(n_obs: int = 40, n_vars: int = 12, dense: bool = False) -> ad.AnnData:
    x = 1 + np.random.default_rng(0).poisson(2.0, (n_obs, n_vars)).astype(np.float32)
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
    return ad.AnnData(x if dense else sp.csr_matrix(x), var=var)


def with_value(value: float, dense: bool, layer: str | None) -> ad.AnnData:
    adata = make(dense=dense)
    x = np.asarray(adata.X) if dense else adata.X.data
    x.flat[5] = value
    if layer is not None:
        adata.layers[layer], adata.X = adata.X.copy(), make().X
    return adata


def with_zeros(axis: int, layer: str | None) -> ad.AnnData:
    adata = make()
    x = adata.X.toarray()
    x[(slice(None), 3) if axis else 3] = 0
    adata.X = sp.csr_matrix(x)
    if layer is not None:
        adata.layers[layer], adata.X = adata.X.copy(), make().X
    return adata


def with_names(names: list) -> ad.AnnData:
    adata = make()
    adata.var = pd.DataFrame(index=names)
    return adata


def transposed() -> ad.AnnData:
    adata = make(12, 40)
    adata.obs_names = ["ACTB", "GAPDH", "B2M", *(f"g{i}" for i in range(9))]
    return adata


def mixed() -> ad.AnnData:
    adata = make()
    adata.var["feature_types"] = ["Gene Expression"] * 9 + ["Antibody Capture"] * 3
    return adata


def counts_in(slot: str) -> ad.AnnData:
    counts = make(80, 30)
    adata = counts.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    if slot == "raw":
        adata.raw = counts
    elif slot == "raw of other genes":
        adata = adata[:, :20].copy()
        adata.raw = counts[:, 5:]
    else:
        part = np.random.default_rng(1).binomial(counts.X.toarray().astype(int), 0.3).astype(np.float32)
        adata.layers["unspliced"], adata.layers["spliced"] = part, counts.X.toarray() - part
    return adata


CASES = {
    "duplicate genes": (with_names([*"abcdefghijaa"]), None, "more than once"),
    "unnamed genes": (with_names([*"abcdefghij", np.nan, ""]), None, "have no name"),
    "genes named None": (with_names([*"abcdefghijk", "None"]), None, "have no name"),
    "NaN, sparse": (with_value(np.nan, False, None), None, "NaN or infinite"),
    "NaN, dense": (with_value(np.nan, True, None), None, "NaN or infinite"),
    "infinite, in a layer": (with_value(np.inf, False, "umi"), "umi", "NaN or infinite"),
    "-infinite, in a dense layer": (with_value(-np.inf, True, "umi"), "umi", "NaN or infinite"),
    "zero genes": (with_zeros(1, None), None, "All-zero genes"),
    "zero genes in a layer": (with_zeros(1, "umi"), "umi", "All-zero genes"),
    "empty cells": (with_zeros(0, None), None, "Empty cells"),
    "empty cells in a layer": (with_zeros(0, "umi"), "umi", "Empty cells"),
    "transposed": (transposed(), None, "transposed"),
    "proteins": (mixed(), None, "not genes"),
    "counts in raw": (counts_in("raw"), None, "log scale"),
    "counts in raw, other genes": (counts_in("raw of other genes"), None, "log scale"),
    "counts in two layers": (counts_in("layers"), None, "log scale"),
}


def statements(text: str) -> list[str]:
    quoted = re.findall(r"`([^`]+)`", text)
    return [
        each for each in quoted if re.match(r"(adata|other|sc\.|bf\.tl)", each) and not each.startswith("bf.tl.fit")
    ]


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "backed"])
@pytest.mark.parametrize("name", CASES)
def test_the_suggested_statements_solve_the_problem(name, backed, tmp_path):
    adata, layer, match = CASES[name]
    adata = adata.copy()
    if backed and ("raw" in name or name == "unnamed genes"):
        return  # raw is not searched on disk, and h5ad files have no missing names
    if backed:
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    report = bf.pp.check(adata, layer=layer)
    text = next(each for each in (*report.problems, *report.cautions) if match in each)
    scope = {"adata": adata, "bf": bf, "sc": sc, "np": np}
    suggested = statements(text)
    for statement in suggested:
        exec(statement, scope)
    if backed and "NaN" in match:  # which cells or genes to remove is for the user to say
        assert not scope["adata"].isbacked
        return
    assert suggested
    passed = re.search(r"pass `layer='(\w+)'`", text)
    again = bf.pp.check(scope["adata"], layer=passed[1] if passed else layer)
    assert match not in " ".join((*again.problems, *again.cautions))
    assert not again.problems
    if backed:
        adata.file.close()


@pytest.mark.parametrize("name", CASES)
def test_the_next_calls_of_check_run_one_after_the_other(name):
    adata, layer, _ = CASES[name]
    if adata.X.shape[1] != 12 or "unnamed" in name or "NaN" in name or "nfinite" in name or "duplicate" in name:
        return
    scope = {"adata": adata.copy(), "bf": bf, "sc": sc, "np": np}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in bf.pp.check(scope["adata"], layer=layer).next_calls:
            if "bf.tl.fit" not in call:
                exec(call, scope)


def test_an_array_mask_and_no_mask_stay_in_the_suggested_call():
    adata = make()
    adata.var["highly_variable"] = np.arange(12) < 5
    mask_var = np.arange(12) < 7
    assert bf.pp.check(adata).next_calls == ("bf.tl.fit(adata)",)
    assert bf.pp.check(adata, mask_var=mask_var).next_calls == ("bf.tl.fit(adata, mask_var=mask_var)",)
    assert bf.pp.check(adata, mask_var=None).next_calls == ("bf.tl.fit(adata, mask_var=None)",)
    fit = bf.pp.check(adata, mask_var=mask_var).next_calls[0].replace("bf.tl.fit", "bf.pp.check")
    assert eval(fit, {"adata": adata, "bf": bf, "mask_var": mask_var}).modelled.sum() == 7


@pytest.mark.parametrize("values", [["a", None, "b", "a"], [1.0, np.nan, 2.0, 1.0]])
@pytest.mark.filterwarnings("ignore::scbioformers.core.BioformersWarning")
def test_cells_without_a_category(values):
    adata = make(4)
    adata.obs["batch"] = values
    with pytest.raises(BioformersError) as caught:
        ObsField.register(adata, "batch")
    scope = {"adata": adata}
    for statement in statements(str(caught.value)):
        exec(statement, scope)
    assert len(ObsField.register(scope["adata"], "batch").categories) == 2


def test_categories_of_one_text():
    adata = make(4)
    adata.obs["batch"] = pd.Series([1, "1", 2, "2"], dtype=object, index=adata.obs_names)
    with pytest.raises(BioformersError) as caught:
        ObsField.register(adata, "batch")
    scope = {"adata": adata}
    for statement in statements(str(caught.value)):
        exec(statement, scope)
    assert ObsField.register(scope["adata"], "batch").categories == ("1", "2")
