"""The blood model of the package: a directory beside this file, as ``BioFormer.save`` writes it."""

from __future__ import annotations

from pathlib import Path

from scbioformers.model import BioFormer

FOLDER = Path(__file__).parent / "blood"


def blood() -> BioFormer:
    """Load the model of human blood that comes with the package. Nothing is downloaded.

    It was trained on 3,600 cells of four data sets, over 2,420 genes, named by symbols. It embeds, imputes and labels
    (``"cell_type"``) blood cells without a fit, and is where a fit can start from. 3,600 cells are no atlas: for rare
    types, other tissues and protocols, fit your own cells and compare. ``README.md`` in its directory is its card, with
    sources and limits.

    Returns
    -------
    BioFormer
        The model. Pass it as ``model=`` to the functions of ``bf.tl``, after ``bf.pp.check(adata, model=model)``.

    Raises
    ------
    ModelFormatError
        If its files are missing or damaged.

    Examples
    --------
    >>> import scbioformers as bf
    >>> model = bf.models.blood()
    >>> len(model.vocabulary), list(model.heads)
    (2420, ['annotation:cell_type'])

    ``bf.tl.embed(adata, model=model)`` embeds other cells, and ``bf.tl.fit(adata, model=model)`` fits it further.
    """
    return BioFormer.load(FOLDER)
