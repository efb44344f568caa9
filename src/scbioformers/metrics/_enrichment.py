"""Are members of known sets more frequent in a group of genes than among all genes? Hypergeometric tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, hypergeom

from scbioformers.core import ConfigError, DataError, describe_unknown
from scbioformers.metrics._grn import _read_weights, read_edges


def enrichment(
    groups: Mapping[str, Collection[str]], gene_sets: Mapping[str, Collection[str]], background: Collection[str]
) -> pd.DataFrame:
    """Test the overlap of every group of genes with every gene set against the background.

    Parameters
    ----------
    groups
        Genes by name of the group, all of the background: gene programs, targets of a regulator.
    gene_sets
        Genes by name of the set; those outside the background do not count.
    background
        All genes that could have been in a group: those expressed and modelled, not the whole genome.

    Returns
    -------
    DataFrame
        A row for each group and set that has a gene in the background: ``group``, ``gene_set``, ``size`` and
        ``set_size`` (in the background), ``hits`` (in both), ``expected`` hits, ``p`` (hypergeometric, as many hits or
        more), ``p_adjusted`` (Benjamini-Hochberg over all rows).

    Raises
    ------
    DataError
        If a group is empty or has a gene outside the background.

    Examples
    --------
    >>> found = enrichment({"program": ["A", "B"]}, {"pathway": {"A", "B", "Z"}}, background=list("ABCD"))
    >>> found[["hits", "expected", "p"]].round(3).to_dict("records")
    [{'hits': 2, 'expected': 1.0, 'p': 0.167}]
    """
    known = set(background)
    for name, members in groups.items():
        if not members:
            raise DataError(f"The group {name!r} has no genes.")
        if unknown := sorted(set(members) - known):
            raise DataError(
                f"{len(unknown)} genes of {name!r} are outside the background: {describe_unknown(unknown, known)}."
            )
    columns = pd.Index(list(dict.fromkeys(background)), dtype=object)
    reachable = {name: genes for name, wanted in gene_sets.items() if (genes := known.intersection(wanted))}
    drawn, wanted = _membership(groups, columns), _membership(reachable, columns)
    size = np.repeat(np.diff(drawn.indptr), len(reachable))
    set_size = np.tile(np.diff(wanted.indptr), len(groups))
    hits = (drawn @ wanted.T).toarray().ravel()
    table = {
        "group": np.repeat(np.array(list(groups), object), len(reachable)),
        "gene_set": np.tile(np.array(list(reachable), object), len(groups)),
        "size": size,
    }
    return _adjust(pd.DataFrame(table | _overlap(hits, size, set_size, len(known))))


def edge_enrichment(
    weights: ArrayLike,
    truth: pd.DataFrame,
    *,
    genes: Sequence[str],
    regulators: Sequence[str] | None = None,
    k: int | Sequence[int] = (10, 20),
    background: Collection[str] | None = None,
) -> pd.DataFrame:
    """Test whether known targets are among the top targets of each regulator, more often than by chance.

    Fix `k` before looking. Targets are ranked by the size of their weight, those tied in the order of the rows; pairs
    without a weight (NaN) or of weight 0 are no targets, so that fewer than `k` may be drawn.

    Parameters
    ----------
    weights
        (n_genes, n_regulators), row = target, column = regulator; signed or not.
    truth
        Known edges, columns ``source`` and ``target``.
    genes
        Names of the rows.
    regulators
        Names of the columns, all among the genes; by default the genes.
    k
        Number of top targets, one or several.
    background
        Genes that could have been found, among those of the rows; by default all of them. The regulator itself is never
        one.

    Returns
    -------
    DataFrame
        A row for each regulator with known targets in the background, and each `k`: ``regulator``, ``k``, ``size``
        (targets drawn), ``set_size`` (known targets), ``hits``, ``expected``, ``p`` (hypergeometric), ``p_adjusted``
        (Benjamini-Hochberg over the regulators, for each `k`), ``genes`` (the hits by name, the strongest first).

    Raises
    ------
    ConfigError
        If a `k` is below 1.
    DataError
        If shapes and names do not fit, the truth has no columns ``source`` and ``target``, or the background has genes
        that are not among the rows.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> weights = np.array([[0.0], [0.9], [0.8], [-0.1], [0.2]])
    >>> truth = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"]})
    >>> found = edge_enrichment(weights, truth, genes=list("ABCDE"), regulators=["A"], k=2)
    >>> found[["regulator", "k", "hits", "expected"]].to_dict("records"), float(found["p"][0].round(3))
    ([{'regulator': 'A', 'k': 2, 'hits': 2, 'expected': 1.0}], 0.167)
    """
    sizes = np.atleast_1d(np.asarray(k))
    if sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ConfigError(f"`k` must be integers of at least 1, got {k}.")
    w, rows, columns = _read_weights(weights, genes, regulators)
    eligible = set(rows) if background is None else set(background)
    if unknown := sorted(eligible - set(rows)):
        raise DataError(f"{len(unknown)} genes of the background have no row: {describe_unknown(unknown, rows)}.")
    allowed = rows.isin(list(eligible))
    known = read_edges(truth).groupby("source", sort=False)["target"].agg(set).to_dict()
    found = []
    for top in sizes.tolist():
        tests = []
        for column, regulator in enumerate(columns):
            free = allowed & (rows != regulator)
            reachable = known.get(regulator, set()) & set(rows[free])
            if not reachable:
                continue
            weight = np.where(free, np.nan_to_num(np.abs(w[:, column])), 0)
            drawn = np.argsort(-weight, kind="stable")[:top]
            drawn = drawn[weight[drawn] > 0]
            hits = [gene for gene in rows[drawn] if gene in reachable]
            tests.append({"regulator": regulator, "k": top, "size": len(drawn)}
                         | _overlap(len(hits), len(drawn), len(reachable), int(free.sum()))
                         | {"genes": ", ".join(hits)})  # fmt: skip
        names = ["regulator", "k", "size", "set_size", "hits", "expected", "p"]
        found.append(_adjust(pd.DataFrame(tests, columns=[*names, "genes"]))[[*names, "p_adjusted", "genes"]])
    return pd.concat(found, ignore_index=True)


def _membership(named: Mapping[str, Collection[str]], columns: pd.Index[Any]) -> csr_matrix:
    """(names, columns), 1 for each gene of a name; all of them have a column."""
    members = [columns.get_indexer(pd.Index(list(dict.fromkeys(genes)))) for genes in named.values()]
    bounds = np.cumsum([0, *map(len, members)])
    at = np.concatenate([np.zeros(0, np.int64), *members])
    return csr_matrix((np.ones(len(at), np.int64), at, bounds), shape=(len(named), len(columns)))


def _overlap(hits: Any, size: Any, set_size: Any, n_background: int) -> dict[str, Any]:
    p = hypergeom.sf(np.subtract(hits, 1), n_background, set_size, size)
    return {"set_size": set_size, "hits": hits, "expected": size * set_size / n_background, "p": p}


def _adjust(table: pd.DataFrame) -> pd.DataFrame:
    adjusted = false_discovery_control(table["p"].to_numpy(np.float64)) if len(table) else np.zeros(0)
    return table.assign(p_adjusted=adjusted)
