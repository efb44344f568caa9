import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from benchmarks._biostate_methods import (
    PREDICTORS,
    correlations,
    fit_both,
    predict_best,
    predict_ours,
    ridge_candidates,
)
from benchmarks._biostate_samples import Samples, centred_log_ratio, gate, leave_out, split

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mudata")


@pytest.fixture(scope="module")
def samples() -> Samples:
    mdata = bf.datasets.simulate(160, 90, n_regulators=5, n_types=3, n_proteins=8, rng=1)
    rna = mdata["rna"][:, np.asarray(mdata["rna"].X.sum(axis=0)).ravel() > 0].copy()
    prot = mdata["prot"].copy()
    prot.var_names = prot.var_names.str.replace("isotype_", "control_")
    rna.var["highly_variable"] = True
    return Samples(rna, prot, rna.obs["cell_type"].to_numpy(str))


def test_gates():
    counts = pd.DataFrame(
        [[0, 0, 0, 90], [310, 310, 0, 0], [310, 0, 310, 0], [310, 310, 310, 0], [310, 310, 0, 90], [300, 310, 0, 0]],
        columns=["CD3", "CD4", "CD8a", "CD19"],
    )
    assert gate(counts).tolist() == ["B", "CD4 T", "CD8 T", "", "", ""]


def test_centred_log_ratio():
    values = centred_log_ratio(np.expm1([[1.0, 3.0], [2.0, 2.0]]))
    np.testing.assert_allclose(values, [[-1, 1], [0, 0]], atol=1e-12)


def test_a_constant_prediction_has_no_correlation():
    true = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    predicted = np.array([[5.0, 1.0], [5.0, 3.0], [5.0, 2.0]])
    np.testing.assert_allclose(correlations(predicted, true), [0, 1])


def test_what_is_left_of_samples(samples):
    pattern = leave_out(samples, seed=0)
    assert {name: int((pattern == name).sum()) for name in ("both", "RNA", "proteins")} == {
        "both": 112,
        "RNA": 32,
        "proteins": 16,
    }
    assert (leave_out(samples, seed=1) != pattern).any()


@pytest.mark.parametrize("wanted", ["prot", "rna"])
def test_no_method_reads_what_it_predicts(samples, wanted):
    """Other values of the wanted modality in the test samples change no prediction."""
    training, test = split(samples, seed=0)
    other = test.take(np.ones(len(test.labels), bool))
    changed = getattr(other, wanted)
    changed.X = changed.X[:, ::-1] * 3
    fitted = fit_both(training, 0, max_steps=2)
    ours = [predict_ours(training, each, wanted, 0, fitted=fitted) for each in (test, other)]
    np.testing.assert_array_equal(ours[0]["mean"], ours[1]["mean"])
    assert (ours[0]["0.1"] <= ours[0]["0.9"]).all()
    for name, predict in PREDICTORS.items():
        if name == "totalvi":  # scvi-tools is not installed with the tests
            continue
        found = [predict(training, each, wanted, 0)["mean"] for each in (test, other)]
        np.testing.assert_array_equal(found[0], found[1])
        assert found[0].shape == ours[0]["mean"].shape


def test_ridge_finds_proteins_that_are_sums_of_genes(samples):
    training, test = split(samples, seed=0)
    depth = float(training.rna.X.sum(axis=1).mean())
    for each in (training, test):
        own = each.profiles(depth).toarray()
        each.prot.X = np.stack([own[:, i] - own[:, i + 1] for i in range(each.prot.n_vars)], axis=1)
    predicted = predict_best(training, test, "prot", 0, candidates=ridge_candidates)["mean"]
    assert correlations(predicted, test.proteins()).min() > 0.95
