"""The command line of dlrm.py."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STORES = ("device_mem", "cached_host_mem", "cached_ssd")
OPTIMIZERS = (
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "ftrl",
    "lamb",
    "rowwise_adagrad",
    "sgd",
    "smart_decay_adam",
)


def _whole(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not less."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}: give a whole number, {least} or more"
            )
        return number

    return read


def _rate(text: str) -> float:
    """Reads a number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, 0 or more")
    return number


def _widths(text: str) -> list[int]:
    return [_whole(1)(width) for width in text.split(",") if width.strip()]


def _name_and_value(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give NAME=VALUE, the value a number, true or false"
        ) from None


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s (--synthetic | PATH) [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_model_options(parser.add_argument_group("model"))
    _add_store_options(parser.add_argument_group("table"))
    add = parser.add_argument_group("run").add_argument
    add("--batch-size", type=_whole(1), default=2048, help="(%(default)s)")
    add("--epochs", type=_whole(1), default=1, help="(%(default)s)")
    add("--seed", type=_whole(0), default=0, help="(%(default)s)")
    add(
        "--eval-every",
        type=_whole(0),
        default=250,
        metavar="STEPS",
        help="0: only at the end (%(default)s)",
    )
    add("--out", type=Path, default=Path("out/dlrm"), help="folder (%(default)s)")
    return parser


def _add_data_options(group: Any) -> None:
    add = group.add_argument
    add("path", nargs="?", type=Path, help="Criteo's log, or a folder of logs")
    add("--synthetic", action="store_true", help="clicks from a known model")
    add("--test", type=Path, help="log to evaluate on, in place of held-out lines")
    add(
        "--holdout-every",
        type=_whole(2),
        default=10,
        metavar="N",
        help="without --test, hold out one line of N (%(default)s)",
    )
    add("--samples", type=_whole(1), help="stop an epoch after as many")
    add(
        "--eval-samples",
        type=_whole(0),
        default=100_000,
        help="most samples of an evaluation, 0 for all (%(default)s)",
    )


def _add_model_options(group: Any) -> None:
    add = group.add_argument
    add("--embedding-dim", type=_whole(1), default=16, help="(%(default)s)")
    add("--bottom", type=_widths, default=[64], help="hidden widths: 512,256,64")
    add("--top", type=_widths, default=[128, 64], help="hidden widths: 512,256")
    add("--optimizer", choices=OPTIMIZERS, default="adagrad", help="of the tables")
    add("--learning-rate", type=_rate, default=0.02, help="(%(default)s)")
    add(
        "-O",
        "--optimizer-option",
        type=_name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the tables' optimizer: -O momentum=0.9",
    )
    add("--initial-scale", type=_rate, default=0.05, help="of rows (%(default)s)")
    add("--dense-learning-rate", type=_rate, default=2e-3, help="of the MLPs' Adam")


def _add_store_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--store",
        choices=STORES,
        default="device_mem",
        help="where its rows are (%(default)s)",
    )
    add("--capacity", type=_whole(1), default=65536, help="device_mem: to begin with")
    add(
        "--cache-mb",
        type=_rate,
        default=64.0,
        metavar="MB",
        help="cached_*: device memory (%(default)s); it must hold a batch",
    )
    add(
        "--persistent-path",
        type=Path,
        metavar="PATH",
        help="cached_*: folder of the table (OUT/table)",
    )


def parse(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; ends the program where it makes no sense."""
    parser = make_parser(description)
    options = parser.parse_args(arguments)
    if options.synthetic == (options.path is not None):
        parser.error("give either a path or --synthetic")
    if options.synthetic and options.test:
        parser.error("--test goes with a path; --synthetic makes its own test")
    if options.synthetic and not options.eval_samples:
        parser.error("--synthetic never ends; it needs --eval-samples of 1 or more")
    if options.persistent_path is None:
        options.persistent_path = options.out / "table"
    return options
