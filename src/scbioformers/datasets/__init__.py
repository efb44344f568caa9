"""Data sets without a download, a reader for files of users, and feature tables of genes."""

from scbioformers.datasets._gears import read_gears
from scbioformers.datasets._gene_features import gene_features
from scbioformers.datasets._pbmc68k import pbmc68k
from scbioformers.datasets._simulate import simulate
from scbioformers.datasets._simulate_sources import simulate_sources

__all__ = [
    "gene_features",
    "pbmc68k",
    "read_gears",
    "simulate",
    "simulate_sources",
]
