"""Draws the figures of results from the tables in ``benchmarks/``: ``python docs/draw_results.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
Score = tuple[float, float, float]
PANELS = (
    ("Cell embedding", "AvgBIO, higher is better", "AvgBIO", "{} ("),
    ("Masked expression", "bits per masked value, lower is better", "NLL, bits", "{}: "),
)
SETS = (("pbmc3k", "paul15", "sc_mixology", "kang_ifnb"), ("pbmc3k", "paul15", "kang_ifnb"))
METHODS = (
    {"ours": "ours", "ours_no_attention": "ours, no attention", "pca": "PCA", "scvi": "scVI"},
    {"ours": "ours", "ours_no_attention": "ours, no attention", "logistic": "softmax regression", "scvi": "scVI"},
)
STYLES = {  # colours that are distinct also without red and green (Okabe and Ito), and markers
    "ours": ("#d55e00", "o"),
    "ours_no_attention": ("#f0a878", "D"),
    "pca": ("#0072b2", "s"),
    "logistic": ("#0072b2", "s"),
    "scvi": ("#7f7f7f", "^"),
    "logistic_hvg": ("#0072b2", "s"),
    "logistic_pca": ("#7cc4ee", "s"),
    "knn_pca": ("#009e73", "v"),
    "celltypist": ("#cc79a7", "P"),
    "scanvi": ("#7f7f7f", "^"),
    "ours_rna": ("#f0a878", "X"),
    "pca_rna": ("#0072b2", "s"),
    "proteins": ("#009e73", "v"),
    "pca_both": ("#7cc4ee", "s"),
    "pca_beside_proteins": ("#e0b000", "P"),
    "totalvi": ("#7f7f7f", "^"),
    "knn": ("#009e73", "v"),
    "ridge": ("#0072b2", "s"),
    "mlp": ("#cc79a7", "P"),
    "ours_embedding": ("#d55e00", "o"),
    "ours_knockout": ("#f0a878", "D"),
    "genie3": ("#7f7f7f", "^"),
    "pearson": ("#0072b2", "s"),
    "training_mean": ("#0072b2", "s"),
    "linear": ("#009e73", "v"),
    "mean_of_other_types": ("#0072b2", "s"),
    "half_of_the_cells": ("#7f7f7f", "^"),
    "split halves": ("#7f7f7f", "^"),
    "decoder": ("#d55e00", "o"),
    "independent": ("#0072b2", "s"),
    "training_cells": ("#009e73", "v"),
    "zero_shot": ("#d55e00", "o"),
    "fine_tuned": ("#cc79a7", "P"),
    "scratch": ("#f0a878", "D"),
    "alone": ("#f0a878", "D"),
    "query_memory": ("#d55e00", "o"),
}
LABELS = (  # title, label, column, and the row of each table
    (
        "Labels of other cells",
        "macro-F1, higher is better",
        "macro f1",
        {
            "20 % of the cells of pbmc3k": "pbmc3k, 20 % labelled",
            "20 % of the cells of kang_ifnb": "kang_ifnb, 20 % labelled",
            "20 % of the cells of paul15": "paul15, 20 % labelled",
            "20 % of the cells of cite_cbmc": "cite_cbmc, 20 % labelled",
            "half of the donors of onek1k_panel": "onek1k_panel, other donors",
            "kang_ifnb labels pbmc3k": "kang_ifnb to pbmc3k",
            "pbmc3k labels kang_ifnb": "pbmc3k to kang_ifnb",
        },
    ),
    (
        "Cells of a removed label",
        "AUROC, higher is better",
        "auroc",
        {
            "pbmc3k, NK removed": "pbmc3k, NK",
            "pbmc3k, CD8 T removed": "pbmc3k, CD8 T",
            "pbmc3k, Platelet removed": "pbmc3k, platelets",
            "kang_ifnb, B cells removed": "kang_ifnb, B",
            "kang_ifnb, CD8 T cells removed": "kang_ifnb, CD8 T",
        },
    ),
)
LABEL_METHODS = {
    "ours": "ours",
    "ours_no_attention": "ours, no attention",
    "logistic_hvg": "logistic regression, genes",
    "logistic_pca": "logistic regression, PCA",
    "knn_pca": "kNN, PCA",
    "celltypist": "celltypist",
    "scanvi": "scANVI",
}
BIOSTATES = (  # title, label, column, part of the benchmark, and its methods
    (
        "Genes and proteins together",
        "AvgBIO, higher is better",
        "AvgBIO",
        "joint",
        {
            "ours": "ours, both",
            "ours_rna": "ours, RNA alone",
            "pca_rna": "PCA of RNA",
            "proteins": "proteins",
            "pca_both": "PCA of both",
            "pca_beside_proteins": "components beside proteins",
            "totalvi": "totalVI",
        },
    ),
    (
        "Proteins from RNA",
        "correlation, higher is better",
        "proteins, Pearson",
        "predict",
        {
            "ours": "ours",
            "ours_no_attention": "ours, no attention",
            "knn": "kNN",
            "ridge": "ridge",
            "mlp": "MLP",
            "totalvi": "totalVI",
        },
    ),
)
PHENOTYPES = (  # title, label, column, part of the benchmark, its sets and its methods
    (
        "Effect on a cell type that was left out",
        "correlation, higher is better",
        "Pearson",
        "other",
        {"kang_ifnb": "kang_ifnb", "simulated": "simulated"},
        {
            "ours": "ours",
            "ours_no_attention": "ours, no attention",
            "mean_of_other_types": "mean of the other types",
            "linear": "linear model",
            "half_of_the_cells": "half of the cells",
        },
    ),
    (
        "Sums of five cells",
        "share at their own type, higher is better",
        "5 cells",
        "bulk",
        {"cite_cbmc": "cite_cbmc", "pbmc68k\n(development)": "pbmc68k"},
        {"ours": "ours", "pca": "PCA"},
    ),
)
DECODER_SETS = {"pbmc3k": "pbmc3k", "paul15": "paul15", "pbmc68k\n(development)": "pbmc68k"}
DECODER_METHODS = {
    "decoder": "decoder",
    "scvi": "scVI, prior",
    "independent": "each gene by itself",
    "training_cells": "real cells (training)",
}
DECODER = (  # title, label and column
    ("Real or generated?", "AUROC of a random forest, 0.5 is best", "AUROC, forest"),
    ("Correlations of genes", "agreement with held-out cells, higher is better", "correlations, Pearson r"),
)
BLOOD_SETS = ("pbmc3k", "kang_ifnb", "onek1k_panel")
BLOOD = (  # title, label, column, summary of the tables and methods
    (
        "Embedding",
        "AvgBIO, higher is better",
        "AvgBIO",
        "Blood model: ",
        {
            "zero_shot": "blood model, no fit",
            "fine_tuned": "blood model, fine-tuned",
            "scratch": "ours, from scratch",
            "pca": "PCA",
            "scvi": "scVI",
        },
    ),
    (
        "Masked values without a fit",
        "bits per masked value, lower is better",
        "bits",
        "Blood model, masked values: ",
        {"alone": "blood model", "query_memory": 'with memory="query"'},
    ),
)
BIOSTATE_SETS = {"cite_cbmc": "cite_cbmc", "cite_malt\n(development)": "cite_malt"}
NETWORKS = {  # start of the summary of each table
    "simulated": "simulated",
    "pbmc3k": "pbmc3k (2,638 cells, 2,681",
    "papalexi_eccite": "papalexi_eccite (1,923",
    "beeline_mdc": "beeline_mdc",
    "beeline_hhep": "beeline_hhep",
}
NETWORK_METHODS = {
    "ours_embedding": "ours, embeddings",
    "ours_knockout": "ours, knock-outs",
    "genie3": "GENIE3",
    "pearson": "|Pearson|",
}
PERTURBATIONS = {"papalexi_eccite": "papalexi_eccite (25", "schraivogel_tapseq": "schraivogel_tapseq (14"}
PERTURBATION_METHODS = {
    "ours": "ours",
    "ours_no_attention": "ours, no attention",
    "training_mean": "training mean",
    "linear": "linear model",
    "split halves": "split halves of the data",
}
TRANSFER = {  # label, colour and line of the methods that are drawn by the number of training cells
    "scratch": ("ours, from scratch", "#f0a878", "--"),
    "pretrained": ("ours, pool, no fit", "#d55e00", ":"),
    "tuned": ("ours, pool, fine-tuned", "#d55e00", "-"),
    "logistic": ("softmax regression", "#7cc4ee", "--"),
    "logistic_pool": ("softmax regression, pool", "#0072b2", "-"),
    "scvi": ("scVI", "#bdbdbd", "--"),
    "scvi_pool": ("scVI, pool, surgery", "#7f7f7f", "-"),
}

GROWTH = {  # for each panel: part of benchmarks.scale, column of its table, label, colour and line
    "Reading, rows/s": [("disk", "rows/s", "from disk", "#0072b2", "-")],
    "Training, cells/s": [
        ("fit from disk", "trained cells/s", "from disk", "#0072b2", "-"),
        ("fit from memory", "trained cells/s", "from memory", "#d55e00", "--"),
    ],
    "Peak memory of a fit, MB": [
        ("fit from disk", "peak RSS MB", "from disk", "#0072b2", "-"),
        ("fit from memory", "peak RSS MB", "from memory", "#d55e00", "--"),
    ],
}


def read_table(text: str, heading: str, column: str) -> dict[str, Score]:
    """Mean, lowest and highest of one column of the first table in the folded part with this summary, by method.

    Methods without this score, which have a dash, are left out.
    """
    table = _section(text, heading).split("\n\n")[1]
    rows = [line.strip("| ").split("|") for line in table.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    at = cells[0].index(column)
    return {row[0]: _score(row[at]) for row in cells[2:] if row[at] != "–"}


def read_networks(text: str, heading: str) -> dict[str, Score]:
    """AUPRC over chance by method, in the folded part with this summary. Of several truths of a data set, the mean."""
    table = _section(text, heading).split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    found: dict[str, list[Score]] = {}
    for _, method, _, ratio, *_ in rows:
        found.setdefault(method, []).append(_score(ratio))
    return {
        method: tuple(sum(each) / len(each) for each in zip(*scores, strict=True)) for method, scores in found.items()
    }


def _section(text: str, heading: str) -> str:
    return text.split(f"<summary>{heading}", 1)[1].split("</details>", 1)[0]


def _score(cell: str) -> Score:
    mean, *ends = (float(number) for number in re.findall(r"-?\d*\.\d+", cell))
    return (mean, ends[0], ends[1]) if ends else (mean, mean, mean)


def draw(ax: Axes, tables: dict[str, dict[str, Score]], methods: dict[str, str]) -> None:
    """Draw the mean and the range over the seeds of every method, one row a data set.

    A method that a data set does not have is left out there.
    """
    labelled = set()
    for row, scores in enumerate(tables.values()):
        if "pca" in methods and "pca50" in scores:  # the better of the two
            scores["pca"] = max(scores["pca50"], scores["pca_own_width"])
        for i, (method, label) in enumerate(methods.items()):
            if method not in scores:
                continue
            mean, low, high = scores[method]
            color, marker = STYLES[method]
            y = row + 0.68 / len(methods) * (i - (len(methods) - 1) / 2)
            ax.plot([low, high], [y, y], color=color, linewidth=1.5)
            ax.plot(mean, y, marker, color=color, markersize=6, label=None if method in labelled else label)
            labelled.add(method)
    ax.set_yticks(range(len(tables)), list(tables))
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.9")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def draw_transfer(axes: Sequence[Axes], text: str) -> None:
    """Draw bits and AvgBIO by the number of training cells, for the models with and without the pool."""
    sizes = [int(n) for n in re.findall(r"<summary>Fine-tuning: pbmc3k, (\d+) training cells", text)]
    for ax, column in zip(axes, ("bits", "avg bio"), strict=True):
        tables = [read_table(text, f"Fine-tuning: pbmc3k, {n} training cells", column) for n in sizes]
        for method, (label, color, line) in TRANSFER.items():
            if method in tables[0]:
                means, lows, highs = zip(*(table[method] for table in tables), strict=True)
                ax.plot(sizes, means, line, color=color, marker="o", markersize=5, label=label)
                ax.vlines(sizes, lows, highs, color=color, linewidth=1.5)
        ax.set(xscale="log", xlabel="training cells of pbmc3k")
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.minorticks_off()
        ax.grid(axis="y", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(title="Masked expression", ylabel="bits, lower is better")
    axes[1].set(title="Cell embedding", ylabel="AvgBIO, higher is better")


def read_numbers(text: str, heading: str, column: str) -> tuple[list[float], list[float]]:
    """The first column and another one of the table in the folded part with this summary, which has one number each."""
    table = _section(text, f"{heading}</summary>").split("\n\n")[1]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    first, other = ([float(row[at].replace(",", "")) for row in rows] for at in (0, header.index(column)))
    return first, other


def draw_growth(axes: Sequence[Axes], text: str) -> None:
    """Draw speed and peak memory by the number of cells, from disk and from memory."""
    for ax, (title, lines) in zip(axes, GROWTH.items(), strict=True):
        for part, column, label, color, line in lines:
            cells, values = read_numbers(text, f"Any size: {part}", column)
            ax.plot(cells, values, line, color=color, marker="o", markersize=5, label=label)
        sizes = sorted({x for curve in ax.lines for x in curve.get_xdata()})
        highest = max(y for curve in ax.lines for y in curve.get_ydata())
        ax.set(title=title, xscale="log", xlabel="cells", ylim=(0, 1.1 * highest))
        ax.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.grid(axis="y", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            ax.legend(loc="lower right", frameon=False)


def save(figure: Figure, name: str) -> None:
    """Write a figure with few colours, so that the file is small."""
    figure.savefig(IMAGES / name)
    with Image.open(IMAGES / name) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(IMAGES / name, optimize=True)


def main() -> None:
    """Write the pictures."""
    plt.switch_backend("agg")
    plt.rcParams["font.size"] = 11
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "benchmarks").glob("*.md")))
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7), dpi=120, layout="constrained")
    for ax, (title, label, column, heading), sets, methods in zip(axes, PANELS, SETS, METHODS, strict=True):
        draw(ax, {name: read_table(text, heading.format(name), column) for name in sets}, methods)
        ax.set(title=title, xlabel=label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False, handletextpad=0.2)
    save(figure, "results.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), dpi=120, layout="constrained")
    draw_transfer(axes, text)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, "transfer.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), dpi=120, layout="constrained", width_ratios=(3, 2.6))
    for ax, (title, label, column, rows) in zip(axes, LABELS, strict=True):
        draw(ax, {row: read_table(text, f"Labels: {part}", column) for part, row in rows.items()}, LABEL_METHODS)
        ax.set(title=title, xlabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, "labels.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), dpi=120, layout="constrained")
    for ax, (title, label, column, part, methods) in zip(axes, BIOSTATES, strict=True):
        found = {row: read_table(text, f"Biostates, {part}: {name}", column) for row, name in BIOSTATE_SETS.items()}
        draw(ax, found, methods)
        ax.set(title=title, xlabel=label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, handletextpad=0.2)
    save(figure, "biostates.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), dpi=120, layout="constrained")
    for ax, (title, label, column, part, sets, methods) in zip(axes, PHENOTYPES, strict=True):
        found = {row: read_table(text, f"Phenotypes, {part}: {name}", column) for row, name in sets.items()}
        draw(ax, found, methods)
        ax.set(title=title, xlabel=label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, handletextpad=0.2)
    save(figure, "phenotypes.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), dpi=120, layout="constrained")
    for ax, (title, label, column) in zip(axes, DECODER, strict=True):
        found = {row: read_table(text, f"Decoder, generate: {name}", column) for row, name in DECODER_SETS.items()}
        draw(ax, found, DECODER_METHODS)
        ax.set(title=title, xlabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, "decoder.png")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), dpi=120, layout="constrained")
    for ax, (title, label, column, part, methods) in zip(axes, BLOOD, strict=True):
        draw(ax, {name: read_table(text, f"{part}{name}", column) for name in BLOOD_SETS}, methods)
        ax.set(title=title, xlabel=label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, handletextpad=0.2)
    save(figure, "blood.png")
    figure, ax = plt.subplots(figsize=(6.5, 3.8), dpi=120, layout="constrained")
    draw(ax, {row: read_networks(text, heading) for row, heading in NETWORKS.items()}, NETWORK_METHODS)
    ax.axvline(1, color="0.4", linewidth=1, zorder=0)
    ax.set(title="Known edges among the strongest", xscale="log", xlabel="AUPRC over chance, higher is better")
    ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    ax.minorticks_off()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, "networks.png")
    figure, ax = plt.subplots(figsize=(6.5, 3), dpi=120, layout="constrained")
    draw(ax, {row: read_table(text, part, "delta_off") for row, part in PERTURBATIONS.items()}, PERTURBATION_METHODS)
    ax.set(title="Knock-outs that no cell had", xlabel="correlation of the change, higher is better")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, "perturbations.png")
    if "<summary>Any size: " in text:
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), dpi=120, layout="constrained")
        draw_growth(axes, text)
        save(figure, "growth.png")


if __name__ == "__main__":
    main()
