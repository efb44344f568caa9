"""Draws the results of the README from the tables of ``benchmarks.md``: ``python docs/draw_results.py``."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

DOCS = Path(__file__).parent
PICTURE = DOCS / "images" / "results.png"
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
STYLES = {
    "ours": ("#d62728", "o"),
    "ours_no_attention": ("#ff9896", "D"),
    "pca": ("#1f77b4", "s"),
    "logistic": ("#1f77b4", "s"),
    "scvi": ("#7f7f7f", "^"),
}


def read_table(text: str, heading: str, column: str) -> dict[str, Score]:
    """Mean, lowest and highest of one column of the first table in the folded part with this summary, by method."""
    table = _section(text, heading).split("\n\n")[1]
    rows = [line.strip("| ").split("|") for line in table.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    at = cells[0].index(column)
    return {row[0]: _score(row[at]) for row in cells[2:]}


def _section(text: str, heading: str) -> str:
    return text.split(f"<summary>{heading}", 1)[1].split("</details>", 1)[0]


def _score(cell: str) -> Score:
    mean, *ends = (float(number) for number in re.findall(r"\d*\.\d+", cell))
    return (mean, ends[0], ends[1]) if ends else (mean, mean, mean)


def draw(ax: Axes, tables: dict[str, dict[str, Score]], methods: dict[str, str]) -> None:
    """Draw the mean and the range over the seeds of every method, one row a data set."""
    for row, scores in enumerate(tables.values()):
        if "pca" in methods:  # the better of the two
            scores["pca"] = max(scores["pca50"], scores["pca_own_width"])
        for i, (method, label) in enumerate(methods.items()):
            mean, low, high = scores[method]
            color, marker = STYLES[method]
            y = row + 0.17 * (i - 1.5)
            ax.plot([low, high], [y, y], color=color, linewidth=1.5)
            ax.plot(mean, y, marker, color=color, markersize=6, label=label if row == 0 else None)
    ax.set_yticks(range(len(tables)), list(tables))
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.9")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def main() -> None:
    """Write the picture."""
    plt.switch_backend("agg")
    plt.rcParams["font.size"] = 11
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7), dpi=120, layout="constrained")
    for ax, (title, label, column, heading), sets, methods in zip(axes, PANELS, SETS, METHODS, strict=True):
        draw(ax, {name: read_table(text, heading.format(name), column) for name in sets}, methods)
        ax.set(title=title, xlabel=label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False, handletextpad=0.2)
    figure.savefig(PICTURE)
    with Image.open(PICTURE) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
