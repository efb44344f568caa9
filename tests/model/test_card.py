"""The card of a saved model: made from what the model holds, for people to read and to edit."""

import re
from dataclasses import replace

import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import ModelFormatError
from scbioformers.model._card import escape_markdown, model_card

SOURCES = [{"name": "blood|pool", "n_cells": 3600, "n_features": 25}, {"name": "/data/me/mouse.h5ad", "n_cells": 7}]
HISTORY = [
    [{"epoch": 0, "val_loss": 3.5, "val_masked_bins": 1.5}, {"epoch": 1, "val_loss": 2.25, "val_masked_bins": 1.75}],
    [{"epoch": 0, "train_loss": 1.0, "val_loss": float("nan")}],
]


@pytest.fixture
def described(ensemble) -> bf.BioFormer:
    """A model with everything that a card can show."""
    former = {"hash": "abc123", "sources": [{"name": "first", "n_cells": 11, "n_features": 12}]}
    more = {"sources": SOURCES, "history": HISTORY, "licence": "CC BY 4.0", "started_from": former}
    quantiles = np.linspace(-1, 1, 21, dtype=np.float32)
    return replace(ensemble, provenance=ensemble.provenance | more, score_quantiles=quantiles)


def cells(card: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell. The text is as written, with backslashes."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in card.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_what_a_card_says(described):
    card = model_card(described)
    rows = cells(card)
    assert rows["licence"] == ["CC BY 4.0"]
    assert rows["hash"] == [f"`{described.hash}`"]
    assert rows["genes"] == ["30: TF1, TF2, TF3, TF4, TF5, …"]
    assert rows["batch batch"] == [r"2: batch\_1, batch\_2"]
    assert rows["networks"][0].startswith("2, with ")
    assert rows[r"blood\|pool"] == ["3,600", "25"]
    assert rows["mouse.h5ad"] == ["7", "not stated"]
    assert rows["first"] == ["11", "12"] and "started from the model abc123" in card
    # the losses of the weights that were kept
    assert rows[r"val\_loss, network 1"] == ["2.2500"] and rows[r"val\_masked\_bins, network 1"] == ["1.7500"]
    assert not any("network 2" in name for name in rows)
    assert rows["score of validation cells, 5% quantile"] == ["-0.9000"]
    assert rows["train: max\\_steps"] == ["2"] and rows["model: width"] == ["16"] and rows["seed"] == ["0"]
    assert rows["torch"] == [escape_markdown(described.provenance["versions"]["torch"])]
    assert "/data" not in card


def test_a_card_of_a_model_that_knows_little_of_itself(ensemble):
    card = model_card(replace(ensemble, provenance={}, score_quantiles=np.zeros(0, np.float32)))
    assert cells(card)["licence"] == ["not stated"]
    assert "were not stored" in card and "No validation losses were stored" in card
    strange = {"sources": "text", "history": [3, [None]], "versions": [1], "train": None, "started_from": 5, "seed": []}
    assert model_card(replace(ensemble, provenance=strange)).count("#") == card.count("#")


def test_the_same_model_has_the_same_card(described, tmp_path):
    card = model_card(described)
    assert model_card(bf.BioFormer.from_bytes(described.to_bytes())) == card
    for place in (tmp_path / "a", tmp_path / "b" / "c"):
        described.save(place)
        assert (place / "README.md").read_text() == card
        assert model_card(bf.BioFormer.load(place)) == card
        assert str(tmp_path) not in card


def test_a_card_may_be_edited_or_deleted(ensemble, directory):
    path = directory / "README.md"
    path.write_text(path.read_text().replace("| licence | not stated |", "| licence | CC BY 4.0 |"))
    assert bf.BioFormer.load(directory).hash == ensemble.hash
    ensemble.save(directory)  # a saved model replaces all that was there of the former one
    assert "not stated" in path.read_text()
    path.unlink()
    assert bf.BioFormer.load(directory).hash == ensemble.hash
    ensemble.save(directory)
    assert path.exists()


def test_a_folder_with_a_readme_is_not_a_model(ensemble, directory, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("three years")
    (directory / "readme.txt").write_text("mine")
    for place in (project, directory):
        with pytest.raises(ModelFormatError, match="nothing was written"):
            ensemble.save(place)
    assert (project / "README.md").read_text() == "three years"


def test_the_code_of_a_card_runs(fitted, tmp_path, capsys):
    place = bf.get.model(fitted).save(tmp_path / "saved")
    code = re.search(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)[1]
    exec(code.replace("DIRECTORY", str(place)), {"adata": fitted})
    assert "X_bioformer" in fitted.obsm and "found     40 of its 40 genes" in capsys.readouterr().out


NAMES = [
    "IFN_beta|*24 h*",
    "# heading",
    "a\n\n# heading\n\n| x | y |",
    "[click](https://example.org)",
    "![x](https://example.org/x.png)",
    "<img src=x onerror=alert(1)>",
    "https://example.org www.example.org me@example.org",
    "`code` ``x`` ~~no~~ $x$ &lt; \\ \\| *",
    "1. list",
    "- [ ] task",
    "ε ü 細胞",
]


@pytest.mark.fault(53)
@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(ensemble, name):
    markdown = pytest.importorskip("markdown_it")
    provenance = {"sources": [{"name": name, "n_cells": 1, "n_features": 2}], "licence": name, "versions": {name: name}}
    model = replace(ensemble, provenance=provenance, batch=replace(ensemble.batch, categories=(name, "b")))
    parser = markdown.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(model_card(model))
    assert len([t for t in tokens if t.type == "heading_open"]) == 7
    assert not [t for t in tokens if t.type in ("html_block", "blockquote_open", "bullet_list_open")]
    inline = [t for t in tokens if t.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak"}
    shown = ["".join(child.content for child in token.children) for token in inline]
    assert shown.count(" ".join(name.split())) >= 4  # licence, data set, and a package with its version
    assert any(text == f"2: {' '.join(name.split())}, b" for text in shown)
