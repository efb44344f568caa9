"""Data that needs no download: one real data set, and simulated data whose truth is known."""

from scbioformers.datasets._pbmc68k import pbmc68k
from scbioformers.datasets._simulate import simulate

__all__ = ["pbmc68k", "simulate"]
