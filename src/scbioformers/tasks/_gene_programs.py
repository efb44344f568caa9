"""Gene programs: clusters of genes that are similar in a fitted model and stable across its members (section 3.4).

All similarities are (M, M) between genes. A *view* is a graph of similar genes: the graph of one member of an ensemble,
or a random part of the graph if there is only one member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, triu
from scipy.stats import beta
from sklearn.metrics import adjusted_rand_score

from scbioformers.core import ConfigError, cosine_similarity, leiden, log1p_rows, tqdm, uniform
from scbioformers.data import Block, BlockSource, MemorySource
from scbioformers.model import BioFormer
from scbioformers.nn import Transformer
from scbioformers.tasks._gene_signals import Features, contextual_embedding
from scbioformers.tasks._grn import EdgeScorer

Use = Literal["embedding", "attention"]
USES = ("embedding", "attention")
RESOLUTIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
N_PARTS = 5  # number of views if there is a single member
PART_SHARE = 0.8  # share of the edges of the graph that each of these views keeps
CHANCE = 0.1  # expected number of neighbours of a gene by chance
N_RANK = 1000  # maximum number of genes from which the rank of the similarities is computed
_PART_STREAM = 0x9A27


@dataclass(frozen=True)
class Programs:
    """Gene programs and their stability across views."""

    label: NDArray[np.int64]
    """(M,), program of each gene: 0, 1, … by descending size, -1 for genes without a program."""
    weight: NDArray[np.float64]
    """(M,), cosine of each gene with the centroid of its program, NaN for genes without a program."""
    support: NDArray[np.float64]
    """(M,), share of the other genes of its program that are in the same cluster as the gene, averaged over members.

    NaN for genes without a program, and for a single member, which cannot support its own programs.
    """
    resolution: float
    """Resolution of the Leiden algorithm that was used."""
    stability: pd.DataFrame
    """One row for each ``resolution``.

    ``ari`` is the adjusted Rand index between views. ``n_programs`` and ``n_genes`` (genes with a program) are means
    over the views.
    """


def by_size(label: NDArray[np.int64], min_genes: int) -> NDArray[np.int64]:
    """Number clusters by descending size, and equal sizes by their first gene. Clusters below ``min_genes`` get -1.

    Examples
    --------
    >>> by_size(np.array([7, 3, 3, 9, 9]), 2).tolist()
    [-1, 0, 0, 1, 1]
    """
    names, first, codes, sizes = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(len(names))
    number[sizes < min_genes] = -1  # small clusters have the highest numbers, so the others remain 0, 1, …
    return number[codes]


def chance_similarity(similarity: NDArray[np.float64]) -> float:
    """Threshold of the cosine that a gene exceeds with :data:`CHANCE` other genes on average, for random embeddings.

    Embeddings have few dimensions, so even genes with almost no counts have neighbours. Without a threshold, these
    genes would be clustered too. The squared cosine of random vectors in D dimensions follows Beta(1/2, (D - 1) / 2).
    D is the rank of the similarities, computed from at most :data:`N_RANK` genes.

    Examples
    --------
    >>> round(chance_similarity(np.eye(1000)), 3), round(chance_similarity(np.kron(np.eye(10), np.ones((100, 100)))), 3)
    (0.117, 0.895)
    """
    n = len(similarity)
    step = -(-n // N_RANK)
    rank = int(np.linalg.matrix_rank(similarity[::step, ::step], tol=1e-6 * n, hermitian=True))
    return float(np.sqrt(beta.ppf(1 - min(2 * CHANCE / n, 1.0), 0.5, (rank - 1) / 2))) if rank > 1 else 0.0


def mutual_neighbors(similarity: NDArray[np.float64], n_neighbors: int, least: float = 0.0) -> csr_matrix:
    """(M, M), similarity of mutual nearest neighbours, with a similarity of at least ``least``; 0 for other pairs."""
    n = len(similarity)
    near = similarity.copy()
    np.fill_diagonal(near, -np.inf)
    k = min(n_neighbors, n - 1)
    # ties with the k-th neighbour are kept, so that the result does not depend on the order of the genes
    kth = np.partition(near, n - k, axis=1)[:, n - k] if k > 0 else np.full(n, np.inf)
    chosen = (near >= kth[:, None]) & (near > 0) & (near >= least - 1e-9)
    return csr_matrix(np.where(chosen & chosen.T, similarity, 0.0))


def part_of(graph: csr_matrix, seed: int, view: int) -> csr_matrix:
    """Graph of the same genes with a random part of the edges."""
    edges = triu(graph, k=1).tocoo()
    kept = uniform(seed ^ _PART_STREAM, view, edges.row.astype(np.int64) * graph.shape[0] + edges.col) < PART_SHARE
    upper = csr_matrix((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=graph.shape)
    return upper + upper.T


def cluster(graph: csr_matrix, resolution: float, min_genes: int, seed: int) -> NDArray[np.int64]:
    """(M,), cluster of each gene by the Leiden algorithm: 0, 1, … by size, -1 for clusters below ``min_genes``."""
    return by_size(leiden(graph, resolution, seed).astype(np.int64), min_genes)


def agreement(labels: Sequence[NDArray[np.int64]]) -> float:
    """Mean adjusted Rand index between all pairs of views. A gene without a program is a cluster of its own.

    NaN if a view has fewer than two programs, because the index has no meaning then.

    Examples
    --------
    >>> agreement([np.array([0, 0, 1, 1, -1]), np.array([1, 1, 0, 0, -1])])
    1.0
    """
    if min(len(set(label.tolist()) - {-1}) for label in labels) < 2:
        return float("nan")
    clusters = [np.where(label < 0, len(label) + np.arange(len(label)), label) for label in labels]
    return float(np.mean([adjusted_rand_score(first, second) for first, second in combinations(clusters, 2)]))


def find_programs(
    similarities: Sequence[NDArray[np.float64]],
    *,
    n_neighbors: int,
    min_genes: int,
    resolution: float | None = None,
    seed: int = 0,
) -> Programs:
    """Cluster genes by the mean of the similarities, at the resolution with the highest agreement between views.

    Parameters
    ----------
    similarities
        Cosine similarities (M, M) of each member.
    n_neighbors
        Number of neighbours in the graph of mutual nearest neighbours.
    min_genes
        Minimum number of genes in a program. Smaller clusters are not used.
    resolution
        Resolution of the Leiden algorithm. None chooses from :data:`RESOLUTIONS`.
    seed
        Seed of the Leiden algorithm and of the random parts of the graph.

    Examples
    --------
    >>> similarity = np.kron(np.eye(2), np.ones((4, 4)))
    >>> find_programs([similarity], n_neighbors=3, min_genes=3, resolution=1.0).label.tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    mean = np.mean(similarities, axis=0)
    thresholds = [chance_similarity(member) for member in similarities]
    mean_graph = mutual_neighbors(mean, n_neighbors, max(thresholds) * _shrinkage(similarities))
    graphs = [
        mutual_neighbors(member, n_neighbors, threshold)
        for member, threshold in zip(similarities, thresholds, strict=True)
    ]
    views = graphs if len(similarities) > 1 else [part_of(mean_graph, seed, view) for view in range(N_PARTS)]
    tried = RESOLUTIONS if resolution is None else (resolution,)
    labels = {value: [cluster(view, value, min_genes, seed) for view in views] for value in tried}
    rows = [
        {
            "resolution": value,
            "ari": agreement(view_labels),
            "n_programs": float(np.mean([label.max(initial=-1) + 1 for label in view_labels])),
            "n_genes": float(np.mean([(label >= 0).sum() for label in view_labels])),
        }
        for value, view_labels in labels.items()
    ]
    stability = pd.DataFrame(rows)
    chosen = tried[int(np.argmax(stability["ari"].fillna(-1.0)))]
    label = cluster(mean_graph, chosen, min_genes, seed)
    supported = support(label, labels[chosen]) if len(similarities) > 1 else np.full(len(label), np.nan)
    return Programs(label, centrality(mean, label), supported, chosen, stability)


def _shrinkage(similarities: Sequence[NDArray[np.float64]]) -> float:
    """Factor by which the threshold decreases for the mean of several members, given the correlation of members."""
    n = len(similarities)
    if n == 1:
        return 1.0
    pairs = np.triu_indices(len(similarities[0]), 1)
    correlation = np.corrcoef([member[pairs] for member in similarities])
    mean = float((correlation.sum() - n) / (n * (n - 1)))
    return float(np.sqrt((1 + (n - 1) * max(mean, 0.0)) / n))


def centrality(similarity: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """(M,), cosine of each gene with the centroid of its program.

    The mean similarity of the members is the cosine of the concatenated unit vectors of all members.
    """
    weight = np.full(len(label), np.nan)
    for program in range(int(label.max(initial=-1)) + 1):
        genes = np.flatnonzero(label == program)
        within = similarity[np.ix_(genes, genes)]
        weight[genes] = within.mean(axis=1) / np.sqrt(within.mean())
    return weight


def support(label: NDArray[np.int64], views: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(M,), share of the other genes of its program in the same cluster as the gene, averaged over the views."""
    result = np.full(len(label), np.nan)
    for program in range(int(label.max(initial=-1)) + 1):
        genes = np.flatnonzero(label == program)
        in_views = [view[genes] for view in views]
        together = [(x[:, None] == x[None]) & (x >= 0)[:, None] for x in in_views]
        others = np.mean([pairs.sum(axis=1) - pairs.diagonal() for pairs in together], axis=0)
        result[genes] = others / max(len(genes) - 1, 1)
    return result


def similarity(
    model: BioFormer,
    network: Transformer,
    cells: Block,
    use: Use,
    seed: int,
    bar: tqdm,
    modality: str | None = None,
) -> NDArray[np.float64]:
    """(M, M), cosine similarity of genes in the given cells by one member of the model.

    In a model of several modalities, these are the features of the modality.

    ``"embedding"`` compares the mean-centred contextual embeddings of genes. ``"attention"`` compares the attention of
    genes to other genes, after the average product correction.
    """
    if use == "embedding":
        embedding = contextual_embedding(model, network, cells, bar)
        cosine = cosine_similarity(embedding[Features.of(model, modality).columns])
        np.fill_diagonal(cosine, 1.0)
        return cosine
    columns = Features.of(model, modality).columns
    scorer = EdgeScorer(model, use, np.arange(columns.stop - columns.start), modality=modality)
    weight = np.nan_to_num(scorer.score(network, MemorySource(cells), seed, bar).weight)
    length = np.linalg.norm(weight, axis=1, keepdims=True)
    unit = np.divide(weight, length, out=np.zeros_like(weight), where=length > 0)
    return unit @ unit.T


def check_use(model: BioFormer, use: str) -> None:
    """Check, before the computation, that the model has this similarity.

    Raises
    ------
    ConfigError
        If ``use`` is not one of :data:`USES`, or is "attention" for a model without attention.
    """
    if use not in USES:
        raise ConfigError(f"`use` must be one of {USES}, found {use!r}.")
    if use == "attention" and not model.config.attention:
        raise ConfigError(
            "The model was fitted without attention (ModelConfig.attention=False). Pass `use='embedding'`."
        )


def score_cells(source: BlockSource, label: NDArray[np.int64], mean_depth: float | None) -> NDArray[np.float32]:
    """(N, P), mean standardised expression of the genes of each program, in two passes over the blocks.

    Parameters
    ----------
    source
        N cells over M genes.
    label
        (M,) program of each gene, -1 for none.
    mean_depth
        Depth to which counts are scaled before ``log1p``. None uses the values without transformation.

    Returns
    -------
    float32 (N, P). Genes that do not vary over the cells contribute 0.
    """
    n_programs = int(label.max(initial=-1)) + 1
    total, squares = np.zeros(len(label)), np.zeros(len(label))
    for block in source.blocks():
        x = _expression(block, mean_depth)
        total += np.asarray(x.sum(axis=0)).ravel()
        squares += np.asarray(x.multiply(x).sum(axis=0)).ravel()
    mean = total / source.n_obs
    deviation = np.sqrt(np.maximum(squares / source.n_obs - mean**2, 0.0))
    genes = np.flatnonzero(label >= 0)
    size = np.bincount(label[genes], minlength=n_programs)[label[genes]]
    factor = np.divide(1.0, deviation[genes] * size, out=np.zeros(len(genes)), where=deviation[genes] > 1e-6)
    weight = csr_matrix((factor, (genes, label[genes])), shape=(len(label), n_programs))
    at_mean = mean @ weight
    scores = [np.asarray((_expression(block, mean_depth) @ weight).todense()) - at_mean for block in source.blocks()]
    return np.concatenate(scores).astype(np.float32)


def _expression(block: Block, mean_depth: float | None) -> csr_matrix:
    if mean_depth is None:
        return block.counts.astype(np.float64)
    return log1p_rows(block.counts, block.depth, mean_depth)
