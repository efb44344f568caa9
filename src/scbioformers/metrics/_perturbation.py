"""Scores of predicted responses to perturbations."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, check_arguments, check_shapes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PerturbationScores:
    """Scores of K perturbations. Each score has the shape (K,) and is NaN where it is not defined.

    "Off target" means without the perturbed genes, because their own change is easy to predict. The correlation of a
    constant prediction is set to 0.

    Examples
    --------
    See :func:`perturbation`.
    """

    pearson: Array
    """Pearson correlation of predicted and observed mean profile, all genes."""
    pearson_de: Array
    """`pearson` over the top genes by observed change."""
    delta: Array
    """Pearson correlation of predicted and observed change from control, all genes."""
    delta_de: Array
    """`delta` over the top genes."""
    delta_off: Array
    """`delta` off target. This is the main score."""
    delta_de_off: Array
    """`delta` over the top genes off target."""
    rmse: Array
    """Root mean squared error of the change, all genes, log1p units."""
    systema: Array
    """Pearson correlation of the changes from the mean of the perturbed cells, off target (Systema)."""
    centroid: Array
    """Share of the other perturbations whose observed change is farther from the prediction than the true one; chance
    is 0.5. Each comparison leaves out the genes that either of the two perturbations hits."""

    def mean(self) -> dict[str, float]:
        """Return the mean of each score over the perturbations, by name. NaN is ignored."""
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
    """Score predicted changes of mean expression: the scores of the paper's Table 5, and stricter ones.

    Parameters
    ----------
    predicted, observed
        (K, M), changes from control of K perturbations and M genes, log1p units.
    control
        (M,), mean of the control cells.
    perturbed_mean
        (M,), mean change over the *training* perturbations. The score of Systema uses it as the reference.
    own
        bool (K, M), the genes that each perturbation hits.
    ranking
        (K, M), evidence of change in the observed cells. The top genes have the largest absolute values. By default the
        observed changes.
    others, others_own
        (L, M), observed changes of all perturbations (these K included), and the genes that they hit (bool). The
        centroid score compares the prediction with them. By default ``observed`` and ``own``. A row that is equal to
        the true one is skipped.
    n_top
        Number of top genes of each perturbation.

    Returns
    -------
    PerturbationScores
        One value of each score for each perturbation.

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
    check_arguments(perturbation, locals())
    # without one of `others` and `others_own`, its default has the rows of the predictions
    rest_axes = "KM" if others is None or others_own is None else "LM"
    check_shapes(
        predicted=(predicted, "KM"), observed=(observed, "KM"), control=(control, "M"), own=(own, "KM"),
        perturbed_mean=(perturbed_mean, "M"), ranking=(ranking, "KM"), others=(others, rest_axes),
        others_own=(others_own, rest_axes),
    )  # fmt: skip
    p, y = _finite(predicted, "predicted"), _finite(observed, "observed")
    base, centre, hit = _finite(control, "control"), _finite(perturbed_mean, "perturbed_mean"), np.asarray(own, bool)
    rank = np.abs(y) if ranking is None else np.abs(_finite(ranking, "ranking"))
    rest = y if others is None else _finite(others, "others")
    rest_hit = hit if others_own is None else np.asarray(others_own, bool)
    rows: list[list[float]] = []
    for i in range(len(y)):
        off_target = ~hit[i]
        top = _top(rank[i], n_top)
        top_off = _top(np.where(off_target, rank[i], -1), min(n_top, int(off_target.sum())))
        rows.append(
            [
                _pearson(base + p[i], base + y[i]),
                _pearson((base + p[i])[top], (base + y[i])[top]),
                _pearson(p[i], y[i]),
                _pearson(p[i][top], y[i][top]),
                _pearson(p[i][off_target], y[i][off_target]),
                _pearson(p[i][top_off], y[i][top_off]),
                float(np.sqrt(np.mean((p[i] - y[i]) ** 2))),
                _pearson((p[i] - centre)[off_target], (y[i] - centre)[off_target]),
                _centroid(p[i], y[i], hit[i], rest, rest_hit),
            ]
        )
    return PerturbationScores(*np.array(rows).reshape(len(y), -1).T)


def _centroid(p: Array, y: Array, hit: NDArray[np.bool_], rest: Array, rest_hit: NDArray[np.bool_]) -> float:
    wins = []
    for other, other_hit in zip(rest, rest_hit, strict=True):
        if np.array_equal(other, y):
            continue
        kept = ~(hit | other_hit)
        true, wrong = float(((p - y)[kept] ** 2).sum()), float(((p - other)[kept] ** 2).sum())
        wins.append(0.5 if np.isclose(true, wrong, rtol=1e-12, atol=0) else float(true < wrong))
    return float(np.mean(wins)) if wins else float("nan")


def similarity_between(first: ArrayLike, second: ArrayLike | None = None, *, own: ArrayLike | None = None) -> Array:
    """Cosine similarity between effects, corrected for noise by two independent estimates.

    Squared lengths and products are computed between two halves of the cells. The noise of the halves is independent,
    so it does not increase lengths or similarities. Predictions have no such noise: pass them without ``second``.

    Parameters
    ----------
    first, second
        (K, M), effects estimated from the two halves of the cells; the control cells are halved as well. Without
        ``second`` the result is the plain cosine similarity.
    own
        bool (K, M), genes that each perturbation hits. The similarity of two perturbations leaves out the genes of
        both.

    Returns
    -------
    float64 (K, K); NaN where the corrected squared length of an effect is not positive.

    Raises
    ------
    DataError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> similarity_between(np.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
    array([[1.   , 0.707],
           [0.707, 1.   ]])
    """
    check_arguments(similarity_between, locals())
    check_shapes(first=(first, "KM"), second=(second, "KM"), own=(own, "KM"))
    a = np.asarray(first, np.float64)
    b = a if second is None else np.asarray(second, np.float64)
    hit = np.zeros(a.shape, bool) if own is None else np.asarray(own, bool)
    similarity = np.full((len(a), len(a)), np.nan)
    for i in range(len(a)):
        for j in range(len(a)):
            kept = ~(hit[i] | hit[j])
            lengths = (a[i] * b[i])[kept].sum(), (a[j] * b[j])[kept].sum()
            if min(lengths) > 0:
                product = ((a[i] * b[j])[kept].sum() + (b[i] * a[j])[kept].sum()) / 2
                similarity[i, j] = product / np.sqrt(lengths[0] * lengths[1])
    return similarity


def split_half(first: ArrayLike, second: ArrayLike, *, own: ArrayLike) -> Array:
    """Pearson correlation between effects estimated from two halves of the cells, off target.

    It shows how reproducible the observed effects are. Noise limits the scores of every prediction in the same way.

    Parameters
    ----------
    first, second
        (K, M), effects estimated from the two halves.
    own
        bool (K, M), genes that each perturbation hits.

    Returns
    -------
    float64 (K,), one correlation for each perturbation.

    Raises
    ------
    DataError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> effects = np.array([[1.0, 2.0, 9.0]])
    >>> split_half(effects, -effects, own=np.array([[False, False, True]]))
    array([-1.])
    """
    check_arguments(split_half, locals())
    check_shapes(first=(first, "KM"), second=(second, "KM"), own=(own, "KM"))
    a, b, hit = np.asarray(first, np.float64), np.asarray(second, np.float64), np.asarray(own, bool)
    return np.array([_pearson(x[~h], y[~h]) for x, y, h in zip(a, b, hit, strict=True)])


def paired_bootstrap(
    ours: ArrayLike, theirs: ArrayLike, *, level: float = 0.95, n_draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two scores of the same targets, with a bootstrap interval over the targets.

    Parameters
    ----------
    ours, theirs
        (K,), the two scores of each target.
    level
        Coverage of the interval.
    n_draws
        Number of bootstrap draws.
    seed
        Seed of the draws.

    Returns
    -------
    Mean of ``ours - theirs``, and the lower and upper end of its interval.

    Raises
    ------
    ConfigError
        If `level` is not between 0 and 1.
    DataError
        If shapes differ, or there is no target.

    Examples
    --------
    >>> paired_bootstrap([1.0, 2.0], [0.5, 1.5])
    (0.5, 0.5, 0.5)
    """
    check_arguments(paired_bootstrap, locals())
    check_shapes(ours=(ours, "K"), theirs=(theirs, "K"))
    if not np.size(ours):
        raise DataError("`ours` has no score. Pass one score of each target.")
    if not 0 < level < 1:
        raise ConfigError(f"`level` must be between 0 and 1, found {level}.")
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    drawn = np.random.default_rng(seed).integers(len(difference), size=(n_draws, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"`{name}` has {int((~np.isfinite(array)).sum())} values that are not finite.")
    return array


def _top(rank: Array, n: int) -> NDArray[np.int64]:
    return np.argsort(-rank, kind="stable")[:n]


def _pearson(a: Array, b: Array) -> float:
    if a.size < 2:
        return 0.0
    x, y = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 1e-12 else 0.0
