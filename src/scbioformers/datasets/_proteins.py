"""Simulated surface proteins, which follow the activity of their genes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.datasets._network import Network, numbered

N_ISOTYPES = 2  # antibodies that bind no protein
SIZE_SD = 0.4  # standard deviation of the log size of cells, which scales all protein counts


@dataclass(frozen=True)
class Proteins:
    """Proteins, named after their genes, and isotype controls, which have only background."""

    genes: NDArray[np.integer]  # (n_proteins,) position of the gene, without isotype controls
    var: pd.DataFrame  # (n_proteins + N_ISOTYPES) rows: isotype_control, background, baseline, gain

    def mean(self, random: np.random.Generator, activity: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draw the sizes of cells. Return the means of their counts, from the activity of genes, cells x genes."""
        z = np.zeros((len(activity), len(self.var)))
        z[:, : len(self.genes)] = activity[:, self.genes]
        background, baseline, gain = (self.var[key].to_numpy() for key in ("background", "baseline", "gain"))
        size = random.lognormal(sigma=SIZE_SD, size=(len(activity), 1))
        mean: NDArray[np.float64] = size * (background + baseline * np.exp(gain * z))
        return mean


def draw_proteins(random: np.random.Generator, network: Network, n_proteins: int) -> Proteins:
    """Choose the genes that have a protein, and draw what each of its antibodies counts."""
    n_all = n_proteins + N_ISOTYPES
    genes = random.permutation(len(network.names))[:n_proteins]
    is_control = np.arange(n_all) >= n_proteins
    var = {
        "isotype_control": is_control,
        "background": 3.0 * random.lognormal(sigma=0.5, size=n_all),
        "baseline": np.where(is_control, 0.0, 30.0 * random.lognormal(sigma=1.0, size=n_all)),
        "gain": np.where(is_control, 0.0, random.uniform(0.5, 1.0, size=n_all)),
    }
    names = [network.names[gene] for gene in genes] + numbered("isotype_", N_ISOTYPES)
    return Proteins(genes, pd.DataFrame(var, index=names))


def as_mudata(rna: AnnData, prot: AnnData) -> MuData:
    """Join the modalities. ``obs`` of the RNA is that of the MuData, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata 0.3 warns of its next release, and of names that modalities share
        mdata = MuData({"rna": rna, "prot": prot})
        mdata.obs = rna.obs.copy()
    return mdata
