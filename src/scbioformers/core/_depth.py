"""Depth of cells some of whose counts are masked, and the distribution of its error.

The value bin of a masked count is a step function of the depth of the whole cell. Only the visible part of the depth is
known. The rest is estimated from the visible counts and from which features are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core._components import Profiles, principal_components
from scbioformers.core._normalize import log1p_rows

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]

N_DEPTHS = 7  # equally likely depths of a cell
N_COMPONENTS = 10
_STATE = ("share", "variance", "weights", "spread", "quantiles")
_MEAN_CELL = 0.01  # share of a mean cell that is added to what is visible
_PRIOR = 1.0  # masked entries of the average feature that are added to those of each feature
_CHUNK, _ENTRY_CHUNK = 1024, 2**17  # cells, and masked entries, at a time: limits the memory


@dataclass(frozen=True, eq=False)
class MaskedRows:
    """N cells of M features, of which some are masked."""

    visible: csr_matrix
    """(N, M), visible counts."""
    depth: Array
    """(N,), visible depth: the depth of the whole cell minus its masked counts."""
    cells: NDArray[np.int64]
    """(H,), row of each masked entry, ascending."""
    features: NDArray[np.int64]
    """(H,), column of each masked entry."""
    absent: NDArray[np.bool_] | None = None
    """(M,), features that are not measured. They are neither visible nor masked. None if all are measured."""

    def per_cell(self, values: Array) -> Array:
        """(N,), sums of values (H,) over the masked entries of each cell."""
        return np.bincount(self.cells, weights=values, minlength=len(self.depth)).astype(np.float64)

    @property
    def n_masked(self) -> NDArray[np.int64]:
        """(N,), number of masked entries of each cell."""
        return np.bincount(self.cells, minlength=len(self.depth))


@dataclass(frozen=True, eq=False)
class Draw:
    """Complete cells, and the same cells under one draw of the mask."""

    counts: csr_matrix
    """(N, M), complete counts."""
    depth: Array
    """(N,), depth of the complete cells."""
    masked: MaskedRows
    """The cells with masked entries."""


@dataclass(frozen=True, eq=False)
class LowRankProfile:
    """Probabilistic PCA (Tipping and Bishop 1999) of log-normalised profiles. Masked features are missing values."""

    mean_depth: float
    """Depth to which profiles are scaled, in counts."""
    mean: Array32
    """(M,), mean profile."""
    loadings: Array32
    """(M, K), loadings for independent standard normal scores."""
    noise: float
    """Variance that the components do not explain, per feature."""

    @classmethod
    def fit(
        cls, counts: csr_matrix, depth: Array, mean_depth: float, seed: int = 0, *, n_components: int = N_COMPONENTS
    ) -> LowRankProfile:
        """Fit to N complete cells. The number of components is limited by their shape."""
        part = Profiles(log1p_rows(counts, depth, mean_depth), np.ones(counts.shape[1], bool))
        return cls.of_profiles([part], mean_depth, seed, n_components=n_components)

    @classmethod
    def of_profiles(
        cls, parts: Sequence[Profiles], mean_depth: float, seed: int = 0, *, n_components: int = N_COMPONENTS
    ) -> LowRankProfile:
        """Fit to profiles that are scaled to ``mean_depth``. Features that a part does not measure are missing."""
        components, variance, mean = principal_components(parts, n_components, seed)
        n_cells, k = sum(part.values.shape[0] for part in parts), len(variance)
        noise = 1.0
        if k:
            squares = np.sum([np.asarray(part.values.multiply(part.values).sum(axis=0)) for part in parts], axis=0)
            number = np.sum([part.values.shape[0] * part.present for part in parts], axis=0)
            total = float(squares.sum() - (number * mean**2).sum()) / n_cells
            variance = np.nan_to_num(variance) * (1 - 1 / n_cells)  # as the total, over N
            noise = max(total - float(variance.sum()), 1e-6) / max(mean.size - k, 1)
        loadings = np.nan_to_num(components) * np.sqrt(np.maximum(variance - noise, 0.0))
        return cls(
            float(np.float32(mean_depth)),
            mean.astype(np.float32),
            loadings.astype(np.float32),
            float(np.float32(noise)),
        )

    @cached_property
    def _products(self) -> Array:
        """(M, K * K + K), products of the loadings of a feature with each other and with its mean."""
        loadings = self.loadings.astype(np.float64)
        squares = loadings[:, :, None] * loadings[:, None, :]
        return np.column_stack([squares.reshape(len(loadings), -1), loadings * self.mean[:, None].astype(np.float64)])

    def leading(self, k: int) -> LowRankProfile:
        """The model of the k leading components alone. The variance of the others becomes noise."""
        loadings, n_features = self.loadings.astype(np.float64), len(self.mean)
        k = min(k, loadings.shape[1])
        variance = (loadings**2).sum(axis=0) + self.noise
        noise = (self.noise * (n_features - len(variance)) + variance[k:].sum()) / max(n_features - k, 1)
        kept = np.maximum(variance[:k] - noise, 0.0) / np.maximum(variance[:k] - self.noise, 1e-300)
        loadings = loadings[:, :k] * np.sqrt(kept)
        return LowRankProfile(self.mean_depth, self.mean, loadings.astype(np.float32), float(np.float32(noise)))

    def scores(self, rows: MaskedRows, depth: Array) -> Array:
        """(N, K), expected scores of each cell, given its visible features and its estimated depth (N,).

        Masked and absent features count as missing, not as 0. Sums run over the entries of one cell in a fixed order,
        so that the result does not depend on the other cells.
        """
        loadings, k = self.loadings.astype(np.float64), self.loadings.shape[1]
        scores = log1p_rows(rows.visible, depth, self.mean_depth) @ loadings
        indptr = np.concatenate(([0], np.cumsum(rows.n_masked)))
        masked = csr_matrix((np.ones(len(rows.cells)), rows.features, indptr), shape=rows.visible.shape)
        present = self._products.sum(axis=0)
        if rows.absent is not None and rows.absent.any():
            present = present - self._products[rows.absent].sum(axis=0)
        for start in range(0, len(scores), _CHUNK):
            at = slice(start, start + _CHUNK)
            known = present - masked[at] @ self._products
            precision = known[:, : k * k].reshape(len(known), k, k) + self.noise * np.eye(k)
            right = scores[at] - known[:, k * k :]
            scores[at] = np.linalg.solve(precision, right[:, :, None])[:, :, 0]
        return scores

    def levels(self, rows: MaskedRows, scores: Array) -> Array:
        """(H,), log level of each masked feature that is expected in a cell with these scores (N, K)."""
        loadings, levels = self.loadings.astype(np.float64), self.mean[rows.features].astype(np.float64)
        for start in range(0, len(levels), _ENTRY_CHUNK):
            at = slice(start, start + _ENTRY_CHUNK)
            levels[at] += (loadings[rows.features[at]] * scores[rows.cells[at]]).sum(axis=1)
        return levels

    def expected_ratio(self, rows: MaskedRows, depth: Array) -> Array:
        """(H,), expression of each masked feature that is expected from the visible ones, relative to the mean cell.

        The ratio is between 0.1 and 5.
        """
        level = self.levels(rows, self.scores(rows, depth))
        mean = np.expm1(self.mean.astype(np.float64))[rows.features]
        ratio = (np.expm1(np.minimum(level, 20.0)) + 0.3 * mean) / np.maximum(1.3 * mean, 1e-12)
        return np.clip(ratio, 0.1, 5.0)


@dataclass(frozen=True, eq=False)
class DepthModel:
    """Estimates the depth of cells with masked features, and seven equally likely values of it.

    The log of full depth / visible depth is a linear function of: 1; the summed mean shares of the masked features; the
    same sum for the expression that is expected in this cell; log(1 + number of masked features); log(1 + visible
    depth); log(1 + number of visible expressed features). With ``exact``, the masked share of the depth is a linear
    function of the two sums alone. So the estimate is the visible depth itself if nothing is masked.
    """

    profile: LowRankProfile
    """Expression that is expected in a cell given its visible features."""
    share: Array32
    """(M,), mean share of the depth that a feature has where it is masked."""
    variance: Array32
    """(M,), variance of this share."""
    weights: Array32
    """(6,), or (2,) if exact: weights of the terms."""
    spread: Array32
    """(2,), intercept and slope of the log size of the error, given half the log of the summed variances."""
    quantiles: Array32
    """(7,), equally likely errors divided by their size."""

    @property
    def exact(self) -> bool:
        """Whether the estimate is the visible depth if nothing is masked."""
        return len(self.weights) == 2

    @classmethod
    def fit(cls, profile: LowRankProfile, draws: Sequence[Draw], *, exact: bool = False) -> DepthModel:
        """Fit to complete cells under draws of the mask.

        Parameters
        ----------
        profile
            Probabilistic PCA of training cells.
        draws
            Cells under independent masks. The cells of several draws may be the same or others.
        exact
            Whether the estimate is the visible depth if nothing is masked.
        """
        n_features = len(profile.mean)
        features = np.concatenate([draw.masked.features for draw in draws])
        full = [np.maximum(draw.depth, 1e-9) for draw in draws]
        shares = np.concatenate([_masked_shares(draw, depth) for draw, depth in zip(draws, full, strict=True)])
        number = np.bincount(features, minlength=n_features) + _PRIOR
        overall = shares.mean() if shares.size else 0.0
        share = (np.bincount(features, shares, n_features) + _PRIOR * overall) / number
        error = (shares - share[features]) ** 2
        variance = (np.bincount(features, error, n_features) + _PRIOR * (error.mean() if error.size else 0.0)) / number
        start = cls(
            profile,
            share.astype(np.float32),
            variance.astype(np.float32),
            np.zeros(2 if exact else 6, np.float32),
            np.zeros(2, np.float32),
            np.zeros(N_DEPTHS, np.float32),
        )
        masked = [draw.masked for draw in draws]
        used = [np.flatnonzero((each.depth > 0) & (each.n_masked > 0)) for each in masked]
        terms = np.concatenate([start._terms(each)[rows] for each, rows in zip(masked, used, strict=True)])
        ratio = np.concatenate([f[rows] / m.depth[rows] for f, m, rows in zip(full, masked, used, strict=True)])
        target = 1.0 - 1.0 / ratio if exact else np.log(ratio)
        weights = np.linalg.lstsq(terms, target, rcond=None)[0].astype(np.float32)
        fitted = replace(start, weights=weights)
        residual = np.log(ratio) - fitted._log_ratio(terms)
        size = np.concatenate([start._log_size(each)[rows] for each, rows in zip(masked, used, strict=True)])
        some = np.abs(residual) > 1e-9
        if some.sum() < 10:
            return fitted
        X = np.column_stack([np.ones(some.sum()), size[some]])
        spread = np.linalg.lstsq(X, np.log(np.abs(residual[some])), rcond=None)[0]
        scaled = residual / np.exp(spread[0] + spread[1] * size)
        quantiles = np.quantile(scaled, (np.arange(N_DEPTHS) + 0.5) / N_DEPTHS)
        return replace(fitted, spread=spread.astype(np.float32), quantiles=quantiles.astype(np.float32))

    def estimate(self, rows: MaskedRows) -> tuple[Array, Array]:
        """Estimated depth (N,) and equally likely depths (N, 7)."""
        ratio = self._log_ratio(self._terms(rows))
        with np.errstate(over="ignore"):
            size = np.exp(self.spread[0] + self.spread[1] * self._log_size(rows))
        error = np.where(rows.n_masked > 0, np.minimum(size, 1.0), 0.0)
        depths = np.exp(np.clip(ratio[:, None] + error[:, None] * self.quantiles.astype(np.float64), 0.0, 7.0))
        return rows.depth * np.exp(ratio), rows.depth[:, None] * depths

    def estimate_from_sums(self, visible: Array, missing: Array, variance: Array, share: float) -> tuple[Array, Array]:
        """As :meth:`estimate`, from sums over the masked features alone: each is at its mean expression.

        So the estimate costs little where the masked features are many. It is for an ``exact`` model. Where hardly
        anything is visible, the estimate is near the mean depth.

        Parameters
        ----------
        visible
            (...), visible depth.
        missing, variance
            (...), summed mean shares of the masked features, and their summed variances.
        share
            Share of the depth of a training cell that the features of these cells have.

        Returns
        -------
        Estimated depth (...) and equally likely depths (..., 7).
        """
        known = np.clip(share - self.weights.sum(dtype=np.float64) * missing, 1e-3, None)
        depth = (visible + _MEAN_CELL * self.profile.mean_depth) / (known + _MEAN_CELL)
        depth = np.where(missing > 1e-9, depth, visible / share)
        with np.errstate(over="ignore"):
            size = np.exp(self.spread[0] + self.spread[1] * 0.5 * np.log(np.maximum(variance, 1e-30)))
        error = np.where(missing > 1e-9, np.minimum(size, 1.0), 0.0)
        return depth, depth[..., None] * np.exp(error[..., None] * self.quantiles.astype(np.float64))

    def _terms(self, rows: MaskedRows) -> Array:
        share = self.share[rows.features].astype(np.float64)
        masked = rows.per_cell(share)
        rough = rows.depth / (1.0 - np.minimum(masked, 0.9))
        expected = rows.per_cell(share * self.profile.expected_ratio(rows, rough))
        if self.exact:
            return np.column_stack([masked, expected])
        n_expressed = np.diff(rows.visible.indptr)
        more = np.log1p(rows.n_masked), np.log1p(rows.depth), np.log1p(n_expressed)
        return np.column_stack([np.ones(len(masked)), masked, expected, *more])

    def _log_ratio(self, terms: Array) -> Array:
        value = (terms * self.weights.astype(np.float64)).sum(axis=1)  # a matrix product may depend on the other rows
        return -np.log1p(-np.clip(value, 0.0, 0.999)) if self.exact else np.clip(value, 0.0, 7.0)

    def _log_size(self, rows: MaskedRows) -> Array:
        return 0.5 * np.log(np.maximum(rows.per_cell(self.variance[rows.features].astype(np.float64)), 1e-30))


def _masked_shares(draw: Draw, depth: Array) -> Array:
    """(H,), share of the depth (N,) that each masked entry has."""
    cells, features = draw.masked.cells, draw.masked.features
    if not features.size:
        return np.zeros(0)
    return np.asarray(draw.counts[cells, features]).ravel() / depth[cells]


@dataclass(frozen=True)
class DepthModels:
    """The estimate for the masks of the training, and the estimate for features that are asked for by name."""

    drawn: DepthModel
    """For masks that are drawn by the rule of the training, which favours expressed features."""
    natural: DepthModel
    """For masks that do not depend on the counts."""

    def to_arrays(self) -> dict[str, Array32]:
        """All state as float32 arrays by name."""
        profile = self.drawn.profile
        arrays = {
            "profile.mean": profile.mean,
            "profile.loadings": profile.loadings,
            "profile.scale": np.array([profile.mean_depth, profile.noise], np.float32),
        }
        for name, model in (("drawn", self.drawn), ("natural", self.natural)):
            arrays |= {f"{name}.{key}": getattr(model, key) for key in _STATE}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array32], n_features: int) -> DepthModels:
        """Inverse of :meth:`to_arrays`, for a model of ``n_features`` features.

        Raises
        ------
        ValueError
            If arrays are missing, have another shape or values that no fit gives.
        """
        m, k = n_features, arrays["profile.loadings"].size // n_features
        expected: dict[str, tuple[int, ...]] = {
            "profile.mean": (m,),
            "profile.loadings": (m, k),
            "profile.scale": (2,),
        }
        for name, n_terms in (("drawn", 6), ("natural", 2)):
            shapes: tuple[tuple[int, ...], ...] = ((m,), (m,), (n_terms,), (2,), (N_DEPTHS,))
            expected |= {f"{name}.{key}": shape for key, shape in zip(_STATE, shapes, strict=True)}
        if (found := {name: array.shape for name, array in arrays.items()}) != expected:
            raise ValueError(f"found depth arrays with shapes {found}, expected {expected}")
        parts = [arrays[f"{name}.{key}"] for name in ("drawn", "natural") for key in ("share", "variance")]
        scale = arrays["profile.scale"]
        if not all(np.isfinite(x).all() for x in arrays.values()) or (scale <= 0).any() or np.min(parts) < 0:
            raise ValueError("found depth arrays with values that are negative or not finite")
        profile = LowRankProfile(float(scale[0]), arrays["profile.mean"], arrays["profile.loadings"], float(scale[1]))
        drawn, natural = (
            DepthModel(profile, **{key: arrays[f"{name}.{key}"] for key in _STATE}) for name in ("drawn", "natural")
        )
        return cls(drawn, natural)
