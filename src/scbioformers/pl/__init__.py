"""Figures."""

from scbioformers.pl._training import training

__all__ = ["training"]
