"""Build the blood model of the package: ``python -m dev.blood_model --data DIR``, about 10 minutes on one core.

DIR contains ``blood_pool/``. The same package versions on the same machine give the same files. The genes are the 2,000
that vary most over the pool, and those of pbmc68k that at least two data sets of the pool measure, so that pbmc68k,
whose labels the model learns, has at least 40 % of their counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scanpy as sc
from anndata import AnnData

import scbioformers as bf
from scbioformers.data import choose_features, open_data_sets

FOLDER = Path(bf.__file__).parent / "models" / "blood"
N_GENES, SEED, MAX_MEGABYTES, LEAST_SHARE = 2000, 0, 8.0, 0.4
SOURCES = {
    "hao_pbmc": "1,000 PBMC of 10x 3' CITE-seq. Hao et al., Cell 2021. From cran/SPECK, GPL (>= 2).",
    "kotliarov_pbmc": "500 PBMC of healthy donors, CITE-seq. Kotliarov et al., Nature Medicine 2020. From "
    "AlicenJoyHenning/DamageDetective, AGPL (>= 3).",
    "malt_lymphoma": "1,100 cells of a MALT lymphoma, public sample of 10x Genomics. From cran/STREAK, GPL (>= 2).",
    "pisces_pbmc": "1,000 PBMC, 10x Genomics. From califano-lab/PISCES, no licence stated.",
}
LICENCE = "weights: that of the package; training cells: public deposits, from the repositories named below"
CARD = """
## About this model

It comes with the package: `bf.models.blood()`. It was trained on 3,600 blood cells of four data sets, which is no
atlas: rare types, other tissues, diseases and protocols are not in it. It holds no cells.

{sources}

Its `cell_type` head was learned from the 700 cells of `bf.datasets.pbmc68k()` (Zheng et al., Nature Communications
2017, as shipped with scanpy) and their `bulk_labels`, which were made by comparison with sorted cells. They are the
only labels in it. In five folds over these cells its macro-F1 is {f1:.2f}.

`python -m dev.blood_model --data DIR` rebuilds it.
"""


def read_pool(folder: Path) -> dict[str, AnnData]:
    """The data sets of the pool, with symbols as names."""
    pool = {}
    for name in SOURCES:
        adata = sc.read_h5ad(folder / f"{name}.h5ad")
        if "gene_symbols" in adata.var:
            adata.var_names = adata.var["gene_symbols"].astype(str)
        adata.var_names_make_unique()
        pool[name] = adata
    return pool


def choose_genes(pool: dict[str, AnnData], labelled: AnnData) -> list[str]:
    """Names of the genes of the model."""
    with open_data_sets(pool) as found:
        variable = choose_features(found["rna"].data_sets, N_GENES, 2, seed=SEED)
    shared = [name for name in labelled.var_names if sum(name in each.var_names for each in pool.values()) >= 2]
    return list(dict.fromkeys([*variable, *shared]))


def main() -> None:
    """Train, learn the labels, save, and check size and share of the depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with blood_pool/")
    parser.add_argument("--out", type=Path, default=FOLDER, help="directory of the model")
    arguments = parser.parse_args()
    pool, labelled = read_pool(arguments.data / "blood_pool"), bf.datasets.pbmc68k()
    genes = choose_genes(pool, labelled)
    model = bf.tl.pretrain(pool, save_dir=arguments.out, features=genes, rng=SEED)
    model.provenance["licence"] = LICENCE
    share = model.depth_share[np.isin(model.vocabulary.feature_names(), labelled.var_names)].sum()
    total = model.depth_share.sum()
    print(f"{len(genes)} genes; those of pbmc68k have {share / total:.1%} of their counts")
    labelled.obs["cell_type"] = labelled.obs["bulk_labels"]
    bf.tl.annotate(labelled, "cell_type", model=model)
    evidence = bf.get.annotation_evidence(labelled, "cell_type")
    bf.get.model(labelled).save(arguments.out)
    card = arguments.out / "README.md"
    sources = "\n".join(f"- `{name}`: {text}" for name, text in SOURCES.items())
    card.write_text(card.read_text() + CARD.format(sources=sources, f1=evidence["macro_f1"]))
    size = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(f"{size:.1f} MB in {arguments.out}")
    if size > MAX_MEGABYTES or share / total < LEAST_SHARE:
        raise SystemExit("The model is too large, or pbmc68k has too few of its counts.")


if __name__ == "__main__":
    main()
