"""Measures what hits cost: a cached table that lacks nothing beside device memory.

    python benchmarks/tier_hits.py                  # five minutes, 3 GB of memory
    python benchmarks/tier_hits.py --dim 16 --ids 65536 --runs 1

The same step, `stage`, `lookup` and `update`, on three tables with the same rows: one
in device memory, another like it, and one whose cache has room for all of its rows.
They take turns, each time beginning with another. A ratio is the median of the ratios
within a turn, so a machine that drifts hits both sides. The cached table is compared
with the mean of the two in device memory; how these two compare with each other shows
how far a ratio can be trusted.

Where the memory of a table lies decides a tenth of its time, by which lines of the
caches it shares: each run is a process of its own, with tables of its own, and at the
end come the medians of their ratios, with the least and the most.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from typing import Any

import cells
import jax
import jax.numpy as jnp
import machine
import numpy as np
import tiers

import oneemb_jax as oe

#: The tables, and where each has its rows. A table that is made later is a little
#: slower, by where its memory lies: the cached one is between the two others.
TABLES = {"first": "device_mem", "cached": "cached_host_mem", "second": "device_mem"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a step does: its ids, and the dense layers above them if any."""

    ids: int
    dim: int
    dist: str
    hidden: int


@functools.partial(jax.jit, donate_argnums=0)
def bare_step(table: oe.Table, ids: jax.Array, grads: jax.Array) -> Any:
    """A step without a model: the gradients are given."""
    table = oe.stage(table, ids)
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, grads), acts


@functools.lru_cache(maxsize=1)
def gradients(case: Case) -> jax.Array:
    """The same ones, in the same memory, for all tables."""
    return jax.random.uniform(jax.random.key(0), (case.ids, case.dim), minval=-1)


class Bare:
    """Bare steps of one table."""

    def __init__(self, table: oe.Table, case: Case) -> None:
        self.table = table
        self._grads = gradients(case)

    def step(self, ids: jax.Array) -> None:
        """One step, waited for."""
        self.table, acts = bare_step(self.table, ids, self._grads)
        jax.block_until_ready((self.table, acts))


class Dense:
    """Steps of one table below two dense layers."""

    def __init__(self, table: oe.Table, case: Case) -> None:
        self.table = table
        self._step = tiers.make_step(case.dim)
        self._weights = tiers.make_weights(case.dim, case.hidden)

    def step(self, ids: jax.Array) -> None:
        """One step, waited for."""
        self.table, self._weights, loss = self._step(
            self.table, self._weights, ids, ids, False
        )
        jax.block_until_ready((self.table, loss))


def draw(rows: int, case: Case, count: int) -> list[jax.Array]:
    """The ids of some batches, packed."""
    random = np.random.default_rng(case.ids)
    return [
        jnp.asarray(oe.pack_ids(cells.draw_ids(rows, case.ids, case.dist, random)))
        for _ in range(count)
    ]


def milliseconds(runner: Any, batches: list[jax.Array]) -> dict[str, float]:
    """The mean time of a step on the batches: the clock's, and the processors'."""
    start, used = time.perf_counter(), time.process_time()
    for ids in batches:
        runner.step(ids)
    took, used = time.perf_counter() - start, time.process_time() - used
    return {"ms": 1e3 * took / len(batches), "cpu ms": 1e3 * used / len(batches)}


def take_turns(
    runners: dict[str, Any], batches: list[jax.Array], turns: int
) -> dict[str, list[dict[str, float]]]:
    """The times of a step by table and turn."""
    names = list(runners)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(-1, turns):  # the first one compiles
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            # The first step after another table's finds the caches without its rows.
            runners[name].step(batches[-1])
            took = milliseconds(runners[name], batches)
            if turn >= 0:
                times[name].append(took)
    return times


def quartiles(values: list[float]) -> list[float]:
    """The lower one, the median and the upper one."""
    return [round(q, 4) for q in statistics.quantiles(values, n=4)]


def judge(times: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The median times in device memory, and the quartiles of the ratios to them."""
    answer: dict[str, Any] = {}
    for kind in ("ms", "cpu ms"):
        first, cached, second = ([t[kind] for t in times[name]] for name in TABLES)
        means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        answer[kind] = round(statistics.median(means), 3)
        for name, above, below in (
            ("cached / device_mem", cached, means),
            ("second / first", second, first),
        ):
            ratios = [a / b for a, b in zip(above, below, strict=True)]
            answer[f"{kind}, {name}"] = quartiles(ratios)
    return answer


def measure(
    options: argparse.Namespace, case: Case, tables: dict[str, oe.Table]
) -> dict[str, Any]:
    """Measures a case; the tables go on to the next one."""
    batches = draw(options.rows, case, options.batches)
    runner_of = Dense if case.hidden else Bare
    tables["cached"] = oe.reset_counters(tables["cached"])
    runners = {name: runner_of(table, case) for name, table in tables.items()}
    times = take_turns(runners, batches, options.turns)
    tables.update({name: runner.table for name, runner in runners.items()})
    oe.check(tables["cached"])
    missed = oe.stats(tables["cached"])["cache_misses"]
    if missed:
        raise RuntimeError(f"{missed} ids were not in the cache, which has all rows")
    return dataclasses.asdict(case) | judge(times)


def cases(options: argparse.Namespace) -> list[Case]:
    """What is measured."""
    sizes = [(ids, 0) for ids in options.ids]
    sizes += [(ids, options.hidden) for ids in options.dense_ids]
    return [
        Case(ids, options.dim, dist, hidden)
        for ids, hidden in sizes
        for dist in options.dists
    ]


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all cases; prints as it goes."""
    shape = (options.rows, options.dim, 1.0)
    answer = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        tables = {}
        for name, kind in TABLES.items():
            embedding = tiers.make_embedding(kind, folder, *shape, name)
            tables[name] = tiers.fill(
                stack.enter_context(embedding).init(), options.rows
            )
        # After the tables: kept memory has been touched, so it gets no huge pages.
        machine.keep_freed_memory()
        for case in cases(options):
            answer.append(measure(options, case, tables))
            print(json.dumps(answer[-1]), flush=True)
    return answer


def run_all(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The answers of all runs."""
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        return list(pool.map(run, [options] * options.runs))


def summary(runs: list[list[dict[str, Any]]]) -> list[str]:
    """A line for each case: the median ratio of the runs, the least and the most."""
    lines = []
    for same in zip(*runs, strict=True):
        what = "{ids} ids, dim {dim}, {dist}, hidden {hidden}".format(**same[0])
        told = []
        for ratio in ("ms, cached / device_mem", "ms, second / first"):
            of_runs = [answer[ratio][1] for answer in same]
            middle = statistics.median(of_runs)
            told.append(f"{ratio} {middle:.3f} ({min(of_runs)} to {max(of_runs)})")
        lines.append(f"{what}: {'; '.join(told)}")
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = functools.partial(made.add_argument, type=int)
    add("--rows", default=1_000_000, help="of each table (%(default)s)")
    add("--ids", nargs="*", default=[16_384, 65_536, 425_984], help="of a batch")
    add("--dim", default=64, help="of an embedding (%(default)s)")
    made.add_argument(
        "--dists", nargs="+", default=["zipf"], choices=cells.DISTRIBUTIONS
    )
    add("--dense-ids", nargs="*", default=[16_384], help="of a batch of a model")
    add("--hidden", default=1024, help="width of the model's layer (%(default)s)")
    add("--batches", default=4, help="different ones of a turn (%(default)s)")
    add("--turns", default=12, help="of a run (%(default)s)")
    add("--runs", default=5, help="processes (%(default)s)")
    out = pathlib.Path("out/benchmark-tier-hits.json")
    made.add_argument("--json", type=pathlib.Path, default=out)
    return made


def main() -> None:
    """Measures, and writes the JSON."""
    options = parser().parse_args()
    runs = run_all(options)
    print("\n".join(summary(runs)))
    answer = {"machine": machine.card(), "runs": runs}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(answer, indent=2) + "\n")
    print(f"numbers: {options.json}")


if __name__ == "__main__":
    main()
