"""Whether a step costs more in a table of many rows than in one of few."""

import dataclasses
import gc
import statistics
import time
from typing import Any

from cells import Batches, Cell, make_batches
from systems import Kind, System

ROWS = (100_000, 10_000_000)
IDS = 65_536
DIM = 64
_ROUNDS = 15


def _step_time(system: System, k: int) -> float:
    time.sleep(0.004)
    start = time.perf_counter()
    system.step(k)
    return time.perf_counter() - start


def _ratio(few: System, many: System) -> float:
    """Median of time in the larger table / time in the smaller one."""
    ratios = []
    for k in range(_ROUNDS + 2):
        small, large = _step_time(few, k), _step_time(many, k)
        if k >= 2:  # the first two compile and take memory
            ratios.append(large / small)
    return statistics.median(ratios)


def _ratio_of(kind: Kind, few: tuple[Cell, Batches], many: tuple[Cell, Batches]):
    systems = [kind.build(*few), kind.build(*many)]
    try:
        return _ratio(*systems)
    finally:
        for system in systems:
            system.close()
        systems.clear()
        gc.collect()


def measure(kinds: list[Kind], rows: tuple[int, int] = ROWS) -> dict[str, Any]:
    """Steps on tables of `rows[0]` and `rows[1]` rows, in turns.

    Args:
        kinds: Ours and the limit are taken from them.
        rows: Few and many.

    Returns:
        Ratios of step times, ours and of the traffic alone: `same ids` in both
        tables, and ids drawn from `all rows` of each.
    """
    few = Cell(rows[0], IDS, DIM, "uniform", "sgd")
    many = dataclasses.replace(few, rows=rows[1])
    batches = make_batches(few)
    pairs = {
        "same ids": ((few, batches), (many, batches)),
        "all rows": ((few, batches), (many, make_batches(many))),
    }
    answer: dict[str, Any] = {
        "rows": list(rows),
        "ids": IDS,
        "dim": DIM,
        "optimizer": "sgd",
    }
    for name, pair in pairs.items():
        answer[name] = {
            kind.role: _ratio_of(kind, *pair)
            for kind in kinds
            if kind.role in ("ours", "limit")
        }
    return answer
