"""Scores of embeddings and the simple baselines they are compared with, on plain arrays.

Nothing here knows AnnData's slots: pass ``adata.obsm["X_bioformer"]`` and ``adata.obs["cell_type"]``, or arrays from
anywhere else.
"""

from scbioformers.metrics._baselines import log1p_normalize, pca, pca_binned, pca_log1p
from scbioformers.metrics._embedding import EmbeddingScores, embedding_scores

__all__ = ["EmbeddingScores", "embedding_scores", "log1p_normalize", "pca", "pca_binned", "pca_log1p"]
