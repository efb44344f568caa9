"""Labels of cells: a head that classifies embeddings, learned from labelled cells, and the evidence for it."""

from scbioformers.tasks.annotation._classifier import draw_training
from scbioformers.tasks.annotation._evidence import collect_evidence
from scbioformers.tasks.annotation._features import Features
from scbioformers.tasks.annotation._fit import MAX_CELLS, USE, FittedLabels, fit_annotation
from scbioformers.tasks.annotation._head import AnnotationHead, head_name
from scbioformers.tasks.annotation._labelled import LabelledCells

__all__ = [
    "MAX_CELLS",
    "USE",
    "AnnotationHead",
    "Features",
    "FittedLabels",
    "LabelledCells",
    "collect_evidence",
    "draw_training",
    "fit_annotation",
    "head_name",
]
