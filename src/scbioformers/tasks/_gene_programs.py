"""Gene programs: groups of genes that a fitted model treats alike, on which its members agree (section 3.4).

All similarities are (M, M) between genes. A *view* is one opinion of who is near whom: that of a member of an ensemble
or, if there is only one, a part of its graph.
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
from scbioformers.data import Block, BlockSource
from scbioformers.model import BioFormer
from scbioformers.nn import Transformer
from scbioformers.tasks._grn import EdgeScorer, contextual_embedding

Use = Literal["embedding", "attention"]
USES = ("embedding", "attention")
RESOLUTIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
N_PARTS = 5  # views of a single member
PART_SHARE = 0.8  # of the edges of its graph that each of them keeps
CHANCE = 0.1  # neighbours that a gene may have by chance
N_RANK = 1000
_PART_STREAM = 0x9A27


@dataclass(frozen=True)
class Programs:
    """Groups of genes, and how far the views agree on them."""

    label: NDArray[np.int64]
    """(M,), 0, 1, … by size, -1 for genes in none."""
    weight: NDArray[np.float64]
    """(M,), cosine of each gene with the centroid of its program, NaN for genes in none."""
    support: NDArray[np.float64]
    """(M,), share of the other genes of its program that a view has beside it, mean over the views; NaN for none."""
    resolution: float
    """The one that was chosen."""
    stability: pd.DataFrame
    """By ``resolution``: ``ari`` between the views; ``n_programs`` and ``n_genes`` in them, means over the views."""


def by_size(label: NDArray[np.int64], min_genes: int) -> NDArray[np.int64]:
    """Number clusters by size, ties by their first gene; -1 for genes of those below ``min_genes``.

    Examples
    --------
    >>> by_size(np.array([7, 3, 3, 9, 9]), 2).tolist()
    [-1, 0, 0, 1, 1]
    """
    names, first, codes, sizes = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(len(names))
    number[sizes < min_genes] = -1  # in order of size, so the others stay 0, 1, …
    return number[codes]


def chance_similarity(similarity: NDArray[np.float64]) -> float:
    """The cosine that a gene would reach with :data:`CHANCE` others if all pointed anywhere.

    Embeddings are of few dimensions, and genes that are hardly measured have one too: without a threshold each of them
    finds neighbours, and is clustered with them. The cosine of random directions in D dimensions, squared, follows
    Beta(1/2, (D - 1) / 2); D is the rank of the similarities, told from at most :data:`N_RANK` genes.

    Examples
    --------
    >>> round(chance_similarity(np.eye(1000)), 3), round(chance_similarity(np.kron(np.eye(10), np.ones((100, 100)))), 3)
    (0.117, 0.895)
    """
    n = len(similarity)
    every = -(-n // N_RANK)
    rank = int(np.linalg.matrix_rank(similarity[::every, ::every], tol=1e-6 * n, hermitian=True))
    return float(np.sqrt(beta.ppf(1 - min(2 * CHANCE / n, 1.0), 0.5, (rank - 1) / 2))) if rank > 1 else 0.0


def mutual_neighbors(similarity: NDArray[np.float64], n_neighbors: int, least: float = 0.0) -> csr_matrix:
    """(M, M) similarity of genes that are each among the ``n_neighbors`` nearest of the other and reach ``least``."""
    n = len(similarity)
    near = similarity.copy()
    np.fill_diagonal(near, -np.inf)
    k = min(n_neighbors, n - 1)
    # those tied with the k-th stay, so that the order of the genes does not matter
    kth = np.partition(near, n - k, axis=1)[:, n - k] if k > 0 else np.full(n, np.inf)
    chosen = (near >= kth[:, None]) & (near > 0) & (near >= least - 1e-9)
    return csr_matrix(np.where(chosen & chosen.T, similarity, 0.0))


def part_of(graph: csr_matrix, seed: int, view: int) -> csr_matrix:
    """The same genes with a random share of the edges."""
    edges = triu(graph, k=1).tocoo()
    kept = uniform(seed ^ _PART_STREAM, view, edges.row.astype(np.int64) * graph.shape[0] + edges.col) < PART_SHARE
    upper = csr_matrix((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=graph.shape)
    return upper + upper.T


def cluster(graph: csr_matrix, resolution: float, min_genes: int, seed: int) -> NDArray[np.int64]:
    """(M,) cluster of each gene by the Leiden algorithm: 0, 1, … by size, -1 for those in smaller ones."""
    return by_size(leiden(graph, resolution, seed).astype(np.int64), min_genes)


def agreement(labels: Sequence[NDArray[np.int64]]) -> float:
    """Mean adjusted Rand index between all pairs of views; a gene in no program is alone.

    NaN if a view has fewer than two programs: one program, or none, is agreed upon by chance.

    Examples
    --------
    >>> agreement([np.array([0, 0, 1, 1, -1]), np.array([1, 1, 0, 0, -1])])
    1.0
    """
    if min(len(set(label.tolist()) - {-1}) for label in labels) < 2:
        return float("nan")
    alone = [np.where(label < 0, len(label) + np.arange(len(label)), label) for label in labels]
    return float(np.mean([adjusted_rand_score(first, second) for first, second in combinations(alone, 2)]))


def find_programs(
    similarities: Sequence[NDArray[np.float64]],
    *,
    n_neighbors: int,
    min_genes: int,
    resolution: float | None = None,
    seed: int = 0,
) -> Programs:
    """Cluster genes at the resolution at which the views agree most, then on the mean of their similarities.

    Parameters
    ----------
    similarities
        (M, M) of each member: cosines.
    n_neighbors
        Of the mutual nearest neighbour graph.
    min_genes
        Smaller clusters are no programs.
    resolution
        Of the Leiden algorithm; None chooses among :data:`RESOLUTIONS`.
    seed
        Of the Leiden algorithm and of the parts of a single graph.

    Examples
    --------
    >>> similarity = np.kron(np.eye(2), np.ones((4, 4)))
    >>> find_programs([similarity], n_neighbors=3, min_genes=3, resolution=1.0).label.tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    mean = np.mean(similarities, axis=0)
    least = [chance_similarity(each) for each in similarities]
    mean_graph = mutual_neighbors(mean, n_neighbors, max(least) * _shrinkage(similarities))
    graphs = [mutual_neighbors(each, n_neighbors, enough) for each, enough in zip(similarities, least, strict=True)]
    views = graphs if len(similarities) > 1 else [part_of(mean_graph, seed, view) for view in range(N_PARTS)]
    tried = RESOLUTIONS if resolution is None else (resolution,)
    labels = {each: [cluster(view, each, min_genes, seed) for view in views] for each in tried}
    rows = [
        {
            "resolution": each,
            "ari": agreement(found),
            "n_programs": float(np.mean([label.max(initial=-1) + 1 for label in found])),
            "n_genes": float(np.mean([(label >= 0).sum() for label in found])),
        }
        for each, found in labels.items()
    ]
    stability = pd.DataFrame(rows)
    chosen = tried[int(np.argmax(stability["ari"].fillna(-1.0)))]
    label = cluster(mean_graph, chosen, min_genes, seed)
    return Programs(label, centrality(mean, label), support(label, labels[chosen]), chosen, stability)


def _shrinkage(similarities: Sequence[NDArray[np.float64]]) -> float:
    """By how much the cosines of chance fall when members are averaged that are correlated, as they are."""
    n = len(similarities)
    if n == 1:
        return 1.0
    pairs = np.triu_indices(len(similarities[0]), 1)
    correlation = np.corrcoef([each[pairs] for each in similarities])
    mean = float((correlation.sum() - n) / (n * (n - 1)))
    return float(np.sqrt((1 + (n - 1) * max(mean, 0.0)) / n))


def centrality(similarity: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """(M,) cosine of each gene with the centroid of its program.

    A mean of cosines is itself one: of the members' unit vectors side by side.
    """
    weight = np.full(len(label), np.nan)
    for program in range(int(label.max(initial=-1)) + 1):
        genes = np.flatnonzero(label == program)
        within = similarity[np.ix_(genes, genes)]
        weight[genes] = within.mean(axis=1) / np.sqrt(within.mean())
    return weight


def support(label: NDArray[np.int64], views: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(M,) share of the other genes of its program that a view has beside each gene, mean over the views."""
    held = np.full(len(label), np.nan)
    for program in range(int(label.max(initial=-1)) + 1):
        genes = np.flatnonzero(label == program)
        there = [view[genes] for view in views]
        together = [(x[:, None] == x[None]) & (x >= 0)[:, None] for x in there]
        others = np.mean([pairs.sum(axis=1) - pairs.diagonal() for pairs in together], axis=0)
        held[genes] = others / max(len(genes) - 1, 1)
    return held


def similarity(
    model: BioFormer, network: Transformer, cells: Block, use: Use, seed: int, bar: tqdm[None]
) -> NDArray[np.float64]:
    """(M, M) cosine of what one member makes of each pair of genes in those cells.

    ``"embedding"``: of the mean-centred contextual embeddings. ``"attention"``: of what genes read of the others, less
    what both genes alone lead to expect.
    """
    if use == "embedding":
        cosine = cosine_similarity(contextual_embedding(model, network, cells))
        np.fill_diagonal(cosine, 1.0)
        return cosine
    scorer = EdgeScorer(model, use, np.arange(len(model.vocabulary)))
    weight = np.nan_to_num(scorer.score(network, cells, seed, bar).weight)
    length = np.linalg.norm(weight, axis=1, keepdims=True)
    unit = np.divide(weight, length, out=np.zeros_like(weight), where=length > 0)
    return unit @ unit.T


def check_use(model: BioFormer, use: str) -> None:
    """Refuse, before any work, a similarity that the model cannot tell.

    Raises
    ------
    ConfigError
        If it is not one of :data:`USES`, or attention of a model that has none.
    """
    if use not in USES:
        raise ConfigError(f"`use` is one of {USES}, got {use!r}.")
    if use == "attention" and not model.config.attention:
        raise ConfigError(
            "The model was fitted without attention (ModelConfig.attention=False). Pass `use='embedding'`."
        )


def score_cells(source: BlockSource, label: NDArray[np.int64], mean_depth: float | None) -> NDArray[np.float32]:
    """(N, P) mean over the genes of each program of their standardised expression, in two passes over the blocks.

    Parameters
    ----------
    source
        N cells over M genes.
    label
        (M,) program of each gene, -1 for none.
    mean_depth
        Depth at which ``log1p`` of the counts is taken; None takes values as they are.

    Returns
    -------
    Genes that do not vary over the cells count as their mean, thus 0.
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
