"""``python -m scbioformers``: ``demo``, an example analysis from counts to figures, and ``pretrain``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        options.run(options)
    except (BioformersError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _demo(options: argparse.Namespace) -> None:
    from scbioformers._demo import run_demo  # imported here because it imports torch and scanpy

    run_demo(options.data, options.label_key, options.batch_key, options.max_epochs, options.out)


def _pretrain(options: argparse.Namespace) -> None:
    import scbioformers as bf

    sources = options.sources[0] if len(options.sources) == 1 else options.sources
    chosen = {name: getattr(options, name) for name in ("gene_symbols", "min_sources", "n_top_features", "max_epochs")}
    chosen["phenotype_keys"] = options.phenotype_keys
    train = bf.TrainConfig(checkpoint_dir=options.checkpoint_dir)
    bf.tl.pretrain(sources, save_dir=options.save_dir, rng=options.seed, train=train, **chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scbioformers", description="A transformer for single-cell data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_pretrain(commands)
    return parser


def _add_pretrain(commands: Any) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="fit one model to many data sets",
        description="Fit one model to many data sets and save it, see bf.tl.pretrain. Other data sets can be read by "
        "it (bf.tl.embed and others) or start from it (bf.tl.fit), with model=DIR.",
    )
    parser.add_argument("sources", nargs="+", metavar="PATH", help="h5ad, h5mu or zarr files, or a folder of them")
    parser.add_argument("--save-dir", type=Path, required=True, metavar="DIR", help="directory of the model")
    parser.add_argument("--n-top-features", type=_positive, default=4000, metavar="N", help="genes; default: 4000")
    parser.add_argument("--min-sources", type=_positive, metavar="N", help="data sets that must measure a gene")
    parser.add_argument("--gene-symbols", metavar="KEY", help="column of var with the names of the genes")
    parser.add_argument(
        "--phenotype-keys",
        type=lambda text: text.split(","),
        default=(),
        metavar="KEYS",
        help="columns of obs with phenotypes, separated by commas, such as condition,age",
    )
    parser.add_argument("--max-epochs", type=_positive, metavar="N", help="number of passes over the cells")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed; default: 0")
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        metavar="DIR",
        help="directory of checkpoints, from which the same command goes on",
    )
    parser.set_defaults(run=_pretrain)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="fit a model, embed and cluster the cells, and compare with PCA",
        description="Fit a model without labels, embed and cluster the cells, and compare with PCA. Without --data, "
        "the blood model of the package is shown too. Writes an annotated h5ad file, two figures and, if there are "
        "labels, a table of scores.",
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
    demo.set_defaults(run=_demo)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
