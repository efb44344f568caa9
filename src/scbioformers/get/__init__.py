"""Typed read-back of what the verbs have written."""

from scbioformers.get._model import gene_embeddings, history, model, params

__all__ = ["gene_embeddings", "history", "model", "params"]
