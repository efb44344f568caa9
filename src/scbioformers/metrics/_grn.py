"""Scores of gene regulatory networks: edge weights (targets x regulators) against known true edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, check_arguments, check_shapes, describe_unknown

Array = NDArray[np.float64]
UNIVERSES = ("truth", "data")


@dataclass(frozen=True)
class GRNScores:
    """How well edge weights recover the true edges.

    Examples
    --------
    See :func:`grn_scores`.
    """

    auprc: float
    """Area under the precision-recall curve (average precision)."""
    auprc_ratio: float
    """``auprc / density``. Random weights reach 1 on average."""
    early_precision: float
    """Share of true edges among the ``n_true`` top edges."""
    epr: float
    """``early_precision / density`` (early precision ratio). Random weights reach 1 on average."""
    sign_accuracy: float
    """Share of the recovered edges whose weight has the true sign. NaN if the weights or the truth have no signs, or if
    no edge is recovered."""
    n_recovered: float
    """Number of true edges among the ``n_true`` top edges. Edges that are tied at the last rank count as fractions."""
    n_true: int
    """Number of true edges between genes of the data, without self-loops."""
    n_pairs: int
    """Number of ranked pairs."""
    n_regulators: int
    """Number of ranked regulators."""
    density: float
    """``n_true / n_pairs``."""

    def to_dict(self) -> dict[str, float]:
        """Return the scores by name."""
        return asdict(self)


def grn_scores(
    weights: ArrayLike,
    truth: pd.DataFrame,
    *,
    genes: Sequence[str],
    regulators: Sequence[str] | None = None,
    universe: str = "truth",
) -> GRNScores:
    """Score edge weights against true edges, by the rules of BEELINE.

    Edges are ranked by the absolute value of their weight. First, the truth is reduced to edges between genes of the
    data. Then all pairs of a regulator of the reduced truth and a gene of the ``universe`` are ranked, without
    self-loops.

    Tied edges are one step of the precision-recall curve. If a tie extends beyond rank ``n_true``, each of its edges
    counts as a fraction: the share of the tie that fits. This is the mean over all orders of the tied edges. Pairs
    without a weight (NaN) come last, as one tie.

    Parameters
    ----------
    weights
        (n_genes, n_regulators), row = target, column = regulator, with or without signs.
    truth
        Edges, with the columns ``source`` (regulator) and ``target``. The sign is that of the column ``weight``, if
        present. Duplicates count once.
    genes
        Names of the rows.
    regulators
        Names of the columns, all of them among `genes`; by default `genes`.
    universe
        Target genes that are ranked. ``"truth"``: the genes of the reduced truth, as in BEELINE, because nothing is
        known about the other genes. ``"data"``: all genes.

    Returns
    -------
    GRNScores

    Raises
    ------
    ConfigError
        If `universe` is not one of the two.
    DataError
        If the shape of `weights` does not match the names, weights are infinite, or no true edge is left.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> truth = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"], "weight": [1, -1]})
    >>> weights = np.array([[0.0], [0.9], [0.1], [-0.5]])
    >>> scores = grn_scores(weights, truth, genes=["A", "B", "C", "D"], regulators=["A"], universe="data")
    >>> round(scores.auprc, 3), scores.early_precision, scores.n_recovered, scores.n_pairs
    (0.833, 0.5, 1.0, 3)
    """
    check_arguments(grn_scores, locals())
    if universe not in UNIVERSES:
        raise ConfigError(f"`universe` must be one of {UNIVERSES}, found {universe!r}.")
    w, rows, columns = _read_weights(weights, genes, regulators)
    signs = _true_signs(truth, rows, columns)
    used = np.flatnonzero((~np.isnan(signs)).any(axis=0))
    is_target = np.ones(len(rows), bool)
    if universe == "truth":
        is_target = (~np.isnan(signs)).any(axis=1) | rows.isin(columns[used])
    ranked = np.ix_(np.flatnonzero(is_target), used)
    pairs = rows[is_target].to_numpy()[:, None] != columns[used].to_numpy()[None, :]
    return _score(w[ranked][pairs], signs[ranked][pairs], len(used))


def _score(w: Array, signs: Array, n_regulators: int) -> GRNScores:
    """Score the weights of pairs against their true signs: NaN without an edge, 0 for an edge without a sign."""
    true = ~np.isnan(signs)
    # absolute weights are not negative, so -1 ranks pairs without a weight below pairs of weight 0
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
    """Return the mean, over the true edges, of the precision at their rank; tied edges are included.

    The result equals scikit-learn's. It is faster because the labels are not sorted: hundreds of random networks are
    scored.
    """
    ranked, ranked_true = np.sort(size), np.sort(size_true)
    n_reached = len(size) - np.searchsorted(ranked, ranked_true)
    n_hits = len(size_true) - np.searchsorted(ranked_true, ranked_true)
    return float((n_hits / n_reached).mean())


def _top_shares(size: Array, k: int) -> Array:
    """Return the fraction of each edge among the top k: 1 above the k-th size, an equal share at it, 0 below it."""
    last = np.partition(size, len(size) - k)[len(size) - k]
    above, tied = size > last, size == last
    return above + tied * ((k - above.sum()) / tied.sum())


def jaccard_top(
    a: ArrayLike, b: ArrayLike, k: int, *, genes: Sequence[str] | None = None, regulators: Sequence[str] | None = None
) -> float:
    """Jaccard index of the top edges of two networks: size of the intersection divided by size of the union.

    Pairs of weight 0 or NaN are not edges, so a network can have fewer than `k` top edges. If edges are tied at the
    last rank, those of the first rows are taken, and within a row those of the first columns.

    Parameters
    ----------
    a, b
        Weights, (n_genes, n_regulators), of the same shape.
    k
        Number of top edges by the absolute value of their weight.
    genes, regulators
        Names of rows and columns, used to find self-loops. Without them the matrices must be square, and their
        diagonals are left out.

    Returns
    -------
    The index, between 0 and 1; NaN if neither network has an edge.

    Raises
    ------
    ConfigError
        If `k` is below 1.
    DataError
        If the shapes do not match each other or the number of names, or if weights are infinite.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.array([[9.0, 3.0], [2.0, 9.0]]), np.array([[9.0, -3.0], [0.0, 9.0]])
    >>> jaccard_top(a, b, 1), jaccard_top(a, b, 2)
    (1.0, 0.5)
    """
    check_arguments(jaccard_top, locals())
    if k < 1:
        raise ConfigError(f"`k` must be at least 1, found {k}.")
    check_shapes(a=(a, "GR"), b=(b, "GR"))
    if genes is None:
        if len(set(np.shape(a))) != 1:
            raise DataError(f"Weights of shape {np.shape(a)} are not square: pass `genes` and `regulators`.")
        genes = [str(index) for index in range(len(np.asarray(a)))]
    first, second = (_top_edges(*_read_weights(network, genes, regulators), k) for network in (a, b))
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
    """Return the checked weights and the names of their rows and columns."""
    check_shapes(weights=(weights, "GR"))
    w = np.asarray(weights, np.float64)
    rows = pd.Index([str(name) for name in genes])
    columns = rows if regulators is None else pd.Index([str(name) for name in regulators])
    for names, parameter in ((rows, "genes"), (columns, "regulators")):
        if names.has_duplicates:
            raise DataError(f"`{parameter}` contains {names[names.duplicated()][0]!r} more than once.")
    if w.shape != (len(rows), len(columns)):
        raise DataError(
            f"Weights of shape {w.shape} do not match {len(rows)} genes (rows, targets) and {len(columns)} regulators "
            "(columns)."
        )
    if np.isinf(w).any():
        raise DataError(f"{int(np.isinf(w).sum())} weights are infinite.")
    if unknown := [name for name in columns if name not in rows]:
        raise DataError(f"{len(unknown)} regulators are not among the genes: {describe_unknown(unknown, rows)}.")
    return w, rows, columns


def read_edges(truth: pd.DataFrame) -> pd.DataFrame:
    """Return the edges without self-loops and duplicates: ``source``, ``target``, ``sign``.

    The sign is 0 if it is unknown, or if duplicates of an edge contradict each other. Rows without a name are left out.
    """
    if missing := [name for name in ("source", "target") if name not in truth]:
        raise DataError(f"The edge table has no column {missing[0]!r}, only {list(truth.columns)}. Rename its columns.")
    truth = truth.dropna(subset=["source", "target"])
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
    """Return the signs of the true edges, (n_genes, n_regulators), NaN where there is no edge."""
    edges = read_edges(truth)
    target, source = (names.get_indexer(pd.Index(edges[end])) for names, end in ((rows, "target"), (columns, "source")))
    known = (target >= 0) & (source >= 0)
    if not known.any():
        if edges.empty:
            raise DataError(f"The truth has no edges ({len(truth)} rows, without self-loops).")
        unknown = edges["source"][source < 0].unique().tolist() or edges["target"][target < 0].unique().tolist()
        raise DataError(
            f"None of the {len(edges)} true edges connects a regulator and a gene of the data; "
            f"unknown: {describe_unknown(unknown, columns if (source < 0).any() else rows)}."
        )
    signs = np.full((len(rows), len(columns)), np.nan)
    signs[target[known], source[known]] = edges["sign"].to_numpy()[known]
    return signs
