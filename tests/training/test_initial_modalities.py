"""Initial values of a network of several modalities: absent is not zero, and no modality weighs more than another."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.core import Profiles
from scbioformers.data import scan
from scbioformers.data._samples import ModalitiesSource
from scbioformers.data._source import MemorySource
from scbioformers.nn import Sizes
from scbioformers.tokens import JointTokenizer
from scbioformers.training._initial_values import (
    _completions,
    _join_answers,
    _leading_variance,
    by_measured,
    compute_initial_values,
    modality_weights,
)

N = 80


@pytest.fixture
def parts(make_block, make_tokenizer):
    """A source of 80 samples, of which 0 to 19 lack proteins, and the tokenizer."""
    rna, prot = make_block(N, 30), make_block(60, 6, seed=1)
    fields = np.zeros((N, 0), np.int32)
    rows = [np.arange(N), np.concatenate([np.full(20, -1), np.arange(60)])]
    source = ModalitiesSource([MemorySource(rna), MemorySource(prot)], rows, fields)
    return source, JointTokenizer((make_tokenizer(rna), make_tokenizer(prot))), prot


def test_samples_are_grouped_by_what_was_measured_in_them(parts):
    source, *_ = parts
    groups = by_measured([source.read(0, N)])
    assert [len(group.depth) for group in groups] == [20, 60]
    assert [[part.present.all() for part in group.modalities] for group in groups] == [[True, False], [True, True]]
    alone = source.sources[0].read(0, N)
    assert by_measured([alone])[0] is alone


def test_means_are_those_of_the_samples_that_have_the_modality(parts):
    source, tokenizer, prot = parts
    start = compute_initial_values([source.read(0, N)], scan(source), tokenizer, Sizes(0, 0), 0)
    profiles = tokenizer.modalities[1].profiles(prot).toarray()
    np.testing.assert_allclose(start.profile_mean[30:], profiles.mean(axis=0), rtol=1e-5)
    alone = compute_initial_values([prot], scan(MemorySource(prot)), tokenizer.modalities[1], Sizes(0, 0), 0)
    for name in ("rate", "log_dispersion"):
        np.testing.assert_allclose(getattr(start, name)[30:], getattr(alone, name), rtol=1e-5)
    n_rna, n_prot = (each.binning.n_values for each in tokenizer.modalities)
    np.testing.assert_allclose(start.log_bins[30:, n_rna : n_rna + n_prot], alone.log_bins[:, :n_prot], rtol=1e-5)
    np.testing.assert_allclose(start.log_bins[30:, n_rna + n_prot + 8 :], alone.log_bins[:, n_prot:], rtol=1e-5)


def test_weights_give_the_leading_components_equal_variance():
    weight = modality_weights([6.0, 150.0], [3, 2])
    np.testing.assert_allclose(weight, [1, 1, 1, 0.2, 0.2])
    np.testing.assert_array_equal(modality_weights([6.0], [5]), np.ones(5))
    np.testing.assert_array_equal(modality_weights([6.0, 0.0], [1, 1]), np.ones(2))  # equal proteins


def test_the_leading_variance_is_that_of_the_first_components_and_leaves_out_noise():
    random = np.random.default_rng(0)
    signal = random.normal(size=(300, 16)) @ random.normal(size=(16, 60))
    values = signal + random.normal(size=(300, 60))
    expected = np.linalg.eigvalsh(np.cov(values.T, bias=True))[-16:].sum()
    for n_features, true in ((60, expected), (16, values[:, :16].var(axis=0).sum()), (1, values[:, 0].var())):
        own = Profiles(sp.csr_matrix(values[:, :n_features]), np.ones(n_features, bool))
        assert _leading_variance([own], 0) == pytest.approx(true, rel=0.01)


def test_answers_of_each_modality_have_columns_of_their_own():
    first, second = np.full((2, 4), 1.0), np.full((3, 2), 2.0)  # 3 bins and 1 small count; 2 bins
    joined = _join_answers([first, second], [3, 2])
    expected = np.zeros((5, 6))
    expected[:2, [0, 1, 2, 5]], expected[2:, 3:5] = 1, 2
    np.testing.assert_array_equal(joined, expected)


def test_the_scores_of_a_modality_predict_those_of_all(make_tokenizer, make_block):
    """Proteins that follow the genes exactly: from RNA, the scores over both modalities are those that are true."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(200, 3))
    loadings = random.normal(size=(3, 14))
    values = scores @ loadings
    values -= values.mean(axis=0)
    components = np.linalg.svd(values, full_matrices=False)[2][:3].T
    tokenizers = [replace(make_tokenizer(make_block(12, n)), n_features=n) for n in (10, 4)]
    whole = Profiles(sp.csr_matrix(values), np.ones(14, bool))
    lacking = Profiles(sp.csr_matrix(99 * values), np.arange(14) < 10)  # not used: it has no proteins
    maps = _completions([whole, lacking], components, np.zeros(14), tokenizers)
    true = values @ components
    assert maps.shape == (2, 3, 3)
    for known, found in zip((slice(10), slice(10, 14)), maps, strict=True):
        partial = values[:, known] @ components[known]
        np.testing.assert_allclose(partial @ found, true, atol=0.02 * np.abs(true).max())
    assert _completions([lacking], components, np.zeros(14), tokenizers) is None
