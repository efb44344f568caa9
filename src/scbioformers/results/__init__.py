"""Storage of results in an AnnData. Each module has the keys, the writer and the reader of one result."""

from scbioformers.results._bins import write_bins
from scbioformers.results._embedding import write_embedding
from scbioformers.results._gene_names import result_genes, show_genes, stored_edges
from scbioformers.results._gene_programs import (
    has_program_genes,
    read_program_background,
    read_program_genes,
    read_program_labels,
    read_program_scores,
    write_gene_programs,
)
from scbioformers.results._grn import (
    ConditionGRN,
    WeightTable,
    find_condition,
    grn_slots,
    read_grn_edges,
    read_grn_params,
    read_grn_weights,
    read_grns,
    read_mutual_pairs,
    write_grn,
)
from scbioformers.results._imputed import (
    Layer,
    StoreLayer,
    check_imputed_key,
    create_store,
    imputed_layers,
    read_evidence,
    write_imputed,
)
from scbioformers.results._model import ModelLike, check_storage, find_fit, find_model, store_model
from scbioformers.results._perturb import (
    Perturbed,
    check_perturb_key,
    perturb_genes,
    read_perturb,
    read_perturb_evidence,
    read_perturb_names,
    read_perturbed_profiles,
    write_perturb,
)
from scbioformers.results._query import Query, feature_names, find_column, open_query
from scbioformers.results._regulators import read_enrichment, read_regulators, write_enrichment, write_regulators
from scbioformers.results._slots import check_key_added, get_column, target

__all__ = [
    "ConditionGRN",
    "Layer",
    "ModelLike",
    "Perturbed",
    "Query",
    "StoreLayer",
    "WeightTable",
    "check_imputed_key",
    "check_key_added",
    "check_perturb_key",
    "check_storage",
    "create_store",
    "feature_names",
    "find_column",
    "find_condition",
    "find_fit",
    "find_model",
    "get_column",
    "grn_slots",
    "has_program_genes",
    "imputed_layers",
    "open_query",
    "perturb_genes",
    "read_enrichment",
    "read_evidence",
    "read_grn_edges",
    "read_grn_params",
    "read_grn_weights",
    "read_grns",
    "read_mutual_pairs",
    "read_perturb",
    "read_perturb_evidence",
    "read_perturb_names",
    "read_perturbed_profiles",
    "read_program_background",
    "read_program_genes",
    "read_program_labels",
    "read_program_scores",
    "read_regulators",
    "result_genes",
    "show_genes",
    "store_model",
    "stored_edges",
    "target",
    "write_bins",
    "write_embedding",
    "write_enrichment",
    "write_gene_programs",
    "write_grn",
    "write_imputed",
    "write_perturb",
    "write_regulators",
]
