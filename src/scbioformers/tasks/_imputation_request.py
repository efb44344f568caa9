"""The arguments of imputation: which method they ask for, and whether the model can meet it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from scbioformers.core import SCALES, ConfigError
from scbioformers.model import BioFormer

ImputeMethod = Literal["denoise", "held_out"]
IMPUTE_METHODS = get_args(ImputeMethod)


def choose_method(
    method: str | None, output: str, *, masked: bool, std: bool, quantiles: Sequence[float]
) -> ImputeMethod:
    """The method that is asked for. Arguments that need held-out predictions imply it.

    Raises
    ------
    ConfigError
        If the method is unknown, or contradicts another argument.
    """
    if method not in (None, *IMPUTE_METHODS):
        raise ConfigError(f"`method` must be one of {IMPUTE_METHODS}, or None, found {method!r}.")
    given = {"mask=": masked, "std=True": std, "quantiles=": bool(len(quantiles)), "output='bins'": output == "bins"}
    implied = [name for name, is_given in given.items() if is_given]
    if method == "denoise" and implied:
        raise ConfigError(
            f"`method='denoise'` estimates mean counts from all values of a cell, so it cannot be combined with "
            f"{' and '.join(f'`{name}`' for name in implied)}. Leave out `method=`, or pass `method='held_out'`."
        )
    return "held_out" if method == "held_out" or implied else "denoise"


def check_method(model: BioFormer, method: ImputeMethod, output: str) -> None:
    """Check that the model can impute with this method and output.

    Raises
    ------
    ConfigError
        If it cannot. The message has the call that it can do.
    """
    ranks = model.binning.kind != "value"
    if method == "denoise" and not model.reading.counts:
        what = "`output='bins'`" if ranks else "`method='held_out'`"
        raise ConfigError(
            f"The model was fitted to values that are not counts, so it cannot predict {output!r} with "
            f"`method='denoise'`. Pass {what}: it predicts each value from the other genes."
        )
    if method == "held_out" and ranks and output != "bins":
        raise ConfigError(
            f"The model has {model.binning.kind} bins, which are ranks, so it cannot predict {output!r}. Pass "
            "`output='bins'`, or fit a model with `binning='value'`."
        )


def check_memory(model: BioFormer) -> None:
    """Check that ``memory="query"`` can be used with this model.

    Raises
    ------
    ConfigError
        If the model has no value bins, or was not fitted to counts.
    """
    if model.binning.kind != "value" or not model.reading.counts:
        what = f"has {model.binning.kind} bins" if model.binning.kind != "value" else "was fitted to other values"
        raise ConfigError(
            f"`memory='query'` needs a model of counts with value bins, but this model {what}. Leave out `memory=`, or "
            "fit a model to counts with `binning='value'`."
        )


def check_request(output: str, quantiles: Sequence[float], batch_size: int) -> None:
    """Check the arguments before the computation.

    Raises
    ------
    ConfigError
        If the output scale, a quantile or the batch size is not valid.
    """
    if output not in SCALES:
        raise ConfigError(f"`output` must be one of {SCALES}, found {output!r}.")
    if wrong := [q for q in quantiles if not 0 < q < 1]:
        raise ConfigError(f"`quantiles` must lie strictly between 0 and 1, found {wrong}.")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, found {batch_size}.")
