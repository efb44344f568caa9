"""Draw the network figures of the documentation (Fig. 2 of the paper), from a default fit to each of two data sets."""

from __future__ import annotations

from pathlib import Path

import scanpy as sc

import scbioformers as bf
from benchmarks._grn_truth import CD3_CD8, CONTROL, read_pbmc3k

FACTORS = ("SPI1", "CEBPB", "IRF8", "ID2")
KNOCKOUTS = ("JAK2", "IFNGR2")
QUIET = bf.TrainConfig()


def draw(data: Path, folder: Path) -> None:
    """Write the network of pbmc3k and the heatmap of STAT1 in papalexi_eccite; print programs and known targets."""
    problem = read_pbmc3k(data)
    blood = problem.adata
    bf.tl.fit(blood, train=QUIET)
    bf.tl.grn(blood, regulators=FACTORS, progress_bar=False)
    known = problem.truths["collectri"]
    network = folder / "network_pbmc3k.png"
    bf.pl.grn_network(blood, regulators=FACTORS, n_top=8, known=known, save=network, show=False)
    bf.tl.gene_programs(blood, progress_bar=False)
    programs = bf.get.gene_programs(blood)
    print(programs[programs["gene"].isin(CD3_CD8)].to_string(index=False))
    bf.tl.regulators(blood, known=known)
    print(bf.get.known_targets(blood).to_string(index=False))
    cells = sc.read_h5ad(data / "papalexi_eccite.h5ad")
    cells = cells[cells.obs["perturbation"].isin([CONTROL, *KNOCKOUTS])].copy()
    bf.tl.fit(cells, train=QUIET)
    how = {"method": "knockout", "groupby": "perturbation", "reference": CONTROL}
    bf.tl.grn(cells, regulators=["STAT1"], progress_bar=False, **how)
    bf.pl.attention_heatmap(cells, "STAT1", save=folder / "heatmap_papalexi.png", show=False)
