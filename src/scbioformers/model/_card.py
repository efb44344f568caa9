"""The card of a model: a README.md beside its files, made from what the model holds. It is for people to read.

It is not part of the manifest, so that its text, such as the licence, may be edited. Loading does not read it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scbioformers.data import ObsField
    from scbioformers.model._bioformer import BioFormer

NOT_STATED = "not stated"
N_NAMES = 5

_USE = """\
## How to use it

```python
import scbioformers as bf

model = bf.BioFormer.load("DIRECTORY")  # the directory of this file
print(bf.pp.check(adata, model=model))  # which genes match, and the likelihood of the cells
bf.tl.embed(adata, model=model)  # adata: an AnnData with the values named above
```
"""
_USE_SEVERAL = """\
## How to use it

```python
import scbioformers as bf

model = bf.BioFormer.load("DIRECTORY")  # the directory of this file
bf.tl.embed(mdata, model=model)  # mdata: a MuData with at least one of the modalities named above
```
"""
_LIMITS = """\
## Limits

The model knows the cells that it was trained on. Other tissues, species, diseases and protocols may be read wrongly:
`bf.pp.check` compares the likelihood of your cells with that of the training data. Genes that the model does not have
are not read. The embedding and the networks are computed without labels, and are no evidence of a mechanism. The model
is not for clinical use. It contains no cells, but the means and components of the training cells, and the categories
and names above and in its files. Whether it may be passed on depends on the licences of the training data.
"""


def model_card(model: BioFormer) -> str:
    """Markdown text. It has no times and no paths, so the same model has the same card.

    ``model.provenance`` may have ``"licence"`` (text), ``"sources"`` (dicts with ``name``, ``n_cells`` and
    ``n_features``, and with several ``modalities`` the numbers of each), ``"history"`` (for each member, one dict of
    losses per epoch) and ``"started_from"``, the provenance of the model that was fine-tuned, with its ``hash``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> model_card(bf.get.model(adata)).splitlines()[0]
    '# A model of scbioformers'
    """
    stored = model.provenance
    parts = [
        "# A model of scbioformers\n",
        _table(("", ""), _facts(model)),
        _USE if len(model.modalities) == 1 else _USE_SEVERAL,
        "## Training data\n",
        *_training_data(stored),
        "## Scores\n",
        _scores(model),
        "## Settings\n",
        _table(("setting", "value"), _settings(model)),
        "## Versions\n",
        _table(("package", "version"), _pairs(stored.get("versions"))),
        _LIMITS,
    ]
    return "\n".join(parts)


def escape_markdown(text: Any) -> str:
    r"""The text as Markdown shows it, on one line: no name can become a heading, a link, HTML or a column of a table.

    Examples
    --------
    >>> escape_markdown("IFN_beta|*24 h*")
    'IFN\\_beta\\|\\*24 h\\*'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = re.sub(r"([\\`*_\[\]<>#|~&$!@])", r"\\\1", line)
    return line.replace("://", ":\\//").replace("www.", "www\\.")  # some renderers make links of addresses


def _facts(model: BioFormer) -> list[tuple[str, str]]:
    licence = model.provenance.get("licence", NOT_STATED)
    fields = [("batch", model.batch)] if model.batch is not None else []
    shared = model.n_starts < len(model.members)
    return [
        ("licence", escape_markdown(licence)),
        ("hash", f"`{model.hash}`"),
        *(fact for modality in model.modalities for fact in _modality(model, modality)),
        *(
            (f"{role} {escape_markdown(field.name)}", _values_of(field))
            for role, field in [*fields, *(("phenotype", each) for each in model.phenotypes)]
        ),
        *((("external tokens", _listed(model.external.categories)),) if model.external is not None else ()),
        *(("task", escape_markdown(name)) for name in sorted(model.heads)),
        (
            "networks",
            f"{len(model.members)}, with {sum(p.numel() for p in model.members[0].parameters()):,} parameters"
            + (f"; they share {model.n_starts} start{'s' * (model.n_starts > 1)}" if shared else ""),
        ),
    ]


def _values_of(field: ObsField) -> str:
    """The categories of a column of obs, or the range of a number."""
    if field.knots:
        return f"a number, {field.knots[0]:g} to {field.knots[-1]:g} in training"
    return f"{len(field.categories):,}: {_listed(field.categories)}"


def _modality(model: BioFormer, name: str) -> list[tuple[str, str]]:
    """The features of a modality, and the values that are read. A model of one modality does not name it."""
    own = model.of(name) if len(model.modalities) > 1 else model
    names, values = own.vocabulary.feature_names(), f"{own.reading.scale}, read as {own.binning.kind} bins"
    of = f" of {escape_markdown(name)}" if len(model.modalities) > 1 else ""
    return [
        (f"features{of}" if of else "genes", f"{len(names):,}: {_listed(names)}"),
        (f"values{of}", f"{values} ({own.binning.n_values})"),
    ]


def _training_data(stored: Mapping[str, Any]) -> list[str]:
    """Tables of the data sets, also of those of the models from which the fit started."""
    parts = []
    sources = [each for each in _list(stored.get("sources")) if isinstance(each, Mapping)]
    if sources:
        several = any("modalities" in each for each in sources)
        header = ["data set", "cells", "features of the model" if several else "genes of the model"]
        rows = [[_name(each.get("name")), _number(each.get("n_cells")), _number(each.get("n_features"))]
                for each in sources]  # fmt: skip
        if several:
            header.append("modalities")
            rows = [[*row, _listed_modalities(each.get("modalities"))] for row, each in zip(rows, sources, strict=True)]
        parts.append(_table(header, rows))
    else:
        parts.append("Names and sizes of the data sets were not stored.\n")
    if "data_sha256" in stored:
        parts.append(f"SHA-256 of the training cells: {escape_markdown(stored['data_sha256'])}\n")
    former = stored.get("started_from")
    if isinstance(former, Mapping):
        parts.append(f"The fit started from the model {escape_markdown(former.get('hash'))}, trained on:\n")
        parts += _training_data(former)
    return parts


def _listed_modalities(stored: Any) -> str:
    """The modalities of a data set, with their cells and features."""
    own = stored.items() if isinstance(stored, Mapping) else []
    return "; ".join(
        f"{escape_markdown(name)}: {_number(each.get('n_cells'))} cells, {_number(each.get('n_features'))} features"
        for name, each in sorted(own)
        if isinstance(each, Mapping)
    )


def _scores(model: BioFormer) -> str:
    """The validation losses of the weights that were kept, and the scores of validation cells."""
    rows = []
    for i, history in enumerate(_list(model.provenance.get("history"))):
        epochs = [each for each in _list(history) if isinstance(each, Mapping) and _finite(each.get("val_loss"))]
        if epochs:
            best = min(epochs, key=lambda each: each["val_loss"])
            losses = {name: value for name, value in best.items() if str(name).startswith("val_") and _finite(value)}
            rows += [(f"{escape_markdown(name)}, network {i + 1}", f"{value:.4f}") for name, value in losses.items()]
    if model.score_quantiles.size:
        for share in (0.05, 0.5, 0.95):
            value = np.quantile(model.score_quantiles, share)
            rows.append((f"score of validation cells, {share:.0%} quantile", f"{value:.4f}"))
    return _table(("score (nats)", "value"), rows) if rows else "No validation losses were stored.\n"


def _settings(model: BioFormer) -> list[tuple[str, str]]:
    stored = model.provenance
    groups = {
        "model": model.config.to_dict(),
        "binning": model.binning.to_dict(),
        "train": stored.get("train"),
        "seed": {"seed": stored["seed"]} if "seed" in stored else None,
    }
    return [
        (f"{group}: {name}" if group != "seed" else name, value)
        for group, values in groups.items()
        for name, value in _pairs(values)
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _pairs(values: Any) -> list[tuple[str, str]]:
    """Names and values, in the order of the names."""
    if not isinstance(values, Mapping):
        return [(NOT_STATED, "")]
    # as JSON, so that the text is the same before a model is stored and after
    texts = {
        name: v if isinstance(v, str) else json.dumps(v, sort_keys=True, default=str) for name, v in values.items()
    }
    return [(escape_markdown(name), escape_markdown(texts[name])) for name in sorted(texts, key=str)]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(escape_markdown, names[:N_NAMES]))
    return f"{shown}, …" if len(names) > N_NAMES else shown


def _name(value: Any) -> str:
    """A name, or the last part of a path, because the other parts belong to a machine."""
    return escape_markdown(PurePath(str(value)).name if PurePath(str(value)).is_absolute() else value)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NOT_STATED


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
