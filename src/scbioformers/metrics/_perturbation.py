"""Scores of predicted responses to perturbations."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PerturbationScores:
    """One value for each perturbation, (K,); NaN where there is none.

    "Off target" leaves out the perturbed genes, whose fall is no discovery. A constant prediction correlates 0.

    Examples
    --------
    See :func:`perturbation`.
    """

    pearson: Array
    """Of the predicted and observed mean profiles, all genes."""
    pearson_de: Array
    """The same over the top genes by observed change."""
    delta: Array
    """Of the changes from control, all genes."""
    delta_de: Array
    """The same over the top genes."""
    delta_off: Array
    """Of the changes from control, off target: the headline."""
    delta_de_off: Array
    """The same over the top genes off target."""
    rmse: Array
    """Root mean squared error of the change, all genes, log1p units."""
    systema: Array
    """Of the changes from the mean of the perturbed cells, off target (Systema)."""
    centroid: Array
    """Share of the other perturbations that are farther from the prediction than the true one; chance is .5. The genes
    that either of the two perturbs are left out."""

    def mean(self) -> dict[str, float]:
        """Means over perturbations, by name."""
        return {name: float(np.nanmean(values)) for name, values in asdict(self).items()}


def perturbation(
    predicted: ArrayLike,
    observed: ArrayLike,
    *,
    control: ArrayLike,
    perturbed_mean: ArrayLike,
    own: ArrayLike,
    ranking: ArrayLike | None = None,
    others: ArrayLike | None = None,
    others_own: ArrayLike | None = None,
    n_top: int = 20,
) -> PerturbationScores:
    """Score predicted changes of mean expression (BENCHMARKS as of the paper's Table 5, and stricter ones).

    Parameters
    ----------
    predicted, observed
        (K, M), changes from control of K perturbations and M genes, log1p units.
    control
        (M,), mean of the control cells.
    perturbed_mean
        (M,), mean change over the *training* perturbations, from which Systema's score counts.
    own
        bool (K, M), the genes that each perturbation hits.
    ranking
        (K, M), observed evidence of change by which the top genes are chosen; by default the size of the change.
    others, others_own
        (L, M), observed changes of all perturbations, these included, and the genes that they hit, among which the
        centroid is sought; by default ``observed`` itself. A row equal to the true one is skipped.
    n_top
        Number of top genes.

    Returns
    -------
    PerturbationScores
        A value for each perturbation.

    Raises
    ------
    DataError
        If shapes differ or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> observed = np.array([[1.0, 0.5, -0.5, 0.0], [0.0, -1.0, 0.0, 1.0]])
    >>> scores = perturbation(
    ...     observed, observed, control=np.ones(4), perturbed_mean=np.zeros(4), own=np.zeros((2, 4), bool), n_top=2
    ... )
    >>> scores.delta_off, scores.centroid
    (array([1., 1.]), array([1., 1.]))
    """
    p, y = _finite(predicted, "predicted"), _finite(observed, "observed")
    base, centre, hit = _finite(control, "control"), _finite(perturbed_mean, "perturbed_mean"), np.asarray(own, bool)
    if p.shape != y.shape or p.ndim != 2 or hit.shape != y.shape or base.shape != centre.shape != (y.shape[1],):
        raise DataError(
            f"Shapes differ: {p.shape} predicted, {y.shape} observed, {hit.shape} own, {base.shape} control."
        )
    rank = np.abs(y) if ranking is None else np.abs(_finite(ranking, "ranking"))
    rest = y if others is None else _finite(others, "others")
    rest_hit = hit if others_own is None else np.asarray(others_own, bool)
    rows: list[list[float]] = []
    for i in range(len(y)):
        free = ~hit[i]
        top = _top(rank[i], n_top)
        top_free = _top(np.where(free, rank[i], -1), min(n_top, int(free.sum())))
        rows.append(
            [
                _pearson(base + p[i], base + y[i]),
                _pearson((base + p[i])[top], (base + y[i])[top]),
                _pearson(p[i], y[i]),
                _pearson(p[i][top], y[i][top]),
                _pearson(p[i][free], y[i][free]),
                _pearson(p[i][top_free], y[i][top_free]),
                float(np.sqrt(np.mean((p[i] - y[i]) ** 2))),
                _pearson((p[i] - centre)[free], (y[i] - centre)[free]),
                _centroid(p[i], y[i], hit[i], rest, rest_hit),
            ]
        )
    return PerturbationScores(*np.array(rows).reshape(len(y), -1).T)


def _centroid(p: Array, y: Array, hit: NDArray[np.bool_], rest: Array, rest_hit: NDArray[np.bool_]) -> float:
    wins = []
    for other, other_hit in zip(rest, rest_hit, strict=True):
        if np.array_equal(other, y):
            continue
        free = ~(hit | other_hit)
        true, wrong = float(((p - y)[free] ** 2).sum()), float(((p - other)[free] ** 2).sum())
        wins.append(0.5 if np.isclose(true, wrong, rtol=1e-12, atol=0) else float(true < wrong))
    return float(np.mean(wins)) if wins else float("nan")


def similarity_between(first: ArrayLike, second: ArrayLike | None = None, *, own: ArrayLike | None = None) -> Array:
    """Cosine similarity between effects, corrected for their noise by two independent estimates.

    Lengths and products are taken between the halves of the cells, whose noise is independent, so that noise makes the
    effects neither longer nor more alike. Predictions have no noise of this kind: give them alone.

    Parameters
    ----------
    first, second
        (K, M), effects from either half of the cells, control cells halved too. Without ``second`` a plain cosine.
    own
        bool (K, M), genes that each perturbation hits: those of either of two are left out of their similarity.

    Returns
    -------
    float64 (K, K); NaN where an effect has no length beyond its noise.

    Examples
    --------
    >>> import numpy as np
    >>> similarity_between(np.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
    array([[1.   , 0.707],
           [0.707, 1.   ]])
    """
    a = np.asarray(first, np.float64)
    b = a if second is None else np.asarray(second, np.float64)
    hit = np.zeros(a.shape, bool) if own is None else np.asarray(own, bool)
    found = np.full((len(a), len(a)), np.nan)
    for i in range(len(a)):
        for j in range(len(a)):
            free = ~(hit[i] | hit[j])
            lengths = (a[i] * b[i])[free].sum(), (a[j] * b[j])[free].sum()
            if min(lengths) > 0:
                product = ((a[i] * b[j])[free].sum() + (b[i] * a[j])[free].sum()) / 2
                found[i, j] = product / np.sqrt(lengths[0] * lengths[1])
    return found


def split_half(first: ArrayLike, second: ArrayLike, *, own: ArrayLike) -> Array:
    """Correlation between the effects of two halves of the cells, off target: what noise leaves to be reached.

    Parameters
    ----------
    first, second
        (K, M), effects from either half.
    own
        bool (K, M), genes that each perturbation hits.

    Returns
    -------
    float64 (K,).

    Examples
    --------
    >>> import numpy as np
    >>> effects = np.array([[1.0, 2.0, 9.0]])
    >>> split_half(effects, -effects, own=np.array([[False, False, True]]))
    array([-1.])
    """
    a, b, hit = np.asarray(first, np.float64), np.asarray(second, np.float64), np.asarray(own, bool)
    return np.array([_pearson(x[~h], y[~h]) for x, y, h in zip(a, b, hit, strict=True)])


def paired_bootstrap(
    ours: ArrayLike, theirs: ArrayLike, *, level: float = 0.95, n_draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two scores of the same targets, and its interval from targets drawn with replacement.

    Parameters
    ----------
    ours, theirs
        (K,), a score of each target.
    level
        Coverage of the interval.
    n_draws
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    Mean, lower and upper end.

    Raises
    ------
    ConfigError
        If the level is not between 0 and 1.

    Examples
    --------
    >>> paired_bootstrap([1.0, 2.0], [0.5, 1.5])
    (0.5, 0.5, 0.5)
    """
    if not 0 < level < 1:
        raise ConfigError(f"`level` lies between 0 and 1, got {level}.")
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    drawn = np.random.default_rng(seed).integers(len(difference), size=(n_draws, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def _finite(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        raise DataError(f"`{name}` has {int((~np.isfinite(found)).sum())} values that are not finite.")
    return found


def _top(rank: Array, n: int) -> NDArray[np.int64]:
    return np.argsort(-rank, kind="stable")[:n]


def _pearson(a: Array, b: Array) -> float:
    if a.size < 2:
        return 0.0
    x, y = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 1e-12 else 0.0
