"""Hypergeometric tests for genes of known sets that are more frequent in a group than in the background."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, hypergeom

from scbioformers.core import ConfigError, DataError, check_arguments, describe_unknown
from scbioformers.metrics._grn import _read_weights, read_edges


def enrichment(
    groups: Mapping[str, Collection[str]], gene_sets: Mapping[str, Collection[str]], background: Collection[str]
) -> pd.DataFrame:
    """Test the overlap of every group of genes with every gene set against the background.

    Parameters
    ----------
    groups
        Genes of each group, by the name of the group. A group is for example a gene program or the targets of a
        regulator. All of its genes must be in the background.
    gene_sets
        Genes of each set, by the name of the set. Genes outside the background are ignored.
    background
        All genes that could have been in a group: the expressed and modelled genes, not the whole genome.

    Returns
    -------
    DataFrame
        One row for each group and each set that has a gene in the background. Columns: ``group``, ``gene_set``,
        ``size`` and ``set_size`` (number of genes in the background), ``hits`` (genes in both), ``expected`` hits,
        ``p`` (hypergeometric probability of at least as many hits), ``p_adjusted`` (Benjamini-Hochberg over all rows).

    Raises
    ------
    DataError
        If a group is empty or has a gene outside the background.

    Examples
    --------
    >>> tests = enrichment({"program": ["A", "B"]}, {"pathway": {"A", "B", "Z"}}, background=list("ABCD"))
    >>> tests[["hits", "expected", "p"]].round(3).to_dict("records")
    [{'hits': 2, 'expected': 1.0, 'p': 0.167}]
    """
    check_arguments(enrichment, locals())
    known = set(background)
    for name, members in groups.items():
        if not members:
            raise DataError(f"The group {name!r} has no genes.")
        if unknown := sorted(set(members) - known):
            raise DataError(
                f"{len(unknown)} genes of {name!r} are outside the background: {describe_unknown(unknown, known)}."
            )
    columns = pd.Index(list(dict.fromkeys(background)), dtype=object)
    known_sets = {name: genes for name, members in gene_sets.items() if (genes := known.intersection(members))}
    in_group, in_set = _membership(groups, columns), _membership(known_sets, columns)
    size = np.repeat(np.diff(in_group.indptr), len(known_sets))
    set_size = np.tile(np.diff(in_set.indptr), len(groups))
    hits = (in_group @ in_set.T).toarray().ravel()
    table = {
        "group": np.repeat(np.array(list(groups), object), len(known_sets)),
        "gene_set": np.tile(np.array(list(known_sets), object), len(groups)),
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
    """Test whether the top targets of each regulator contain more known targets than expected by chance.

    Choose `k` before you look at the results. Targets are ranked by the absolute value of their weight, and tied
    targets by the order of the rows. A pair without a weight (NaN) or of weight 0 is not a target. A regulator can
    therefore have fewer than `k` top targets.

    Parameters
    ----------
    weights
        (n_genes, n_regulators), row = target, column = regulator, with or without signs.
    truth
        Known edges, with the columns ``source`` (regulator) and ``target``.
    genes
        Names of the rows.
    regulators
        Names of the columns, all of them among `genes`; by default `genes`.
    k
        Number of top targets: one integer, or several.
    background
        Genes that can be targets, all of them among the rows; by default all rows. The regulator itself is always left
        out.

    Returns
    -------
    DataFrame
        One row for each regulator with known targets in the background, and each `k`. Columns: ``regulator``, ``k``,
        ``size`` (number of top targets), ``set_size`` (number of known targets), ``hits`` (top targets that are known),
        ``expected`` hits, ``p`` (hypergeometric), ``p_adjusted`` (Benjamini-Hochberg over the regulators, for each
        `k`), ``genes`` (names of the hits, the strongest first).

    Raises
    ------
    ConfigError
        If a `k` is below 1.
    DataError
        If the shape of `weights` does not match the names, `truth` has no column ``source`` or ``target``, or the
        background has genes that are not among the rows.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> weights = np.array([[0.0], [0.9], [0.8], [-0.1], [0.2]])
    >>> truth = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"]})
    >>> tests = edge_enrichment(weights, truth, genes=list("ABCDE"), regulators=["A"], k=2)
    >>> tests[["regulator", "k", "hits", "expected"]].to_dict("records"), float(tests["p"][0].round(3))
    ([{'regulator': 'A', 'k': 2, 'hits': 2, 'expected': 1.0}], 0.167)
    """
    check_arguments(edge_enrichment, locals())
    sizes = np.atleast_1d(np.asarray(k))
    if sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ConfigError(f"`k` must be integers of at least 1, found {k}.")
    w, rows, columns = _read_weights(weights, genes, regulators)
    eligible = set(rows) if background is None else set(background)
    if unknown := sorted(eligible - set(rows)):
        raise DataError(f"{len(unknown)} genes of the background have no row: {describe_unknown(unknown, rows)}.")
    allowed = rows.isin(list(eligible))
    known = read_edges(truth).groupby("source", sort=False)["target"].agg(set).to_dict()
    tables = []
    for top in sizes.tolist():
        tests = []
        for column, regulator in enumerate(columns):
            candidate = allowed & (rows != regulator)
            known_targets = known.get(regulator, set()) & set(rows[candidate])
            if not known_targets:
                continue
            weight = np.where(candidate, np.nan_to_num(np.abs(w[:, column])), 0)
            top_rows = np.argsort(-weight, kind="stable")[:top]
            top_rows = top_rows[weight[top_rows] > 0]
            hits = [gene for gene in rows[top_rows] if gene in known_targets]
            tests.append({"regulator": regulator, "k": top, "size": len(top_rows)}
                         | _overlap(len(hits), len(top_rows), len(known_targets), int(candidate.sum()))
                         | {"genes": ", ".join(hits)})  # fmt: skip
        names = ["regulator", "k", "size", "set_size", "hits", "expected", "p"]
        tables.append(_adjust(pd.DataFrame(tests, columns=[*names, "genes"]))[[*names, "p_adjusted", "genes"]])
    return pd.concat(tables, ignore_index=True)


def _membership(named: Mapping[str, Collection[str]], columns: pd.Index[Any]) -> csr_matrix:
    """Return the matrix (n_names, n_columns) with 1 where a gene belongs to a name. Every gene must have a column."""
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
