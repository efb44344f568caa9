"""Maps of gene names, from those of the data to those of a model: orthologues of another species, and aliases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, GeneIndex, plain_ensembl
from scbioformers.data._gene_names import column_of_names, gene_names

logger = logging.getLogger(__name__)

FeatureMap: TypeAlias = Mapping[Any, Any] | pd.Series
"""From the names of genes in the data to their names in a model. In a Series, a name may have several."""


@dataclass(frozen=True, eq=False)
class MatchedNames:
    """Names by which the genes of the data are matched with the features of a model."""

    columns: NDArray[np.int64]
    """(n,) columns of the genes that are matched. Of genes for one feature, it is the best measured."""
    names: list[str]
    """(n,) their names in the model. Genes that are not in the model keep their name in the data."""


class NameMap:
    """A map that was checked, and the genes of the data to which it applies.

    Parameters
    ----------
    given
        Dict or Series.
    adata
        The data.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, None for ``var_names``. The names in the map are those of
        this column or ``var_names``.

    Raises
    ------
    ConfigError
        If the map is empty, or its names are not strings.
    DataError
        If no name in the map is a gene of the data.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> mouse = ad.AnnData(np.ones((1, 3)), var=pd.DataFrame(index=["Cd4", "Ms4a1", "Xist"]))
    >>> NameMap({"Cd4": "CD4", "Ms4a1": "MS4A1"}, mouse, None).names.tolist()
    ['CD4', 'MS4A1', 'Xist']
    """

    def __init__(self, given: FeatureMap, adata: Any, gene_symbols: str | None) -> None:
        self._map = check_feature_map(given)
        self._own = gene_names(adata, gene_symbols)
        stored = gene_names(adata)
        plain = {plain_ensembl(name): name for name in reversed(self._map) if plain_ensembl(name) is not None}
        self.mapped = np.zeros(len(stored), dtype=bool)
        """(n_vars,) genes that the map names."""
        self._candidates: list[tuple[str, ...]] = []
        for i, spellings in enumerate(zip(self._own, stored, strict=True)):
            known = [name for name in spellings if name in self._map]
            known = known or [plain[each] for each in map(plain_ensembl, spellings) if each in plain]
            self.mapped[i] = bool(known)
            self._candidates.append(self._map[known[0]] if known else (self._own[i],))
        if not self.mapped.any():
            raise DataError(_no_gene(self._map, self._own, adata.var, gene_symbols))

    @property
    def names(self) -> NDArray[np.object_]:
        """(n_vars,) name of each gene in the model. It is the first of several."""
        return np.array([names[0] for names in self._candidates], dtype=object)

    def n_found(self, features: Sequence[str]) -> int:
        """Number of the features that are genes of the data."""
        names = [name for names in self._candidates for name in names]
        return int((GeneIndex(names).positions(features) >= 0).sum())

    def match(
        self,
        features: Sequence[str],
        n_cells: Sequence[int] | NDArray[np.int64],
        feature_share: NDArray[np.floating] | None = None,
    ) -> MatchedNames:
        """Choose one gene for each feature, and one feature for each gene.

        If there are several, the gene that most cells express goes first, and takes the feature that most training
        cells express. One log line says so.

        Parameters
        ----------
        features
            (M,) names of the features of the model.
        n_cells
            (n_vars,) number of cells that express each gene.
        feature_share
            (M,) share of the training cells that express each feature.

        Raises
        ------
        DataError
            If the model has no name that the map gives.
        """
        index, share = GeneIndex(features), np.ones(len(features)) if feature_share is None else feature_share
        pairs = [(gene, name) for gene, names in enumerate(self._candidates) for name in names]
        position = index.positions(name for _, name in pairs)
        if not any(self.mapped[gene] for (gene, _), at in zip(pairs, position, strict=True) if at >= 0):
            raise DataError(_no_feature(self._map, self._own[self.mapped], features))
        usable = np.flatnonzero(position >= 0)
        genes = np.array([pairs[i][0] for i in usable])
        order = np.lexsort((genes, -np.asarray(share, np.float64)[position[usable]], -np.asarray(n_cells)[genes]))
        chosen: dict[int, str] = {}
        taken: set[int] = set()
        for i in usable[order]:
            gene, name = pairs[i]
            if gene not in chosen and position[i] not in taken:
                chosen[gene] = name
                taken.add(position[i])
        self._log(genes, position[usable], features)
        # the names of other genes are only shown in messages; they must be unique and not in the model
        used = set(chosen.values())
        for gene in np.setdiff1d(np.arange(len(self._own)), genes).tolist():
            name = self._own[gene]
            if name not in used and index.positions([name])[0] < 0:
                chosen[gene] = name
                used.add(name)
        columns = np.array(sorted(chosen), dtype=np.int64)
        return MatchedNames(columns, [chosen[gene] for gene in columns.tolist()])

    def spell(self, features: Sequence[str], absent: NDArray[np.bool_], known: Sequence[str]) -> list[str]:
        """(M,) names of the features in ``known``; those that are ``absent`` from the data as the map has them.

        So the names of genes that are predicted are those of the data, too.
        """
        index, names = GeneIndex(features), list(known)
        used = {*names, *self._own}
        for name, others in self._map.items():
            for at in index.positions(others).tolist():
                if at >= 0 and absent[at] and names[at] == known[at] and name not in used:
                    names[at] = name
                    used.add(name)
        return names

    def _log(self, genes: NDArray[np.int64], positions: NDArray[np.int64], features: Sequence[str]) -> None:
        of_feature, n_genes = np.unique(positions, return_counts=True)
        of_gene, n_features = np.unique(genes, return_counts=True)
        several, stands_for = of_feature[n_genes > 1], of_gene[n_features > 1]
        if several.size or stands_for.size:
            logger.info(
                "`feature_map`: %d features of the model have several genes in the data%s, and %d genes of the data "
                "stand for several features%s. The gene that most cells express is used, once.",
                several.size,
                _such_as([features[i] for i in several]),
                stands_for.size,
                _such_as(self._own[stands_for].tolist()),
            )


def _such_as(names: Sequence[str]) -> str:
    return f" (such as {list(names[:3])})" if names else ""


def check_feature_map(given: FeatureMap) -> dict[str, tuple[str, ...]]:
    """Names in the model of each name in the data.

    Raises
    ------
    ConfigError
        If the map is empty, or its names are not strings.
    """
    if not len(given):
        raise ConfigError("`feature_map` is empty. Pass a dict such as `{'Cd4': 'CD4'}`, or leave it out.")
    found: dict[str, dict[str, None]] = {}
    for name, other in given.items():
        if not (isinstance(name, str) and isinstance(other, str) and name and other):
            dropped = "feature_map.dropna()" if isinstance(given, pd.Series) else "pd.Series(feature_map).dropna()"
            raise ConfigError(
                f"`feature_map` must map strings to strings, found {name!r}: {other!r}. "
                f"`{dropped}` leaves out genes without a name in the model."
            )
        found.setdefault(name, {})[other] = None
    return {name: tuple(others) for name, others in found.items()}


def _no_gene(
    names: Mapping[str, tuple[str, ...]], own: NDArray[np.object_], var: pd.DataFrame, column: str | None
) -> str:
    given = [other for others in names.values() for other in others]
    text = (
        f"None of the {len(names):,} names in `feature_map` is a gene of the data. It has {list(names)[:3]}, the data "
        f"have {own[:3].tolist()}. It maps the names of the data to those of the model."
    )
    if set(given) & set(own):
        return f"{text} Its direction seems to be the other one: pass `{{b: a for a, b in feature_map.items()}}`."
    other, _ = column_of_names(list(names), var)
    if other is not None and other != column:
        return f"{text} adata.var[{other!r}] has names of the map: pass `gene_symbols={other!r}` too."
    return f"{text} Pass a map from names such as {own[0]!r}."


def _no_feature(names: Mapping[str, tuple[str, ...]], own: NDArray[np.object_], features: Sequence[str]) -> str:
    given = [other for others in names.values() for other in others]
    return (
        f"`feature_map` names {len(own):,} genes of the data, but none of them as the model does: it gives "
        f"{given[:3]}, the model has {list(features[:3])}. Pass a map to names such as {features[0]!r}."
    )
