"""``bf.tl.fit(external_key=)``: categories of features as external tokens."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import scbioformers as bf
from scbioformers.core import SPECIALS, BioformersWarning, ConfigError, MissingKeyError, ModelFormatError
from scbioformers.model import predict_masked
from scbioformers.results import open_query

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:Found .* of the model's:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:.*other genes than:scbioformers.core.BioformersWarning"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=6, batch_size=16)


@pytest.fixture(scope="module")
def _cells():
    adata = bf.datasets.simulate(60, 40, n_regulators=5, n_types=3)
    adata.var["kind"] = pd.Series(["factor", None, "receptor", None] * 10, adata.var_names)
    return adata


@pytest.fixture
def cells(_cells):
    return _cells.copy()


@pytest.fixture(scope="module")
def fitted(_cells):
    """A model with two tokens. Nobody may change it."""
    return fit(_cells, external_key="kind")


def fit(adata, train=TRAIN, **options):
    if "model" not in options:
        options.setdefault("config", CONFIG)
    return bf.get.model(bf.tl.fit(adata, train=train, copy=True, **options))


def test_tokens_are_trained_and_features_without_one_stay_as_they_are(fitted, cells):
    table = fitted.members[0].external.weight
    start = fit(cells, replace(TRAIN, max_steps=0), external_key="kind").members[0].external.weight
    assert fitted.external.categories == ("kind=factor", "kind=receptor")
    np.testing.assert_array_equal(fitted.external.codes, [1, 0, 2, 0] * 10)
    assert not table[0].any()
    assert not start[0].any()
    assert (start[1:] != 0).all()
    assert ((table - start)[1:].abs().amax(dim=1) > 1e-3).all()


def test_the_token_of_a_feature_is_the_sum_of_its_embeddings(fitted):
    network = fitted.members[0]
    ids = torch.tensor([[0, 1, 2], [3, 4, 40]])  # padding; genes 0 and 1; genes 2, 3 and 39
    expected = network.feature.weight[ids].clone()
    expected[0, 1] += network.external.weight[1]
    expected[1, 0] += network.external.weight[2]
    torch.testing.assert_close(network.features(ids), expected, rtol=0, atol=0)


def test_visible_and_masked_tokens_have_it(cells):
    """Without a bag, the model is one whose feature embeddings are the sums."""
    config = replace(CONFIG, bag=False, svd_init=False)
    model, plain = fit(cells, config=config, external_key="kind"), fit(cells, config=config)
    network, summed = model.members[0], plain.members[0]
    summed.load_state_dict({name: x for name, x in network.state_dict().items() if not name.startswith("external")})
    with torch.no_grad():
        summed.feature.weight[len(SPECIALS) :] += network.external.weight[torch.from_numpy(model.external.codes)]
    block = open_query(cells, model).source.read(0, 60)
    mask = csr_matrix(np.tile(np.arange(40) % 3 == 0, (60, 1)))
    (_, found), (_, expected) = (next(iter(predict_masked(each, block, mask, 64))) for each in (model, plain))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_a_column_nothing_changes(cells):
    """The bytes of a model without external tokens name none, and its schema is the former one."""
    model = fit(cells)
    assert model.external is None
    documents = model._documents()
    assert documents["config"]["schema"] == 5
    assert "external" not in documents["config"]
    assert not [name for name in model._tensors() if "external" in name]


def test_the_other_weights_start_as_without(cells):
    zero = replace(TRAIN, max_steps=0)
    without, with_tokens = (fit(cells, zero, **options).members[0] for options in ({}, {"external_key": "kind"}))
    for name, value in without.state_dict().items():
        if name != "temperature":
            torch.testing.assert_close(with_tokens.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_round_trips(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    for read in (bf.BioFormer.load(tmp_path / "model"), bf.BioFormer.from_bytes(fitted.to_bytes())):
        assert read.hash == fitted.hash
        assert read.external.categories == fitted.external.categories
        np.testing.assert_array_equal(read.external.codes, fitted.external.codes)
    assert "| external tokens | kind=factor, kind=receptor |" in (tmp_path / "model" / "README.md").read_text()


def test_damaged_codes_are_refused(fitted):
    tensors, documents = fitted._tensors(), fitted._documents()
    documents["config"]["external"]["categories"] = ["kind=factor"]
    with pytest.raises(ModelFormatError):
        bf.BioFormer._build(tensors, documents)
    documents["config"]["external"]["categories"] = ["kind=factor", "kind=receptor"]
    tensors["members.0.external_code"] = tensors["members.0.external_code"] + 1
    with pytest.raises(ModelFormatError, match="Codes of external tokens must be from 0 to 2"):
        bf.BioFormer._build(tensors, documents)


def test_a_query_needs_no_column(fitted, cells):
    expected = bf.tl.embed(cells, model=fitted, copy=True).obsm["X_bioformer"]
    shuffled = cells[:, ::-1].copy()
    del shuffled.var["kind"]
    np.testing.assert_allclose(bf.tl.embed(shuffled, model=fitted, copy=True).obsm["X_bioformer"], expected, atol=1e-6)


def test_a_perturbed_gene_that_is_not_measured_has_none(fitted):
    """Its id is after those of the model."""
    network = fitted.members[0]
    longer = torch.cat([network.feature.weight, torch.ones(2, 16)])
    ids = torch.tensor([40, 41, 42])
    found = torch.func.functional_call(_Features(network), {"network.feature.weight": longer}, (ids,))
    torch.testing.assert_close(found[1:], torch.ones(2, 16), rtol=0, atol=0)


class _Features(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, ids):
        return self.network.features(ids)


def test_frozen_embeddings_freeze_the_tokens(cells):
    train = replace(TRAIN, freeze=("embeddings",))
    frozen = fit(cells, train, external_key="kind").members[0].external.weight
    start = fit(cells, replace(TRAIN, max_steps=0), external_key="kind").members[0].external.weight
    torch.testing.assert_close(frozen, start, rtol=0, atol=0)


# --- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(_cells):
    return fit(_cells[:, :30].copy(), external_key="kind")


ZERO = bf.TrainConfig(max_steps=0)


def test_new_genes_get_their_category_and_the_known_keep_theirs(start, cells):
    cells.var["kind"] = ["receptor"] * 30 + ["factor", None] * 5  # of known genes it is not read
    model = fit(cells, ZERO, model=start, mask_var=None, external_key="kind")
    np.testing.assert_array_equal(model.external.codes, [*start.external.codes, *[1, 0] * 5])
    torch.testing.assert_close(model.members[0].external_code[1:].long().numpy(), model.external.codes)
    torch.testing.assert_close(model.members[0].external.weight, start.members[0].external.weight)


def test_without_the_column_new_genes_have_none(start, cells):
    model = fit(cells, ZERO, model=start, mask_var=None)
    np.testing.assert_array_equal(model.external.codes, [*start.external.codes, *[0] * 10])
    known = cells[:, :30].copy()
    assert fit(known, ZERO, model=start).hash == start.hash


def test_further_training_trains_the_tokens(start, cells):
    model = fit(
        cells, replace(bf.TrainConfig.fine_tuning(), max_steps=4, validation_fraction=0.0), model=start, mask_var=None
    )
    moved = (model.members[0].external.weight - start.members[0].external.weight).abs().amax(dim=1)
    assert moved[0] == 0
    assert (moved[1:] > 0).all()


@pytest.mark.fault("external-unseen")
def test_a_new_category_of_new_genes(start, cells):
    cells.var["kind"] = ["receptor"] * 35 + ["enzyme"] * 5
    with pytest.warns(BioformersWarning, match=r"has not seen the external tokens \['kind=enzyme'\]"):
        model = fit(cells, ZERO, model=start, mask_var=None, external_key="kind")
    np.testing.assert_array_equal(model.external.codes[30:], [2] * 5 + [0] * 5)


@pytest.mark.fault("external-model")
def test_a_model_without_tokens(cells):
    with pytest.raises(ConfigError, match=r"`external_key` is 'kind', and the model was fitted without external"):
        fit(cells, ZERO, model=fit(cells[:, :30].copy()), external_key="kind")


# --- several modalities --------------------------------------------------------------------------------------------


@pytest.fixture
def mdata():
    mdata = bf.datasets.simulate(60, 40, n_regulators=5, n_types=3, n_proteins=6)
    mdata["rna"].var["kind"] = ["factor", None] * 20
    return mdata


def test_of_one_modality(mdata, tmp_path):
    bf.tl.fit(mdata, config=CONFIG, train=TRAIN, external_key={"rna": "kind"})
    model = bf.get.model(mdata)
    n_proteins = mdata["prot"].n_vars
    np.testing.assert_array_equal(model.external.codes, [*[1, 0] * 20, *[0] * n_proteins])
    assert bf.get.params(mdata)["modalities"]["rna"]["external_key"] == "kind"
    network = model.members[0]
    ids = torch.tensor([1, 2, 41])
    expected = network.feature.weight[ids] + network.modality.weight[[0, 0, 1]]
    expected[0] += network.external.weight[1]
    torch.testing.assert_close(network.features(ids), expected)
    model.save(tmp_path / "model")
    assert bf.BioFormer.load(tmp_path / "model").hash == model.hash
    bf.tl.embed(mdata)
    bf.tl.impute(mdata)
    assert np.isfinite(mdata.obsm["imputed_prot"]).all().all()


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("external-missing")
def test_a_missing_column_is_named_before_any_work(cells, mdata):
    with pytest.raises(MissingKeyError, match=r"Did not find adata.var\['tf'\]"):
        fit(cells, external_key="tf")
    assert "bioformer" not in cells.uns
    with pytest.raises(MissingKeyError, match=r"Did not find adata.var\['tf'\]"):
        bf.tl.fit(mdata, config=CONFIG, train=TRAIN, external_key={"prot": "tf"})


@pytest.mark.fault("external-type")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(["kind"], r"`external_key` must be .*found \['kind'\] \(list\)", id="list"),
        pytest.param(True, r"`external_key` must be .*found True", id="bool"),
        pytest.param({"rna": "kind"}, "`external_key` is a dict of modalities, found with an AnnData", id="dict"),
    ],
)
def test_a_wrong_type(cells, value, message):
    with pytest.raises(ConfigError, match=message):
        fit(cells, external_key=value)


@pytest.mark.fault("external-type")
def test_a_single_column_of_several_modalities(mdata):
    with pytest.raises(ConfigError, match=r"pass a dict such as `external_key=\{'rna': ...\}`"):
        bf.tl.fit(mdata, config=CONFIG, train=TRAIN, external_key="kind")


def test_a_checkpoint_of_other_tokens_is_not_resumed(cells, tmp_path):
    train = replace(TRAIN, checkpoint_dir=str(tmp_path / "checkpoint"))
    fit(cells, train, external_key="kind")
    cells.var["kind"] = ["receptor", "factor"] * 20
    with pytest.raises(ConfigError, match="external"):
        fit(cells, train, external_key="kind")
