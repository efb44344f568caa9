"""Key regulators of a gene regulatory network and of gene sets, and comparison with known targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from scbioformers.core import ColumnRanks, DataError, describe_unknown, out_strength
from scbioformers.metrics import edge_enrichment


class Weights(Protocol):
    """Weights of one gene regulatory network, for genes that have at least one weight."""

    @property
    def weight(self) -> NDArray[np.float64]:
        """(G, R), targets x regulators, NaN for pairs without a weight."""
        ...

    @property
    def genes(self) -> list[str]:
        """(G,) names of the targets."""
        ...

    @property
    def regulators(self) -> list[str]:
        """(R,) names of the regulators."""
        ...

    @property
    def attention(self) -> NDArray[np.float64] | None:
        """(R,) attention that each regulator receives. None for methods other than attention."""
        ...


def rank_drivers(network: Weights) -> pd.DataFrame:
    """Rank all regulators by the attention that they receive if it is known, else by their strength."""
    strength, n_targets = out_strength(network.weight)
    table = pd.DataFrame({"regulator": network.regulators, "strength": strength, "n_targets": n_targets})
    by = "strength"
    if network.attention is not None:
        by = "attention"
        table[by] = network.attention
    table = table.sort_values(by, ascending=False, kind="stable", ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def rank_set_regulators(network: Weights, sets: dict[str, list[str]], top_k: int) -> pd.DataFrame:
    """Rank the regulators of each gene set by the p-value of their weights in the set, at most ``top_k`` per set."""
    ranks, at = ColumnRanks.of(network.weight), {gene: i for i, gene in enumerate(network.genes)}
    tables = []
    for name, genes in sets.items():
        rows = np.array([at[gene] for gene in genes])
        inside = network.weight[rows]
        n_genes = np.isfinite(inside).sum(axis=0)
        table = {"gene_set": name, "regulator": network.regulators, "n_genes": n_genes}
        table |= {"weight": np.nansum(inside, axis=0) / np.maximum(n_genes, 1)}
        table |= {"strength": np.nansum(np.abs(inside), axis=0) / np.maximum(n_genes, 1), "p": ranks.test(rows)}
        tables.append(pd.DataFrame(table))
    tested = pd.concat(tables, ignore_index=True)
    tested["p_adjusted"] = false_discovery_control(tested["p"].to_numpy())
    tested = tested[tested["n_genes"] > 0].sort_values(["p", "strength"], ascending=[True, False], kind="stable")
    number = tested.groupby("gene_set", sort=False).cumcount() + 1
    kept = tested.assign(rank=number)[number <= top_k]
    order = {name: i for i, name in enumerate(sets)}
    return kept.sort_values(["gene_set", "rank"], key=lambda x: x.map(order) if x.name == "gene_set" else x)


def count_known_targets(network: Weights, known: pd.DataFrame, k: int | Sequence[int]) -> pd.DataFrame:
    """Test how many known targets are among the ``k`` strongest targets of each regulator.

    Raises
    ------
    DataError
        If no known edge is between a regulator and a gene of the network.
    """
    table = edge_enrichment(network.weight, known, genes=network.genes, regulators=network.regulators, k=k)
    if table.empty:
        sources = known["source"].astype(str)
        unknown = sorted(set(sources) - set(network.regulators)) or sorted(set(known["target"].astype(str)))
        raise DataError(
            f"None of {len(known)} known edges lies between regulators and genes of the network. Check the gene names. "
            + (f"Unknown: {describe_unknown(unknown, network.genes)}." if unknown else "")
        )
    return table.sort_values(["k", "p"], kind="stable")
