"""The steps of ``python -m scbioformers demo``. Each step is a few lines, as in a notebook."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData, read_h5ad

import scbioformers as bf
from scbioformers.core import BioformersWarning, DataError, MissingDependencyError, MissingKeyError

try:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table
except ImportError as error:
    raise MissingDependencyError('The demo needs rich. Run `pip install "scbioformers[demo]"`.') from error

N_TOP_GENES = 2000
N_COMPONENTS = 50
TUNING_EPOCHS = 20
SEED_RANGE = 0.02  # by which AvgBIO of a fit to scanpy's 700 cells differed between three seeds
# keys of obsm by the names in the table, and the titles of the panels
MODELS = {"BioFormer": "X_bioformer", "blood model": "X_blood", "blood, tuned": "X_blood_tuned"}
TITLES = {
    "BioFormer": "BioFormer, fitted to these cells",
    "blood model": "blood model, no fit",
    "blood, tuned": "blood model, trained further",
}
COLUMNS = {
    "avg_bio": "AvgBIO",
    "nmi": "NMI",
    "ari": "ARI",
    "asw": "ASW",
    "nmi_res1": "NMI(1)",
    "ari_res1": "ARI(1)",
    "knn_f1": "kNN F1",
    "linear_f1": "lin. F1",
    "ilisi": "iLISI",
    "kbet": "kBET",
}
CAPTION = """NMI, ARI, AvgBIO: Leiden at the resolution with the best NMI.
NMI(1), ARI(1): Leiden at resolution 1. F1: macro F1 on held-out cells."""


def run_demo(
    data: Path | None, label_key: str | None, batch_key: str | None, max_epochs: int | None, out: Path
) -> AnnData:
    """Fit a model, embed and cluster the cells, compare with PCA, and write the results to a directory.

    The cells of scanpy are human blood. For them, the blood model of the package is shown too: without a fit, and
    trained further on them.

    Parameters
    ----------
    data
        h5ad file with counts in ``X`` or ``layers["counts"]``. None uses :func:`scbioformers.datasets.pbmc68k`.
    label_key
        Column of ``adata.obs`` with known labels. They are used for colours and scores, not for the fit.
    batch_key
        Column of ``adata.obs`` with the batch.
    max_epochs
        Number of passes over the cells. By default, that of :class:`~scbioformers.TrainConfig`.
    out
        Directory for ``annotated.h5ad``, ``umap.png``, ``training.png`` and, if there are labels, ``scores.csv``. It is
        created if it does not exist.

    Returns
    -------
    AnnData
        The annotated data.

    Raises
    ------
    DataError
        If the file cannot be read, or its values or labels cannot be used.
    MissingKeyError
        If ``label_key`` or ``batch_key`` is not a column of ``adata.obs``.
    """
    console = Console()
    if data is None and label_key is None:
        label_key = "bulk_labels"
    adata = bf.datasets.pbmc68k() if data is None else read(data)
    check_keys(adata, label_key, batch_key)
    layer = "counts" if "counts" in adata.layers else None
    if problems := bf.pp.check(adata, layer=layer).problems:
        raise DataError(" ".join(problems))
    out.mkdir(parents=True, exist_ok=True)
    console.rule("Data")
    select_genes(adata, layer)
    console.print(str(bf.pp.check(adata, layer=layer)), markup=False, highlight=False)

    if data is None:
        console.rule("Blood model of the package (no fit)")
        bf.tl.embed(adata, model=bf.models.blood(), key_added="X_blood")
    console.rule("Fit (without labels)")
    bf.tl.fit(adata, layer=layer, batch_key=batch_key, max_epochs=max_epochs)
    bf.tl.embed(adata)
    if data is None:
        console.rule("Blood model, trained further on these cells")
        tune_blood_model(adata, max_epochs)
    with console.status("Computing baselines, neighbours, UMAP and Leiden clusters"):
        baselines = embed_baselines(adata, layer)
        add_graphs(adata)
    table = None
    if label_key is not None:
        console.rule("Scores")
        with console.status("Clustering and classifying the cells"):
            table = score(adata, baselines, label_key, batch_key)
        table.to_csv(out / "scores.csv")
        show(console, table)
    draw(adata, label_key or "leiden", table, out)
    adata.write_h5ad(out / "annotated.h5ad")
    console.rule("What was found")
    for line in (f"Figure: {out / 'umap.png'}", "", *describe(adata, table, label_key), "", *next_steps(data, out)):
        console.print(line, markup=False, highlight=False, soft_wrap=line.startswith(("Figure", "  ")))
    return adata


def read(path: Path) -> AnnData:
    """Read an h5ad file. Raise :class:`DataError` if it does not exist or cannot be read."""
    if not path.is_file():
        raise DataError(f"There is no file {path}. Pass the path of an h5ad file as `--data`.")
    try:
        return read_h5ad(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read as h5ad: {error}") from error


def check_keys(adata: AnnData, label_key: str | None, batch_key: str | None) -> None:
    """Check the columns and the labels before any computation."""
    columns = ", ".join(map(repr, adata.obs.columns)) or "none"
    for option, key in (("--label-key", label_key), ("--batch-key", batch_key)):
        if key is not None and key not in adata.obs:
            raise MissingKeyError(f"{option} {key!r} is not a column of obs. Pass one of these columns: {columns}.")
    if label_key is not None:
        # as text, because numeric labels are names of groups too
        labels = adata.obs[label_key].map(str, na_action="ignore").astype("category")
        n_labels, n_cells = labels.nunique(), int(labels.notna().sum())
        if not 2 <= n_labels <= n_cells // 2:
            raise DataError(
                f"--label-key {label_key!r} has {n_labels} different values in {n_cells} cells; expected at least 2 "
                f"values, and at least 2 cells per value on average. Pass another of these columns: {columns}."
            )
        adata.obs[label_key] = labels


def select_genes(adata: AnnData, layer: str | None) -> None:
    """Set ``adata.var["highly_variable"]`` with the flavor ``"seurat_v3"``, or to True if there are few genes."""
    if adata.n_vars <= N_TOP_GENES:
        adata.var["highly_variable"] = True
        return
    sc.pp.highly_variable_genes(adata, layer=layer, n_top_genes=N_TOP_GENES, flavor="seurat_v3")


def tune_blood_model(adata: AnnData, max_epochs: int | None) -> None:
    """Train the blood model further on the cells, and embed them by it.

    Sets ``adata.uns["bioformer_blood"]``, the second model, and ``adata.obsm["X_blood_tuned"]``.
    """
    max_epochs = min(TUNING_EPOCHS, max_epochs or TUNING_EPOCHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)  # the first embedding has said which genes are missing
        bf.tl.fit(adata, model=bf.models.blood(), max_epochs=max_epochs, key_added="bioformer_blood")
        bf.tl.embed(adata, key="bioformer_blood", key_added="X_blood_tuned")


def embed_baselines(adata: AnnData, layer: str | None) -> dict[str, Any]:
    """Baseline embeddings by name: log-normalised highly variable genes, and PCA of them in two sizes.

    One PCA has 50 components. The other has as many components as the embedding of the model. The first is also written
    to ``adata.obsm["X_pca"]``.
    """
    counts = adata.X if layer is None else adata.layers[layer]
    expression = bf.metrics.log1p_normalize(
        counts[:, adata.var["highly_variable"].to_numpy()], depth=np.asarray(counts.sum(axis=1)).ravel()
    )
    max_components = min(expression.shape) - 1
    n_default = min(N_COMPONENTS, max_components)
    baselines = {"raw HVG": expression}
    for n_components in (n_default, min(adata.obsm["X_bioformer"].shape[1], max_components)):
        baselines[f"PCA ({n_components})"] = bf.metrics.pca(expression, n_components)
    adata.obsm["X_pca"] = baselines[f"PCA ({n_default})"]
    return baselines


def add_graphs(adata: AnnData) -> None:
    """Compute neighbours, UMAP and Leiden clusters of the embedding of the model, and UMAPs of the others.

    The results of the PCA have the names ``pca`` and ``X_umap_pca``, those of the blood model ``blood`` and so on.
    """
    sc.pp.neighbors(adata, use_rep="X_bioformer")
    sc.tl.umap(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    for name in ("pca", "blood", "blood_tuned"):
        if f"X_{name}" in adata.obsm:
            sc.pp.neighbors(adata, use_rep=f"X_{name}", key_added=name)
            sc.tl.umap(adata, neighbors_key=name, key_added=f"X_umap_{name}")


def score(adata: AnnData, baselines: dict[str, Any], label_key: str, batch_key: str | None) -> pd.DataFrame:
    """Scores of all embeddings, one row per embedding. Cells without a label are not scored.

    The scores of batch mixing are NaN if scib-metrics is not installed.
    """
    labelled = adata.obs[label_key].notna().to_numpy()
    labels = adata.obs[label_key][labelled].astype(str)
    batch = None
    if batch_key is not None and find_spec("scib_metrics") is not None:
        batch = adata.obs[batch_key][labelled].astype(str)
    embeddings = baselines | {name: adata.obsm[key] for name, key in MODELS.items() if key in adata.obsm}
    rows = {
        name: bf.metrics.embedding_scores(X[labelled], labels, batch=batch).to_dict() for name, X in embeddings.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("embedding")


def show(console: Console, scores: pd.DataFrame) -> None:
    """Print the table of scores. The best value of each column is bold."""
    scores = scores.dropna(axis="columns", how="all")
    columns = {name: title for name, title in COLUMNS.items() if name in scores}
    table = Table(Column(no_wrap=True), *columns.values(), box=SIMPLE, padding=(0, 1, 0, 0), caption=CAPTION)
    best = scores.max()
    for embedding, row in scores.iterrows():
        cells = (f"[bold]{row[c]:.3f}[/]" if row[c] == best[c] else f"{row[c]:.3f}" for c in columns)
        table.add_row(str(embedding), *cells)
    console.print(table)


def describe(adata: AnnData, scores: pd.DataFrame | None, label_key: str | None) -> list[str]:
    """Sentences on what the demo has found: on the fit, on the clusters, and on the comparison with PCA."""
    history = bf.get.history(adata)
    losses = history["val_masked_bins"] if "val_masked_bins" in history else history["train_masked_bins"]
    losses = losses.dropna()
    sizes = adata.obs["leiden"].value_counts()
    found = [
        f"Masked genes are predicted with {losses.min():.2f} nats in cells that the fit has not seen, "
        f"after {losses.iloc[0]:.2f} when they were first read (lower is better).",
        f"The {adata.n_obs} cells form {len(sizes)} Leiden clusters in the embedding, of {sizes.min()} to "
        f"{sizes.max()} cells.",
    ]
    if scores is None:
        return [
            *found,
            "The figure shows the clusters on the UMAP of the model and on that of PCA: look if they agree.",
        ]
    agreement = scores["avg_bio"].astype(float)
    ours = float(agreement["BioFormer"])
    pca = max(float(each) for name, each in agreement.items() if str(name).startswith("PCA"))
    verdict = "as good" if abs(ours - pca) <= SEED_RANGE else "better" if ours > pca else "worse"
    found.append(
        f"The clusters agree with {label_key!r} by an AvgBIO of {ours:.3f}; PCA has {pca:.3f}, so here the model is "
        f"{verdict}."
    )
    if "blood model" in agreement:
        found.append(
            f"The blood model of the package has an AvgBIO of {agreement['blood model']:.3f} without a fit, and "
            f"{agreement['blood, tuned']:.3f} after training on these cells, which were new to it. "
            f"Another seed changes a fit's AvgBIO by up to {SEED_RANGE}."
        )
        found.append(
            f"{label_key!r} taught the blood model its cell types, but not its embedding. So the labels that "
            "`bf.tl.annotate` gives by it are not tested here: try them on other blood cells."
        )
    return found


def next_steps(data: Path | None, out: Path) -> list[str]:
    """What to try next: on the user's own file, or with the model of the demo."""
    own = [] if data is not None else [
        "Next, with your own file (raw counts in X or layers['counts']):",
        "  python -m scbioformers demo --data cells.h5ad --label-key cell_type",
        "If your cells are human blood, no fit is needed to begin with:",
        "  bf.tl.embed(adata, model=bf.models.blood())      # seconds",
    ]  # fmt: skip
    return [
        *own,
        "In a notebook, the model is in the file that was written:",
        f"  adata = anndata.read_h5ad({str(out / 'annotated.h5ad')!r})",
        "  bf.tl.impute(adata)                              # denoised expression",
        "  bf.tl.embed(other_cells, model=adata)            # other cells, without a fit",
    ]


def draw(adata: AnnData, color: str, scores: pd.DataFrame | None, out: Path) -> None:
    """Save a figure with the UMAPs of the models and of the PCA, and a figure with the learning curves."""
    panels = [("X_umap", "BioFormer"), ("X_umap_pca", f"PCA ({adata.obsm['X_pca'].shape[1]})")]
    panels += [(MODELS[name].replace("X_", "X_umap_"), name) for name in list(MODELS)[1:] if MODELS[name] in adata.obsm]
    n_rows = len(panels) // 2
    figure, axes = plt.subplots(n_rows, 2, figsize=(11, 4.5 * n_rows), layout="constrained", squeeze=False)
    for ax, (basis, name) in zip(axes.flat, panels, strict=True):
        title = TITLES.get(name, name)
        if scores is not None:
            title += f"\nAvgBIO {float(scores['avg_bio'][name]):.3f}"
        sc.pl.embedding(adata, basis, color=color, title=title, frameon=False, ax=ax, show=False)
        entries = ax.get_legend_handles_labels()
        ax.get_legend().remove()  # one for all panels
    title = f"{color} ({adata.n_obs:,} cells)"
    figure.legend(*entries, title=title, loc="outside right center", frameon=False, alignment="left")
    figure.savefig(out / "umap.png", dpi=150)
    plt.close(figure)
    bf.pl.training(adata, save=out / "training.png", show=False)
