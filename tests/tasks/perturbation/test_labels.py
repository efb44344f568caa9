"""Labels of cells: targets, controls, and what is said about labels that are neither."""

import logging
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, DataError
from scbioformers.tasks.perturbation import read_design
from scbioformers.tasks.perturbation._labels import LabelReader

GENES = ["TF1", "TF2", "TF3", "G1"]


def cells_with(labels, **obs) -> ad.AnnData:
    """Four cells of each label."""
    adata = ad.AnnData(sp.csr_matrix(np.ones((4 * len(labels), len(GENES)), np.float32)))
    adata.var_names = GENES
    adata.obs["label"] = np.repeat(pd.Series(labels).to_numpy(), 4)
    for name, values in obs.items():
        adata.obs[name] = np.asarray(values)
    return adata


def design_of(labels, control="control", **kwargs):
    return read_design(cells_with(labels), bf.Perturbation("label", control, **kwargs), None, GENES)


def groups_of(design) -> list[tuple[str, ...] | str | None]:
    """Targets of the cells of each label, "control", or None if they are not used."""
    return [
        {0: "control", -1: None}.get(int(i), design.perturbations[int(i) - 1] if i > 0 else None)
        for i in design.groups[::4]
    ]


@pytest.mark.fault(56)
def test_drugs_are_never_split():
    drugs = ["(+)-JQ1", "IFN+LPS", "TF1+TF2", "A+"]
    design = design_of(["DMSO", *drugs], control="DMSO", kind="drug")
    assert groups_of(design) == ["control", *((drug,) for drug in drugs)]


@pytest.mark.fault(56)
@pytest.mark.parametrize("label", ["(+)-JQ1", "CCNE2_+_95907328.23-P1P2", "A+", "+"])
def test_an_identity_keeps_a_label_whole(label):
    design = design_of(["control", label, "TF1", "TF1+TF2"], targets={label: label})
    assert groups_of(design) == ["control", (label,), ("TF1",), ("TF1", "TF2")]
    assert design.labels == {label: (label,)}


def test_targets_of_labels_and_of_their_parts():
    targets = {"enh1": "TF1", "both": "TF1+TF2", "guide 3 ": "TF3", 7: "G1"}
    labels = ["ctrl", "enh1", "enh1+TF2", "both", "guide 3", "both+TF3", "7", "TF1+control"]
    expected = [("TF1",), ("TF1", "TF2"), ("TF1", "TF2"), ("TF3",), ("TF1", "TF2", "TF3"), ("G1",), ("TF1",)]
    assert groups_of(design_of(labels, control="ctrl", targets=targets)) == ["control", *expected]


def test_targets_that_name_each_other_end():
    reader = LabelReader("control", {"A": "B", "B": "A"})
    assert reader.read("A") == ("B",)
    assert reader.read("A+B") == ("A", "B")


@pytest.mark.fault(56)
def test_labels_without_a_known_gene_give_one_warning_that_can_be_followed():
    labels = ["control", "TF1", "TF1_1", "TF1_TF2", "locus9", "nan", "sgTF1", "tf3-2"]
    with pytest.warns(BioformersWarning) as caught:
        design = design_of(labels)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert all(repr(label) in message for label in labels[2:])
    assert "'TF1'," not in message.split(":")[1]
    targets = {"TF1_1": "TF1", "TF1_TF2": "TF1+TF2", "sgTF1": "TF1", "tf3-2": "TF3"}
    ignore = ("unassigned", "locus9", "nan")
    assert f"`targets={targets}`" in message
    assert f"`ignore={ignore}`" in message
    assert groups_of(design) == ["control", *((label,) for label in labels[1:])]  # nothing is lost in silence
    with warnings.catch_warnings():  # the advice works as it is written
        warnings.simplefilter("error")
        design = design_of(labels, targets=targets, ignore=ignore)
    expected = [("TF1",), ("TF1",), ("TF1", "TF2"), None, None, ("TF1",), ("TF3",)]
    assert groups_of(design) == ["control", *expected]


@pytest.mark.fault(56)
def test_a_target_without_features_and_measurement_does_not_stop_the_fit():
    features = pd.DataFrame(np.eye(3), index=["TF1", "TF2", "OTHER"])
    with pytest.warns(BioformersWarning, match=r"1 labels name no known gene: \['TFX'\].*Similar names: .*'TF1'"):
        design = design_of(["control", "TF1", "TFX", "OTHER"], features=features)
    assert groups_of(design) == ["control", ("TF1",), ("TFX",), ("OTHER",)]
    with pytest.warns(BioformersWarning, match=r"1 drugs are not in `features`: \['new'\]"):
        design_of(["control", "TF1", "new"], features=features, kind="drug")


def test_a_target_that_is_not_modelled_is_known(caplog):
    caplog.set_level(logging.INFO, "scbioformers")
    adata = cells_with(["control", "TF1", "TF2"])
    design = read_design(adata, bf.Perturbation("label", "control"), None, ["TF1", "G1"])
    assert groups_of(design) == ["control", ("TF1",), ("TF2",)]
    assert "1 targets are measured but not modelled, and have no features, such as ['TF2']" in caplog.text


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    ("control", "label", "expected"),
    [
        pytest.param("non-targeting", "non-targeting", True, id="the label"),
        pytest.param("non-targeting", " non-targeting  ", True, id="spaces in the data"),
        pytest.param(" non-targeting", "non-targeting", True, id="spaces in the argument"),
        pytest.param("non-targeting", "ctrl", False, id="ctrl alone"),
        pytest.param("non-targeting", "control", False, id="control alone"),
        pytest.param("ctrl", "ctrl", True, id="ctrl is the label"),
        pytest.param("ctrl", "control", False, id="another one"),
        pytest.param("ctrl", "ctrl+ctrl", True, id="combined, no target"),
        pytest.param("non-targeting", "TF1+ctrl", False, id="combined, one target"),
        pytest.param("ctrl", "Ctrl", False, id="case"),
    ],
)
def test_who_is_a_control(control, label, expected):
    assert LabelReader(control).is_control(label) == expected


@pytest.mark.fault(57)
def test_other_labels_of_controls_give_one_warning_and_are_not_used():
    labels = ["non-targeting", "non-targeting ", "ctrl", "Control_2", "NT", "TF1", "TF2", "TF1+ctrl"]
    with pytest.warns(BioformersWarning, match=r"\['Control_2', 'NT', 'ctrl'\] look like labels of control") as caught:
        design = design_of(labels, control="non-targeting")
    assert len(caught) == 1
    assert groups_of(design) == ["control", "control", None, None, None, ("TF1",), ("TF2",), ("TF1",)]
    design = design_of(labels, control="non-targeting", targets={"ctrl": "ctrl"}, ignore=("NT", "Control_2"))
    assert groups_of(design)[2] == ("ctrl",)


@pytest.mark.fault(42)
def test_a_wrong_control_label_lists_likely_ones_first():
    labels = [*(f"G{i}" for i in range(30)), "TF1", "untreated", "Non-Targeting"]
    with pytest.raises(DataError) as caught:
        design_of(labels, control="nontarget")
    message = str(caught.value)
    assert "Likely control labels: ['Non-Targeting', 'untreated']" in message
    assert "Labels: ['Non-Targeting', 'untreated', 'G0'" in message
    (call,) = re.findall(r"`task=(.*?)`", message)  # as it stands, the call works on these data
    task = eval(call, {"bf": bf})
    assert task == bf.Perturbation("label", "Non-Targeting")
    cells = cells_with(["TF1", "TF2", "Non-Targeting"])
    assert groups_of(read_design(cells, task, None, GENES)) == [("TF1",), ("TF2",), "control"]
    with pytest.raises(DataError, match=r"Labels: \['none1', 'A'"):  # then similar ones
        design_of(["A", "B", "none1"], control="none2")
    with pytest.raises(DataError, match="Pass the label of the control cells as `control` of the task") as caught:
        design_of(["TF1", "TF2"], control="none2")  # no label is likely, so no call is suggested
    assert "bf.Perturbation" not in str(caught.value)


@pytest.mark.fault(69)
@pytest.mark.parametrize("control", [0, 0.0, "0", np.int64(0), np.float32(0)], ids=repr)
@pytest.mark.parametrize("column", [np.array([0, 1, 2]), np.array([0.0, 1.0, 2.0]), np.array(["0", "1", "2"])])
@pytest.mark.filterwarnings("ignore:adata.obs..label.. is numeric")
def test_numbers_are_compared_by_value(control, column):
    targets = {1: "TF1", 2.0: "TF2"}
    task = bf.Perturbation("label", control, targets=targets, ignore=(3,))
    design = read_design(cells_with(column), task, None, GENES)
    assert groups_of(design) == ["control", ("TF1",), ("TF2",)]


@pytest.mark.fault(76)
def test_strata_whose_names_contain_the_separator():
    """Batch "a / b" of type "c" and batch "a" of type "b / c" are two strata."""
    batch, kind = np.tile(["a / b", "a", "a / b", "a"], 3), np.tile(["c", "b / c", "b / c", "c"], 3)
    adata = cells_with(["control", "TF1", "TF2"], batch=batch, kind=kind)
    design = read_design(adata, bf.Perturbation("label", "control", celltype_key="kind"), "batch", GENES)
    assert len(set(design.strata.tolist())) == 4
    np.testing.assert_array_equal(design.strata.reshape(3, 4), np.tile(design.strata[:4], (3, 1)))
    adata.obs["label"] = np.where((adata.obs["label"] == "control") & (batch == "a") & (kind == "c"), "TF1",
                                  adata.obs["label"])  # fmt: skip
    with pytest.raises(DataError, match=r"batch 'a', kind 'c' has perturbed cells and no control cell"):
        read_design(adata, bf.Perturbation("label", "control", celltype_key="kind"), "batch", GENES)


def test_few_controls_are_told(caplog):
    caplog.set_level(logging.INFO, "scbioformers")
    adata = cells_with(["control", "TF1", "TF2"])
    read_design(adata, bf.Perturbation("label", "control"), None, GENES)
    (record,) = (each for each in caplog.records if "control cells" in each.message)
    assert record.levelno == logging.WARNING
    assert "fitted to the 4 control cells alone, of 12 cells" in record.message
    caplog.clear()
    read_design(cells_with(["control"] * 4 + ["TF1", "TF2"]), bf.Perturbation("label", "control"), None, GENES)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
