"""Simulated data sets that share a regulatory network and differ in what was measured, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
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

SOURCE_SD = 0.5  # standard deviation of the log effect of a source on a gene
CONCENTRATION = 2.0  # of the Dirichlet distribution of the types in a source
RENAMED = 0.2  # probability that an orthologue does not have the name of the gene
GeneNames = Literal["symbol", "ensembl", "orthologue"]
Value = TypeVar("Value")


def simulate_sources(
    n_cells: Sequence[int] = (600, 300, 150),
    n_genes: int = 500,
    *,
    n_types: int = 5,
    n_regulators: int = 20,
    measured: float | Sequence[float] = 0.8,
    gene_names: GeneNames | Sequence[GeneNames] = "symbol",
    expected: bool = False,
    rng: int | np.random.Generator = 0,
) -> dict[str, AnnData]:
    """Draw several data sets that share one regulatory network, as from different laboratories, panels or species.

    Steps 1, 2, 4 and 5 of :func:`simulate` hold for each source, without batches and perturbations. Sources differ in:

    1. Composition: the shares of the types are drawn from a Dirichlet distribution (concentration 2 for each type).
    2. Technical effects on genes: N(0, 0.5) for each gene, and 0 in the first source. They take the place of the batch
       effects.
    3. Depth: the median is 2 counts per gene of the network in the first source, and decreases to a quarter of this
       value in the last source.
    4. Panel: a source measures a random share of the genes (`measured`). Counts are drawn for all genes, and the
       columns of the others are removed. The counts of the panel are therefore the same whatever else is measured, and
       the depth of a small panel is low.
    5. Names of the genes (`gene_names`).

    The network is that of :func:`simulate` with the same `n_genes`, `n_types`, `n_regulators` and seed. That function
    can therefore draw other cells of the same network: with perturbations, conditions, times or proteins. A source does
    not depend on the sizes of the others.

    Parameters
    ----------
    n_cells
        Number of cells of each source.
    n_genes, n_types, n_regulators
        Size of the network, as in :func:`simulate`.
    measured
        Share of the genes that a source measures, above 0 and up to 1: one for all sources, or one for each.
    gene_names
        How a source names its genes: one for all sources, or one for each. ``"symbol"``: as the network does.
        ``"ensembl"``: ids such as ``ENSG00000000001``; the symbols are in a column of ``var``. ``"orthologue"``: as
        another species does. These are the symbols in lower case, except that one gene in five has an unrelated name;
        a table in ``uns`` has all pairs.
    expected
        Whether to store the mean of each count, from which the counts are drawn.
    rng
        Seed or generator.

    Returns
    -------
    dict from ``"source_1"…`` to AnnData with

    `.X` : CSR, float32
        Counts of the measured genes.
    `.layers["expected"]` : float32, if `expected`
        Mean of the negative binomial of each count.
    `.obs["cell_type"]`, `.obs["source"]` : categorical
        ``"type_1"…``, with all types of the network as categories, and ``"source_1"…``.
    `.var["regulator"]` : bool
        Whether the gene is a regulator.
    `.var["source_effect"]` : float64
        Technical effect of the source on the gene (log).
    `.var["gene_symbols"]` : str, if the names are ``"ensembl"``
        Names of the genes in the network.
    `.uns["orthologues"]` : DataFrame, if the names are ``"orthologue"``
        ``gene`` (name in this source) and ``orthologue`` (name in the network) of all genes, measured or not.
        ``dict(table.to_numpy())`` is a `feature_map` for :func:`scbioformers.tl.embed` and the other verbs.
    `.uns["grn_true"]` : DataFrame
        Edges of the whole network: ``source`` (regulator), ``target``, ``weight`` (signed). Genes have the names of
        this source, whether it measures them or not.

    Raises
    ------
    ConfigError
        If a size is below 1, `n_regulators` is not below `n_genes`, `measured` is not in (0, 1], or `measured` or
        `gene_names` has another number of values than there are sources.

    Examples
    --------
    >>> import scbioformers as bf
    >>> sources = bf.datasets.simulate_sources([60, 40], 50, measured=[1.0, 0.4], gene_names=["symbol", "orthologue"])
    >>> {name: adata.shape for name, adata in sources.items()}
    {'source_1': (60, 50), 'source_2': (40, 20)}
    >>> sources["source_2"].uns["orthologues"].head(2)
       gene orthologue
    0   tf1        TF1
    1  rik2        TF2
    """
    check_arguments(simulate_sources, locals())
    sizes = {f"n_cells[{i}]": size for i, size in enumerate(n_cells)}
    check_sizes(n_genes, n_regulators, {"n_types": n_types, "len(n_cells)": len(n_cells)} | sizes)
    names = numbered("source_", len(n_cells))
    shares = _one_each("measured", np.atleast_1d(measured).tolist(), len(names))
    namings = _one_each("gene_names", [gene_names] if isinstance(gene_names, str) else gene_names, len(names))
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(f"measured={share} must be above 0 and up to 1: it is a share of the genes.")

    random = np.random.default_rng(rng)
    network = draw_network(random, n_genes, n_types, n_regulators)
    effects = draw_effects(random, len(names), n_genes, SOURCE_SD)
    factors = depth_factors(len(names))
    sources = {}
    for i, of_source in enumerate(random.spawn(len(names))):
        panel = np.sort(of_source.permutation(n_genes)[: max(1, round(shares[i] * n_genes))])
        unrelated = of_source.random(n_genes) < RENAMED
        adata = _draw_cells(of_source, network, n_cells[i], factors[i], effects[i], panel, expected)
        adata.obs["source"] = categorical(np.full(n_cells[i], i), names)
        adata.obs_names = pd.Index([f"{names[i]}_{cell}" for cell in adata.obs_names])
        adata.var["regulator"] = panel < n_regulators
        adata.var["source_effect"] = effects[i, panel]
        _name_genes(adata, network, panel, namings[i], unrelated)
        sources[names[i]] = adata
    return sources


def _draw_cells(
    random: np.random.Generator,
    network: Network,
    n_cells: int,
    depth_factor: float,
    effect: NDArray[np.float64],
    panel: NDArray[np.integer],
    expected: bool,
) -> AnnData:
    """Draw the cells of a source. Genes have their names in the network."""
    n_types, n_genes = network.type_activity.shape
    composition = random.dirichlet(np.full(n_types, CONCENTRATION))
    cell_type = random.choice(n_types, size=n_cells, p=composition)
    depth = draw_depth(random, n_genes, np.full(n_cells, depth_factor))
    counts = Counts(expected)
    for rows in chunks(n_cells):
        activity = network.propagate(network.draw_own_activity(random, cell_type[rows]))
        counts.draw(random, rna_mean(network.baseline + activity + effect, depth[rows]), panel)
    obs = pd.DataFrame({"cell_type": categorical(cell_type, numbered("type_", n_types))}, numbered("cell_", n_cells))
    return counts.to_anndata(obs, pd.DataFrame(index=[network.names[gene] for gene in panel]))


def _name_genes(
    adata: AnnData,
    network: Network,
    panel: NDArray[np.integer],
    gene_names: GeneNames,
    unrelated: NDArray[np.bool_],
) -> None:
    """Name the genes of a source and of its true edges. `unrelated` are genes whose orthologue has another name."""
    names = network.names
    if gene_names == "ensembl":
        adata.var["gene_symbols"] = adata.var_names.to_list()
        names = [f"ENSG{gene + 1:011d}" for gene in range(len(names))]
    elif gene_names == "orthologue":
        names = [f"rik{i + 1}" if unrelated[i] else name.lower() for i, name in enumerate(names)]
        adata.uns["orthologues"] = pd.DataFrame({"gene": names, "orthologue": network.names})
    adata.var_names = pd.Index([names[gene] for gene in panel])
    adata.uns["grn_true"] = network.edges(names)


def _one_each(argument: str, values: Sequence[Value], n_sources: int) -> list[Value]:
    """Return one value for each source. One value stands for all."""
    if len(values) not in (1, n_sources):
        raise ConfigError(
            f"`{argument}` has {len(values)} values for {n_sources} sources: pass one for all, or one for each."
        )
    return list(values) * (n_sources // len(values))
