"""Trains a table that is several times larger than the memory its process may have.

    python benchmarks/larger_than_memory.py            # 8 GiB of rows below 1.5 GiB
    python benchmarks/larger_than_memory.py --gib 1 --limit-mib 768 --cache-mib 64

The process that trains is put under a limit of the kernel's: a memory cgroup, which
counts all that it touches, where one may be made (as root), else RLIMIT_DATA, which
counts what it maps. That the limit holds is tried first, by a process that touches
more. Every row is made by a step, then Zipf-like batches follow. Each visit of a row
moves it by its id's gradient, in numbers that float32 has exactly, so a row that was
visited k times has one right value: a sample of all rows is compared.
"""

import argparse
import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import machine
import numpy as np

import oneemb_jax as oe

MIB = 2**20
#: Popular ids are scattered over the table. Odd, so that a power of two is covered.
SCATTER = 0x9E3779B1
#: A power of two: all values are exact.
LEARNING_RATE = 1 / 16
#: Of a row: from there on, float32 might round.
MOST_VISITS = 2**24 // 9
CGROUPS = {  # where a cgroup is made, and its files of the limit and of the peak
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    "/sys/fs/cgroup": ("memory.max", "memory.peak"),
}


def gradient(low: Any, dim: int) -> Any:
    """That of an id, whose lower 32 bits are given, in every step: 1 to 9."""
    return (low % 7 + 1)[:, None] + np.arange(dim, dtype=np.uint32) % 3


@functools.partial(jax.jit, donate_argnums=0)
def train_step(table: oe.Table, ids: jax.Array, later: jax.Array) -> oe.Table:
    """One visit of each id; the next batch's rows begin to move."""
    table = oe.prefetch(oe.stage(table, ids), later)
    acts, ctx = oe.lookup(table, ids)
    grads = gradient(ids[:, 0], acts.shape[1]).astype(acts.dtype)
    return oe.update(table, ctx, grads)


def every_id(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches that have every id once."""
    for first in range(0, options.rows, options.ids):
        yield np.arange(first, first + options.ids)


def popular_ids(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches of ids whose ranks are log-uniform, which is Zipf's law of exponent 1."""
    random = np.random.default_rng(0)
    for _ in range(options.steps):
        ranks = (options.rows ** random.random(options.ids)).astype(np.int64)
        yield ranks * SCATTER % options.rows


def train(
    table: oe.Table, batches: Iterator[np.ndarray], visits: np.ndarray
) -> tuple[oe.Table, dict[str, float]]:
    """Trains on all batches; ``visits`` counts them for each id."""
    table = oe.reset_counters(table)
    start = time.perf_counter()
    steps, ids = 0, next(batches)
    while ids is not None:
        later = next(batches, None)
        ahead = ids if later is None else later
        table = train_step(table, oe.pack_ids(ids), oe.pack_ids(ahead))
        np.add.at(visits, ids, 1)
        steps, ids = steps + 1, later
    oe.check(table)
    took = time.perf_counter() - start
    stats = oe.stats(table)
    names = ("cache_hit_rate", "cache_misses", "write_backs", "prefetched")
    rate = {"steps": steps, "ms": 1e3 * took / steps}
    return table, rate | {name: stats[name] for name in names}


def wrong_rows(options: argparse.Namespace, table: oe.Table, visits: np.ndarray) -> int:
    """How many rows of a sample are not what their visits make them."""
    if visits.max() > MOST_VISITS:
        raise ValueError(f"{visits.max()} visits of a row; pass fewer --steps")
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(0, options.checked, options.ids):
        ids = random.integers(0, options.rows, options.ids)
        moved = gradient(ids.astype(np.uint32), options.dim) * visits[ids, None]
        rows = oe.get_rows(table, ids)
        same = (rows.embedding == np.float32(-LEARNING_RATE) * moved).all(axis=1)
        wrong += int(np.count_nonzero(~(same & rows.found)))
    return wrong


def child(options: argparse.Namespace) -> dict[str, Any]:
    """What the limited process does; prints a line for each part."""
    visits = np.zeros(options.rows, np.uint32)
    with oe.MultiTableEmbedding(
        "larger_than_memory",
        options.dim,
        "float32",
        "int64",
        default_initializer=oe.make_constant_initializer(0.0),
        store_options=oe.make_cached_ssd_store_options(
            options.cache_mib, options.folder
        ),
        optimizer=oe.sgd(LEARNING_RATE),
    ) as embedding:
        table, answer = embedding.init(), {}
        parts = {"every row": every_id(options), "zipf": popular_ids(options)}
        for name, batches in parts.items():
            table, answer[name] = train(table, batches, visits)
            print(name, json.dumps(answer[name]), file=sys.stderr, flush=True)
        answer["rows"] = oe.size(table)
        answer["table bytes"] = 4 * options.dim * oe.size(table)
        files = [p for p in pathlib.Path(options.folder).rglob("*") if p.is_file()]
        answer["bytes on disk"] = sum(512 * p.stat().st_blocks for p in files)
        answer["rows checked"] = -(-options.checked // options.ids) * options.ids
        answer["rows wrong"] = wrong_rows(options, table, visits)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return answer | {"peak resident bytes": 1024 * peak}


class Limit:
    """A limit of memory for processes that are started under it."""

    def __init__(self, limit: int) -> None:
        self.bytes = limit
        self.kind = "RLIMIT_DATA"
        self._enter = f"ulimit -d {limit // 1024}"
        self._cgroup: pathlib.Path | None = None
        for root, (limit_file, peak_file) in CGROUPS.items():
            if (pathlib.Path(root) / "cgroup.procs").exists():
                self._make_cgroup(root, limit_file, peak_file)
                return

    def _make_cgroup(self, root: str, limit_file: str, peak_file: str) -> None:
        try:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="oneemb_", dir=root))
        except OSError:
            return
        try:
            (folder / limit_file).write_text(str(self.bytes))
        except OSError:
            folder.rmdir()
            return
        self.kind = f"cgroup, {limit_file}"
        self._enter = f"echo $$ > {folder}/cgroup.procs"
        self._cgroup, self._peak = folder, folder / peak_file

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command under the limit."""
        shell = ["sh", "-c", f'{self._enter} && exec "$@"', "sh", *command]
        return subprocess.run(shell, stdout=subprocess.PIPE, text=True, check=False)

    def holds(self) -> bool:
        """Whether a process that touches more than the limit fails."""
        touch = f"len(b'x' * {self.bytes + 64 * MIB})"
        return self.run(sys.executable, "-c", touch).returncode != 0

    def peak(self) -> int | None:
        """The most that was counted against the limit, where that is known."""
        return int(self._peak.read_text()) if self._cgroup is not None else None

    def close(self) -> None:
        """Removes the cgroup."""
        if self._cgroup is not None:
            self._cgroup.rmdir()


def parent(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the child under the limit, in a folder that is removed at the end."""
    limit = Limit(options.limit_mib * MIB)
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if not limit.holds():
                raise RuntimeError(f"{limit.kind}: the limit does not hold here")
            words = [*sys.argv[1:], "--child", "--folder", folder]
            done = limit.run(sys.executable, __file__, *words)
        if done.returncode != 0:
            raise RuntimeError(f"the limited process ended with {done.returncode}")
        answer = {"limit": limit.kind, "limit bytes": limit.bytes}
        return answer | json.loads(done.stdout) | {"peak counted bytes": limit.peak()}
    finally:
        limit.close()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = functools.partial(made.add_argument, type=int)
    add("--limit-mib", default=1536, help="of the process (%(default)s)")
    add("--gib", type=float, default=8, help="of rows (%(default)s)")
    add("--cache-mib", default=256, help="of the cache (%(default)s)")
    add("--dim", default=128, help="of an embedding (%(default)s)")
    add("--ids", default=65_536, help="of a batch (%(default)s)")
    add("--steps", default=200, help="on popular ids (%(default)s)")
    add("--checked", default=1_000_000, help="rows compared (%(default)s)")
    made.add_argument("--folder", help="where the files are; by default /tmp or so")
    out = pathlib.Path("out/benchmark-larger-than-memory.json")
    made.add_argument("--json", type=pathlib.Path, default=out)
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Measures, and writes the JSON; the child prints it."""
    options = parser().parse_args()
    options.rows = int(options.gib * 2**30) // (4 * options.dim)
    options.rows -= options.rows % options.ids
    if options.child:
        print(json.dumps(child(options)))
        return
    answer = {"machine": machine.card()} | parent(options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer, indent=2))
    if answer["rows wrong"]:
        sys.exit(f"{answer['rows wrong']} rows are wrong")


if __name__ == "__main__":
    main()
