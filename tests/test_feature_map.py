"""``feature_map=``: a model of other names (orthologues, aliases) is queried in the names of the data."""

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError
from scbioformers.data import find_genes
from scbioformers.results import open_query

ID = "ENSMUSG{:011d}".format
N = 40


@pytest.fixture
def mouse(fitted) -> tuple[ad.AnnData, dict[str, str]]:
    """The cells of ``fitted`` with other names of the genes, in another order, and the map to the model's names."""
    feature_map = {f"m-{i}": name for i, name in enumerate(fitted.var_names)}
    adata = ad.AnnData(fitted.X.copy(), obs=fitted.obs.copy(), var=pd.DataFrame(index=list(feature_map)))
    return adata[:, ::-1].copy(), feature_map


def cells(counts: dict[str, int], **columns) -> ad.AnnData:
    """Each gene with the number of cells that express it."""
    x = np.array([[float(row < n) for n in counts.values()] for row in range(10)], np.float32)
    return ad.AnnData(x, var=pd.DataFrame(columns, index=list(counts)))


def matched(features, adata, feature_map, **kwargs) -> list[str | None]:
    """The gene of the data that each feature is read from."""
    found = find_genes(features, adata, n_cells=(adata.X > 0).sum(axis=0), feature_map=feature_map, **kwargs)
    return [None if column < 0 else str(adata.var_names[column]) for column in found.columns]


# matching


@pytest.mark.parametrize("kind", [dict, pd.Series], ids=["dict", "series"])
def test_renamed_genes_give_the_same_bits(fitted, mouse, kind):
    adata, feature_map = mouse
    bf.tl.embed(fitted)
    bf.tl.embed(adata, model=fitted, feature_map=kind(feature_map))  # a warning would fail the test
    np.testing.assert_array_equal(adata.obsm["X_bioformer"], fitted.obsm["X_bioformer"])
    with pytest.raises(DataError, match="Found 0 of the model's 40 genes"):
        bf.tl.embed(adata, model=fitted)


def test_names_that_are_not_in_the_map_stay_as_they_are(fitted, mouse):
    _, feature_map = mouse
    half = dict(list(feature_map.items())[::2])
    renamed = {name: other for other, name in half.items()}
    adata = fitted.copy()
    adata.var_names = [renamed.get(name, name) for name in fitted.var_names]
    bf.tl.embed(fitted)
    bf.tl.embed(adata, feature_map=half)
    np.testing.assert_array_equal(adata.obsm["X_bioformer"], fitted.obsm["X_bioformer"])


def test_of_several_genes_the_one_that_most_cells_express_is_read(caplog):
    adata = cells({"a1": 3, "a2": 7, "b": 5, "C": 2, "c": 9, "d": 1})
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        # C has its own name in the model, but c is better measured; of a tie, the first in the data
        feature_map = {"a1": "A", "a2": "A", "b": "B", "c": "C"}
        assert matched(["A", "B", "C", "D"], adata, feature_map) == ["a2", "b", "c", None]
    (record,) = caplog.records
    assert "2 features of the model have several genes in the data (such as ['A', 'C'])" in record.getMessage()
    assert "0 genes of the data stand for several features." in record.getMessage()
    assert matched(["A"], cells({"x": 4, "y": 4}), {"y": "A", "x": "A"}) == ["x"]


def test_a_gene_stands_for_one_feature(caplog):
    adata = cells({"a": 8, "b": 3})
    several = pd.Series(["A1", "A2", "absent"], index=["a", "a", "a"])
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        share = np.array([0.2, 0.9])
        assert matched(["A1", "A2"], adata, several, feature_share=share) == [None, "a"]
        assert matched(["A1", "A2"], adata, several, feature_share=share[::-1]) == ["a", None]
    assert "1 genes of the data stand for several features (such as ['a'])" in caplog.records[0].getMessage()
    # what the better measured gene leaves goes to the other one
    both = pd.Series(["A1", "A2", "A2"], index=["a", "a", "b"])
    assert matched(["A1", "A2"], adata, both, feature_share=np.array([0.9, 0.2])) == ["a", "b"]
    assert matched(["A1", "A2"], adata, both, feature_share=np.array([0.2, 0.9])) == [None, "a"]


def test_a_gene_in_the_map_loses_its_own_name():
    """It is another gene than the one that the model calls so."""
    assert matched(["A", "B"], cells({"A": 5, "b": 5}), {"A": "other", "b": "B"}) == [None, "b"]
    assert matched(["A", "B"], cells({"A": 5, "B": 4}), {"A": "B", "B": "A"}) == ["B", "A"]


def test_the_names_of_the_map_are_those_of_a_column_or_ensembl_ids():
    adata = cells({f"{ID(0)}.3": 5, f"{ID(1)}.1": 5, f"{ID(2)}.1": 5}, symbol=["Cd4", "Cd8a", "Cd8a"])
    for feature_map in ({"Cd4": "CD4", "Cd8a": "CD8A"}, {ID(0): "CD4", f"{ID(1)}.9": "CD8A"}):
        found = matched(["CD8A", "CD4"], adata, feature_map, gene_symbols="symbol")
        assert found == [f"{ID(1)}.1", f"{ID(0)}.3"]
    assert matched(["ENSG00000010610.5"], adata, {ID(0): "ENSG00000010610"}) == [f"{ID(0)}.3"]


def test_the_depth_is_that_of_all_genes(fitted, mouse):
    """Genes that the model does not have, renamed too, leave the depth as it was in the fit."""
    adata, feature_map = mouse
    depth = open_query(adata, fitted, feature_map=feature_map).source.read(0, 60).depth
    np.testing.assert_array_equal(depth, fitted.X.sum(axis=1).A1 if sp.issparse(fitted.X) else fitted.X.sum(axis=1))


# names in arguments and results


@pytest.mark.fault(55)
def test_arguments_and_results_have_the_names_of_the_data(fitted, mouse):
    adata, feature_map = mouse
    given = {"model": fitted, "feature_map": feature_map}
    own = {name: other for other, name in feature_map.items()}
    chosen = list(fitted.var_names[[1, 3]])

    bf.tl.grn(adata, regulators=[own[name] for name in chosen], **given)
    bf.tl.grn(fitted, regulators=chosen)
    edges, expected = bf.get.grn(adata), bf.get.grn(fitted)
    for end in ("source", "target"):
        assert edges[end].tolist() == [own[name] for name in expected[end]]
    np.testing.assert_array_equal(edges["weight"], expected["weight"])

    bf.tl.impute(adata, genes=own[chosen[0]], **given)
    bf.tl.impute(fitted, genes=chosen[0])
    assert adata.var_names[adata.var["imputed"]].tolist() == [own[chosen[0]]]
    dense = [each.layers["imputed"] for each in (adata[:, [own[n] for n in fitted.var_names]], fitted)]
    np.testing.assert_array_equal(*(x.toarray() if sp.issparse(x) else np.asarray(x) for x in dense))

    bf.tl.gene_programs(adata, min_genes=2, **given)
    assert set(bf.get.gene_programs(adata)["gene"]) <= set(own.values())
    assert bf.get.gene_embeddings(adata, **given).index.tolist() == [own[name] for name in fitted.var_names]


@pytest.mark.fault(55)
@pytest.mark.filterwarnings("ignore:Found 38 of the model's 40 genes", "ignore:The data have other genes")
def test_genes_that_are_predicted_have_the_names_of_the_data(fitted, mouse):
    adata, feature_map = mouse
    given = {"model": fitted, "feature_map": feature_map}
    lost = ["m-5", "m-7"]
    part = adata[:, ~adata.var_names.isin(lost)].copy()
    assert bf.get.imputed(part, **given).var_names.tolist() == lost
    assert bf.get.imputed(part, genes=[feature_map["m-7"]], **given).var_names.tolist() == ["m-7"]
    del feature_map["m-5"]  # without a name in the data, that of the model stays
    assert bf.get.imputed(part, **given).var_names.tolist() == [fitted.var_names[5], "m-7"]
    with pytest.raises(DataError, match=r"`bf.get.imputed\(adata, genes=\['m-7'\], .*\)`") as caught:
        bf.tl.impute(part, genes="m-7", **given)
    call = re.search(r"`(bf\.get\.imputed\(.*?\))`", str(caught.value))[1]
    found = eval(call, {"bf": bf, "adata": part, **given})
    assert found.var_names.tolist() == ["m-7"]


@pytest.fixture(scope="module")
def screened() -> ad.AnnData:
    adata = bf.datasets.simulate(60, 20, n_regulators=4, perturbations=["TF1", "TF2"])
    task = bf.Perturbation(key="perturbation", control="control")
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
    bf.tl.fit(adata, task=task, config=config, train=bf.TrainConfig(max_steps=1))
    return adata


def screen_of_mouse(screened, labels: dict[str, str]) -> tuple[ad.AnnData, dict[str, str]]:
    """The same cells in lower case, and a map in which the data call "tf4" what the model calls "TF3" (and reverse)."""
    feature_map = {name.lower(): name for name in screened.var_names} | {"tf3": "TF4", "tf4": "TF3"}
    renamed = {other: name for name, other in feature_map.items()}
    query = screened.copy()
    query.var_names = [renamed[name] for name in screened.var_names]
    query.obs["perturbation"] = query.obs["perturbation"].astype(str).replace(labels)
    del query.uns["bioformer"]
    return query, feature_map


@pytest.mark.fault(41, 55)
@pytest.mark.parametrize("labels", [{}, {"TF1": "tf1", "TF2": "tf2"}], ids=["labels of the model", "of the data"])
def test_perturbations_have_the_names_of_the_data(screened, labels):
    query, feature_map = screen_of_mouse(screened, labels)
    expected = screened.copy()
    bf.tl.perturb(expected, ["TF4", "TF1", "TF1+TF4"])
    bf.tl.perturb(query, ["tf3", "tf1", "TF1+tf3"], model=screened, feature_map=feature_map)
    assert bf.get.perturb(query)["seen"].tolist() == bf.get.perturb(expected)["seen"].tolist()
    for name, other in (("tf3", "TF4"), ("tf1", "TF1"), ("TF1+tf3", "TF1+TF4")):
        found, right = bf.get.perturb(query, perturbation=name), bf.get.perturb(expected, perturbation=other)
        assert [feature_map[gene] for gene in found["gene"]] == right["gene"].tolist()
        numbers = right.select_dtypes("number").columns
        pd.testing.assert_frame_equal(found[numbers], right[numbers])
        assert right["observed"].notna().any() == (other == "TF1")
    bf.tl.perturb(query, "all", model=screened, feature_map=feature_map)
    assert set(bf.get.perturb(query)["perturbation"]) == set(query.var_names)
    with pytest.raises(DataError, match=r"\['tf9'\] unknown.*Similar names: \[.*'tf"):
        bf.tl.perturb(query, "tf9", model=screened, feature_map=feature_map)


# errors


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("feature_map", "error", "message"),
    [
        ({}, ConfigError, "`feature_map` is empty"),
        ([("m-1", "G1")], ConfigError, "`feature_map` must be a dict, a Series or None, found"),
        (pd.DataFrame({"a": ["m-1"]}), ConfigError, r"a Series or None, found .*DataFrame"),
        ({"m-1": None}, ConfigError, r"must map strings to strings, found 'm-1': None"),
        ({1: "G1"}, ConfigError, r"must map strings to strings, found 1: 'G1'"),
        (pd.Series({"m-1": "G1", "m-2": np.nan}), ConfigError, r"found 'm-2': nan. `feature_map.dropna\(\)`"),
        ({"Cd4": "G1"}, DataError, r"None of the 1 names in `feature_map` is a gene of the data.*'Cd4'.*'m-39'"),
        ({"G1": "m-1"}, DataError, r"direction seems to be the other one: pass `\{b: a for a, b in"),
        ({"m-1": "CD4"}, DataError, r"names 1 genes of the data, but none .* gives \['CD4'\], the model has \['"),
        ({"m-1": "G1"}, DataError, r"Found 1 of the model's 40 genes.*Only the data has \['m-39'"),
    ],
)
@pytest.mark.parametrize("verb", [bf.tl.embed, bf.get.gene_embeddings], ids=["embed", "gene_embeddings"])
def test_maps_that_cannot_be_used(fitted, mouse, feature_map, error, message, verb):
    if verb is bf.get.gene_embeddings and "Found 1" in message:
        return  # it names the genes of a model, however few the data have
    with pytest.raises(error, match=message):
        verb(mouse[0], model=fitted, feature_map=feature_map)


def test_the_suggested_changes_of_a_map_work(fitted, mouse):
    adata, feature_map = mouse
    reverse = {other: name for name, other in feature_map.items()}
    with pytest.raises(DataError) as caught:
        bf.tl.embed(adata, model=fitted, feature_map=reverse)
    turned = eval(str(caught.value).split("`")[-2], {"feature_map": reverse})
    bf.tl.embed(adata, model=fitted, feature_map=turned)
    incomplete = pd.Series(feature_map)
    incomplete["absent"] = None
    with pytest.raises(ConfigError) as caught:
        bf.tl.embed(adata, model=fitted, feature_map=incomplete)
    bf.tl.embed(adata, model=fitted, feature_map=eval(str(caught.value).split("`")[-2], {"feature_map": incomplete}))
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [ID(i) for i in range(N)]
    bf.tl.embed(adata, model=fitted, feature_map=feature_map, gene_symbols="symbol")
    with pytest.raises(DataError, match=r"\['symbol'\] has names of the map: pass `gene_symbols='symbol'` too"):
        bf.tl.embed(adata, model=fitted, feature_map=feature_map)


MOUSE = [f"Cd{i}a" for i in range(20)] + [f"Ms4a{i}" for i in range(10)]
OTHERS = ["0610007L01Rik", "AA987161", "AK003943", "H2-Aa", "mKIAA1994", "Gm5483", "1500031L24RIK", "Cd19A", "x", "X"]


@pytest.mark.fault(26)
@pytest.mark.parametrize("column", [None, "symbol"])
@pytest.mark.parametrize("direction", ["mouse", "human"])
def test_symbols_of_another_species(simulated, tiny_config, column, direction):
    """The error for names such as those of paul15 suggests a call, and the call works."""
    mouse, human = simulated.copy(), simulated.copy()
    mouse.var_names = MOUSE + OTHERS
    human.var_names = [name.upper() for name in MOUSE] + [f"LOC{i}" for i in range(10)]
    trained, query = (human, mouse) if direction == "mouse" else (mouse, human)
    bf.tl.fit(trained, config=tiny_config, train=bf.TrainConfig(max_steps=1))
    if column is not None:
        query.var[column] = query.var_names.to_numpy(object)
        query.var.iloc[-1, query.var.columns.get_loc(column)] = None
        query.var_names = [ID(i) for i in range(N)]
        given = {"model": trained, "gene_symbols": column}
    else:
        given = {"model": trained}
    method = "upper" if direction == "mouse" else "capitalize"
    with pytest.raises(DataError, match=rf"\d+ names match if case is ignored.*another species.*{method}") as caught:
        bf.tl.embed(query, **given)
    argument = str(caught.value).split("`")[1].removeprefix("feature_map=")
    with pytest.warns(BioformersWarning, match="Found 30 of the model's 40 genes"):
        bf.tl.embed(query, feature_map=eval(argument, {"adata": query}), **given)


def test_every_verb_that_reads_cells_by_a_model_takes_a_map(fitted, mouse):
    adata, feature_map = mouse
    given = {"model": fitted, "feature_map": feature_map}
    for verb in (bf.tl.embed, bf.tl.impute, bf.tl.grn, bf.tl.gene_programs):
        verb(adata, **given)
        with pytest.raises(DataError, match="Found 0 of"):
            verb(adata, model=fitted)
    assert bf.get.imputed(adata, genes="m-3", **given).var_names.tolist() == ["m-3"]
