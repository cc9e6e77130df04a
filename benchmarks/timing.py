"""Times the systems of one cell in turns, so that drift hits all of them."""

import dataclasses
import gc
import statistics
import time
from typing import Any

import machine
from cells import PHASES, Batches, Cell, make_batches
from systems import Kind, System

_SETTLE = 0.004  # threads of the last system may spin for a while
_CALLS = 4  # that a turn takes the mean of
_LONG = 100  # milliseconds, of a call that is a turn by itself
_QUIET = 0.06  # most of the processors that others may have had in a round
_PATIENCE = 3  # times the budget, when rounds are not quiet
_HOPELESS = 3  # times the best peer: such a system is timed in few rounds


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long a cell is measured.

    Attributes:
        budget: Seconds of measuring after which a cell has enough rounds.
        min_rounds: Fewest rounds, whatever they take.
        max_rounds: Most rounds.
    """

    budget: float = 20
    min_rounds: int = 3
    max_rounds: int = 15


@dataclasses.dataclass
class Round:
    """One turn of every system: milliseconds and page faults by phase."""

    times: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    faults: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    noise: float = 0


def _call(system: System, phase: str, k: int) -> tuple[float, int]:
    if phase == "update":
        system.prepare(k)
    call = getattr(system, phase)
    faults = machine.page_faults()
    start = time.perf_counter()
    call(k)
    elapsed = time.perf_counter() - start
    return 1e3 * elapsed, machine.page_faults() - faults


def _time(system: System, phase: str, turn: int) -> tuple[float, int]:
    """Milliseconds and page faults of a call, as a loop of them has it.

    The first call of a turn finds the caches full of what the last system read,
    so others follow, whose mean is taken: unless it took so long by itself that
    this does not matter. Turns begin an odd number of batches apart, so that
    those of one call go through all of them.
    """
    time.sleep(_SETTLE)
    first = turn * (_CALLS + 1)
    calls = [_call(system, phase, first)]
    if calls[0][0] < _LONG:
        later = range(first + 1, first + 1 + _CALLS)
        calls = [_call(system, phase, k) for k in later]
    times, faults = zip(*calls, strict=True)
    return statistics.mean(times), round(statistics.mean(faults))


def _round(systems: dict[str, System], number: int) -> Round:
    """A turn of each phase and system, beginning with another system each time."""
    names = list(systems)
    shift = number % len(names)
    done = Round()
    guard = machine.Guard()
    for i, phase in enumerate(PHASES):
        turn = number * len(PHASES) + i
        for name in names[shift:] + names[:shift]:
            at = name, phase
            done.times[at], done.faults[at] = _time(systems[name], phase, turn)
    done.noise = guard.share()
    return done


def _hopeless(rounds: list[Round], peers: set[str]) -> set[str]:
    """Peers that no further round can make the best one in any phase."""
    out = set(peers)
    for phase in PHASES:
        medians = {
            name: statistics.median(
                r.times[name, phase] for r in rounds if (name, phase) in r.times
            )
            for name in peers
        }
        best = min(medians.values(), default=0.0)
        out -= {name for name, m in medians.items() if m <= _HOPELESS * best}
    return out


def _rounds(systems: dict[str, System], peers: set[str], effort: Effort) -> list[Round]:
    """Turns until there are enough quiet ones, or patience ends."""
    rounds: list[Round] = []
    active = dict(systems)
    start = time.monotonic()
    while True:
        rounds.append(_round(active, len(rounds)))
        quiet = sum(r.noise <= _QUIET for r in rounds)
        spent = time.monotonic() - start
        if quiet >= effort.max_rounds:
            return rounds
        if quiet >= effort.min_rounds and spent > effort.budget:
            return rounds
        enough = len(rounds) >= effort.min_rounds
        if enough and spent > _PATIENCE * effort.budget:
            return rounds
        if quiet == effort.min_rounds:
            for name in _hopeless(rounds, peers & set(active)):
                del active[name]


def _chosen(rounds: list[Round], effort: Effort) -> list[Round]:
    """The quiet rounds, or the quietest when they are too few."""
    quiet = [r for r in rounds if r.noise <= _QUIET]
    if len(quiet) >= effort.min_rounds:
        return quiet
    order = sorted(range(len(rounds)), key=lambda i: rounds[i].noise)
    return [rounds[i] for i in sorted(order[: effort.min_rounds])]


def _record(
    cell: Cell, batches: Batches, kinds: list[Kind], rounds: list[Round]
) -> dict[str, Any]:
    systems: dict[str, Any] = {}
    for kind in kinds:
        systems[kind.name] = {
            "role": kind.role,
            "ms": {p: [r.times.get((kind.name, p)) for r in rounds] for p in PHASES},
            "page faults": {
                p: statistics.median(
                    r.faults[kind.name, p] for r in rounds if (kind.name, p) in r.faults
                )
                for p in PHASES
                if any((kind.name, p) in r.faults for r in rounds)
            },
        }
    unique = statistics.mean(len(u) for u in batches.unique)
    return {
        "cell": dataclasses.asdict(cell),
        "unique ids": unique,
        "bytes": cell.bytes_moved(unique),
        "noise": [round(r.noise, 3) for r in rounds],
        "systems": systems,
    }


def measure(cell: Cell, kinds: list[Kind], effort: Effort) -> dict[str, Any]:
    """Builds the systems of a cell, times them, and lets them go.

    Args:
        cell: What to measure.
        kinds: Systems that can run here; those without the cell's optimizer
            are passed over.
        effort: How long.

    Returns:
        A record for the result file: milliseconds of each system, phase and
        round (None once a slow peer no longer takes part), page faults, and
        what others took of the processors in each round.
    """
    kinds = [kind for kind in kinds if cell.optimizer in kind.optimizers]
    batches = make_batches(cell)
    systems = {kind.name: kind.build(cell, batches) for kind in kinds}
    try:
        _round(systems, 0)  # compiles, and takes memory for the first time
        peers = {kind.name for kind in kinds if kind.role == "peer"}
        rounds = _chosen(_rounds(systems, peers, effort), effort)
        return _record(cell, batches, kinds, rounds)
    finally:
        for system in systems.values():
            system.close()
        systems.clear()
        gc.collect()
