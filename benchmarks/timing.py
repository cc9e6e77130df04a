"""Times the systems of one cell in turns, so that drift hits all of them."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Iterable
from typing import Any

import machine
from cells import PHASES, Batches, Cell, make_batches
from systems import Kind, System

_SETTLE = 0.004  # threads of the last system may spin for a while
_WARM_CALLS = 3  # most calls of a turn that are not timed; at least one
_CALLS = 4  # most calls that a turn takes the mean of; at least one
_LONG = 0.25  # seconds after which no further call of either sort begins
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


def _calls(
    system: System, phase: str, batches: Iterable[int]
) -> list[tuple[float, int]]:
    """Milliseconds and page faults of a call for each batch, while time is left."""
    calls: list[tuple[float, int]] = []
    start = time.monotonic()
    for k in batches:
        calls.append(_call(system, phase, k))
        if time.monotonic() - start > _LONG:
            break
    return calls


def _time(system: System, phase: str, first: int) -> tuple[float, int]:
    """Milliseconds and page faults of a call, as a loop of them has it.

    The first calls of a turn find the caches full of what the last system read,
    and memory that it let go, which a virtual machine may have handed back to its
    host and must ask for again. So the mean of later ones is taken.
    """
    time.sleep(_SETTLE)
    warm = _calls(system, phase, range(first, first + _WARM_CALLS))
    first += len(warm)
    timed = _calls(system, phase, range(first, first + _CALLS))
    times, faults = zip(*timed, strict=True)
    return statistics.mean(times), round(statistics.mean(faults))


def _round(systems: dict[str, System], number: int) -> Round:
    """A turn of each phase and system, beginning with another system each time."""
    names = list(systems)
    shift = number % len(names)
    done = Round()
    guard = machine.Guard()
    for i, phase in enumerate(PHASES):
        # Rounds begin 7 batches apart, and so with all of them, of 8, 4 or 3.
        first = number * (_WARM_CALLS + _CALLS) + i
        for name in names[shift:] + names[:shift]:
            at = name, phase
            done.times[at], done.faults[at] = _time(systems[name], phase, first)
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
