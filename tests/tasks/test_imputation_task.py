"""What is masked of each cell, what is counted of its predictions, and that no result depends on how cells are cut."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import ConfigError
from scbioformers.data import AnnDataSource
from scbioformers.tasks import Evidence, check_request, folds, impute_blocks, positions
from scbioformers.tasks import _imputation as imputation


@pytest.fixture
def model(fitted):
    return bf.get.model(fitted)


@pytest.fixture
def fitted_quantiles(simulated, tiny_config):
    """A model with five quantile bins."""
    binning, train = bf.Binning("quantile", n_bins=5), bf.TrainConfig(max_steps=0)
    return bf.get.model(bf.tl.fit(simulated, binning=binning, config=tiny_config, train=train, copy=True))


# plans


def passes(plan, block):
    return [each.toarray() for each in plan(block)]


@pytest.mark.parametrize("n_features", [60, 61, 5, 1])
@pytest.mark.parametrize("n_folds", [1, 2, 7])
def test_folds_ask_for_each_gene_once_in_parts_of_equal_size(n_features, n_folds, make_block):
    block = make_block(n_features=n_features)
    found = passes(folds(n_features, n_folds), block)
    assert len(found) == min(n_folds, n_features)
    assert all(each.shape == (12, n_features) and each.dtype == bool for each in found)
    assert np.array_equal(sum(each.astype(int) for each in found), np.ones((12, n_features)))
    sizes = [each[0].sum() for each in found]
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_the_same_for_all_cells_and_blocks(make_block):
    plan = folds(60, 7)
    first = passes(plan, make_block())
    assert all((each == each[0]).all() for each in first)
    second = passes(plan, make_block(n_cells=3, seed=5))
    assert all(np.array_equal(a[:3], b) for a, b in zip(first, second, strict=True))


def test_folds_are_random(make_block):
    """Neighbours in the matrix, often of one family, are not all masked together or all apart."""
    fold = np.argmax([each[0] for each in passes(folds(700, 7), make_block(n_cells=1, n_features=700))], axis=0)
    assert 0.07 < (fold[1:] == fold[:-1]).mean() < 0.22  # 1/7 expected
    assert np.bincount(fold[:350], minlength=7).min() > 20


def test_folds_of_some_genes_are_parts_of_the_folds_of_all(make_block):
    block, some = make_block(), np.array([3, 50, 7, 8, 59])
    whole, found = passes(folds(60, 7), block), passes(folds(60, 7, some), block)
    assert np.array_equal(np.flatnonzero(sum(each[0].astype(int) for each in found)), np.sort(some))
    for each in found:
        assert sum(not (each & ~other).any() for other in whole) == 1


def test_folds_of_no_genes(make_block):
    assert passes(folds(60, 7, np.zeros(0, np.int64)), make_block()) == []


def test_positions_are_those_of_the_mask_at_the_rows_of_the_block(simulated):
    mask = sp.random(60, 40, 0.2, format="csr", random_state=0).astype(bool)
    plan, blocks = positions(mask), list(AnnDataSource(simulated).blocks(17))
    assert len(blocks) == 4
    parts = [passes(plan, block) for block in blocks]
    assert [len(part) for part in parts] == [1, 1, 1, 1]
    assert np.array_equal(np.vstack([part[0] for part in parts]), mask.toarray())


# evidence


def slow_evidence(batches, n_values):
    joint = np.zeros((n_values, n_values))
    predicted, observed, count, nll = np.zeros(20), np.zeros(20), np.zeros(20), 0.0
    for batch, probabilities in batches:
        for target, p in zip(batch.target_bins.flatten().tolist(), probabilities.reshape(-1, n_values), strict=True):
            if target < 0:
                continue
            p = p.astype(float)
            joint[target] += p
            at = min(int((1 - p[0]) * 20), 19)
            predicted[at] += 1 - p[0]
            observed[at] += target > 0
            count[at] += 1
            nll -= np.log2(p[target])
    return {"joint": joint, "predicted": predicted, "observed": observed, "count": count, "nll": nll}


def test_evidence_is_a_sum_over_the_masked_values(make_batch):
    random, evidence, batches = np.random.default_rng(0), Evidence(np.zeros((12, 12))), []
    for seed in range(3):
        batch = make_batch(n_masked=6, seed=seed)
        probabilities = random.dirichlet(np.full(12, 0.4), size=batch.target_bins.shape) + 1e-4
        probabilities[0, :2] = [np.eye(12)[0] * 0.98 + 1e-3, np.eye(12)[5] * 0.98 + 1e-3]
        batches.append((batch, probabilities.astype(np.float32)))
        evidence.add(*batches[-1])
    expected = slow_evidence(batches, 12)
    assert 0 < expected["count"].sum() < sum(batch.target_bins.numel() for batch, _ in batches)  # without the padding
    for name in ("joint", "predicted", "observed", "count"):
        np.testing.assert_allclose(getattr(evidence, name), expected[name], rtol=1e-9, err_msg=name)
    assert evidence.nll_bits == pytest.approx(expected["nll"])
    stored = evidence.to_dict()
    assert stored["nll_bits"] == pytest.approx(expected["nll"] / expected["count"].sum())
    assert all(isinstance(each, np.ndarray) for each in stored.values())


def test_what_was_held_impossible_costs_a_finite_number_of_bits(make_batch):
    batch, evidence = make_batch(), Evidence(np.zeros((12, 12)))
    evidence.add(batch, np.zeros((*batch.target_bins.shape, 12), np.float32))
    assert np.isfinite(evidence.nll_bits)
    assert evidence.count[-1] == evidence.count.sum()  # expressed for certain: in the last class, not beyond


def test_with_quantile_bins_the_calibration_is_that_of_the_upper_half(fitted_quantiles):
    """Five bins and the zero: the probability of bins 3, 4 and 5, by hand."""
    evidence = Evidence.empty(fitted_quantiles)
    p = np.array([[[0, 0.12, 0.2, 0.3, 0.38, 0], [0.5, 0.5, 0, 0, 0, 0], [0, 0.2, 0.57, 0.1, 0.13, 0]]], np.float32)
    evidence.add_values(np.array([0]), np.array([[3, 1, 4]]), p)
    found = np.flatnonzero(evidence.count)
    np.testing.assert_array_equal(found, [0, 4, 13])
    np.testing.assert_allclose(evidence.predicted[found], [0, 0.23, 0.68], atol=1e-6)
    np.testing.assert_array_equal(evidence.observed[found], [0, 1, 1])
    assert evidence.to_dict()["threshold"] == 2


def test_no_evidence():
    stored = Evidence(np.zeros((12, 12))).to_dict()
    assert stored["nll_bits"] == 0
    assert not stored["count"].any()


# predictions


def predict(model, adata, plan, **kwargs):
    evidence = Evidence(np.zeros((model.binnings["rna"].n_values,) * 2))
    kwargs = {"scale": "counts", "std": True, "quantiles": (0.5,), "evidence": evidence} | kwargs
    blocks = list(impute_blocks(model, AnnDataSource(adata), plan, **kwargs))
    parts = [block.values for block in blocks]
    starts = [block.cells.start for block in blocks]
    assert starts == np.cumsum([0, *(len(part["mean"]) for part in parts[:-1])]).tolist()
    return {name: np.vstack([part[name] for part in parts]) for name in parts[0]}, evidence


@pytest.mark.parametrize("masked", [False, True])
def test_results_depend_neither_on_batches_nor_on_chunks_nor_on_the_order_of_cells(
    simulated, model, masked, monkeypatch
):
    random = np.random.default_rng(0)
    mask, order = random.random((60, 40)) < 0.3, random.permutation(60)

    def plan(rows=slice(None)):
        return positions(sp.csr_matrix(mask[rows])) if masked else folds(40, 7)

    expected, evidence = predict(model, simulated, plan())
    assert set(expected) == {"mean", "std", "0.5"}
    assert all(np.array_equal(np.isnan(each), ~mask & masked) for each in expected.values())
    runs = [
        (predict(model, simulated, plan(), batch_size=1), slice(None)),
        (predict(model, simulated, plan(), batch_size=7), slice(None)),
        (predict(model, simulated[order].copy(), plan(order)), order),
    ]
    monkeypatch.setattr(imputation, "BLOCK_CELLS", 17)
    runs.append((predict(model, simulated, plan(), batch_size=9), slice(None)))
    for (found, counted), rows in runs:
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name][rows], rtol=1e-5, atol=1e-5, err_msg=name)
        for name, values in counted.to_dict().items():
            np.testing.assert_allclose(values, evidence.to_dict()[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_evidence_is_of_every_measured_value(simulated, model):
    _, evidence = predict(model, simulated, folds(40, 7))
    assert evidence.count.sum() == 60 * 40
    assert evidence.observed.sum() == simulated.X.nnz
    np.testing.assert_allclose(evidence.joint.sum(), 60 * 40, rtol=1e-5)
    np.testing.assert_allclose(evidence.joint[0].sum(), 60 * 40 - simulated.X.nnz, rtol=1e-5)


def test_each_fold_is_predicted_from_the_others(simulated, model):
    """The pass of one fold gives what all passes together give for it."""
    whole, _ = predict(model, simulated, folds(40, 7))
    fold = np.flatnonzero(next(folds(40, 7)(AnnDataSource(simulated).read(0, 60)))[0].toarray().ravel())
    alone, _ = predict(model, simulated, folds(40, 7, fold))
    assert np.array_equal(alone["mean"][:, fold], whole["mean"][:, fold])
    assert np.isnan(np.delete(alone["mean"], fold, axis=1)).all()


def test_nothing_but_what_is_asked_for_is_decoded(simulated, model):
    found, _ = predict(model, simulated, folds(40, 7), std=False, quantiles=(), evidence=None)
    assert list(found) == ["mean"]


def test_empty_cells_are_read(simulated, model):
    x = simulated.X.toarray()
    x[[0, 59]] = 0
    found, _ = predict(model, ad.AnnData(x), folds(40, 7))
    assert all(np.isfinite(each).all() for each in found.values())
    np.testing.assert_allclose(found["mean"][0], found["mean"][59], rtol=0, atol=1e-6)


def test_progress_bar(simulated, model, capfd):
    predict(model, simulated, folds(40, 7))
    assert capfd.readouterr() == ("", "")
    predict(model, simulated, folds(40, 7), progress_bar=True)
    assert "60/60" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "tpm"}, r"`output` must be one of \('counts', 'log1p', 'bins', 'values'\), found 'tpm'"),
        ({"quantiles": (0.1, 1.0)}, r"strictly between 0 and 1, found \[1\.0\]"),
        ({"quantiles": (float("nan"), 0)}, r"found \[nan, 0\]"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, found 0"),
    ],
)
def test_requests_that_cannot_be_met(changes, message):
    request = {"output": "counts", "quantiles": (0.1,), "batch_size": 1}
    check_request(**request)
    with pytest.raises(ConfigError, match=message):
        check_request(**request | changes)
