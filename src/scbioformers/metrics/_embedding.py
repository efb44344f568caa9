"""How well an embedding separates known labels and mixes known batches (paper, section 3.1 and Table 1)."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scbioformers.core import (
    Category,
    DataError,
    MissingDependencyError,
    check_arguments,
    check_shapes,
    leiden,
    warn,
)
from scbioformers.metrics._mixing import mixing_scores

if TYPE_CHECKING:
    from anndata import AnnData
    from sklearn.base import BaseEstimator

RESOLUTIONS = tuple(round(0.2 * step, 1) for step in range(1, 11))
N_NEIGHBORS = 15
N_FOLDS = 5
MIN_CELLS = 20  # each training fold must hold at least N_NEIGHBORS cells

Codes = NDArray[np.intp]


@dataclass(frozen=True)
class EmbeddingScores:
    """Scores of one embedding. Higher is better, and the maximum is 1. In practice ASW stays below 1."""

    nmi: float
    """Normalised mutual information (arithmetic mean) of labels and Leiden clusters at `resolution`."""
    ari: float
    """Adjusted Rand index of labels and the same clusters."""
    asw: float
    """(mean silhouette width of the labels + 1) / 2, with Euclidean distances."""
    avg_bio: float
    """Mean of `nmi`, `ari` and `asw`."""
    resolution: float
    """Leiden resolution among 0.2, 0.4, … 2.0 with the highest NMI. The labels are used for this choice."""
    nmi_res1: float
    """NMI at resolution 1, which is fixed without the labels."""
    ari_res1: float
    """ARI at resolution 1, which is fixed without the labels."""
    kmeans_nmi: float
    """NMI of labels and k-means with the true number of labels."""
    kmeans_ari: float
    """ARI of labels and k-means with the true number of labels."""
    knn_f1: float
    """Macro F1 of a 15-nearest-neighbour classifier, on the pooled out-of-fold predictions of 5 stratified folds."""
    linear_f1: float
    """Macro F1 of a multinomial logistic regression on standardised dimensions, pooled in the same way."""
    ilisi: float | None = None
    """Batch mixing: median inverse Simpson index of the batches of 90 neighbours, scaled to 0…1. None without
    batches."""
    kbet: float | None = None
    """Batch mixing: acceptance rate of the kBET test among the cells of a label, mean over the labels. None without
    batches. NaN if no label has at least 10 cells and two batches."""

    def to_dict(self) -> dict[str, float | None]:
        """Return the scores as a plain dictionary, in the order of the fields."""
        return asdict(self)


def embedding_scores(
    X: ArrayLike | sparse.spmatrix | sparse.sparray,
    labels: ArrayLike | Sequence[Category | None],
    *,
    batch: ArrayLike | Sequence[Category | None] | None = None,
    seed: int = 0,
    implementation: Literal["sklearn", "scib"] = "sklearn",
) -> EmbeddingScores:
    """Score an embedding against known labels, and against batches if they are given.

    The neighbour graph is built from the embedding (15 neighbours, Euclidean distance, UMAP connectivities, as in
    ``sc.pp.neighbors``). The Leiden algorithm of igraph clusters the graph (modularity, run until stable).

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dimensions), finite values.
    labels
        Known label of each cell, shape (n_cells,), without missing values.
    batch
        Batch of each cell, shape (n_cells,). This needs the package scib-metrics.
    seed
        Seed of Leiden, k-means and the folds.
    implementation
        Package that computes NMI, ARI and ASW and chooses the resolution: ``"sklearn"`` (scikit-learn) or ``"scib"``,
        on the same clusters. Both give the same scores.

    Returns
    -------
    :class:`EmbeddingScores`

    Raises
    ------
    DataError
        If shapes do not match, values are missing, there are fewer than 20 cells, fewer than 2 labels, or one batch.
    ConfigError
        If `implementation` is unknown.
    MissingDependencyError
        If scib-metrics (for `batch`) or scib (for ``implementation="scib"``) is not installed.

    Warns
    -----
    BioformersWarning
        If a label has fewer cells than the 5 folds.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import embedding_scores
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["B", "T"], 30)
    >>> X = rng.normal(size=(60, 2)) + 50 * (labels == "T")[:, None]
    >>> scores = embedding_scores(X, labels)
    >>> scores.nmi, scores.linear_f1
    (1.0, 1.0)
    """
    check_arguments(embedding_scores, locals())
    check_shapes(X=(X, "ND"), labels=(labels, "N"), batch=(batch, "N"))
    embedding = _check_embedding(X)
    codes = _check_codes(labels, "labels")
    _warn_of_small_labels(codes, labels)
    batches = None if batch is None else _check_codes(batch, "batch")
    ilisi, kbet = (None, None) if batches is None else mixing_scores(embedding, codes, batches)

    connectivities = _connectivities(embedding, seed)
    clusters = {resolution: leiden(connectivities, resolution, seed) for resolution in RESOLUTIONS}
    label_scores = _scib_label_scores if implementation == "scib" else _label_scores
    nmi, ari, asw, best = label_scores(embedding, codes, clusters)
    kmeans = KMeans(n_clusters=codes.max() + 1, n_init=10, random_state=seed).fit_predict(embedding)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return EmbeddingScores(
        nmi=nmi,
        ari=ari,
        asw=asw,
        avg_bio=(nmi + ari + asw) / 3,
        resolution=best,
        nmi_res1=float(normalized_mutual_info_score(codes, clusters[1.0])),
        ari_res1=float(adjusted_rand_score(codes, clusters[1.0])),
        kmeans_nmi=float(normalized_mutual_info_score(codes, kmeans)),
        kmeans_ari=float(adjusted_rand_score(codes, kmeans)),
        knn_f1=_out_of_fold_f1(KNeighborsClassifier(N_NEIGHBORS), embedding, codes, seed),
        linear_f1=_out_of_fold_f1(probe, embedding, codes, seed),
        ilisi=ilisi,
        kbet=kbet,
    )


def _check_embedding(X: ArrayLike | sparse.spmatrix | sparse.sparray) -> NDArray[np.floating]:
    """Return the embedding as a dense float array. float32 and float64 keep their dtype."""
    array: NDArray[Any] = np.asarray(X.toarray() if isinstance(X, (sparse.spmatrix, sparse.sparray)) else X)
    if array.shape[1] == 0:
        raise DataError(f"The embedding `X` has the shape {array.shape}. Pass at least one dimension.")
    if array.shape[0] < MIN_CELLS:
        raise DataError(f"The embedding has {array.shape[0]} cells; the scores need at least {MIN_CELLS}.")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise DataError(f"The embedding has {(~finite).sum()} NaN or infinite values, the first in row {row}.")
    return array


def _check_codes(values: ArrayLike | Sequence[Category | None], name: str) -> Codes:
    """Return categories as integer codes from 0, without gaps."""
    array = np.asarray(values)
    codes, categories = pd.factorize(array, sort=True)
    if (codes < 0).any():
        raise DataError(f"`{name}` is missing for {(codes < 0).sum()} cells: remove these cells first.")
    if len(categories) < 2:
        raise DataError(f"`{name}` has {len(categories)} category; the scores need at least 2.")
    if len(categories) == array.size:
        raise DataError(f"`{name}` differs in every cell: pass categories, not identifiers or measurements.")
    return codes


def _warn_of_small_labels(codes: Codes, labels: ArrayLike | Sequence[Category | None]) -> None:
    """Warn of labels with fewer cells than folds.

    Some folds lack such a label, which lowers both macro F1 scores.
    """
    sizes = pd.Series(np.asarray(labels)).value_counts()
    small = sizes[sizes < N_FOLDS]
    if len(small):
        listed = ", ".join(f"{name!r} ({size})" for name, size in small.items())
        warn(f"Labels with fewer cells than the {N_FOLDS} folds lower the macro F1 scores: {listed}.")


def _connectivities(embedding: NDArray[np.floating], seed: int) -> sparse.csr_matrix:
    """Build the symmetric weighted neighbour graph of ``sc.pp.neighbors``."""
    import scanpy as sc

    adata = _as_anndata(embedding)
    sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS, use_rep="X_embedding", random_state=seed)
    return sparse.csr_matrix(adata.obsp["connectivities"])


def _as_anndata(embedding: NDArray[np.floating]) -> AnnData:
    from anndata import AnnData

    return AnnData(obs=pd.DataFrame(index=np.arange(embedding.shape[0]).astype(str)), obsm={"X_embedding": embedding})


def _label_scores(
    embedding: NDArray[np.floating], codes: Codes, clusters: dict[float, Codes]
) -> tuple[float, float, float, float]:
    """Return NMI, ARI, ASW and the resolution with the best NMI."""
    nmi = {resolution: normalized_mutual_info_score(codes, cluster) for resolution, cluster in clusters.items()}
    best = max(nmi, key=nmi.__getitem__)  # the lowest resolution in a tie, as in scib
    asw = (silhouette_score(embedding, codes) + 1) / 2
    return float(nmi[best]), float(adjusted_rand_score(codes, clusters[best])), float(asw), best


def _scib_label_scores(
    embedding: NDArray[np.floating], codes: Codes, clusters: dict[float, Codes]
) -> tuple[float, float, float, float]:
    """Return the same four values, computed by scib on the given clusters.

    The clusters of scib itself can come from the graph of another embedding (scib issue 389).
    """
    try:
        import scib
    except ImportError as error:
        raise MissingDependencyError('scib is not installed. Run `pip install "scbioformers[bench]"`.') from error

    def leiden(adata: AnnData, resolution: float, key_added: str) -> None:
        adata.obs[key_added] = pd.Categorical(clusters[resolution])

    adata = _as_anndata(embedding)
    adata.obs["label"] = pd.Categorical(codes)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):  # scib prints every step
        best, nmi = scib.metrics.cluster_optimal_resolution(
            adata, "label", "cluster", cluster_function=leiden, resolutions=list(clusters), verbose=False
        )
    ari = scib.metrics.ari(adata, cluster_key="cluster", label_key="label")
    asw = scib.metrics.silhouette(adata, label_key="label", embed="X_embedding")
    return float(nmi), float(ari), float(asw), best


def _out_of_fold_f1(estimator: BaseEstimator, embedding: NDArray[np.floating], codes: Codes, seed: int) -> float:
    """Return the macro F1 of the pooled out-of-fold predictions.

    With pooling, a rare label counts once and not once in each fold.
    """
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # our own warning names the labels
        predicted = cross_val_predict(estimator, embedding, codes, cv=folds)
    return float(f1_score(codes, predicted, average="macro", zero_division=0.0))
