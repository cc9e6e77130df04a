"""Ratios, goals and Markdown from the records of a run."""

import collections
import itertools
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from cells import OPTIMIZERS, PHASES

BEGIN = "<!-- benchmark: begin, written by benchmarks/cpu.py -->"
END = "<!-- benchmark: end -->"

STEP_FLOOR = 1.5  # whole step, best peer / ours, in every cell
STEP_MEAN = {"sgd": 3.0, "adagrad": 4.0, "adam": 4.5}  # the same, geometric mean
NATIVE_CEILING = 1.6  # whole step, ours / plain kernel, for dim >= 64
LOOKUP_FLOOR = {64: 0.60, 128: 0.75}  # lookup, limit / ours
SCALING_CEILING = 1.5  # whole step, many rows / few rows

Goal = tuple[str, bool, str]  # what, whether it is met, the number


class CellResult:
    """Answers questions about one record of `timing.measure`.

    Args:
        record: The record.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.cell: dict[str, Any] = record["cell"]
        self.bytes: dict[str, float] = record["bytes"]
        self.noisy = max(record["noise"]) > 0.1
        self.systems: dict[str, Any] = record["systems"]

    def names(self, role: str) -> list[str]:
        """The systems with a role."""
        return [n for n, s in self.systems.items() if s["role"] == role]

    def one(self, role: str) -> str | None:
        """The only system with a role, if it took part."""
        return next(iter(self.names(role)), None)

    def times(self, name: str, phase: str) -> list[float]:
        """Milliseconds of the rounds that a system took part in."""
        return [ms for ms in self.systems[name]["ms"][phase] if ms is not None]

    def median(self, name: str, phase: str) -> float:
        """Median milliseconds; NaN when it was never timed."""
        times = self.times(name, phase)
        return statistics.median(times) if times else math.nan

    def spread(self, name: str, phase: str) -> float:
        """Interquartile range as a share of the median."""
        times = self.times(name, phase)
        if len(times) < 2:
            return 0.0
        quarter = statistics.quantiles(times, n=4, method="inclusive")
        return (quarter[2] - quarter[0]) / statistics.median(times)

    def best_peer(self, phase: str) -> str | None:
        """The peer with the lowest median."""
        peers = [n for n in self.names("peer") if self.times(n, phase)]
        return min(peers, key=lambda n: self.median(n, phase), default=None)

    def ratio(self, upper: str | None, lower: str | None, phase: str) -> float:
        """Median over the rounds of upper's time / lower's time; NaN if unknown."""
        if upper is None or lower is None:
            return math.nan
        pairs = zip(
            self.systems[upper]["ms"][phase],
            self.systems[lower]["ms"][phase],
            strict=True,
        )
        ratios = [u / w for u, w in pairs if u is not None and w is not None]
        return statistics.median(ratios) if ratios else math.nan

    def against_peer(self, phase: str) -> float:
        """How many times faster than the best peer ours is."""
        return self.ratio(self.best_peer(phase), self.one("ours"), phase)

    def against_native(self, phase: str) -> float:
        """Our time in units of the plain kernel's."""
        return self.ratio(self.one("ours"), self.one("native"), phase)

    def of_limit(self, phase: str, role: str = "limit") -> float:
        """The share of a limit's speed that ours reaches."""
        return self.ratio(self.one(role), self.one("ours"), phase)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.mean(logs)) if logs else math.nan


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _step_goals(results: list[CellResult]) -> list[Goal]:
    goals: list[Goal] = []
    ratios = _known(r.against_peer("step") for r in results)
    if ratios:
        what = f"whole step, best peer / ours, every cell ≥ {STEP_FLOOR}"
        goals.append((what, min(ratios) >= STEP_FLOOR, f"least {min(ratios):.2f}"))
    for optimizer in OPTIMIZERS:
        mine = [r for r in results if r.cell["optimizer"] == optimizer]
        ratios = _known(r.against_peer("step") for r in mine)
        if ratios:
            mean, least = geometric_mean(ratios), STEP_MEAN[optimizer]
            what = f"whole step, best peer / ours, {optimizer}, geomean ≥ {least}"
            goals.append((what, mean >= least, f"{mean:.2f} of {len(ratios)} cells"))
    wide = [r for r in results if r.cell["dim"] >= 64]
    ratios = _known(r.against_native("step") for r in wide)
    if ratios:
        what = f"whole step, ours / plain kernel, dim ≥ 64, ≤ {NATIVE_CEILING}"
        met = max(ratios) <= NATIVE_CEILING
        mean = geometric_mean(ratios)
        goals.append((what, met, f"most {max(ratios):.2f}, geomean {mean:.2f}"))
    return goals


def _lookup_goals(results: list[CellResult]) -> list[Goal]:
    goals: list[Goal] = []
    outputs = {"limit": "a reused output", "fresh": "a fresh output"}
    for (dim, floor), role in itertools.product(LOOKUP_FLOOR.items(), outputs):
        mine = [r for r in results if r.cell["dim"] == dim]
        shares = _known(r.of_limit("lookup", role) for r in mine)
        if shares:
            what = f"lookup, share of the limit into {outputs[role]}, dim {dim}, "
            number = f"least {min(shares):.0%}, mean {statistics.mean(shares):.0%}"
            goals.append((f"{what}≥ {floor:.0%}", min(shares) >= floor, number))
    return goals


def goals_of(results: list[CellResult], scaling: dict[str, Any] | None) -> list[Goal]:
    """Each goal that the cells at hand can decide.

    Args:
        results: The cells.
        scaling: The record of `scaling.measure`, if it ran.

    Returns:
        What is asked, whether it is met, and the number that decided.
    """
    goals = _step_goals(results)
    goals += _lookup_goals(results)
    if scaling is not None:
        few, many = (f"{rows:.0e}".replace("e+0", "e") for rows in scaling["rows"])
        ratio = scaling["same ids"]["ours"]
        what = f"whole step, {many} rows / {few} rows, same ids, ≤ {SCALING_CEILING}"
        goals.append((what, ratio <= SCALING_CEILING, f"{ratio:.2f}"))
    return goals


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _ms(value: float) -> str:
    return _number(value, ".3g" if value < 1000 else ".0f")


def _label(result: CellResult) -> list[str]:
    cell = result.cell
    mark = " !" if result.noisy else ""
    return [
        f"{cell['ids']:,}",
        str(cell["dim"]),
        cell["dist"],
        cell["optimizer"] + mark,
    ]


def _phase_row(result: CellResult, phase: str) -> list[str]:
    ours, peer = result.one("ours"), result.best_peer(phase)
    row = _label(result)
    if ours is None:
        row += ["-", "-"]
    else:
        median = result.median(ours, phase)
        row.append(f"{_ms(median)} ± {result.spread(ours, phase) / 2:.0%}")
        row.append(f"{result.bytes[phase] / median / 1e6:.1f}")
    if peer is None:
        row += ["-", "-"]
    else:
        row += [_ms(result.median(peer, phase)), peer]
    row.append(f"**{_number(result.against_peer(phase), '.1f')}**")
    row.append(_number(result.against_native(phase)))
    row.append(_number(result.of_limit(phase), ".0%"))
    row.append(_number(result.of_limit(phase, "fresh"), ".0%"))
    return row


_LABELS = ("ids", "dim", "drawn", "optimizer")


def _phase_table(results: list[CellResult], phase: str) -> str:
    head = [*_LABELS, "ours, ms", "GB/s", "best peer, ms", "which"]
    head += ["peer / ours", "ours / kernel", "of the limit", "fresh output"]
    return _markdown_table(head, [_phase_row(r, phase) for r in results])


def _all_systems(results: list[CellResult]) -> str:
    names = list(dict.fromkeys(n for r in results for n in r.systems))
    rows = [
        _label(r) + [_ms(r.median(n, "step")) if n in r.systems else "-" for n in names]
        for r in results
    ]
    return _markdown_table([*_LABELS, *names], rows)


def _best_counts(results: list[CellResult]) -> str:
    counts = collections.Counter(r.best_peer("step") for r in results)
    counts.pop(None, None)
    return ", ".join(f"{name} ({n})" for name, n in counts.most_common())


def _scaling_section(scaling: dict[str, Any]) -> list[str]:
    few, many = scaling["rows"]
    cell = f"{scaling['ids']} ids, dim {scaling['dim']}, {scaling['optimizer']}"
    head = ("ids", "ours", "traffic alone")
    rows = [
        (what, f"{scaling[key]['ours']:.2f}", f"{scaling[key]['limit']:.2f}")
        for key, what in (
            ("same ids", f"the same, from the first {few:,} rows"),
            ("all rows", "from all rows"),
        )
    ]
    return [
        f"### Step time at {many:,} rows / at {few:,} rows",
        f"{cell}. Reads from all rows leave the caches: the second line holds "
        "what the machine charges for that.",
        _markdown_table(head, rows),
    ]


def markdown(document: dict[str, Any]) -> str:
    """The section of a page that one run fills.

    Args:
        document: The result file of `cpu.py`.

    Returns:
        Markdown without the markers.
    """
    results = [CellResult(record) for record in document["cells"]]
    goals = goals_of(results, document.get("scaling"))
    titles = {"lookup": "Lookup", "update": "Update", "step": "Whole step"}
    parts = ["### The machine"]
    parts.append(_markdown_table(("", ""), list(document["machine"].items())))
    if document["left out"]:
        gone = [f"{name} ({why})" for name, why in document["left out"].items()]
        parts.append("Left out: " + "; ".join(gone) + ".")
    parts.append("### Goals")
    parts.append(
        _markdown_table(
            ("goal", "met", "measured"),
            [(what, "yes" if met else "**no**", number) for what, met, number in goals],
        )
    )
    for phase in reversed(PHASES):
        parts += [f"### {titles[phase]}", _phase_table(results, phase)]
    parts.append("### All systems, whole step, ms")
    parts.append(f"Best peer, by number of cells: {_best_counts(results)}.")
    parts.append(_all_systems(results))
    if document.get("scaling"):
        parts += _scaling_section(document["scaling"])
    return "\n\n".join(parts)


def text(document: dict[str, Any]) -> str:
    """What the terminal shows at the end."""
    results = [CellResult(record) for record in document["cells"]]
    lines = [
        f"{'ids':>9} {'dim':>4} {'drawn':8} {'optimizer':10} {'phase':7}"
        f"{'ours ms':>9} {'peer ms':>9} {'peer/ours':>10} {'/kernel':>8}"
        f" {'of limit':>9} {'fresh':>6}  best peer"
    ]
    for result in results:
        for phase in PHASES:
            ours, peer = result.one("ours"), result.best_peer(phase)
            size, dim, dist, optimizer = _label(result)
            mine = result.median(ours, phase) if ours else math.nan
            theirs = result.median(peer, phase) if peer else math.nan
            lines.append(
                f"{size:>9} {dim:>4} {dist:8} {optimizer:10} {phase:7}"
                f"{_ms(mine):>9} {_ms(theirs):>9}"
                f"{_number(result.against_peer(phase)):>11}"
                f"{_number(result.against_native(phase)):>9}"
                f"{_number(result.of_limit(phase), '.0%'):>10}"
                f"{_number(result.of_limit(phase, 'fresh'), '.0%'):>7}  {peer or ''}"
            )
    lines.append("")
    for what, met, number in goals_of(results, document.get("scaling")):
        lines.append(f"{'PASS' if met else 'FAIL'}  {what}: {number}")
    for name, why in document["left out"].items():
        lines.append(f"left out  {name}: {why}")
    return "\n".join(lines)


def write_section(page: pathlib.Path, body: str) -> None:
    """Puts `body` between the markers of a page.

    Args:
        page: A Markdown file with both markers.
        body: What goes between them.

    Raises:
        ValueError: When a marker is missing.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"--markdown {page}: it has no lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
