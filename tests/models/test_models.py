"""Models that come with the package."""

import re

import pytest

import scbioformers as bf
from scbioformers.core import MissingKeyError, ModelFormatError
from scbioformers.models import _registry


def test_each_model_of_the_package_can_be_loaded():
    for name, text in bf.models.available().items():
        assert text
        assert len(bf.models.load(name).vocabulary) > 0
    folders = {path.name for path in _registry.FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(bf.models.available())


@pytest.fixture
def shelf(ensemble, tmp_path, monkeypatch) -> bf.BioFormer:
    """As if the package came with two models, one of which is damaged."""
    ensemble.save(tmp_path / "tiny")
    (ensemble.save(tmp_path / "damaged") / "config.json").write_text("{}")
    monkeypatch.setattr(_registry, "FOLDER", tmp_path)
    monkeypatch.setattr(_registry, "MODELS", {"tiny": "60 simulated cells", "damaged": "nothing"})
    return ensemble


def test_a_model_is_loaded_by_its_name(shelf):
    assert bf.models.available() == {"tiny": "60 simulated cells", "damaged": "nothing"}
    assert bf.models.load("tiny").hash == shelf.hash
    with pytest.raises(ModelFormatError, match=r"config\.json is damaged"):
        bf.models.load("damaged")
    bf.models.available().clear()  # a copy
    assert len(bf.models.available()) == 2


@pytest.mark.fault(52)
def test_a_name_is_not_a_path(shelf, tmp_path):
    for name in (str(tmp_path / "tiny"), "../tiny", "./tiny", ""):
        with pytest.raises(MissingKeyError):
            bf.models.load(name)


def test_other_names_get_the_next_call(ensemble, tmp_path, monkeypatch):
    with pytest.raises(MissingKeyError, match=r"no model named 'bl00d'.* comes with none\..*`bf.tl.fit\(adata\)`"):
        bf.models.load("bl00d")
    place = ensemble.save(tmp_path / "mine")
    monkeypatch.setattr(_registry, "MODELS", {"tiny": "", "other": ""})
    with pytest.raises(MissingKeyError, match=r"comes with 'tiny', 'other'\.") as caught:
        bf.models.load(str(place))
    call = re.search(r"`(bf\.BioFormer\.load\(.*?\))`", str(caught.value))[1]
    assert eval(call, {"bf": bf}).hash == ensemble.hash
