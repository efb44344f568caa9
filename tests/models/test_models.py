"""The model that comes with the package."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import scbioformers as bf
from scbioformers.core import BioformersWarning
from scbioformers.models._blood import FOLDER


@pytest.fixture(scope="module")
def model() -> bf.BioFormer:
    return bf.models.blood()


def test_its_files_are_small_and_name_their_sources():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    card = " ".join((FOLDER / "README.md").read_text().split())
    for name in ("hao_pbmc", "kotliarov_pbmc", "malt_lymphoma", "pisces_pbmc", "Zheng", "GPL", "no atlas"):
        assert name in card
    assert "/" + "work" not in json.dumps(json.loads((FOLDER / "config.json").read_text()))  # no path of a machine


def test_the_labelled_cells_have_two_fifths_of_the_counts_of_its_genes(model):
    known = np.isin(model.vocabulary.feature_names(), bf.datasets.pbmc68k().var_names)
    assert model.depth_share[known].sum() >= 0.4 * model.depth_share.sum()


def test_it_embeds_cells_by_type_without_a_fit(model):
    adata = bf.datasets.pbmc68k()
    with pytest.warns(BioformersWarning, match="753 of the model's 2420 genes|the depth expected from the genes"):
        bf.tl.embed(adata, model=model)
    types, half = adata.obs["bulk_labels"].astype(str), np.arange(adata.n_obs) % 2 == 0
    neighbours = KNeighborsClassifier(10).fit(adata.obsm["X_bioformer"][half], types[half])
    assert neighbours.score(adata.obsm["X_bioformer"][~half], types[~half]) > 0.65


def test_it_labels_cells_without_a_fit(model):
    adata = bf.datasets.pbmc68k()
    with pytest.warns(BioformersWarning, match="753 of the model's 2420 genes|the depth expected from the genes"):
        bf.tl.annotate(adata, "cell_type", model=model)
    truth, found = (adata.obs[name].astype(str) for name in ("bulk_labels", "bioformer_cell_type"))
    assert f1_score(truth, found, average="macro", labels=sorted(set(truth))) > 0.6
    assert set(found) <= {*truth, "unknown"}
