"""Scores of gene regulatory networks: edge weights, targets x regulators, against edges known to be true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, describe_unknown

Array = NDArray[np.float64]
UNIVERSES = ("truth", "data")


@dataclass(frozen=True)
class GRNScores:
    """How well edge weights find the true edges.

    Examples
    --------
    See :func:`grn_scores`.
    """

    auprc: float
    """Area under the precision-recall curve (average precision)."""
    auprc_ratio: float
    """The same over ``density``, what random weights reach: chance is 1."""
    early_precision: float
    """Share of true edges among as many top edges as there are true ones."""
    epr: float
    """The same over ``density``: chance is 1."""
    sign_accuracy: float
    """Share of the true edges among those top edges whose weight has the true sign; NaN where weights or truth have no
    signs, or nothing was recovered."""
    n_recovered: float
    """True edges among those top edges; a fraction where edges are tied at the last rank."""
    n_true: int
    """True edges between genes of the data, self-loops left out."""
    n_pairs: int
    """Pairs that were ranked."""
    n_regulators: int
    """Regulators that were ranked."""
    density: float
    """``n_true / n_pairs``."""

    def to_dict(self) -> dict[str, float]:
        """Scores by name."""
        return asdict(self)


def grn_scores(
    weights: ArrayLike,
    truth: pd.DataFrame,
    *,
    genes: Sequence[str],
    regulators: Sequence[str] | None = None,
    universe: str = "truth",
) -> GRNScores:
    """Score edge weights against true edges, by BEELINE's rules.

    Edges are ranked by the size of their weight. Ranked are all pairs of a regulator of the truth and a gene of the
    ``universe``, without self-loops, after the truth was reduced to edges between genes of the data. Tied edges are
    expanded: the curve takes them as one step, and where a tie reaches beyond the last of the top edges, each edge of
    it counts with the share of the tie that fits, the mean over all orders. Pairs without a weight (NaN: never seen
    together) come last, as one tie.

    Parameters
    ----------
    weights
        (n_genes, n_regulators), row = target, column = regulator; signed or not.
    truth
        Edges, columns ``source`` (regulator) and ``target``, with signs ``weight`` too. Duplicates count once.
    genes
        Names of the rows.
    regulators
        Names of the columns, all among the genes; by default the genes.
    universe
        Targets that are ranked: genes that the reduced truth names (``"truth"``, as BEELINE does: nothing is known of
        the others), or all genes (``"data"``).

    Returns
    -------
    GRNScores

    Raises
    ------
    ConfigError
        If `universe` is none of the two.
    DataError
        If shapes and names do not fit, weights are infinite, or no true edge is left.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> truth = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"], "weight": [1, -1]})
    >>> weights = np.array([[0.0], [0.9], [0.1], [-0.5]])
    >>> scores = grn_scores(weights, truth, genes=["A", "B", "C", "D"], regulators=["A"], universe="data")
    >>> round(scores.auprc, 3), scores.early_precision, scores.n_recovered, scores.n_pairs
    (0.833, 0.5, 1.0, 3)
    """
    if universe not in UNIVERSES:
        raise ConfigError(f"`universe` is one of {UNIVERSES}, got {universe!r}.")
    w, rows, columns = _read_weights(weights, genes, regulators)
    signs = _true_signs(truth, rows, columns)
    used = np.flatnonzero((~np.isnan(signs)).any(axis=0))
    named = np.ones(len(rows), bool)
    if universe == "truth":
        named = (~np.isnan(signs)).any(axis=1) | rows.isin(columns[used])
    ranked = np.ix_(np.flatnonzero(named), used)
    pairs = rows[named].to_numpy()[:, None] != columns[used].to_numpy()[None, :]
    return _score(w[ranked][pairs], signs[ranked][pairs], len(used))


def _score(w: Array, signs: Array, n_regulators: int) -> GRNScores:
    """Score weights of pairs against their true signs: NaN for no edge, 0 for an edge without a sign."""
    true = ~np.isnan(signs)
    # weights have no negative size, so that -1 ranks pairs without a weight below those of weight 0
    size = np.where(np.isnan(w), -1.0, np.abs(w))
    n_true, density = int(true.sum()), float(true.mean())
    share = _top_shares(size, n_true)
    recovered = float(share[true].sum())
    auprc, early = _average_precision(size, size[true]), recovered / n_true
    signed = share * (true & (np.nan_to_num(signs) != 0) & ~np.isnan(w))
    accuracy = float("nan")
    if signed.sum() > 0 and (signs[true] < 0).any() and (w < 0).any():
        accuracy = float((signed * (np.sign(w) == signs)).sum() / signed.sum())
    return GRNScores(auprc, auprc / density, early, early / density, accuracy, recovered, n_true, len(w),
                     n_regulators, density)  # fmt: skip


def _average_precision(size: Array, size_true: Array) -> float:
    """Mean over the true edges of the precision at their size, those tied with them included.

    The same as scikit-learn's, without ordering the labels: random networks are scored by the hundred.
    """
    ranked, ranked_true = np.sort(size), np.sort(size_true)
    n_reached = len(size) - np.searchsorted(ranked, ranked_true)
    n_hits = len(size_true) - np.searchsorted(ranked_true, ranked_true)
    return float((n_hits / n_reached).mean())


def _top_shares(size: Array, k: int) -> Array:
    """How much of each edge is among the top k: 1 above the k-th size, an equal share at it, 0 below."""
    last = np.partition(size, len(size) - k)[len(size) - k]
    above, tied = size > last, size == last
    return above + tied * ((k - above.sum()) / tied.sum())


def jaccard_top(
    a: ArrayLike, b: ArrayLike, k: int, *, genes: Sequence[str] | None = None, regulators: Sequence[str] | None = None
) -> float:
    """Overlap of the top edges of two networks: size of the intersection over that of the union.

    Zero and NaN are no edges, so that a network can have fewer than `k`. Of edges tied at the last rank those of the
    first rows are taken, and in a row those of the first columns.

    Parameters
    ----------
    a, b
        Weights, targets x regulators, of the same shape.
    k
        Number of top edges by the size of their weight.
    genes, regulators
        Names of rows and columns, by which self-loops are found. Without them the diagonal of a square matrix is left
        out; other matrices need them.

    Returns
    -------
    Between 0 and 1; NaN if neither has an edge.

    Raises
    ------
    ConfigError
        If `k` is below 1.
    DataError
        If shapes and names do not fit, or weights are infinite.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.array([[9.0, 3.0], [2.0, 9.0]]), np.array([[9.0, -3.0], [0.0, 9.0]])
    >>> jaccard_top(a, b, 1), jaccard_top(a, b, 2)
    (1.0, 0.5)
    """
    if k < 1:
        raise ConfigError(f"`k` must be at least 1, got {k}.")
    if np.shape(a) != np.shape(b):
        raise DataError(f"Shapes differ: {np.shape(a)} and {np.shape(b)}. Pass the weights of the same pairs.")
    if genes is None:
        if len(set(np.shape(a))) != 1:
            raise DataError(f"Weights of shape {np.shape(a)} are not square: name `genes` and `regulators`.")
        genes = [str(index) for index in range(len(np.asarray(a)))]
    first, second = (_top_edges(*_read_weights(each, genes, regulators), k) for each in (a, b))
    union = len(first | second)
    return len(first & second) / union if union else float("nan")


def _top_edges(w: Array, rows: pd.Index, columns: pd.Index, k: int) -> set[int]:
    size = np.nan_to_num(np.abs(w))
    size[rows.to_numpy()[:, None] == columns.to_numpy()[None, :]] = 0
    flat = size.ravel()
    top = np.argsort(-flat, kind="stable")[:k]
    return set(top[flat[top] > 0].tolist())


def _read_weights(
    weights: ArrayLike, genes: Sequence[str], regulators: Sequence[str] | None
) -> tuple[Array, pd.Index, pd.Index]:
    """Check weights and the names of their rows and columns."""
    w = np.asarray(weights, np.float64)
    rows = pd.Index([str(name) for name in genes])
    columns = rows if regulators is None else pd.Index([str(name) for name in regulators])
    for names, what in ((rows, "genes"), (columns, "regulators")):
        if names.has_duplicates:
            raise DataError(f"`{what}` names {names[names.duplicated()][0]!r} more than once.")
    if w.shape != (len(rows), len(columns)):
        raise DataError(
            f"Weights of shape {w.shape} do not fit {len(rows)} genes (rows, targets) and {len(columns)} regulators "
            "(columns)."
        )
    if np.isinf(w).any():
        raise DataError(f"{int(np.isinf(w).sum())} weights are infinite.")
    if unknown := [name for name in columns if name not in rows]:
        raise DataError(f"{len(unknown)} regulators are not among the genes: {describe_unknown(unknown, rows)}.")
    return w, rows, columns


def read_edges(truth: pd.DataFrame) -> pd.DataFrame:
    """Edges without self-loops and duplicates: ``source``, ``target``, ``sign`` (0 if unknown or contradictory)."""
    if missing := [name for name in ("source", "target") if name not in truth]:
        raise DataError(f"The edge table has no column {missing[0]!r}, only {list(truth.columns)}. Rename its columns.")
    signs = np.sign(truth["weight"].to_numpy(np.float64)) if "weight" in truth else np.zeros(len(truth))
    edges = pd.DataFrame({
        "source": truth["source"].astype(str).to_numpy(),
        "target": truth["target"].astype(str).to_numpy(),
        "sign": np.nan_to_num(signs),
    })  # fmt: skip
    edges = edges[edges["source"] != edges["target"]]
    summed = edges.groupby(["source", "target"], sort=False, as_index=False)["sign"].sum()
    return summed.assign(sign=np.sign(summed["sign"]))


def _true_signs(truth: pd.DataFrame, rows: pd.Index, columns: pd.Index) -> Array:
    """Signs of the true edges, targets x regulators, NaN where there is no edge."""
    edges = read_edges(truth)
    target, source = (names.get_indexer(pd.Index(edges[end])) for names, end in ((rows, "target"), (columns, "source")))
    known = (target >= 0) & (source >= 0)
    if not known.any():
        if edges.empty:
            raise DataError(f"The truth has no edges ({len(truth)} rows, self-loops left out).")
        unknown = edges["source"][source < 0].unique().tolist() or edges["target"][target < 0].unique().tolist()
        raise DataError(
            f"None of {len(edges)} true edges lies between regulators and genes of the data; "
            f"unknown: {describe_unknown(unknown, columns if (source < 0).any() else rows)}."
        )
    signs = np.full((len(rows), len(columns)), np.nan)
    signs[target[known], source[known]] = edges["sign"].to_numpy()[known]
    return signs
