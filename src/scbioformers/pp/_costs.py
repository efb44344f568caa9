"""What a fit, an embedding and an imputation cost, estimated from the size of the data before they run."""

from __future__ import annotations

from dataclasses import dataclass

from scbioformers.core import default_epochs

# CPU seconds of one thread with the default model, a third above those of a fast x86-64 core (115 GFLOP/s in matrix
# products; benchmarks/scale.py, parts `costs`), because many are slower
FIXED_SECONDS = 5.5  # imports and compilation
READ_SECONDS = 4e-8  # one pass over a non-zero value: read, check, convert
SETUP_SECONDS = (1.4e-3, 2.8e-7)  # of a fit, for each gene, and for each gene of a cell of the sample: components
TRAINING_SECONDS = (2.5e-4, 6.5e-6, 6.2e-8)  # of a cell in a step, of each of its tokens, and of each gene
EMBEDDING_SECONDS = (6.7e-5, 3.7e-7, 1.9e-8)  # the same, of a cell that is embedded
DECODING_SECONDS = 6e-8  # of each gene of a cell that is imputed
EVIDENCE_SECONDS = 1.2e-6  # of each gene of a cell whose measured values are predicted, for each group of genes
MEAN_CONTEXT, MAX_MASKED = 58, 16  # tokens of a cell in a training step
MASKED_PER_EXPRESSED = 0.3  # masked expressed genes and masked zeros, per expressed gene
BATCH_SIZE = 64

FIXED_BYTES = 680e6  # Python with torch
FIT_BYTES, IMPUTE_BYTES = 1.4e5, 1e5  # activations and decoded values, for each gene
BYTES_PER_NONZERO = 8  # float32 value and int32 index
FIT_PASSES, EMBED_PASSES, IMPUTE_PASSES = 4, 2, 5  # over the data, beside the training steps
BYTES_PER_SAMPLED = 8  # of a gene of a cell of the sample
SAMPLED_CELLS = 50_000  # maximum number of cells that a fit holds to compute its initial values
COMPONENTS = 32  # columns of an embedding
EVIDENCE_CELLS, EVIDENCE_VALUES, N_GROUPS = 2000, 1_000_000, 7
MODEL_BYTES, MODEL_BYTES_PER_GENE = 1.2e6, 1800


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a call. It is meant to be right within a factor of 1.5."""

    minutes: float
    """CPU time in minutes, by one thread: the time that it takes on a quiet machine."""
    gigabytes: float
    """Peak memory of the process, in GB (1e9 bytes), with the data if they are in memory."""
    disk: float
    """Size of the result in a file without compression, in GB."""

    def line(self, name: str) -> str:
        """One line of the report."""
        return f"{name:14s} {_time(self.minutes):>12s} {_size(self.gigabytes):>9s} {_size(self.disk):>9s}"


@dataclass(frozen=True)
class Size:
    """What the cost depends on."""

    n_obs: int
    """Number of cells."""
    n_vars: int
    """Number of genes."""
    n_modelled: int
    """Number of genes that are modelled."""
    expressed: float
    """Mean number of modelled genes that a cell expresses."""
    n_nonzero: int
    """Number of non-zero values of all genes."""
    on_disk: bool
    """Whether the values are read from disk in blocks."""
    n_members: int = 1
    """Number of networks."""
    fitted: bool = True
    """Whether the cells are those of the fit. Then the evidence for imputed values is of its validation cells."""

    @property
    def held_bytes(self) -> float:
        """Memory of the values: those of the data and the modelled ones as they are read, none from disk."""
        return 0.0 if self.on_disk else BYTES_PER_NONZERO * (self.n_nonzero + self.expressed * self.n_obs)


def fit_cost(size: Size) -> Cost:
    """Cost of a default fit. It visits ``default_epochs(n) * n`` cells."""
    visits = default_epochs(size.n_obs, BATCH_SIZE) * size.n_obs
    tokens = min(size.expressed, MEAN_CONTEXT) + min(MASKED_PER_EXPRESSED * size.expressed, MAX_MASKED) + 1  # <cls>
    sample = min(size.n_obs, SAMPLED_CELLS)
    seconds = FIXED_SECONDS + (SETUP_SECONDS[0] + SETUP_SECONDS[1] * sample) * size.n_modelled
    seconds += visits * _per_cell(TRAINING_SECONDS, tokens, size.n_modelled)
    passes = FIT_PASSES + (default_epochs(size.n_obs, BATCH_SIZE) if size.on_disk else 0)
    seconds += passes * READ_SECONDS * size.n_nonzero
    n_bytes = FIXED_BYTES + (FIT_BYTES + BYTES_PER_SAMPLED * sample) * size.n_modelled + size.held_bytes
    disk = MODEL_BYTES + MODEL_BYTES_PER_GENE * size.n_modelled
    return Cost(seconds / 60, n_bytes / 1e9, disk / 1e9)


def embed_cost(size: Size) -> Cost:
    """Cost of an embedding by a default model."""
    n_bytes = 4.0 * COMPONENTS * size.n_obs
    return Cost(_embed_seconds(size) / 60, (FIXED_BYTES + size.held_bytes + n_bytes) / 1e9, n_bytes / 1e9)


def impute_cost(size: Size) -> Cost:
    """Cost of denoised values of all modelled genes by a default model, with the evidence for them."""
    dense = 2 * size.n_modelled >= size.n_vars
    n_bytes = 4.0 * size.n_vars * size.n_obs if dense else 8.0 * size.n_modelled * size.n_obs
    seconds = _embed_seconds(size) + DECODING_SECONDS * size.n_modelled * size.n_obs
    seconds += (IMPUTE_PASSES - EMBED_PASSES) * READ_SECONDS * size.n_nonzero
    n_evidence = min(EVIDENCE_CELLS, max(EVIDENCE_VALUES // max(size.n_modelled, 1), 50), size.n_obs)
    if size.fitted and size.n_obs >= 500:
        n_evidence = min(n_evidence, size.n_obs // 10)
    seconds += EVIDENCE_SECONDS * N_GROUPS * n_evidence * size.n_members * size.n_modelled
    held = n_bytes if dense else 2 * n_bytes  # the parts of a sparse layer are joined at the end
    n_bytes_held = FIXED_BYTES + IMPUTE_BYTES * size.n_modelled + size.held_bytes + held
    return Cost(seconds / 60, n_bytes_held / 1e9, n_bytes / 1e9)


def _embed_seconds(size: Size) -> float:
    per_cell = size.n_members * _per_cell(EMBEDDING_SECONDS, size.expressed + 1, size.n_modelled)
    return FIXED_SECONDS + size.n_obs * per_cell + EMBED_PASSES * READ_SECONDS * size.n_nonzero


def _per_cell(seconds: tuple[float, float, float], tokens: float, n_genes: int) -> float:
    fixed, of_token, of_gene = seconds
    return fixed + of_token * tokens + of_gene * n_genes


def _time(minutes: float) -> str:
    if minutes < 1.5:
        return f"{max(round(minutes * 6) * 10, 10)} seconds" if minutes < 0.95 else "1 minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _size(gigabytes: float) -> str:
    if gigabytes < 1:
        return f"{max(round(gigabytes * 1000), 1)} MB"
    return f"{gigabytes:.1f} GB"
