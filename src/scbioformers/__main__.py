"""``python -m scbioformers demo``: an example analysis from counts to figures, on included data or on a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scbioformers.core import BioformersError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0, or 1 after an error, whose message is written to stderr.

    Parameters
    ----------
    arguments
        Arguments after ``python -m scbioformers``. By default, those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        from scbioformers._demo import run_demo  # imported here because it imports torch and scanpy

        run_demo(options.data, options.label_key, options.batch_key, options.max_epochs, options.out)
    except (BioformersError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scbioformers", description="A transformer for single-cell data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="fit a model, embed and cluster the cells, and compare with PCA",
        description="Fit a model without labels, embed and cluster the cells, and compare with PCA. "
        "Writes an annotated h5ad file, two figures and, if there are labels, a table of scores.",
    )
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FILE.h5ad",
        help='h5ad file with raw counts in X or layers["counts"]; default: 700 blood cells that scanpy includes',
    )
    demo.add_argument(
        "--label-key", metavar="KEY", help="column of obs with known labels, used only for colours and scores"
    )
    demo.add_argument("--batch-key", metavar="KEY", help="column of obs with the batch, used in the fit")
    demo.add_argument("--max-epochs", type=_positive, metavar="N", help="number of passes over the cells")
    demo.add_argument(
        "--out", type=Path, default=Path("demo_output"), metavar="DIR", help="output directory; default: %(default)s"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
