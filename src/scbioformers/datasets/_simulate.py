"""Simulated counts with known cell types, batches, regulatory edges and perturbation effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from scbioformers.core import ConfigError, check_arguments

CHUNK_SIZE = 2048  # cells drawn at once; another value changes the cells of a given seed
KNOCK_DOWN = -3.0  # log activity of a regulator that is knocked down: about 5 % of its baseline
SATURATION = 1.5  # largest log change of a target by all of its regulators together
ACTIVITY_SD = 0.6  # standard deviation of the activity of a regulator between cells of one type
DISPERSION = 4.0  # inverse overdispersion of the negative binomial
COUNTS_PER_GENE = 2.0  # median depth of the first batch divided by the number of genes
SHALLOWEST = 0.25  # depth of the last batch divided by that of the first
CONTROL = "control"


def simulate(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    n_regulators: int = 20,
    perturbations: Sequence[str] = (),
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Draw counts from a small gene regulatory network that is known.

    The model is as follows. *z* is the log activity of a gene relative to its baseline. N(m, s) is a normal
    distribution with mean m and standard deviation s.

    1. Genes ``TF1…`` are regulators, and the others (``G1…``) are targets. Each target has 1 to 3 regulators. Each
       regulator except the first has, with probability 1/2, one regulator with a lower number. The network therefore
       has no cycles. The weight *w* of an edge is uniform between 0.5 and 1.5, with a random sign.
    2. Each cell has a type, a batch and a perturbation, which are independent of each other. In each type, each
       regulator has an activity N(0, 1). One target in ten is a marker, whose activity is 1.5 higher in one type.
    3. The activity is ``z = own + 1.5 tanh(sum(w * z of its regulators) / 1.5)``. The term *own* is the activity of the
       type (step 2), and for regulators also N(0, 0.6) for each cell. A regulator that is knocked down has ``z = -3``,
       whatever its own regulators do. Effects therefore reach the targets of targets. The effects of combinations are
       not additive, because tanh saturates.
    4. Counts are negative binomial (inverse overdispersion 4) with the mean
       ``depth * softmax(baseline + z + batch effect)``. Baselines are N(0, 1.5), for regulators N(1, 0.5). Batch
       effects are N(0, 0.2) for each gene, and 0 in the first batch. The depth is log-normal (sd 0.3). Its median is 2
       counts per gene in the first batch and decreases to a quarter of this value in the last batch.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Numbers of cells, genes, cell types and batches, each at least 1.
    n_regulators
        Number of genes that are regulators, below `n_genes`.
    perturbations
        Knock-downs of regulators: names such as ``"TF1"``, or combinations such as ``"TF1+TF2"``. The cells are divided
        equally between the perturbations and unperturbed controls.
    rng
        Seed or generator.

    Returns
    -------
    AnnData with

    `.X` : CSR, float32
        Counts.
    `.obs["cell_type"]`, `.obs["batch"]`, `.obs["perturbation"]` : categorical
        ``"type_1"…``, ``"batch_1"…``, and ``"control"`` or the perturbation.
    `.var["regulator"]` : bool
        Whether the gene is a regulator.
    `.uns["grn_true"]` : DataFrame
        Edges: ``source`` (regulator), ``target``, ``weight`` (signed).
    `.uns["perturbation_true"]` : DataFrame, genes x perturbations, if there are any
        Change of *z* between the same cell with and without the perturbation, mean over all cells.

    Raises
    ------
    ConfigError
        If a size is below 1, `n_regulators` is not below `n_genes`, or a perturbation is not one of regulators.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=50, n_regulators=5, perturbations=["TF1", "TF1+TF2"])
    >>> adata.shape, sorted(adata.obs["perturbation"].unique())
    ((200, 50), ['TF1', 'TF1+TF2', 'control'])
    """
    check_arguments(simulate, locals())
    _check_sizes(n_cells, n_genes, n_types, n_batches, n_regulators)
    knocked_down = {name: _regulator_indices(name, n_regulators) for name in perturbations}
    random = np.random.default_rng(rng)
    network = _draw_network(random, n_genes, n_types, n_regulators)
    cell_type = random.integers(n_types, size=n_cells)
    batch = random.integers(n_batches, size=n_cells)
    perturbation = random.permutation(np.arange(n_cells) % (len(knocked_down) + 1))  # 0 is control
    factors = np.geomspace(1.0, SHALLOWEST, n_batches) if n_batches > 1 else np.ones(1)
    depth = COUNTS_PER_GENE * n_genes * factors[batch] * random.lognormal(sigma=0.3, size=n_cells)
    batch_effect = random.normal(scale=0.2, size=(n_batches, n_genes))
    batch_effect[0] = 0.0

    effects = np.zeros((n_genes, len(knocked_down)))
    blocks = []
    for rows in _chunks(n_cells):
        own = network.draw_own_activity(random, cell_type[rows])
        unperturbed = network.propagate(own)
        activity = unperturbed.copy()
        for index, regulators in enumerate(knocked_down.values()):
            perturbed = network.propagate(own, regulators)
            effects[:, index] += (perturbed - unperturbed).sum(axis=0) / n_cells
            hit = perturbation[rows] == index + 1
            activity[hit] = perturbed[hit]
        blocks.append(_draw_counts(random, network.baseline + activity + batch_effect[batch[rows]], depth[rows]))

    obs = {
        "cell_type": pd.Categorical.from_codes(cell_type, pd.Index(_numbered("type_", n_types))),
        "batch": pd.Categorical.from_codes(batch, pd.Index(_numbered("batch_", n_batches))),
        "perturbation": pd.Categorical.from_codes(perturbation, pd.Index([CONTROL, *knocked_down])),
    }
    adata = AnnData(
        sparse.vstack(blocks, format="csr"),
        obs=pd.DataFrame(obs, index=_numbered("cell_", n_cells)),
        var=pd.DataFrame({"regulator": np.arange(n_genes) < n_regulators}, index=network.names),
    )
    adata.uns["grn_true"] = network.edges()
    if knocked_down:
        adata.uns["perturbation_true"] = pd.DataFrame(effects, index=network.names, columns=list(knocked_down))
    return adata


@dataclass(frozen=True)
class _Network:
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

    def edges(self) -> pd.DataFrame:
        source, target = np.nonzero(self.weights)
        names = np.array(self.names, dtype=object)
        return pd.DataFrame({"source": names[source], "target": names[target], "weight": self.weights[source, target]})


def _draw_network(random: np.random.Generator, n_genes: int, n_types: int, n_regulators: int) -> _Network:
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
    names = _numbered("TF", n_regulators) + _numbered("G", n_targets)
    return _Network(names, weights, baseline, type_activity)


def _draw_counts(
    random: np.random.Generator, log_expression: NDArray[np.float64], depth: NDArray[np.float64]
) -> sparse.csr_matrix:
    """Draw negative binomial counts, as a gamma mixture of Poisson counts."""
    share = np.exp(log_expression - log_expression.max(axis=1, keepdims=True))
    mean = share * (depth / share.sum(axis=1))[:, None]
    counts = random.poisson(mean * random.gamma(DISPERSION, 1.0 / DISPERSION, size=mean.shape))
    return sparse.csr_matrix(counts.astype(np.float32))


def _saturate(drive: NDArray[np.float64]) -> NDArray[np.float64]:
    return SATURATION * np.tanh(drive / SATURATION)


def _chunks(n_cells: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK_SIZE, n_cells)) for start in range(0, n_cells, CHUNK_SIZE))


def _numbered(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(1, n + 1)]


def _check_sizes(n_cells: int, n_genes: int, n_types: int, n_batches: int, n_regulators: int) -> None:
    sizes = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_types": n_types,
        "n_batches": n_batches,
        "n_regulators": n_regulators,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name}={size} must be at least 1.")
    if n_regulators >= n_genes:
        raise ConfigError(f"n_regulators={n_regulators} must be below n_genes={n_genes}: some genes must be targets.")


def _regulator_indices(perturbation: str, n_regulators: int) -> tuple[int, ...]:
    names = _numbered("TF", n_regulators)
    parts = perturbation.split("+")
    unknown = [part for part in parts if part not in names]
    if unknown:
        raise ConfigError(
            f'Perturbation "{perturbation}" contains {", ".join(map(repr, unknown))}, which is not a regulator: '
            f'use TF1 to TF{n_regulators}, or combinations such as "TF1+TF2".'
        )
    return tuple(names.index(part) for part in parts)
