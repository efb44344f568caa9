"""Labels of cells: a head that classifies embeddings, learned from labelled cells, and the evidence for it."""

from scbioformers.tasks.annotation._evidence import collect_evidence
from scbioformers.tasks.annotation._fit import USE, FittedLabels, fit_annotation
from scbioformers.tasks.annotation._head import AnnotationHead, head_name

__all__ = ["USE", "AnnotationHead", "FittedLabels", "collect_evidence", "fit_annotation", "head_name"]
