"""Several modalities of the same samples as one source: rows are aligned, and absent is not zero."""

import anndata as ad
import numpy as np
import pytest

from scbioformers.core import ConfigError
from scbioformers.data import AnnDataSource, MemorySource, ModalitiesSource, concatenate, scan, survey

RNA = np.array([[1, 0, 3], [0, 2, 0], [4, 4, 0], [0, 0, 7]], np.float32)
PROT = np.array([[50, 0], [0, 20], [9, 9]], np.float32)
# sample s has the row RNA_ROWS[s] of the RNA
RNA_ROWS, PROT_ROWS = np.array([2, 0, -1, 3, 1]), np.array([-1, 1, 2, 0, -1])
FIELDS = np.arange(5, dtype=np.int32)[:, None]


def dense(values, rows):
    return np.where(rows[:, None] >= 0, values[rows], 0)


@pytest.fixture
def source():
    sources = [AnnDataSource(ad.AnnData(RNA), columns=np.array([0, 2])), AnnDataSource(ad.AnnData(PROT))]
    return ModalitiesSource(sources, [RNA_ROWS, PROT_ROWS], FIELDS)


def assert_samples(block, samples):
    rna, prot = block.modalities
    np.testing.assert_array_equal(rna.counts.toarray(), dense(RNA, RNA_ROWS)[samples][:, [0, 2]])
    np.testing.assert_array_equal(prot.counts.toarray(), dense(PROT, PROT_ROWS)[samples])
    np.testing.assert_array_equal(rna.depth, dense(RNA, RNA_ROWS)[samples].sum(axis=1))  # all genes count
    np.testing.assert_array_equal(prot.depth, dense(PROT, PROT_ROWS)[samples].sum(axis=1))
    for each, rows in ((rna, RNA_ROWS), (prot, PROT_ROWS)):
        np.testing.assert_array_equal(each.measured, rows[samples] >= 0)
        np.testing.assert_array_equal(each.fields, FIELDS[samples])


@pytest.mark.parametrize("span", [(0, 5), (1, 4), (2, 3), (3, 3), (4, 99)])
def test_samples_are_read_in_their_order(source, span):
    assert_samples(source.read(*span), np.arange(*span)[: max(5 - span[0], 0)])


def test_blocks_in_memory_keep_all_modalities(source):
    samples = np.array([4, 0, 3])
    assert_samples(source.read(0, 5).take(samples), samples)
    assert_samples(concatenate([source.read(0, 2), source.read(2, 5)]), np.arange(5))
    assert_samples(MemorySource(source.read(0, 5)).read(1, 4), np.arange(1, 4))
    assert_samples(source.rows(np.array([0, 3])), np.array([0, 3]))


def test_features_that_a_sample_expresses_are_counted_over_all_modalities(source):
    block = source.read(0, 5)
    expected = (dense(RNA, RNA_ROWS)[:, [0, 2]] > 0).sum(axis=1) + (dense(PROT, PROT_ROWS) > 0).sum(axis=1)
    np.testing.assert_array_equal(block.n_expressed, expected)


def test_statistics_of_a_modality_are_those_of_its_own_cells(source):
    found = scan(source)
    for each, alone in zip((found, *found.others), source.sources, strict=True):
        expected = vars(scan(alone))
        for name in ("mean_depth", "gene_mean", "gene_var", "depth_share", "gene_nnz", "n_measured", "max_count"):
            np.testing.assert_allclose(vars(each)[name], expected[name], err_msg=name)


def test_a_sample_with_counts_in_any_modality_is_trained_on(source):
    found = survey(source, 0.0, 0)
    np.testing.assert_array_equal(found.training, [True, True, True, True, False])  # row 1 has no modelled gene
    assert len(found.sample[0].others) == 1


def test_each_modality_needs_a_row_for_each_sample(source):
    with pytest.raises(ConfigError, match="a row for each cell"):
        ModalitiesSource(source.sources, [RNA_ROWS, PROT_ROWS[:3]], FIELDS)
