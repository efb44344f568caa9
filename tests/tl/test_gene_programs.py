"""Gene programs and their enrichment: results, storage, and errors."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.results._slots import params_from_json


@pytest.fixture(scope="module")
def _programs_once() -> ad.AnnData:
    adata = bf.datasets.simulate(400, 100, n_regulators=5, n_types=3, rng=2)
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
    train = bf.TrainConfig(max_steps=60, batch_size=32, n_masked=32)  # few steps, so many genes in each
    bf.tl.fit(adata, config=config, train=train, n_models=2)
    bf.tl.gene_programs(adata)
    return adata


@pytest.fixture
def adata(_programs_once) -> ad.AnnData:
    """Copy of 400 simulated cells with five regulators, an ensemble of two members, and gene programs."""
    return _programs_once.copy()


def shared_regulator(adata: ad.AnnData) -> np.ndarray:
    """(genes, genes), True if two genes have a common regulator whose weights have the same sign."""
    edges, names = adata.uns["grn_true"], list(adata.var_names)
    sign = np.zeros((adata.n_vars, 5))
    for source, target, weight in edges[["source", "target", "weight"]].itertuples(index=False):
        sign[names.index(target), int(source[2:]) - 1] = np.sign(weight)
    return (sign[:, None] * sign[None]).max(axis=2) > 0


@pytest.mark.parametrize("use", ["embedding", "attention"])
def test_genes_of_a_program_share_a_regulator(adata, use):
    bf.tl.gene_programs(adata, use=use)
    label = adata.var["gene_program"].cat.codes.to_numpy()
    shared, pairs = shared_regulator(adata), np.triu_indices(100, 1)

    def share(label):
        together = ((label[:, None] == label) & (label >= 0)[:, None])[pairs]
        return shared[pairs][together].mean()

    random = np.random.default_rng(0)
    chance = [share(random.permutation(label)) for _ in range(200)]
    assert share(label) > max(chance) + 0.1


def test_fields(adata):
    column, scores = adata.var["gene_program"], adata.obsm["gene_program_scores"]
    sizes = column.value_counts()
    assert list(column.cat.categories) == [str(i + 1) for i in range(len(sizes))]
    assert (np.diff(sizes[column.cat.categories]) <= 0).all()
    assert sizes.min() >= 5
    assert scores.shape == (400, len(sizes))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-4)
    params = params_from_json(adata.uns["gene_program"]["params"])
    assert params["model_hash"] == bf.get.model(adata).hash
    assert params["n_members"] == 2
    stability = adata.uns["gene_program"]["stability"]
    assert params["resolution"] == stability["resolution"][stability["ari"].idxmax()]


def test_read_back(adata):
    table, scores = bf.get.gene_programs(adata), bf.get.gene_program_scores(adata)
    column = adata.var["gene_program"]
    assert dict(zip(table["gene"], table["program"], strict=True)) == column.dropna().astype(str).to_dict()
    for _, part in table.groupby("program"):
        assert part["weight"].is_monotonic_decreasing
    assert table["support"].between(0, 1).all()
    second = bf.get.gene_programs(adata, program="2")
    assert set(second["gene"]) == set(column.index[column == "2"])
    x = adata.X.toarray()
    z = np.log1p(x / x.sum(axis=1, keepdims=True) * bf.get.model(adata).binnings["rna"].mean_depth)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    expected = z[:, (column == "2").to_numpy()].mean(axis=1)
    np.testing.assert_allclose(scores["2"], expected, atol=1e-5)
    assert list(scores.index) == list(adata.obs_names)
    left = bf.get.gene_programs(adata[:, 50:])
    assert set(left["gene"]) == set(column.index[50:]) & set(table["gene"])
    with pytest.raises(MissingKeyError, match=r"`program='99'` is not among.*\['1', '2'"):
        bf.get.gene_programs(adata, program="99")
    with pytest.raises(MissingKeyError, match=r"bf\.tl\.gene_programs"):
        bf.get.gene_programs(adata, key="other")


def test_programs_depend_neither_on_the_call_nor_on_the_order_of_the_genes(adata):
    again = bf.tl.gene_programs(adata, copy=True)
    pd.testing.assert_frame_equal(bf.get.gene_programs(again), bf.get.gene_programs(adata))
    assert np.array_equal(again.obsm["gene_program_scores"], adata.obsm["gene_program_scores"])
    permuted = adata[:, np.random.default_rng(0).permutation(100)].copy()
    bf.tl.gene_programs(permuted)
    assert permuted.var["gene_program"][adata.var_names].astype(object).equals(adata.var["gene_program"].astype(object))


def test_min_genes_and_resolution(adata):
    with pytest.warns(BioformersWarning, match="smaller `min_genes`"):  # members have no programs of this size
        bf.tl.gene_programs(adata, min_genes=12, resolution=2.0)
    assert adata.var["gene_program"].value_counts().min() >= 12
    coarse = adata.var["gene_program"].nunique()
    bf.tl.gene_programs(adata, min_genes=3, resolution=8.0)
    assert adata.var["gene_program"].nunique() > coarse


def test_no_program_at_all(adata):
    bf.tl.gene_programs(adata, min_genes=100, resolution=50.0)
    assert adata.var["gene_program"].isna().all()
    assert adata.obsm["gene_program_scores"].shape == (400, 0)
    assert bf.get.gene_programs(adata).empty


def test_genes_that_are_not_modelled_or_not_measured(adata):
    model = bf.get.model(adata)
    partial = adata[:, 10:].copy()
    more = ad.AnnData(np.ones((400, 2), np.float32), partial.obs, pd.DataFrame(index=["new1", "new2"]))
    wider = ad.concat([more, partial], axis=1)
    with pytest.warns(BioformersWarning, match="90 of the model's 100"):
        bf.tl.gene_programs(wider, model=model)
    assert wider.var["gene_program"][:2].isna().all()
    assert wider.var["gene_program"][2:].notna().any()
    assert set(bf.get.gene_programs(wider)["gene"]) <= set(partial.var_names)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(adata, tmp_path, kind):
    adata.var_names = [f"{name}/x" if name == "G3" else name for name in adata.var_names]
    model = bf.get.model(adata)
    with pytest.warns(BioformersWarning, match="99 of the model's 100"):
        bf.tl.gene_programs(adata, model=model, key_added="a/b")
    getattr(adata, f"write_{kind}")(tmp_path / "x")
    found = getattr(ad, f"read_{kind}")(tmp_path / "x")
    pd.testing.assert_frame_equal(bf.get.gene_programs(found, key="a/b"), bf.get.gene_programs(adata, key="a/b"))
    first, second = (bf.get.gene_program_scores(x, key="a/b") for x in (found, adata))
    assert np.array_equal(first, second)
    assert found.var["a%2Fb"].astype(object).equals(adata.var["a%2Fb"].astype(object))


@pytest.mark.fault(80)
def test_genes_that_few_cells_express_are_in_no_program(fitted):
    """Three genes that are expressed in 1, 2 and 3 cells: the first two are clustered only on request."""
    x = fitted.X.toarray()
    x[:, 5:8] = 0
    x[4, 5], x[[4, 7], 6], x[[4, 7, 9], 7] = 30, 30, 30
    fitted.X = x
    rare = list(fitted.var_names[5:8])
    kwargs = {"min_genes": 2, "n_neighbors": 39, "resolution": 1.0, "n_cells": None}
    bf.tl.gene_programs(fitted, **kwargs)
    assert not set(rare[:2]) & set(fitted.uns["gene_program"]["background"])
    assert rare[2] in fitted.uns["gene_program"]["background"]
    assert fitted.var["gene_program"][rare[:2]].isna().all()
    bf.tl.gene_programs(fitted, min_count=1, **kwargs)
    assert set(rare) <= set(fitted.uns["gene_program"]["background"])
    with pytest.raises(DataError, match=r"Of 40 modelled genes, none is expressed in at least 61 of 60 cells"):
        bf.tl.gene_programs(fitted, min_count=61)


@pytest.mark.fault(80)
def test_a_single_member_gives_no_support(fitted):
    bf.tl.gene_programs(fitted, min_genes=2)
    table = bf.get.gene_programs(fitted)
    assert len(table) and table["support"].isna().all() and table["weight"].notna().all()


def test_copy(fitted):
    copied = bf.tl.gene_programs(fitted, copy=True)
    assert "gene_program" in copied.var
    assert "gene_program" not in fitted.var
    assert set(fitted.obsm) == set()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        pytest.param({"use": "genes"}, ConfigError, r"`use` must be 'embedding' or .*found 'genes'", id="use"),
        pytest.param({"resolution": 0.0}, ConfigError, "`resolution` must be positive", id="resolution"),
        pytest.param({"resolution": np.inf}, ConfigError, "`resolution` must be positive", id="infinite"),
        pytest.param({"min_genes": 1}, ConfigError, "`min_genes` must be at least 2", id="min-genes"),
        pytest.param({"n_neighbors": 0}, ConfigError, "`n_neighbors` at least 1", id="neighbors"),
        pytest.param({"n_cells": 1}, ConfigError, "`n_cells` at least 2", id="cells"),
        pytest.param({"min_count": 0}, ConfigError, "`min_count` must be at least 1", id="count"),
        pytest.param({"key": "other"}, MissingKeyError, r"uns\['other'\].*bf\.tl\.fit", id="model"),
        pytest.param({"layer": "raw"}, MissingKeyError, r"layers\['raw'\]", id="layer"),
    ],
)
def test_wrong_arguments_write_nothing(fitted, kwargs, error, message):
    before = fitted.copy()
    with pytest.raises(error, match=message):
        bf.tl.gene_programs(fitted, **kwargs)
    assert set(fitted.uns) == set(before.uns)
    assert set(fitted.var) == set(before.var)


def test_one_cell_raises_an_error(fitted):
    with pytest.raises(DataError, match="at least 2 cells, found 1"):
        bf.tl.gene_programs(fitted[:1].copy())


def test_attention_of_a_model_without_it(simulated):
    config = bf.ModelConfig(width=16, n_heads=2, attention=False)
    bf.tl.fit(simulated, config=config, train=bf.TrainConfig(max_steps=1))
    with pytest.raises(ConfigError, match=r"without attention.*use='embedding'"):
        bf.tl.gene_programs(simulated, use="attention")


def test_programs_without_support_raise_a_warning():
    """The models are not trained, so their programs are random."""
    adata = bf.datasets.simulate(200, 600, rng=0)
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, svd_init=False)
    bf.tl.fit(adata, config=config, train=bf.TrainConfig(max_steps=0), n_models=3)
    with pytest.warns(BioformersWarning, match="support of all programs is 0"):
        bf.tl.gene_programs(adata)
    assert (bf.get.gene_programs(adata)["support"] == 0).all()


# enrichment


def test_programs_are_enriched_for_the_targets_of_a_regulator(adata):
    edges = adata.uns["grn_true"].copy()
    edges["source"] += np.where(edges["weight"] > 0, "+/CD45", "-/CD45")
    bf.tl.program_enrichment(adata, edges)
    table = bf.get.program_enrichment(adata)
    assert table["p"].is_monotonic_increasing
    assert table["p_adjusted"][0] < 0.01
    first = table.iloc[0]
    genes = set(bf.get.gene_programs(adata, program=first["program"])["gene"])
    wanted = set(edges.loc[edges["source"] == first["gene_set"], "target"])
    assert first["hits"] == len(genes & wanted)
    assert first["expected"] == pytest.approx(len(genes) * len(wanted) / 100)
    assert bf.get.program_enrichment(adata, program="1")["program"].eq("1").all()


def test_enrichment_of_all_types_of_gene_sets(adata):
    genes = bf.get.gene_programs(adata, program="1")["gene"].tolist()
    adata.var["mine"] = pd.Categorical(["yes" if name in genes else None for name in adata.var_names])
    tables = []
    for sets in (genes, {"genes": [*genes, "unknown"]}, pd.DataFrame({"source": "genes", "target": genes}), "mine"):
        bf.tl.program_enrichment(adata, sets)
        tables.append(bf.get.program_enrichment(adata).drop(columns="gene_set"))
        assert tables[-1]["hits"][0] == len(genes)
        pd.testing.assert_frame_equal(tables[-1], tables[0])


def test_enrichment_names_the_shared_genes_and_corrects_for_all_tests(adata, tmp_path):
    programs = bf.get.gene_programs(adata)
    first = programs.loc[programs["program"] == "1", "gene"].tolist()
    in_none = [gene for gene in adata.var_names if gene not in set(programs["gene"])]
    sets = {"first": first[:5], "in no program": in_none[:5]}
    bf.tl.program_enrichment(adata, sets)
    (row,) = bf.get.program_enrichment(adata).to_dict("records")
    assert (row["program"], row["gene_set"], row["genes"]) == ("1", "first", ", ".join(sorted(first[:5])))
    n_tests = 2 * programs["program"].nunique()
    assert row["p_adjusted"] == pytest.approx(row["p"] * n_tests)
    bf.tl.program_enrichment(adata, {"in no program": in_none[:5]})
    adata.write_h5ad(tmp_path / "none.h5ad")
    assert bf.get.program_enrichment(ad.read_h5ad(tmp_path / "none.h5ad")).empty


def test_enrichment_tests_only_sets_of_the_right_size(adata):
    sets = {"small": ["G1", "G2"], "right": [f"G{i}" for i in range(1, 8)], "large": [f"G{i}" for i in range(1, 60)]}
    bf.tl.program_enrichment(adata, sets, min_genes=3, max_genes=50)
    assert set(bf.get.program_enrichment(adata)["gene_set"]) == {"right"}
    with pytest.raises(DataError, match="No gene set has 90 to 95 modelled genes; the 3 sets have 2 to 59"):
        bf.tl.program_enrichment(adata, sets, min_genes=90, max_genes=95)


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        pytest.param(["tf1"], DataError, r"among the 100 modelled genes.*'tf1' \(near 'tf1': TF1", id="list"),
        pytest.param({"a": ["G1000"]}, DataError, r"No gene of the 1 gene sets.*near 'G1000': G", id="dict"),
        pytest.param({}, DataError, "`gene_sets` is empty", id="empty"),
        pytest.param("nothing", DataError, r"adata\.var\['nothing'\] has no value in any gene", id="empty column"),
        pytest.param(
            pd.DataFrame({"term": ["a"]}), DataError, r"no column 'source', found \['term'\]\. Rename", id="table"
        ),
        pytest.param("celltype", MissingKeyError, r"adata\.var\['celltype'\]", id="column"),
        pytest.param(3, ConfigError, "`gene_sets` must be a string.*found 3 .int.", id="number"),
    ],
)
def test_wrong_gene_sets(adata, sets, error, message):
    adata.var["nothing"] = pd.Categorical([None] * adata.n_vars)
    with pytest.raises(error, match=message):
        bf.tl.program_enrichment(adata, sets, min_genes=1)
    assert "program_enrichment" not in adata.uns


def test_enrichment_without_programs(fitted):
    with pytest.raises(MissingKeyError, match=r"bf\.tl\.gene_programs"):
        bf.tl.program_enrichment(fitted, ["TF1"])
