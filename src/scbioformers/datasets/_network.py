"""The model of all simulated data: a regulatory network, the activity of its genes, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from scbioformers.core import ConfigError

CHUNK_SIZE = 2048  # cells drawn at once; another value changes the cells of a given seed
KNOCK_DOWN = -3.0  # log activity of a regulator that is knocked down: about 5 % of its baseline
SATURATION = 1.5  # largest log change of a target by all of its regulators together
ACTIVITY_SD = 0.6  # standard deviation of the activity of a regulator between cells of one type
DISPERSION = 4.0  # inverse overdispersion of the negative binomial
COUNTS_PER_GENE = 2.0  # median depth of the first batch or source divided by the number of genes
SHALLOWEST = 0.25  # depth of the last batch or source divided by that of the first


@dataclass(frozen=True)
class Network:
    """Regulators and targets, their edges, their expression at rest, and their activity in each type of cells."""

    names: list[str]  # regulators first, each after its own regulators
    weights: NDArray[np.float64]  # (n_regulators, n_genes): effect of the regulator (row) on the gene (column)
    baseline: NDArray[np.float64]  # (n_genes,) log expression
    type_activity: NDArray[np.float64]  # (n_types, n_genes)

    def draw_own_activity(self, random: np.random.Generator, cell_type: NDArray[np.integer]) -> NDArray[np.float64]:
        """Draw the activity without the network: part of the type, and for regulators also part of the cell."""
        own: NDArray[np.float64] = self.type_activity[cell_type]
        n_regulators = len(self.weights)
        own[:, :n_regulators] += random.normal(scale=ACTIVITY_SD, size=(len(cell_type), n_regulators))
        return own

    def propagate(self, own: NDArray[np.float64], knocked_down: Sequence[int] = ()) -> NDArray[np.float64]:
        """Return the activity of all genes, cells x genes, with the given regulators knocked down."""
        activity = own.copy()
        n_regulators = len(self.weights)
        for gene in range(n_regulators):
            if gene in knocked_down:
                activity[:, gene] = KNOCK_DOWN
            else:
                activity[:, gene] += _saturate(activity[:, :gene] @ self.weights[:gene, gene])
        activity[:, n_regulators:] += _saturate(activity[:, :n_regulators] @ self.weights[:, n_regulators:])
        return activity

    def edges(self, names: Sequence[str]) -> pd.DataFrame:
        """Return the edges (source, target, weight), with these names of the genes."""
        source, target = np.nonzero(self.weights)
        labels = np.array(names, dtype=object)
        weight = self.weights[source, target]
        return pd.DataFrame({"source": labels[source], "target": labels[target], "weight": weight})


def draw_network(random: np.random.Generator, n_genes: int, n_types: int, n_regulators: int) -> Network:
    """Draw a network without cycles, the baselines of the genes, and the activities of the types."""
    n_targets = n_genes - n_regulators
    linked = np.zeros((n_regulators, n_genes), dtype=bool)
    for gene in range(1, n_regulators):
        linked[random.integers(gene), gene] = random.random() < 0.5
    in_degree = random.integers(1, 4, size=n_targets)
    order = random.random((n_regulators, n_targets)).argsort(axis=0)
    linked[:, n_regulators:] = order < in_degree
    weights = random.uniform(0.5, 1.5, size=linked.shape) * random.choice([-1.0, 1.0], size=linked.shape) * linked

    baseline = random.normal(scale=1.5, size=n_genes)
    baseline[:n_regulators] = random.normal(1.0, 0.5, size=n_regulators)
    type_activity = np.zeros((n_types, n_genes))
    type_activity[:, :n_regulators] = random.normal(size=(n_types, n_regulators))
    markers = np.flatnonzero(random.random(n_genes) < 0.1)
    markers = markers[markers >= n_regulators]
    type_activity[random.integers(n_types, size=len(markers)), markers] = 1.5
    names = numbered("TF", n_regulators) + numbered("G", n_targets)
    return Network(names, weights, baseline, type_activity)


def draw_effects(random: np.random.Generator, n_levels: int, n_genes: int, sd: float) -> NDArray[np.float64]:
    """Draw the technical effects of batches or sources on genes. The first has none."""
    effects = random.normal(scale=sd, size=(n_levels, n_genes))
    effects[0] = 0.0
    return effects


def depth_factors(n_levels: int) -> NDArray[np.float64]:
    """Median depths of batches or sources, relative to the first."""
    return np.geomspace(1.0, SHALLOWEST, n_levels) if n_levels > 1 else np.ones(1)


def draw_depth(random: np.random.Generator, n_genes: int, factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw the expected total of each cell. `factors` has one value for each cell."""
    return COUNTS_PER_GENE * n_genes * factors * random.lognormal(sigma=0.3, size=len(factors))


def rna_mean(log_expression: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of the counts, cells x genes. `depth` is their sum in each cell."""
    share = np.exp(log_expression - log_expression.max(axis=1, keepdims=True))
    mean: NDArray[np.float64] = share * (depth / share.sum(axis=1))[:, None]
    return mean


class Counts:
    """Counts that are drawn in chunks of cells. Their means are kept if they are wanted (`expected`)."""

    def __init__(self, expected: bool) -> None:
        self.expected = expected
        self.drawn: list[sparse.csr_matrix] = []
        self.means: list[NDArray[np.float32]] = []

    def draw(
        self, random: np.random.Generator, mean: NDArray[np.float64], measured: NDArray[np.integer] | None = None
    ) -> None:
        """Draw negative binomial counts, as a gamma mixture of Poisson counts, and keep the `measured` columns."""
        counts = random.poisson(mean * random.gamma(DISPERSION, 1.0 / DISPERSION, size=mean.shape))
        columns = slice(None) if measured is None else measured
        self.drawn.append(sparse.csr_matrix(counts[:, columns].astype(np.float32)))
        if self.expected:
            self.means.append(mean[:, columns].astype(np.float32))

    def to_anndata(self, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
        """Return the counts, with ``layers["expected"]`` if the means are kept."""
        layers = {"expected": np.vstack(self.means)} if self.expected else None
        return AnnData(sparse.vstack(self.drawn, format="csr"), obs=obs, var=var, layers=layers)


def chunks(n_cells: int) -> Iterator[slice]:
    """Ranges of rows that are drawn at once, so that memory does not grow with the number of cells."""
    return (slice(start, min(start + CHUNK_SIZE, n_cells)) for start in range(0, n_cells, CHUNK_SIZE))


def numbered(prefix: str, n: int) -> list[str]:
    """Names such as G1, G2."""
    return [f"{prefix}{number}" for number in range(1, n + 1)]


def categorical(codes: NDArray[np.integer], categories: Sequence[str]) -> pd.Categorical[str]:
    """A column of ``obs`` from codes."""
    return pd.Categorical.from_codes(codes, pd.Index(list(categories)))


def check_sizes(n_genes: int, n_regulators: int, others: dict[str, int]) -> None:
    """Raise an error if a size is below 1, or if no gene is a target."""
    for name, size in {"n_genes": n_genes, "n_regulators": n_regulators, **others}.items():
        if size < 1:
            raise ConfigError(f"{name}={size} must be at least 1.")
    if n_regulators >= n_genes:
        raise ConfigError(f"n_regulators={n_regulators} must be below n_genes={n_genes}: some genes must be targets.")


def _saturate(drive: NDArray[np.float64]) -> NDArray[np.float64]:
    return SATURATION * np.tanh(drive / SATURATION)
