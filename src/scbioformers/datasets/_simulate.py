"""Simulated counts with known types, batches, edges, and effects of perturbations, conditions and times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, check_arguments
from scbioformers.datasets._network import (
    Counts,
    Network,
    categorical,
    check_sizes,
    chunks,
    depth_factors,
    draw_depth,
    draw_effects,
    draw_network,
    numbered,
    rna_mean,
)
from scbioformers.datasets._phenotypes import draw_conditions, draw_times
from scbioformers.datasets._proteins import as_mudata, draw_proteins

BATCH_SD = 0.2  # standard deviation of the log effect of a batch on a gene
CONTROL = "control"


def simulate(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    n_regulators: int = 20,
    perturbations: Sequence[str] = (),
    n_conditions: int = 1,
    n_times: int = 1,
    n_proteins: int = 0,
    expected: bool = False,
    rng: int | np.random.Generator = 0,
) -> AnnData | MuData:
    """Draw counts from a small gene regulatory network that is known.

    The model is as follows. *z* is the log activity of a gene relative to its baseline. N(m, s) is a normal
    distribution with mean m and standard deviation s.

    1. Genes ``TF1…`` are regulators, and the others (``G1…``) are targets. Each target has 1 to 3 regulators. Each
       regulator except the first has, with probability 1/2, one regulator with a lower number. The network therefore
       has no cycles. The weight *w* of an edge is uniform between 0.5 and 1.5, with a random sign.
    2. Each cell has a type, a batch, a perturbation, a condition and a time, which are independent of each other. In
       each type, each regulator has an activity N(0, 1). One target in ten is a marker, whose activity is 1.5 higher in
       one type.
    3. A condition, except the first, changes the activity of one regulator in three by 1 to 2, up or down. In time, the
       activity of a regulator follows a sine wave (amplitude 0.5 to 1.5, a quarter to three quarters of a period in
       all), and changes by 0 at time 0.
    4. The activity is ``z = own + 1.5 tanh(sum(w * z of its regulators) / 1.5)``. The term *own* is the sum of steps 2
       and 3, and for regulators also N(0, 0.6) for each cell. A regulator that is knocked down has ``z = -3``,
       whatever its own regulators do. Effects therefore reach the targets of targets. Effects of combinations are not
       additive, and effects of conditions and times differ between types, because tanh saturates.
    5. Counts are negative binomial (inverse overdispersion 4) with the mean
       ``depth * softmax(baseline + z + batch effect)``. Baselines are N(0, 1.5), for regulators N(1, 0.5). Batch
       effects are N(0, 0.2) for each gene, and 0 in the first batch. The depth is log-normal (sd 0.3). Its median is 2
       counts per gene in the first batch and decreases to a quarter of this value in the last batch.
    6. Counts of a protein are negative binomial (the same overdispersion) with the mean
       ``size * (background + baseline * exp(gain * z))``, where *z* is that of its gene half a step of time earlier.
       The size of a cell is log-normal (median 1, sd 0.4). Two isotype controls have only background.

    The network depends on `n_genes`, `n_types`, `n_regulators` and the seed alone. :func:`simulate_sources` draws cells
    of the same network.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Numbers of cells, genes, cell types and batches, each at least 1.
    n_regulators
        Number of genes that are regulators, below `n_genes`.
    perturbations
        Knock-downs of regulators: names such as ``"TF1"``, or combinations such as ``"TF1+TF2"``. The cells are divided
        equally between the perturbations and unperturbed controls.
    n_conditions, n_times
        Numbers of conditions, and of times 0, 1, …. The cells are divided equally between them. With 1, no
        column is added.
    n_proteins
        Number of genes whose protein is counted, too.
    expected
        Whether to store the mean of each count, from which the counts are drawn.
    rng
        Seed or generator.

    Returns
    -------
    AnnData with

    `.X` : CSR, float32
        Counts.
    `.layers["expected"]` : float32, if `expected`
        Mean of the negative binomial of each count.
    `.obs["cell_type"]`, `.obs["batch"]`, `.obs["perturbation"]` : categorical
        ``"type_1"…``, ``"batch_1"…``, and ``"control"`` or the perturbation.
    `.obs["condition"]` : categorical, `.obs["time"]` : float64, if there is more than one
        ``"condition_1"…``, and 0, 1, ….
    `.var["regulator"]` : bool
        Whether the gene is a regulator.
    `.uns["grn_true"]` : DataFrame
        Edges: ``source`` (regulator), ``target``, ``weight`` (signed).
    `.uns["perturbation_true"]` : DataFrame, genes x perturbations, if there are any
        Change of *z* between the same cell with and without the perturbation, mean over all cells.
    `.uns["condition_true"]`, `.uns["time_true"]` : DataFrame, genes x conditions or times except the first
        Change of *z* between the same unperturbed cell in the first and in this condition (or time), mean over all
        cells. ``.uns["condition_true_by_type"]`` and ``.uns["time_true_by_type"]`` are dicts of such tables, by type.

    If `n_proteins` is above 0, a MuData. ``["rna"]`` is the AnnData above, with the same bits. ``["prot"]`` has the
    counts of the proteins, which have the names of their genes, and of ``"isotype_1"`` and ``"isotype_2"``. Its ``var``
    has ``isotype_control`` (bool), ``background``, ``baseline`` and ``gain``. ``.obs`` has the columns of ``["rna"]``.

    Raises
    ------
    ConfigError
        If a size is below 1, `n_regulators` is not below `n_genes`, `n_proteins` is negative or above `n_genes`, or a
        perturbation is not one of regulators.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=50, n_regulators=5, perturbations=["TF1", "TF1+TF2"])
    >>> adata.shape, sorted(adata.obs["perturbation"].unique())
    ((200, 50), ['TF1', 'TF1+TF2', 'control'])
    >>> mdata = bf.datasets.simulate(n_cells=200, n_genes=50, n_conditions=2, n_times=4, n_proteins=10)
    >>> mdata["rna"].shape, mdata["prot"].shape, sorted(mdata.obs["time"].unique().tolist())
    ((200, 50), (200, 12), [0.0, 1.0, 2.0, 3.0])
    """
    check_arguments(simulate, locals())
    sizes = {"n_cells": n_cells, "n_types": n_types, "n_batches": n_batches}
    check_sizes(n_genes, n_regulators, sizes | {"n_conditions": n_conditions, "n_times": n_times})
    if not 0 <= n_proteins <= n_genes:
        raise ConfigError(f"n_proteins={n_proteins} must be from 0 to n_genes={n_genes}: a protein is that of a gene.")
    knocked_down = {name: _regulator_indices(name, n_regulators) for name in perturbations}
    random = np.random.default_rng(rng)
    of_conditions, of_times, of_proteins = random.spawn(3)  # so that they leave the other draws of a seed as they are
    network = draw_network(random, n_genes, n_types, n_regulators)
    cell_type = random.integers(n_types, size=n_cells)
    batch = random.integers(n_batches, size=n_cells)
    perturbation = random.permutation(np.arange(n_cells) % (len(knocked_down) + 1))  # 0 is control
    depth = draw_depth(random, n_genes, depth_factors(n_batches)[batch])
    batch_effect = draw_effects(random, n_batches, n_genes, BATCH_SD)
    condition = draw_conditions(of_conditions, network, n_cells, n_conditions)
    time = draw_times(of_times, network, n_cells, n_times)
    proteins = draw_proteins(of_proteins, network, n_proteins)

    effects = np.zeros((len(knocked_down), n_genes))
    rna, prot = Counts(expected), Counts(expected)
    for rows in chunks(n_cells):
        own = network.draw_own_activity(random, cell_type[rows])
        condition.add_truth(network, own + time.of(rows), cell_type[rows])
        time.add_truth(network, own + condition.of(rows), cell_type[rows])
        knock_downs = list(knocked_down.values()), perturbation[rows]
        activity, changes = _knock_down(network, own + condition.of(rows) + time.of(rows), *knock_downs)
        effects += changes / n_cells
        rna.draw(random, rna_mean(network.baseline + activity + batch_effect[batch[rows]], depth[rows]))
        if n_proteins:
            earlier, _ = _knock_down(network, own + condition.delayed_of(rows) + time.delayed_of(rows), *knock_downs)
            prot.draw(of_proteins, proteins.mean(of_proteins, earlier))

    obs = {
        "cell_type": categorical(cell_type, numbered("type_", n_types)),
        "batch": categorical(batch, numbered("batch_", n_batches)),
        "perturbation": categorical(perturbation, [CONTROL, *knocked_down]),
    }
    index = pd.Index(numbered("cell_", n_cells))
    is_regulator = pd.DataFrame({"regulator": np.arange(n_genes) < n_regulators}, index=network.names)
    adata = rna.to_anndata(pd.DataFrame(obs, index=index), is_regulator)
    adata.uns["grn_true"] = network.edges(network.names)
    if knocked_down:
        adata.uns["perturbation_true"] = pd.DataFrame(effects.T, index=network.names, columns=list(knocked_down))
    condition.write(adata)
    time.write(adata)
    return as_mudata(adata, prot.to_anndata(pd.DataFrame(index=index), proteins.var)) if n_proteins else adata


def _knock_down(
    network: Network,
    own: NDArray[np.float64],
    knocked_down: list[tuple[int, ...]],
    perturbation: NDArray[np.integer],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the activity of cells (perturbation 0: control), and the change by each perturbation, sum of all cells."""
    unperturbed = network.propagate(own)
    activity, changes = unperturbed.copy(), np.zeros((len(knocked_down), own.shape[1]))
    for index, regulators in enumerate(knocked_down):
        perturbed = network.propagate(own, regulators)
        changes[index] = (perturbed - unperturbed).sum(axis=0)
        hit = perturbation == index + 1
        activity[hit] = perturbed[hit]
    return activity, changes


def _regulator_indices(perturbation: str, n_regulators: int) -> tuple[int, ...]:
    names = numbered("TF", n_regulators)
    parts = perturbation.split("+")
    unknown = [part for part in parts if part not in names]
    if unknown:
        raise ConfigError(
            f'Perturbation "{perturbation}" contains {", ".join(map(repr, unknown))}, which is not a regulator: '
            f'use TF1 to TF{n_regulators}, or combinations such as "TF1+TF2".'
        )
    return tuple(names.index(part) for part in parts)
