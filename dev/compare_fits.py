"""Every number that seeded fits give, and how far two versions of the code differ in them.

A change that only moves code must leave all of them as they are, bit for bit:

    python dev/compare_fits.py write before.npz      # at the commit before
    python dev/compare_fits.py write after.npz       # at the commit after
    python dev/compare_fits.py compare before.npz after.npz
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

import scbioformers as bf

SMALL = {"n_layers": 1, "n_heads": 2, "width": 32}


def blood() -> AnnData:
    """300 of the embedded blood cells with 200 genes modelled and a batch that means nothing."""
    adata = bf.datasets.pbmc68k()[:300].copy()
    variance = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X).var(axis=0)
    adata.var["highly_variable"] = variance >= np.sort(variance)[-200]
    adata.obs["lane"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(adata.n_obs) % 3])
    return adata


def screen() -> AnnData:
    """Simulated cells with single and double knock-outs."""
    names = ["TF1", "TF2", "TF3", "TF4", "TF5", "TF1+TF2"]
    return bf.datasets.simulate(n_cells=300, n_genes=50, n_regulators=8, n_batches=2, perturbations=names, rng=1)


def flatten(adata: AnnData, prefix: str) -> dict[str, np.ndarray]:
    """All numbers in the slots of an AnnData by a name; hashes and versions are left out."""
    found: dict[str, np.ndarray] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, pd.DataFrame):
            for column in value:
                add(f"{name}/{column}", value[column].to_numpy())
        elif isinstance(value, dict):
            for key, each in value.items():
                if key not in ("params", "model", "model_hash"):
                    add(f"{name}/{key}", each)
        elif sp.issparse(value):
            add(name, value.tocoo().data)
            add(f"{name}/row", value.tocoo().row)
            add(f"{name}/col", value.tocoo().col)
        else:
            array = np.asarray(value)
            found[f"{prefix}/{name}"] = array if array.dtype.kind in "biuf" else array.astype(str)

    for slot in ("obsm", "varm", "varp", "layers", "uns"):
        for key, value in getattr(adata, slot).items():
            if key is not None:
                add(f"{slot}/{key}", value)
    return found


def weights(adata: AnnData, prefix: str) -> dict[str, np.ndarray]:
    """Embeddings of the genes, and of the cells by every use."""
    found = {f"{prefix}/genes": bf.get.gene_embeddings(adata).to_numpy()}
    for use in ("cls", "latent", "mean", "profile"):
        found[f"{prefix}/embed_{use}"] = bf.tl.embed(adata, use=use, copy=True).obsm["X_bioformer"]
    return found


def all_numbers() -> dict[str, np.ndarray]:
    """Fit and ask in every way that the verbs offer."""
    found: dict[str, np.ndarray] = {}
    train = bf.TrainConfig(max_steps=40)
    small = bf.ModelConfig(**SMALL)
    fits: dict[str, dict[str, Any]] = {
        "default": {"config": bf.ModelConfig()},
        "ensemble": {"config": small, "n_models": 2},
        "batch": {"config": small, "batch_key": "lane"},
        "segment": {"config": small, "binning": "segment"},
        "all": {"config": bf.ModelConfig(**SMALL | {"n_layers": 2}, tokens="all", attend_masked=True, dropout=0.1)},
        "lookup": {"config": bf.ModelConfig(**SMALL, value_embedding="lookup", svd_init=False, bag=False)},
        "bag": {"config": bf.ModelConfig(**SMALL, attention=False)},
    }
    for name, how in fits.items():
        adata = blood()
        bf.tl.fit(adata, train=train, **how)
        found |= weights(adata, name)
        segment = name == "segment"
        bf.tl.impute(adata, output="bins" if segment else "counts", std=True, quantiles=[0.1], progress_bar=False)
        if not segment:
            bf.tl.impute(adata, method="denoise", key_added="denoised", progress_bar=False)
            mask = np.random.default_rng(0).random(adata.shape) < 0.05
            bf.tl.impute(adata, output="log1p", mask=mask, key_added="filled", progress_bar=False)
        factors = [str(gene) for gene in adata.var_names[adata.var["highly_variable"]][:12]]
        for method in ("embedding", "knockout", "attention"):
            if method != "attention" or name != "bag":
                bf.tl.grn(adata, method=method, regulators=factors, key_added=method, progress_bar=False)
                bf.tl.regulators(adata, grn_key=method, key_added=f"regulators_{method}")
        bf.tl.grn(adata, groupby="lane", reference="a", n_cells=50, key_added="by_lane", progress_bar=False)
        bf.tl.gene_programs(adata, progress_bar=False)
        found |= flatten(adata, name)
    for name, how in {"screen": {}, "screen_batch": {"batch_key": "batch"}}.items():
        adata = screen()
        task = bf.Perturbation(key="perturbation", control="control")
        bf.tl.fit(adata, train=train, config=small, task=task, **how)
        bf.tl.perturb(adata, "all")
        bf.tl.perturb(adata, ["TF1+TF6"], groupby="cell_type", key_added="pair")
        found |= weights(adata, name) | flatten(adata, name)
        evidence = bf.get.perturb_evidence(adata)
        found |= {f"{name}/evidence/{column}": evidence["targets"][column].to_numpy() for column in evidence["targets"]}
        found[f"{name}/evidence/weights"] = np.array(list(evidence["weights"].values()))
    return {name: array.astype(str) if array.dtype.kind == "O" else array for name, array in found.items()}


def compare(before: str, after: str) -> int:
    """Print what differs and by how much; 1 if anything does."""
    with np.load(before) as old, np.load(after) as new:
        names = sorted({*old.files, *new.files})
        differ = 0
        for name in names:
            if name not in old.files or name not in new.files:
                print(f"{name}: only {'after' if name not in old.files else 'before'}")
                differ += 1
                continue
            a, b = old[name], new[name]
            if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                continue
            differ += 1
            if a.shape != b.shape or a.dtype.kind not in "iuf":
                print(f"{name}: {a.dtype} {a.shape} -> {b.dtype} {b.shape}")
            else:
                gap = np.nanmax(np.abs(a.astype(float) - b), initial=0.0)
                print(f"{name}: largest difference {gap:.3g}, largest value {np.nanmax(np.abs(a)):.3g}")
    print(f"{differ} of {len(names)} arrays differ")
    return int(differ > 0)


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    if arguments.what == "compare":
        return compare(*arguments.files)
    torch.set_num_threads(1)
    np.savez(arguments.files[0], **all_numbers())
    return 0


if __name__ == "__main__":
    sys.exit(main())
