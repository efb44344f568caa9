"""``bf.pp.to_mudata``: proteins that an AnnData holds beside its genes become a modality of a MuData."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scbioformers.core import DataError, MissingKeyError, check_arguments, warn
from scbioformers.data import FEATURE_TYPES, modality_of

PROTEINS, PROTEIN_NAMES = "protein_expression", "protein_names"  # keys of scvi-tools, in obsm and in uns


def to_mudata(adata: AnnData, *, protein_key: str | None = None) -> MuData:
    """Make a MuData of an AnnData that holds proteins beside its genes. ``adata`` is not changed.

    Two conventions are read. scvi-tools has proteins in ``adata.obsm["protein_expression"]``: a DataFrame, or an array
    whose names are in ``adata.uns["protein_names"]``. 10x has all features in ``adata.X``, and their type in
    ``adata.var["feature_types"]``.

    Parameters
    ----------
    adata
        AnnData with genes and proteins, in memory or backed.
    protein_key
        Key of the proteins in ``adata.obsm``. By default ``"protein_expression"``, unless
        ``adata.var["feature_types"]`` has several types, which are then the modalities.

    Returns
    -------
    MuData
        With the modality ``"rna"``, and ``"prot"`` for proteins. ``obs`` is that of ``adata``. Of other types of
        features, ``"Peaks"`` are ``"atac"``, and the others have their own names in lower case. Proteins of cells in
        which none was measured (a row of NaN in ``obsm``) are left out: such a cell is only in ``"rna"``.

    Raises
    ------
    DataError
        If ``adata`` has neither of the two, the names of proteins are not known or occur twice, or the names of cells
        occur twice.
    MissingKeyError
        If ``adata.obsm`` does not have ``protein_key``.

    Warns
    -----
    BioformersWarning
        If all proteins of some cells are zero, which scvi-tools writes for cells in which they were not measured.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scbioformers as bf
    >>> adata = ad.AnnData(np.ones((2, 3)), var=pd.DataFrame(index=["CD4", "CD8A", "MS4A1"]))
    >>> adata.obsm["protein_expression"] = pd.DataFrame([[9, 120], [85, 3]], adata.obs_names, ["CD4", "CD19"])
    >>> mdata = bf.pp.to_mudata(adata)
    >>> {name: list(each.var_names) for name, each in mdata.mod.items()}
    {'rna': ['CD4', 'CD8A', 'MS4A1'], 'prot': ['CD4', 'CD19']}
    """
    check_arguments(to_mudata, locals())
    if not adata.obs_names.is_unique:
        raise DataError(
            "Names of cells occur more than once, expected a name for each, by which modalities are joined. Call "
            "`adata.obs_names_make_unique()` first."
        )
    if protein_key is not None and protein_key not in adata.obsm:
        raise MissingKeyError(f"Did not find adata.obsm[{protein_key!r}]. Existing keys: {list(adata.obsm)}.")
    types = adata.var.get(FEATURE_TYPES)
    if protein_key is None and types is not None and types.nunique() > 1:
        if types.isna().any():
            raise DataError(f"adata.var[{FEATURE_TYPES!r}] has {types.isna().sum()} missing values. Fill them first.")
        return _join({modality_of(str(kind)): _part(adata, types == kind) for kind in types.unique()}, adata.obs)
    key = PROTEINS if protein_key is None else protein_key
    if key not in adata.obsm:
        raise DataError(
            f"Found neither several types in adata.var[{FEATURE_TYPES!r}] nor adata.obsm[{PROTEINS!r}]. Pass the key "
            f"of the proteins in adata.obsm as `protein_key=`; it has {list(adata.obsm)}."
        )
    proteins = _proteins(adata, key)
    rna = adata.to_memory() if adata.isbacked else adata.copy()
    del rna.obsm[key]
    return _join({"rna": rna, "prot": proteins}, adata.obs)


def _part(adata: AnnData, columns: pd.Series[bool]) -> AnnData:
    part = adata[:, columns.to_numpy()]
    return part.to_memory() if adata.isbacked else part.copy()


def _proteins(adata: AnnData, key: str) -> AnnData:
    """The proteins of the cells in which they were measured."""
    values: Any = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        names, values = [str(name) for name in values.columns], values.to_numpy()
    else:
        names = [str(name) for name in np.ravel(adata.uns.get(PROTEIN_NAMES, []))]
    if len(names) != values.shape[1] or len(set(names)) < len(names):
        raise DataError(
            f"adata.obsm[{key!r}] has {values.shape[1]} proteins, found {len(names)} names for them, {len(set(names))} "
            f"of them different. Make it a DataFrame with the names as columns, or set adata.uns[{PROTEIN_NAMES!r}]."
        )
    values = values.toarray() if sp.issparse(values) else np.asarray(values, np.float64)
    measured = ~np.isnan(values).all(axis=1)
    if n_zero := int((values[measured] == 0).all(axis=1).sum()):
        warn(
            f"All proteins of {n_zero:,} cells are zero in adata.obsm[{key!r}]. If they were not measured there, set "
            "these rows to NaN: absent is not zero."
        )
    return AnnData(
        values[measured].astype(np.float32),
        obs=pd.DataFrame(index=adata.obs_names[measured]),
        var=pd.DataFrame(index=names),
    )


def _join(modalities: dict[str, AnnData], obs: pd.DataFrame) -> MuData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata 0.3 warns of its next release, and of names that modalities share
        mdata = MuData(modalities)
        mdata.obs = obs.copy()
    return mdata
