"""The models that come with the package: directories beside this file, as ``BioFormer.save`` writes them."""

from __future__ import annotations

from pathlib import Path

from scbioformers.core import MissingKeyError, check_arguments
from scbioformers.model import BioFormer

FOLDER = Path(__file__).parent
MODELS: dict[str, str] = {}
"""What each model was trained on, in one line, by the name of its directory."""


def available() -> dict[str, str]:
    """Models that come with this version of the package.

    Returns
    -------
    dict
        What each model was trained on, by its name. The names are those that :func:`load` takes.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.models.available()
    {}
    """
    return dict(MODELS)


def load(name: str) -> BioFormer:
    """Load a model that comes with the package. Nothing is downloaded.

    Parameters
    ----------
    name
        Name of the model, see :func:`available`.

    Returns
    -------
    BioFormer
        The model. Pass it as ``model=`` to the functions of ``bf.tl``, after ``bf.pp.check(adata, model=model)``.

    Raises
    ------
    MissingKeyError
        If there is no such model. The message lists those that there are.
    ModelFormatError
        If the files of the model are damaged.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.models.load("blood")
    Traceback (most recent call last):
    scbioformers.core._errors.MissingKeyError: Found no model named 'blood' in this version of scbioformers. ...
    """
    check_arguments(load, locals())
    if name in MODELS:
        return BioFormer.load(FOLDER / name)
    own = repr(name) if Path(name).is_dir() else "directory"
    raise MissingKeyError(
        f"Found no model named {name!r} in this version of scbioformers. It comes with "
        f"{', '.join(map(repr, MODELS)) or 'none'}. A model of your own is made by `bf.tl.fit(adata)`, and is loaded "
        f"from a directory by `bf.BioFormer.load({own})`."
    )
