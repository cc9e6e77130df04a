"""Measures lookup, update and the whole step on CPU, beside other systems.

    python benchmarks/cpu.py                   # the whole grid; two hours
    python benchmarks/cpu.py --quick           # a part of it; ten minutes
    python benchmarks/cpu.py --cell 65536,64,zipf,sgd --systems oneemb plain

Writes one JSON file (`--json`), from which `--report` makes the tables again,
and fills the result section of a page (`--markdown docs/performance.md`).
"""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import cells
import machine
import report

QUICK_IDS = cells.IDS[:2]
QUICK_DIMS = (64,)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, help="rows of the table")
    add("--ids", type=int, nargs="+", help="ids in a batch")
    add("--dim", type=int, nargs="+", help="floats in a row")
    add("--dist", nargs="+", default=cells.DISTRIBUTIONS, choices=cells.DISTRIBUTIONS)
    add("--optimizer", nargs="+", default=cells.OPTIMIZERS, choices=cells.OPTIMIZERS)
    add("--cell", action="append", help="[rows,]ids,dim,dist,optimizer; repeatable")
    add("--quick", action="store_true", help="two sizes, dim 64, little time each")
    add("--systems", nargs="+", help="parts of names; the others are left out")
    add("--threads", type=int, default=2, help="processors for every system")
    add("--budget", type=float, help="seconds of measuring for a cell")
    add("--keep-memory", action="store_true", help="malloc keeps what is freed")
    add("--scaling", choices=("yes", "no", "only"), default="yes", help="10^7 rows")
    add("--json", type=pathlib.Path, default="out/benchmark-cpu.json")
    add("--resume", action="store_true", help="keep cells that --json has already")
    add("--markdown", type=pathlib.Path, help="page whose result section is filled")
    add("--report", type=pathlib.Path, help="measure nothing; read this JSON file")
    return parser


def _cells(arguments: argparse.Namespace) -> list[cells.Cell]:
    if arguments.cell:
        return [cells.parse(text, arguments.rows) for text in arguments.cell]
    ids = arguments.ids or (QUICK_IDS if arguments.quick else cells.IDS)
    dims = arguments.dim or (QUICK_DIMS if arguments.quick else cells.DIMS)
    return cells.grid(arguments.rows, ids, dims, arguments.dist, arguments.optimizer)


def _progress(todo: list[cells.Cell]) -> Iterator[cells.Cell]:
    """The cells, behind a progress bar when tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        for i, cell in enumerate(todo, 1):
            print(f"[{i}/{len(todo)}] {cell.key}", file=sys.stderr)
            yield cell
        return
    with tqdm(todo, unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            yield cell


def _save(document: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the file whole, so that an interrupted run leaves a good one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def _check(kinds: Iterable[Any], todo: list[cells.Cell]) -> None:
    """Holds every system to NumPy before its speed is looked at."""
    import correctness

    pairs = sorted({(cell.dim, cell.optimizer) for cell in todo})
    for kind in kinds:
        for dim, optimizer in pairs:
            if kind.role in ("limit", "fresh") or optimizer not in kind.optimizers:
                continue
            wrong = correctness.check(kind.name, kind.build, dim, optimizer)
            if wrong is not None:
                raise SystemExit(f"not measured, because it is wrong: {wrong}")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    machine.pin(arguments.threads)
    if arguments.keep_memory:
        machine.keep_freed_memory()
    import scaling  # the pools of numpy, torch and XLA start after the pinning
    import systems
    import timing

    kinds, left_out = systems.available(arguments.systems)
    document: dict[str, Any] = {"machine": {}, "left out": left_out, "cells": []}
    if arguments.resume and arguments.json.exists():
        document = json.loads(arguments.json.read_text(encoding="utf-8"))
        document["left out"] = left_out
    document["machine"] = machine.card()
    done = {cells.Cell(**record["cell"]) for record in document["cells"]}
    todo = [] if arguments.scaling == "only" else _cells(arguments)
    todo = [cell for cell in todo if cell not in done]
    _check(kinds, todo)
    budget = arguments.budget or (5 if arguments.quick else 20)
    for cell in _progress(todo):
        effort = timing.Effort(budget=budget)
        document["cells"].append(timing.measure(cell, kinds, effort))
        _save(document, arguments.json)
    if arguments.scaling != "no" and any(kind.role == "ours" for kind in kinds):
        document["scaling"] = scaling.measure(kinds)
        _save(document, arguments.json)
    return document


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Its words; those of the process by default.
    """
    arguments = _parser().parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt):
        if arguments.report is not None:
            document = json.loads(arguments.report.read_text(encoding="utf-8"))
        else:
            document = _measure(arguments)
        print(report.text(document))
        if arguments.markdown is not None:
            report.write_section(arguments.markdown, report.markdown(document))


if __name__ == "__main__":
    main()
