"""totalVI (Gayoso et al., Nature Methods 2021) for :mod:`benchmarks.biostate`. It needs raw counts of the proteins."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._biostate_samples import Samples, Values, centred_log_ratio, dense


def fit_totalvi(samples: Samples, seed: int, measured: np.ndarray) -> Any:
    """Fit totalVI with its defaults. Samples that are not ``measured`` (N,) are a batch without proteins."""
    import scvi

    logging.getLogger("scvi").setLevel(logging.WARNING)
    scvi.settings.seed = seed
    cells = ad.AnnData(samples.rna[:, samples.genes].X.copy(), obs=pd.DataFrame(index=samples.rna.obs_names))
    cells.obs["batch"] = np.where(measured, "measured", "lacking")
    proteins = dense(samples.prot.X) * measured[:, None]  # proteins that are 0 in a whole batch are read as lacking
    cells.obsm["proteins"] = pd.DataFrame(proteins, index=cells.obs_names, columns=samples.prot.var_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.TOTALVI.setup_anndata(cells, protein_expression_obsm_key="proteins", batch_key="batch")
        model = scvi.model.TOTALVI(cells)
        model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def embed_totalvi(samples: Samples, seed: int) -> Values:
    """The latent of all samples."""
    return fit_totalvi(samples, seed, np.ones(len(samples.labels), bool)).get_latent_representation()


def predict_totalvi(training: Samples, test: Samples, wanted: str, seed: int) -> dict[str, Values] | None:
    """Centred log ratios of the predicted counts of the proteins of the test samples. None if genes are wanted."""
    if wanted == "rna":
        return None
    both = Samples(
        ad.concat([training.rna, test.rna], merge="same"),
        ad.concat([training.prot, test.prot], merge="same"),
        np.concatenate([training.labels, test.labels]),
    )
    both.rna.var["highly_variable"] = training.genes
    n = len(training.labels)
    model = fit_totalvi(both, seed, np.arange(len(both.labels)) < n)
    _, counts = model.get_normalized_expression(
        indices=np.arange(n, len(both.labels)),
        n_samples=25,
        return_mean=True,
        transform_batch="measured",
        include_protein_background=True,
    )
    return {"mean": centred_log_ratio(counts[test.prot.var_names].to_numpy())}
