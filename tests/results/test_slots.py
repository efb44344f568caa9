"""Names, parameters and slots survive h5ad and zarr."""

import logging
import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.results._slots import (
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    set_slot,
    unescape,
)
from scbioformers.results._target import actual, target

NAMES = [
    "a/b",
    "",
    "/",
    "%",
    "%2F",
    "a%2Fb",
    ".",
    "..",
    ".zattrs",
    "zarr.json",
    "__x",
    "_index",
    "β/γ T",
    "\\",
    "\x00",
    " x ",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning"),
]


def small() -> ad.AnnData:
    return ad.AnnData(np.ones((3, 2), np.float32))


def round_trip(adata: ad.AnnData, path, kind: str) -> ad.AnnData:
    if kind == "h5ad":
        adata.write_h5ad(path / "x.h5ad")
        return ad.read_h5ad(path / "x.h5ad")
    with ad.settings.override(zarr_write_format=int(kind[-1])):
        adata.write_zarr(path / "x.zarr")
    return ad.read_zarr(path / "x.zarr")


@pytest.mark.fault(53)
@given(st.text())
def test_escape_is_reversible_and_safe(name):
    key = escape(name)
    assert unescape(key) == name
    assert (
        key
        and "/" not in key
        and "\\" not in key
        and key not in {".", ".."}
        and key.isprintable() >= name.isprintable()
    )


@given(st.lists(st.text(alphabet="%/2F._\\", max_size=4), unique=True))
def test_escape_is_injective(names):
    assert len({escape(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["CD4+ T", "rna:CD4", "B cell (naïve)", "a_b", "x.y", "CD14+ Monocyte"])
def test_plain_names_stay_readable(name):
    assert escape(name) == name


@pytest.mark.fault(53)
@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
def test_row53_names_round_trip(tmp_path, kind):
    adata = small()
    for i, name in enumerate(NAMES):
        set_slot(adata, "uns", f"k{name}", {name: {name: np.arange(i)}})
        set_slot(adata, "obs", name, np.full(3, i))
        set_slot(adata, "obsm", name, np.full((3, 2), i))
    frame = pd.DataFrame(np.eye(3)[:, :2], index=adata.obs_names, columns=["a/b", "__c"])
    set_slot(adata, "obsm", "scores", frame)
    again = round_trip(adata, tmp_path, kind)
    for i, name in enumerate(NAMES):
        assert list(get_slot(again, "uns", f"k{name}")) == [name]
        assert len(get_slot(again, "uns", f"k{name}")[name][name]) == i
        assert get_slot(again, "obs", name).tolist() == [i] * 3
        assert get_slot(again, "obsm", name).max() == i
    pd.testing.assert_frame_equal(get_slot(again, "obsm", "scores"), frame)
    assert list(frame.columns) == ["a/b", "__c"]  # the input was not renamed


@pytest.mark.fault(53)
@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
def test_row53_bulk_labels_round_trip(tmp_path, kind):
    adata = sc.datasets.pbmc68k_reduced()
    labels = list(adata.obs["bulk_labels"].cat.categories)
    assert "CD4+/CD45RA+/CD25- Naive T" in labels
    adata = ad.AnnData(adata.X, obs=adata.obs[["bulk_labels"]], var=adata.var[[]])
    set_slot(adata, "uns", "grn", {label: np.array([i]) for i, label in enumerate(labels)})
    for i, label in enumerate(labels):
        set_slot(adata, "varp", f"grn_{label}", sp.csr_matrix(([i + 1.0], ([0], [1])), (adata.n_vars, adata.n_vars)))
    again = round_trip(adata, tmp_path, kind)
    stored = get_slot(again, "uns", "grn")
    assert {label: int(value[0]) for label, value in stored.items()} == {label: i for i, label in enumerate(labels)}
    for i, label in enumerate(labels):
        assert get_slot(again, "varp", f"grn_{label}")[0, 1] == i + 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text() | st.integers() | st.none() | st.sampled_from(["__tuple__", "__dict__"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def typed(value: object) -> object:
    """Value with its types, since 1 == True == 1.0."""
    if isinstance(value, dict):
        return {(type(k), k): typed(v) for k, v in value.items()}
    return (type(value), [typed(v) for v in value] if isinstance(value, list | tuple) else value)


@given(JSON_VALUES)
def test_params_round_trip(params):
    assert typed(params_from_json(params_to_json(params))) == typed(params)


def test_params_of_numpy_and_non_finite_values():
    text = params_to_json({"a": np.int32(3), "b": (np.float32(0.5), np.nan), "c": -np.inf, "d": np.bool_(True)})
    found = params_from_json(text)
    assert found["a"] == 3 and found["b"][0] == 0.5 and np.isnan(found["b"][1]) and found["c"] == -np.inf
    assert found["d"] is True and "NaN" not in text and "Infinity" not in text


@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
def test_params_survive_files(tmp_path, kind):
    adata, params = small(), {"masked": (1, None), 3: [True, 0.5], "layer": None}
    set_slot(adata, "uns", "bioformer", {"params": params_to_json(params)})
    assert params_from_json(get_slot(round_trip(adata, tmp_path, kind), "uns", "bioformer")["params"]) == params


def test_params_of_another_type_and_broken_text():
    with pytest.raises(ConfigError, match="found set"):
        params_to_json({"a": {1, 2}})
    with pytest.raises(DataError, match="not valid JSON"):
        params_from_json("{")


def test_uns_keys_must_be_strings():
    with pytest.raises(ConfigError, match=r"must be strings, found \[1\].*params_to_json"):
        set_slot(small(), "uns", "grn", {"a": {1: 2}})


def test_get_slot_lists_what_is_there():
    adata = small()
    set_slot(adata, "uns", "a/b", 1)
    with pytest.raises(
        MissingKeyError, match=r"adata.uns\['bioformer'\]\. Run `bf.tl.fit\(adata\)` first\. Available: \['a/b'\]"
    ):
        get_slot(adata, "uns", "bioformer", hint="Run `bf.tl.fit(adata)` first.")


SLOT_VALUES = [
    pytest.param("layers", np.zeros((3, 2)), id="layers"),
    pytest.param("obs", np.arange(3), id="obs"),
    pytest.param("var", np.arange(2), id="var"),
    pytest.param("obsm", np.zeros((3, 4)), id="obsm"),
    pytest.param("varm", np.zeros((2, 4)), id="varm"),
    pytest.param("varp", np.zeros((2, 2)), id="varp"),
    pytest.param("uns", {"a": 1}, id="uns"),
]


@pytest.mark.fault(47)
@pytest.mark.parametrize(("slot", "value"), SLOT_VALUES)
def test_row47_overwriting_is_logged(slot, value, caplog):
    adata = small()
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        assert set_slot(adata, slot, "x", value) == "x"
        assert not caplog.records
        set_slot(adata, slot, "x", value)
    assert [record.message for record in caplog.records] == [f"Overwriting adata.{slot}['x']."]
    assert "x" in getattr(adata, slot)


@pytest.mark.fault(17)
@pytest.mark.parametrize(("slot", "value"), SLOT_VALUES)
def test_row17_views_become_actual_without_warning(slot, value):
    parent = ad.AnnData(np.arange(20.0).reshape(5, 4))
    view = parent[:3, :2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_slot(view, slot, "x", value)
    assert not view.is_view and "x" in getattr(view, slot) and "x" not in getattr(parent, slot)
    np.testing.assert_array_equal(view.X, np.arange(20.0).reshape(5, 4)[:3, :2])


def test_target():
    adata = small()
    assert target(adata, copy=False) is adata
    copied = target(adata, copy=True)
    set_slot(copied, "obs", "x", np.arange(3))
    assert "x" not in adata.obs and copied is not adata
    view = adata[:2]
    assert target(view, copy=False) is view and not view.is_view


@pytest.mark.fault(14, 15)
def test_row14_row15_backed(tmp_path):
    small().write_h5ad(tmp_path / "x.h5ad")
    before = (tmp_path / "x.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    set_slot(target(backed, copy=False), "layers", "x", np.zeros((3, 2)))
    assert "x" in backed.layers
    assert not target(backed, copy=True).isbacked
    with pytest.raises(DataError, match=r"\.to_memory\(\)"):
        actual(backed[:2])
    backed.file.close()
    assert (tmp_path / "x.h5ad").read_bytes() == before


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_a_copy_of_a_backed_mudata(tmp_path):
    mudata.MuData({"rna": small()}).write_h5mu(tmp_path / "x.h5mu")
    backed = mudata.read_h5mu(tmp_path / "x.h5mu", backed="r")
    with pytest.raises(DataError, match=r"backed MuData, .* `mudata\.read_h5mu\('.*x\.h5mu'\)`"):
        target(backed, copy=True)
    assert target(backed, copy=False) is backed
    backed.file.close()


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_mudata():
    mdata = mudata.MuData({"rna": small()})
    set_slot(mdata, "obsm", "x/y", np.zeros((3, 2)))
    assert get_slot(mdata, "obsm", "x/y").shape == (3, 2)
    assert target(mdata, copy=True) is not mdata
    with pytest.raises(DataError, match=r"view of a MuData.*\.copy\(\)"):
        actual(mdata[:2])
