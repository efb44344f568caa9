"""The arguments ``show=``, ``save=``, ``ax=`` and ``axes=`` of all figures.

They mean what they mean in scanpy, with one exception: a call without ``show=`` also returns the axes.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from scbioformers import settings
from scbioformers.core import ConfigError

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_SHOW_SAVE = """\
show
    True: show the figure, and return None. False: return the axes. None: return the axes, and show the figure if
    ``bf.settings.autoshow`` is True.
save
    Save the figure. With True or the end of a name such as ``"_1.pdf"``, the file is in ``bf.settings.figdir``, and
    its name starts with the name of this function. A path, or text with a folder, is used as it is."""
_DPI = 150  # resolution of a saved figure, unless rcParams["savefig.dpi"] says otherwise


class AxesList(list[Axes]):
    """The axes of a figure. A notebook does not print the list when it is the last value of a cell."""

    def _ipython_display_(self) -> None:
        return


def figure(draw: Callable[P, R]) -> Callable[P, R | None]:
    """Decorate a function that draws, so that it also saves, shows or returns what it has drawn.

    ``draw`` has the keyword arguments ``show``, ``save`` and ``ax`` or ``axes``, and returns the axes on which it has
    drawn, or a list of them. It does nothing with ``show`` and ``save``. In its docstring, ``%(show_save)s`` stands for
    the text on these two arguments.
    """

    @wraps(draw)
    def finished(*args: P.args, **kwargs: P.kwargs) -> Any:
        drawn: Any = draw(*args, **kwargs)
        first = drawn if isinstance(drawn, Axes) else drawn[0]
        whole = first.figure.canvas.figure  # also if the axes are in a part of a figure
        show: Any = kwargs.get("show")
        save: Any = kwargs.get("save")
        if save:
            file = _file(draw.__name__, save, whole.canvas.get_supported_filetypes())
            file.parent.mkdir(parents=True, exist_ok=True)
            whole.savefig(file, dpi=_DPI if mpl.rcParams["savefig.dpi"] == "figure" else None, bbox_inches="tight")
            logger.info("Saved the figure to %s.", file)
        if show or (show is None and settings.autoshow and mpl.get_backend().lower() != "agg"):  # agg shows nothing
            plt.show()
        if save and kwargs.get("ax") is None and kwargs.get("axes") is None:
            plt.close(whole)  # a notebook would show it, also with show=False
        if show:
            return None
        return drawn if isinstance(drawn, Axes) else AxesList(drawn)

    finished.__doc__ = inspect.cleandoc(draw.__doc__ or "").replace("%(show_save)s", _SHOW_SAVE)
    return finished


def _file(name: str, save: str | Path | Literal[True], formats: dict[str, str]) -> Path:
    """The file that ``save`` means. Text without a folder is the end of a name in the folder of figures."""
    if save is True or (isinstance(save, str) and os.path.basename(save) == save):
        file = settings.figdir / f"{name}{'' if save is True else save}"
    else:
        file = Path(save)
    return file if file.suffix[1:].lower() in formats else Path(f"{file}.{mpl.rcParams['savefig.format']}")


def check_number(axes: Sequence[Axes], panels: list[str]) -> None:
    """Raise an error if there is not one of the ``axes`` for each panel."""
    n = len(panels)
    if len(axes) != n:
        raise ConfigError(
            f"`axes` must have length {n} ({' and '.join(panels)}), found {len(axes)}. "
            f"`plt.subplots(1, {n}, squeeze=False)[1][0]` makes them."
        )
