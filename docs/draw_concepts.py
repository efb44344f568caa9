"""Draws the two pictures of ``concepts.md``: ``python docs/draw_concepts.py`` writes ``docs/images/concepts_*.png``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREY, GREEN, RED, WHITE = "#cfe2f3", "#fce5cd", "#dddddd", "#d9ead3", "#f4cccc", "#ffffff"
DARK, SOFT = "#222222", "#666666"
SIZE = 14

GENES = ("ACTB", "IL32", "CD3D", "NKG7", "LYZ", "S100A9", "MS4A1")
COUNTS = (16, 5, 2, 1, 0, 0, 0)
MASKED = ("IL32", "S100A9")
BINS = {"ACTB": 12, "CD3D": 3, "NKG7": 1, "LYZ": 0, "MS4A1": 0}  # cutoff 8, 3 bins a doubling, 2 counts are 2.5


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str, **style: object) -> None:
    """Draw a box around (x, y) with a text in it."""
    frame = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 1.2, "edgecolor": DARK} | style
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, facecolor=color, **frame))
    ax.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=DARK, linespacing=1.25)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, **style: object) -> None:
    """Draw an arrow."""
    look = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 1.6, "color": DARK, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **(look | style)))


def note(ax: Axes, x: float, y: float, text: str, **style: object) -> None:
    """Write a remark."""
    look = {"ha": "left", "va": "center", "fontsize": SIZE, "color": SOFT, "linespacing": 1.25}
    ax.text(x, y, text, **(look | style))


def canvas(width: float, height: float) -> Axes:
    """Return axes without ticks whose unit is an inch."""
    figure = plt.figure(figsize=(width, height), dpi=120)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return ax


def draw_tokens() -> None:
    """From the counts of one cell to its tokens."""
    ax = canvas(11.2, 6.6)
    columns = {gene: 3.45 + 1.12 * i for i, gene in enumerate(GENES)}
    for gene, x in columns.items():
        ax.text(x, 6.3, gene, ha="center", va="center", fontsize=SIZE, weight="bold", color=DARK)
    steps = (
        (5.7, "1. Counts of one cell"),
        (4.75, "2. Mask some genes,\nexpressed ones and zeros"),
        (3.55, "3. Bin what is visible by\nan estimated full depth"),
        (1.55, "4. One token for each\nvisible expressed gene\nand each masked gene"),
    )
    for y, text in steps:
        note(ax, 0.15, y, text, color=DARK)
    for (gene, x), count in zip(columns.items(), COUNTS, strict=True):
        masked = gene in MASKED
        box(ax, x, 5.7, 0.8, 0.5, str(count), WHITE)
        arrow(ax, (x, 5.43), (x, 5.03))
        box(ax, x, 4.75, 0.8, 0.5, "?" if masked else str(count), GREY if masked else WHITE)
        arrow(ax, (x, 4.48), (x, 3.83))
        box(ax, x, 3.55, 0.8, 0.5, "?" if masked else str(BINS[gene]), GREY if masked else ORANGE)
        if masked or BINS[gene]:
            arrow(ax, (x, 3.28), (x, 2.63))
            box(ax, x, 2.35, 0.98, 0.46, gene, BLUE)
            note(ax, x, 1.95, "+", ha="center", color=DARK)
            box(ax, x, 1.55, 0.98, 0.46, "mask" if masked else f"bin {BINS[gene]}", GREY if masked else ORANGE)
            note(ax, x, 1.15, "+", ha="center", color=DARK)
            if masked:
                box(ax, x, 0.75, 0.98, 0.46, "depth", GREEN)
            else:
                box(ax, x, 0.75, 0.98, 0.46, "external", WHITE, linestyle=(0, (3, 2)))
        else:
            note(ax, x, 2.2, "no token,\nonly in\nthe bag", ha="center", style="italic")
    for x, color, text in (
        (0.3, BLUE, "gene embedding"),
        (2.5, ORANGE, "value embedding"),
        (4.8, GREY, "mask vector"),
        (6.55, GREEN, "depth embedding"),
        (8.95, WHITE, "external, optional"),
    ):
        box(ax, x, 0.22, 0.3, 0.26, "", color)
        note(ax, x + 0.25, 0.22, text, color=DARK)
    save(ax, "concepts_tokens.png")


def draw_model() -> None:
    """Which part of the model reads what, and where the results leave it."""
    ax = canvas(12.6, 7.0)
    box(ax, 1.3, 3.6, 2.2, 1.5, "tokens of the\nvisible genes\n(phenotypes)", BLUE)
    box(ax, 4.15, 4.75, 2.3, 1.3, "bag: weighted\nmean of visible\ngene embeddings", GREEN)
    box(ax, 4.15, 2.45, 2.3, 0.9, "attention", ORANGE)
    arrow(ax, (2.42, 3.95), (2.97, 4.4))
    arrow(ax, (2.42, 3.25), (2.97, 2.75))
    # what starts from the bag and reads by attention
    box(ax, 6.4, 6.25, 1.3, 0.8, "<cls>", BLUE)
    box(ax, 6.4, 0.95, 1.3, 1.0, "masked\ngenes", GREY)
    green, dashed = {"color": "#38761d"}, {"linestyle": (0, (4, 2))}
    arrow(ax, (5.33, 5.1), (5.95, 5.82), **green)
    arrow(ax, (5.33, 4.45), (6.3, 1.48), -0.12, **green)
    arrow(ax, (5.33, 4.75), (8.35, 5.82), 0.12, **green)
    arrow(ax, (5.33, 2.7), (6.3, 5.82), 0.12, **dashed)
    arrow(ax, (5.33, 2.2), (5.95, 1.48), **dashed)
    # from <cls> to the profile
    box(ax, 8.55, 6.25, 1.2, 0.8, "latent", BLUE)
    box(ax, 11.3, 6.25, 2.3, 0.8, "profile of\nall genes", RED)
    arrow(ax, (7.07, 6.25), (7.93, 6.25))
    arrow(ax, (9.17, 6.25), (10.13, 6.25))
    note(ax, 9.62, 6.82, "decoder, conditioned on the batch", ha="center")
    # from the masked genes to their bins
    box(ax, 8.55, 2.75, 1.6, 1.0, "rate\nfeatures", ORANGE)
    arrow(ax, (10.22, 5.83), (8.8, 3.28), 0.1)
    note(ax, 9.5, 2.85, "rate of the gene,\ndepth of the cell,\nbins of 1 to 4 counts")
    box(ax, 11.3, 0.95, 2.3, 1.0, "probabilities\nof the bins", RED)
    arrow(ax, (7.07, 0.95), (10.13, 0.95))
    arrow(ax, (8.55, 2.23), (8.55, 1.0))
    note(ax, 8.65, 1.6, "added")
    # losses and results
    note(ax, 12.5, 5.5, "loss: negative binomial", ha="right")
    note(ax, 12.5, 4.75, "leading components:\nthe embedding", ha="right", color=DARK, weight="bold")
    note(ax, 12.5, 1.75, "loss: cross-entropy", ha="right")
    note(ax, 12.5, 0.2, "imputed values", ha="right", color=DARK, weight="bold")
    note(ax, 0.2, 0.2, "green: from the bag      dashed: removed in models without attention")
    save(ax, "concepts_model.png")


def save(ax: Axes, name: str) -> None:
    """Write the picture, with few colours, which makes the file small."""
    IMAGES.mkdir(exist_ok=True)
    ax.figure.savefig(IMAGES / name)
    plt.close()
    with Image.open(IMAGES / name) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    plt.switch_backend("agg")
    draw_tokens()
    draw_model()
