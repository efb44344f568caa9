"""Gene names in every verb: the user's spelling, a column of ``var``, names that are no text, unknown names."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, DataError, MissingKeyError

TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)
ID = "ENSG{:011d}".format
N = 40


def quiet(function, *args, **kwargs):
    """Call a function without its warning that versions of Ensembl ids are ignored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Ensembl ids of the data and the model", BioformersWarning)
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def versioned_once(_simulated_once, tiny_config) -> ad.AnnData:
    """Cells whose genes have Ensembl ids with versions, symbols in ``var["symbol"]``, and a fitted model."""
    adata = _simulated_once.copy()
    adata.var["symbol"] = pd.Categorical(adata.var_names)
    adata.var_names = [f"{ID(i)}.{i % 3 + 1}" for i in range(N)]
    bf.tl.fit(adata, config=tiny_config, train=TRAIN)
    return adata


@pytest.fixture
def versioned(versioned_once) -> ad.AnnData:
    return versioned_once.copy()


@pytest.fixture
def plain(versioned_once) -> ad.AnnData:
    """The same cells and model, with ids without versions, and the genes in another order."""
    adata = versioned_once.copy()
    adata.var_names = [ID(i) for i in range(N)]
    return adata[:, ::-1].copy()


def test_fit_reads_names_from_a_column(versioned, tiny_config):
    by_name = versioned.copy()
    by_name.var_names = by_name.var["symbol"].astype(str)
    for adata, kwargs in ((versioned, {"gene_symbols": "symbol"}), (by_name, {})):
        bf.tl.fit(adata, config=tiny_config, train=TRAIN, **kwargs)
        bf.tl.embed(adata)
    assert bf.get.model(versioned).vocabulary == bf.get.model(by_name).vocabulary
    np.testing.assert_array_equal(versioned.obsm["X_bioformer"], by_name.obsm["X_bioformer"])


@pytest.mark.fault(28, 29, 55)
def test_names_and_order_do_not_change_a_bit(versioned, plain):
    bf.tl.embed(versioned)
    with pytest.warns(BioformersWarning, match="The versions are ignored") as caught:
        bf.tl.embed(plain)
    assert len(caught) == 1
    np.testing.assert_array_equal(plain.obsm["X_bioformer"], versioned.obsm["X_bioformer"])


@pytest.mark.fault(26, 55)
@pytest.mark.parametrize("column", ["symbol", "values"])
def test_genes_are_matched_by_a_column(versioned, plain, column):
    other = versioned[:, ::-1].copy()
    bf.tl.embed(versioned)
    other.var["values"] = [f"{ID(i)}.9" for i in range(N)][::-1]
    other.var_names = [f"g{i}" for i in range(N)]
    del other.var["symbol"]
    if column == "symbol":
        with pytest.raises(DataError, match=r"adata\.var\['values'\] has 40 of them.*pass `gene_symbols='values'`"):
            bf.tl.embed(other)
        with pytest.raises(MissingKeyError, match=r"no column 'symbol'.*\['values'\]"):
            bf.tl.embed(other, gene_symbols="symbol")
    else:
        quiet(bf.tl.embed, other, gene_symbols="values")
        np.testing.assert_array_equal(other.obsm["X_bioformer"], versioned.obsm["X_bioformer"])


@pytest.mark.fault(55)
def test_of_repeated_symbols_the_best_measured_is_read(versioned, caplog):
    worse = versioned[:, 5].copy()
    worse.X = worse.X.toarray() * (np.arange(60) % 2)[:, None]  # half of its cells
    worse.var_names = ["worse"]
    twice = ad.concat([worse, versioned], axis=1, merge="first", uns_merge="first")
    twice.var["names"] = [versioned.var_names[5], *versioned.var_names]
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bf.tl.grn(twice, gene_symbols="names", regulators=[versioned.var_names[5]], min_count=1)
    assert "Several genes have the same name in adata.var['names'] (1 names" in caplog.text
    assert twice.varp["grn"][:, 0].nnz == 0
    assert twice.varp["grn"][:, 6].nnz > 0.8 * N


@pytest.mark.fault(55)
def test_networks_are_stored_by_the_names_of_the_data(versioned, plain):
    quiet(bf.tl.grn, plain, regulators=[ID(0), f"{ID(1)}.2", f"{ID(2)}.7"])
    bf.tl.grn(versioned, regulators=[f"{ID(i)}.{i % 3 + 1}" for i in range(3)])
    expected, found = bf.get.grn(versioned), bf.get.grn(plain)
    assert len(found) > 2 * N
    for end in ("source", "target"):
        assert found[end].tolist() == [name.split(".")[0] for name in expected[end]]
    np.testing.assert_allclose(found["weight"], expected["weight"], atol=1e-6)


@pytest.mark.fault(55)
def test_genes_can_be_named_by_a_column_by_which_they_are_not_matched(versioned):
    symbols = versioned.var["symbol"].tolist()
    bf.tl.grn(versioned, regulators=[symbols[3], versioned.var_names[4]], gene_symbols="symbol")
    assert set(versioned.uns["grn"]["edges"]["source"]) == set(versioned.var_names[[3, 4]])
    with pytest.raises(DataError, match=r"adata\.var\['symbol'\] has 1 of them: pass `gene_symbols='symbol'`"):
        bf.tl.grn(versioned, regulators=[symbols[3], "x"])
    with pytest.raises(DataError, match=rf"absent from the data: '{symbols[3]}x' \(near '{symbols[3]}x': {symbols[3]}"):
        bf.tl.grn(versioned, regulators=f"{symbols[3]}x", gene_symbols="symbol")


@pytest.mark.fault(55)
def test_genes_that_share_a_symbol_keep_their_own_names(versioned):
    versioned.var["names"] = ["same", "same", *versioned.var["symbol"][2:]]
    found = bf.get.gene_embeddings(versioned, gene_symbols="names").index.tolist()
    assert found == [*versioned.var_names[:2], *versioned.var["symbol"][2:]]


def programs(adata, **kwargs):
    """Programs, also of two genes only."""
    bf.tl.gene_programs(adata, min_genes=2, **kwargs)


@pytest.mark.fault(55)
def test_programs_have_the_names_of_the_data(versioned, plain):
    programs(versioned)
    quiet(programs, plain)
    expected, found = bf.get.gene_programs(versioned), bf.get.gene_programs(plain)
    assert len(found) >= 2
    assert found["gene"].tolist() == [name.split(".")[0] for name in expected["gene"]]
    assert set(plain.var_names[plain.var["gene_program"].notna()]) == set(found["gene"])
    symbol = plain.var["symbol"]
    in_symbols = bf.get.gene_programs(plain, gene_symbols="symbol")
    assert in_symbols["gene"].tolist() == symbol[found["gene"]].tolist()
    label = bf.pl.gene_programs(plain, gene_symbols="symbol", show=False).get_yticklabels()[0].get_text()
    assert sorted(label.removeprefix("1: ").split(", ")) == sorted(in_symbols["gene"])


SPELLINGS = {
    "data": (lambda adata: adata.var_names, None),
    "version": (lambda adata: adata.var_names + ".9", None),
    "symbol": (lambda adata: adata.var["symbol"].astype(str), "symbol"),
}


@pytest.mark.fault(55, 68)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_gene_sets_in_every_spelling(plain, caplog, spelling):
    quiet(programs, plain)
    spelled, column = SPELLINGS[spelling]
    given = pd.Series(np.asarray(spelled(plain)), plain.var_names)
    genes = bf.get.gene_programs(plain, program="1")["gene"].tolist()
    sets = {"mine": [*given[genes], "absent"], "one": given[genes[0]]}  # a string is one gene
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bf.tl.program_enrichment(plain, sets, min_genes=1, gene_symbols=column)
    assert f"{len(genes)} of {len(genes) + 1} genes are modelled, 0 are measured but not modelled, 1 are" in caplog.text
    found = bf.get.program_enrichment(plain, program="1").set_index("gene_set")
    assert found["hits"].to_dict() == {"mine": len(genes), "one": 1}
    expected = plain.var["symbol"].astype(str) if spelling == "symbol" else pd.Series(plain.var_names, plain.var_names)
    assert found.loc["one", "genes"] == expected[genes[0]]
    assert set(found.loc["mine", "genes"].split(", ")) == set(expected[genes])
    listed = [*given[genes[:2]], "absent"]
    quiet(bf.tl.program_enrichment, plain, listed, min_genes=1, gene_symbols=column)
    assert bf.get.program_enrichment(plain)["hits"].sum() == 2
    with pytest.raises(DataError, match="No gene of the 1 gene sets is among the"):
        bf.tl.program_enrichment(plain, ["absent"])


@pytest.mark.fault(55, 68)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_key_drivers_and_known_targets_in_every_spelling(plain, spelling):
    quiet(bf.tl.grn, plain, regulators=[ID(0), ID(1)], min_count=1)
    spelled, column = SPELLINGS[spelling]
    given = pd.Series(np.asarray(spelled(plain)), plain.var_names)
    edges = pd.DataFrame({"source": [ID(0), ID(0), ID(1)], "target": [ID(7), ID(8), ID(9)]}).map(given.get)
    edges.loc[3] = ["absent", None]
    options = {"k": 39, "gene_symbols": column}
    bf.tl.regulators(plain, known=edges, gene_sets={"set": given[[ID(7), ID(8)]].tolist()}, **options)
    shown = plain.var["symbol"].astype(str) if spelling == "symbol" else pd.Series(plain.var_names, plain.var_names)
    known = bf.get.known_targets(plain).set_index("regulator")
    assert known["hits"].to_dict() == {shown[ID(0)]: 2, shown[ID(1)]: 1}
    assert set(known.loc[shown[ID(0)], "genes"].split(", ")) == {shown[ID(7)], shown[ID(8)]}
    assert set(bf.get.regulators(plain)["regulator"]) == {shown[ID(0)], shown[ID(1)]}
    in_symbols = bf.get.set_regulators(plain, gene_symbols="symbol")
    assert set(in_symbols["regulator"]) == set(plain.var["symbol"][[ID(0), ID(1)]])
    assert in_symbols["n_genes"].tolist() == [2, 2]


@pytest.mark.fault(55)
def test_gene_embeddings_have_the_names_of_the_data(versioned, plain):
    expected = bf.get.gene_embeddings(versioned)
    model = bf.get.model(versioned)
    assert expected.index.tolist() == versioned.var_names.tolist() == model.vocabulary.feature_names()
    for other in (plain, plain[:, :10].copy()):  # genes that were removed have the spelling of the others
        found = bf.get.gene_embeddings(other, model=model)
        assert found.index.tolist() == [ID(i) for i in range(N)]
        np.testing.assert_array_equal(found, expected)
    in_symbols = bf.get.gene_embeddings(plain, gene_symbols="symbol")
    assert in_symbols.index.tolist() == versioned.var["symbol"].tolist()
    assert bf.get.gene_embeddings(model=model).index.tolist() == versioned.var_names.tolist()


@pytest.mark.fault(68)
def test_regulators_that_are_not_modelled_are_counted(versioned, caplog):
    extra = ad.AnnData(np.ones((60, 5), np.float32), obs=versioned.obs[[]], var=pd.DataFrame(index=[*"ABCDE"]))
    wide = ad.concat([versioned, extra], axis=1, merge="first", uns_merge="first")
    known = wide.var_names[:3].tolist()
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bf.tl.grn(wide, regulators=[*known, *"ABCDE", *[f"absent{i}" for i in range(7)]])
    assert sorted(set(wide.uns["grn"]["edges"]["source"])) == sorted(known)
    (message,) = [record.getMessage() for record in caplog.records if "`regulators`" in record.getMessage()]
    assert "3 of 15 names can be used" in message
    assert "5 measured but not modelled" in message
    assert "7 absent from the data" in message
    with pytest.raises(DataError, match=r"0 of 1 name can be used. 1 measured but not modelled, such as \['A'\]"):
        bf.tl.grn(wide, regulators="A")


@pytest.mark.fault(68)
@pytest.mark.parametrize("regulators", [[f"G{i}" for i in range(20, 25)], "G22"], ids=["list", "string"])
@pytest.mark.parametrize("column", [None, "symbol"])
def test_the_suggested_fit_models_the_regulators_too(simulated, tiny_config, column, regulators):
    names = list(simulated.var_names)
    if column is not None:
        simulated.var[column] = names
        simulated.var_names = [ID(i) for i in range(N)]
    options = {"config": tiny_config, "train": bf.TrainConfig(max_steps=1)}
    bf.tl.fit(simulated, mask_var=np.arange(N) < 20, gene_symbols=column, **options)
    with pytest.raises(DataError, match="measured but not modelled") as raised:
        bf.tl.grn(simulated, regulators=regulators)
    call = str(raised.value).split("`")[3]
    assert call.startswith("bf.tl.fit(adata, ")
    given = {"bf": bf, "np": np, "adata": simulated, "regulators": regulators, "options": options}
    eval(call.replace("bf.tl.fit(adata, ", "bf.tl.fit(adata, **options, "), given)
    added = {regulators} if isinstance(regulators, str) else {*regulators}
    assert bf.get.model(simulated).vocabulary.feature_names() == [n for n in names if n in {*names[:20], *added}]


@pytest.mark.fault(62, 68)
def test_the_suggested_fit_trains_a_given_model_further(simulated, tiny_config):
    train = bf.TrainConfig(max_steps=1)
    model = bf.get.model(bf.tl.fit(simulated, mask_var=np.arange(N) < 20, config=tiny_config, train=train, copy=True))
    simulated.var_names = [f"m-{name}" for name in simulated.var_names]
    feature_map = {name: name[2:] for name in simulated.var_names}
    with pytest.raises(DataError, match="2 measured but not modelled") as raised:
        bf.tl.grn(simulated, regulators=["m-G22", "m-G31"], model=model, feature_map=feature_map)
    call = str(raised.value).split("`")[3]
    eval(call.replace("bf.tl.fit(adata, ", "bf.tl.fit(adata, train=train, "), {
        "bf": bf, "np": np, "adata": simulated, "model": model, "feature_map": feature_map, "train": train
    })  # fmt: skip
    found = bf.get.model(simulated)
    assert found.provenance["started_from"]["hash"] == model.hash
    assert found.vocabulary.feature_names() == [*model.vocabulary.feature_names(), "m-G22", "m-G31"]


NUMBERS = range(100, 100 + N)
INDEXES = {
    "integers": pd.RangeIndex(100, 100 + N),
    "objects": pd.Index(list(NUMBERS), dtype=object),
    "categories": pd.CategoricalIndex([str(i) for i in NUMBERS]),
    "pandas-strings": pd.Index([str(i) for i in NUMBERS], dtype="string"),
}


@pytest.fixture(scope="module")
def numbered_once(_simulated_once, tiny_config) -> ad.AnnData:
    """Cells whose genes have numbers as names, written as text, and all results."""
    adata = _simulated_once.copy()
    adata.var_names = [str(i) for i in NUMBERS]
    bf.tl.fit(adata, config=tiny_config, train=TRAIN)
    return everything(adata)


def everything(adata: ad.AnnData) -> ad.AnnData:
    """Call each verb that takes names of genes, with integers as names."""
    bf.tl.embed(adata)
    bf.tl.impute(adata, genes=[101, 103])
    bf.tl.grn(adata, regulators=[101, 102])
    programs(adata)
    bf.tl.regulators(adata, gene_sets=[101, 105], known=pd.DataFrame({"source": [101], "target": [107]}))
    bf.tl.program_enrichment(adata, {"odd": NUMBERS[1::2], "one": 101}, min_genes=1)
    return adata


@pytest.mark.fault(65)
@pytest.mark.parametrize("kind", INDEXES)
def test_names_that_are_no_text(numbered_once, tiny_config, kind):
    adata = ad.AnnData(numbered_once.X.copy(), obs=numbered_once.obs[["batch"]].copy())
    adata.var.index = INDEXES[kind]
    assert not bf.pp.check(adata).problems
    if kind in ("integers", "categories"):
        bf.tl.fit(adata, config=tiny_config, train=TRAIN)
        assert bf.get.model(adata).hash == bf.get.model(numbered_once).hash
    else:
        adata.uns["bioformer"] = numbered_once.uns["bioformer"]
    everything(adata)
    for slot, name in (("obsm", "X_bioformer"), ("layers", "imputed"), ("obsm", "gene_program_scores")):
        found, expected = (getattr(each, slot)[name] for each in (adata, numbered_once))
        np.testing.assert_array_equal(
            *(each.toarray() if sp.issparse(each) else np.asarray(each) for each in (found, expected))
        )
    np.testing.assert_array_equal(adata.varp["grn"].toarray(), numbered_once.varp["grn"].toarray())
    readers = ("grn", "grn_matrix", "gene_programs", "regulators", "set_regulators", "known_targets",
               "program_enrichment", "gene_embeddings")  # fmt: skip
    for name in readers:
        reader = getattr(bf.get, name)
        pd.testing.assert_frame_equal(reader(adata), reader(numbered_once))
    assert bf.get.imputed(adata, genes=103).var_names.tolist() == ["103"]
    assert len(bf.get.grn(adata)) > N
    assert set(bf.get.program_enrichment(adata)["gene_set"]) <= {"odd", "one"}


@pytest.mark.fault(55, 68)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_networks_are_read_in_every_spelling(plain, spelling):
    quiet(bf.tl.grn, plain, regulators=[ID(0), ID(1)], min_count=1)
    spelled, column = SPELLINGS[spelling]
    given = pd.Series(np.asarray(spelled(plain)), plain.var_names)
    shown = plain.var["symbol"].astype(str) if spelling == "symbol" else pd.Series(plain.var_names, plain.var_names)
    expected = bf.get.grn(plain)
    edges = bf.get.grn(plain, gene_symbols=column)
    assert edges["source"].tolist() == shown[expected["source"]].tolist()
    assert edges["target"].tolist() == shown[expected["target"]].tolist()
    matrix = bf.get.grn_matrix(plain, gene_symbols=column)
    assert matrix.columns.tolist() == [shown[name] for name in plain.var_names if name in (ID(0), ID(1))]
    assert matrix.loc[edges["target"][0], edges["source"][0]] == np.float32(edges["weight"][0])
    known = pd.DataFrame({end: given[expected[end][:2]].tolist() for end in ("source", "target")})
    known.loc[2] = [None, "x"]
    graph = bf.get.grn_graph(plain, regulators=given[ID(1)], known=known, gene_symbols=column)
    assert {source for source, _ in graph.edges} == {shown[ID(1)]}
    assert sum(each for *_, each in graph.edges(data="known")) == (edges["source"][:2] == shown[ID(1)]).sum()
    with pytest.warns(BioformersWarning, match=r"Not genes of the data: \['absent'\].*The others are shown"):
        ax = bf.pl.grn_network(plain, regulators=[given[ID(1)], "absent"], n_top=3, gene_symbols=column, show=False)
    assert ax.get_title() == f"3 strongest edges of {shown[ID(1)]}"
    targets = edges[edges["source"] == shown[ID(1)]]["target"]
    assert {text.get_text() for text in ax.texts} == {shown[ID(1)], *targets[:3]}
    (heat,) = bf.pl.attention_heatmap(plain, given[ID(1)], gene_symbols=column, show=False)
    assert heat.get_title() == f"targets of {shown[ID(1)]}"
    assert {label.get_text() for label in heat.get_yticklabels()} <= set(shown)
    with pytest.raises(DataError, match=r"not a gene of the data.*adata\.var\['symbol'\] has 1 of them"):
        bf.pl.attention_heatmap(plain, plain.var["symbol"].iloc[0], gene_symbols=None)


@pytest.mark.fault(55)
def test_the_column_of_the_call_is_that_of_the_tables(plain):
    quiet(bf.tl.grn, plain, regulators=[plain.var["symbol"][ID(0)]], gene_symbols="symbol", min_count=1)
    edges = bf.get.grn(plain)
    assert set(edges["source"]) == {plain.var["symbol"][ID(0)]}
    assert set(edges["target"]) <= set(plain.var["symbol"])
    assert bf.get.grn_graph(plain, regulators=ID(0)).number_of_edges() == len(edges)
    del plain.var["symbol"]
    assert set(bf.get.grn(plain)["source"]) == {ID(0)}


@pytest.fixture(scope="module")
def screened() -> ad.AnnData:
    """A screen whose genes have Ensembl ids with versions, with labels by symbol, and effects by other ids."""
    adata = bf.datasets.simulate(60, 20, n_regulators=4, perturbations=["TF1", "TF2"])
    adata.var["symbol"] = adata.var_names.tolist()
    adata.var_names = [f"{ID(i)}.1" for i in range(20)]
    task = bf.Perturbation(key="perturbation", control="control")
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
    bf.tl.fit(adata, gene_symbols="symbol", task=task, config=config, train=bf.TrainConfig(max_steps=1))
    return adata


@pytest.mark.fault(41, 55)
def test_perturbations_in_every_spelling(screened):
    adata = screened.copy()
    at = adata.var["symbol"].tolist().index("TF3")
    bf.tl.perturb(adata, "TF3")
    expected = bf.get.perturb(adata, perturbation="TF3")
    assert sorted(expected["gene"]) == sorted(adata.var["symbol"])
    for given in (f"{ID(at)}.1", ID(at), f"{ID(at)}.7"):
        bf.tl.perturb(adata, given)
        found = bf.get.perturb(adata, perturbation=given)
        pd.testing.assert_frame_equal(found, expected)
        assert bf.get.perturb(adata)["gene"].tolist() != ["TF3"]  # the perturbed gene itself does not count
        shown = bf.pl.perturbation(adata, np.linspace(-1, 1, 20), name=given, show=False)
        assert "(other genes; " in shown.get_title()
    with pytest.raises(DataError, match=r"'TF33'\] unknown.*Similar names: \['TF3'"):
        bf.tl.perturb(adata, "TF33")
