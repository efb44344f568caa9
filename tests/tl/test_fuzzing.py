"""Random combinations of dtype, format, density and names: as canonical data, or an error of ours."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scbioformers as bf
from scbioformers.core import BioformersError, BioformersWarning

CONFIG = bf.ModelConfig(width=8, n_layers=1, n_heads=1, n_latent=4, n_components=3)
TRAIN = bf.TrainConfig(max_steps=1, batch_size=8)
DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int32", "uint32", "int64", "bool"]


def unsorted(x: np.ndarray) -> sp.csr_matrix:
    """CSR with indices in descending order."""
    csr = sp.csr_matrix(x)
    for start, stop in zip(csr.indptr[:-1], csr.indptr[1:], strict=True):
        csr.indices[start:stop] = csr.indices[start:stop][::-1].copy()
        csr.data[start:stop] = csr.data[start:stop][::-1].copy()
    csr.has_sorted_indices = False
    return csr


def with_zeros(x: np.ndarray) -> sp.csr_matrix:
    """CSR that stores every value, zeros included."""
    n, m = x.shape
    return sp.csr_matrix((x.ravel(), np.tile(np.arange(m), n), np.arange(n + 1) * m), shape=x.shape)


FORMATS = {
    "dense": np.array,
    "Fortran": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "unsorted": unsorted,
    "with zeros": with_zeros,
}
NAMES = st.lists(st.text(min_size=0, max_size=6), min_size=9, max_size=9, unique=True)


def run(x, names) -> tuple[bytes, np.ndarray] | type[Exception]:
    """The model and the embedding, or the class of our error. Any other error fails the test."""
    try:
        adata = ad.AnnData(x, var=pd.DataFrame(index=pd.Index(names, dtype=object)))
        bf.tl.fit(adata, config=CONFIG, train=TRAIN, progress_bar=False)
        bf.tl.embed(adata, progress_bar=False)
    except BioformersError as error:
        return type(error)
    embedding = adata.obsm["X_bioformer"]
    assert embedding.shape == (len(x) if isinstance(x, np.ndarray) else x.shape[0], 3)
    assert embedding.dtype == np.float32
    assert np.isfinite(embedding).all()
    return adata.uns["bioformer"]["model"].tobytes(), embedding


@pytest.mark.fault("fuzzing")
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(list(FORMATS)),
    density=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    names=NAMES,
    seed=st.integers(0, 2**16),
)
def test_a_fit_and_an_embedding_are_those_of_canonical_data(dtype, form, density, names, seed):
    random = np.random.default_rng(seed)
    x = np.where(random.random((12, 9)) < density, random.poisson(3.0, (12, 9)), 0).astype(dtype)
    if dtype == "float16" and form not in ("dense", "Fortran"):
        x = x.astype(np.float32)  # scipy has no sparse float16
    given_x = FORMATS[form](x)
    before = given_x.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)
        expected, found = run(sp.csr_matrix(x.astype(np.float32)), names), run(given_x, names)
    if isinstance(expected, tuple) and isinstance(found, tuple):
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1], expected[1])
    else:
        assert found == expected
    difference = given_x != before
    assert not (difference.nnz if sp.issparse(difference) else difference.any())


def test_equal_cells_have_no_components():
    """All principal components are 0, which a solver may take for an error, or fill with rounding errors."""
    x, names = np.ones((12, 9), np.float32), [f"g{i}" for i in range(9)]
    expected, found = run(sp.csr_matrix(x), names), run(sp.csc_array(x.astype(bool)), names)
    assert found[0] == expected[0]
    assert np.ptp(found[1], axis=0).max() < 1e-5
