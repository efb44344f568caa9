"""The headings of docs/faq.md that quote a message are parts of messages that users get."""

import re
from pathlib import Path

import numpy as np
import pytest
import scanpy as sc

import scbioformers as bf

PAGE = (Path(__file__).parents[1] / "docs" / "faq.md").read_text().split("## Troubleshooting by message")[1]
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
NOT_A_MESSAGE = {  # what users see, in other words
    "Memory runs out", "The loss is not finite", "The UMAP shows batches",
}  # fmt: skip
TRAIN = bf.TrainConfig(max_steps=1)


@pytest.fixture(scope="module")
def fitted():
    adata = bf.datasets.simulate(200, 40, n_types=2)
    bf.tl.fit(adata, config="no_attention", train=TRAIN)
    return adata


def without_model(fitted):
    adata = fitted.copy()
    del adata.uns["bioformer"]
    return adata


def changed(fitted, change):
    adata = without_model(fitted)
    change(adata)
    return adata


def logs(adata):
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)


def with_nan(adata):
    adata.X = np.full(adata.shape, np.nan)


def twice(adata):
    adata.var_names = [adata.var_names[0], *adata.var_names[:-1]]


def lacking(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", None)


def numbers(adata):
    adata.obs["number"] = np.arange(adata.n_obs, dtype=float)


def labelled(fitted):
    return bf.tl.annotate(fitted, "cell_type", copy=True)


def other_technique(adata):
    adata.X = adata.X[:, ::-1]


def nothing(adata):
    adata.layers["counts"], adata.X = adata.X, None


CASES = {
    "expected raw counts": lambda a: bf.tl.fit(changed(a, logs)),
    "NaN or infinite values": lambda a: bf.tl.fit(changed(a, with_nan)),
    "gene names occur more than once": lambda a: bf.tl.fit(changed(a, twice)),
    "Did not find adata.uns['bioformer']": lambda a: bf.tl.embed(without_model(a)),
    "of the model's 40 genes": lambda a: bf.tl.embed(without_model(a)[:, :3].copy(), model=a),
    "has no value in": lambda a: bf.tl.fit(changed(a, lacking), batch_key="donor"),
    "is not available; use": lambda a: bf.tl.embed(a, device="cuda:99"),
    "allowed in adata.uns": lambda a: bf.tl.fit(
        without_model(a), config=bf.ModelConfig(width=1024, n_layers=1), train=bf.TrainConfig(max_steps=0)
    ),
    "which is no phenotype of the model": lambda a: bf.tl.counterfactual(a, {"condition": "stim"}),
    "fitted without perturbations": lambda a: bf.tl.perturb(a, "TF1"),
    "fitted without attention": lambda a: bf.tl.grn(a, method="attention"),
    "the model has no head for it": lambda a: bf.tl.annotate(a, "celltype"),
    "differ from the labelled cells as a whole": lambda a: bf.tl.annotate(
        changed(a, other_technique), "cell_type", model=labelled(a)
    ),
    "different numbers": lambda a: bf.tl.annotate(changed(a, numbers), "number", model=a),
    "adata.raw is never used silently": lambda a: bf.tl.fit(changed(a, nothing)),
}


def test_every_heading_has_a_case():
    assert set(HEADINGS) == set(CASES) | NOT_A_MESSAGE


@pytest.mark.parametrize("heading", CASES)
def test_the_heading_is_part_of_the_message(heading, fitted):
    with pytest.raises((bf.core.BioformersError, bf.core.BioformersWarning), match=re.escape(heading)):
        CASES[heading](fitted)
