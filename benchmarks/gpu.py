"""Measures tables on a GPU against JAX, torch and a copy of the same bytes.

python benchmarks/gpu.py [--quick] [--kernels] [--systems NAME ...] [--seconds N]

Times are of the device's own clock, from a profile: from the beginning of a phase's
first kernel to the end of its last. Before each turn the second-level cache is flushed,
which also gives the host time to be ahead of the device. Ids differ from turn to turn.
Each number is a median. `--kernels` says where the time goes.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import device_time
import jax
import jax.numpy as jnp
import numpy as np

import oneemb_jax as oe

BATCHES = 6
INSERT_TURNS = 12
WARM_TURNS = 2
FLUSH_WORDS = 128 * 1024 * 1024  # 512 MiB: ten times the cache of an H200
FLUSH = "xor"  # what its kernel is called, and no other
LEARNING_RATE = 0.05
OPTIMIZERS = {
    "sgd": oe.sgd(LEARNING_RATE),
    "adagrad": oe.adagrad(LEARNING_RATE),
    "adam": oe.adam(LEARNING_RATE),
}
STATE_FIELDS = {"sgd": 0, "adagrad": 1, "adam": 2}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        rows: Rows in the table before it begins.
        ids: Ids a batch.
        dim: Width of the embedding.
        dist: ``zipf`` (exponent 1.05), ``uniform``, or ``unique``: no id twice.
        hit_rate: Part of the ids that the table knows. Below 1 there is room for
            twice the rows, which the turns nearly fill.
    """

    rows: int
    ids: int
    dim: int
    dist: str
    hit_rate: float = 1.0

    @property
    def inserts(self) -> bool:
        """Whether ids are new, and so another batch is wanted in every turn."""
        return self.hit_rate < 1

    def turns(self, usual: int) -> int:
        """Turns that are measured."""
        return INSERT_TURNS if self.inserts else usual


def draw(cell: Cell, turn: int) -> np.ndarray:
    """Row numbers of one batch, int64[ids]; those not in the table from `rows` on."""
    random = np.random.default_rng(turn)
    if cell.dist == "unique":
        known = round(cell.hit_rate * cell.ids)
        inside = random.permutation(cell.rows)[:known]
        fresh = cell.rows + turn * cell.ids + np.arange(cell.ids - known)
        return random.permutation(np.concatenate([inside, fresh]))
    if cell.dist == "uniform":
        return random.integers(0, cell.rows, cell.ids)
    weights = np.cumsum(np.arange(1, cell.rows + 1) ** -1.05)
    ranks = np.searchsorted(weights, random.random(cell.ids) * weights[-1])
    return np.random.default_rng(99).permutation(cell.rows)[ranks]


@functools.cache
def batches_of(cell: Cell) -> list[np.ndarray]:
    """Batches that take turns; where ids are new, one for every turn."""
    count = WARM_TURNS + INSERT_TURNS if cell.inserts else BATCHES
    return [draw(cell, turn) for turn in range(count)]


def id_of(row: np.ndarray) -> np.ndarray:
    """Ids spread over 64 bits, as hashed features are."""
    return (row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


@functools.partial(jax.jit, donate_argnums=0)
def flush(words: jax.Array) -> jax.Array:
    """Writes more than the caches hold."""
    return words ^ jnp.uint32(1)


def device_turns(
    phase: Callable[..., Any], state: Any, batches: list[Any], grads: Any, count: int
) -> tuple[list[device_time.Turn], Any]:
    """Turns of `phase(state, ids, grads) -> state, result`; and the last state."""
    program = jax.jit(phase, donate_argnums=0)
    words = jnp.zeros((FLUSH_WORDS,), jnp.uint32)

    def run(turns: range) -> None:
        nonlocal words, state
        for turn in turns:
            words = flush(words)
            state, result = program(state, batches[turn % len(batches)], grads)
            # Ends before the next one begins: the host is to be ahead of one turn.
            jax.block_until_ready((state, result))

    run(range(WARM_TURNS))
    events = device_time.record(lambda: run(range(WARM_TURNS, WARM_TURNS + count)))
    turns = device_time.turns(events, FLUSH)
    if len(turns) != count:
        raise RuntimeError(f"{len(turns)} turns of {count} in the profile")
    return turns, state


# What is compared: each makes (state, [ids, ...], {phase: function}).


def ours(cell: Cell, optimizer: str, batches: list[np.ndarray]) -> Any:
    """A table of this library, filled to `cell.rows`."""
    with oe.MultiTableEmbedding(
        "bench", cell.dim, "float32", "int64",
        tables=[oe.make_table_options(oe.make_uniform_initializer(-0.01, 0.01))],
        optimizer=OPTIMIZERS[optimizer],
        store_options=oe.make_device_mem_store_options(
            capacity=cell.rows * (2 if cell.inserts else 1)
        ),
    ) as emb:  # fmt: skip
        table = emb.init()

    @functools.partial(jax.jit, donate_argnums=0)
    def fill(table: Any, ids: Any) -> Any:
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, jnp.zeros_like(acts))

    for part in np.array_split(np.arange(cell.rows), -(-cell.rows // 2**20)):
        table = fill(table, oe.pack_ids(id_of(part)))

    def lookup(table: Any, ids: Any, grads: Any) -> Any:
        return table, oe.lookup(table, ids)[0]

    def step(table: Any, ids: Any, grads: Any) -> Any:
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, grads), acts

    ids = [jnp.asarray(oe.pack_ids(id_of(batch))) for batch in batches]
    return table, ids, {"lookup": lookup, "step": step}


def jax_rows(cell: Cell, optimizer: str, batches: list[np.ndarray]) -> Any:
    """Plain arrays that know nothing of ids: take, and an update by hand."""
    keys = jax.random.key(0)
    rows = jax.random.uniform(keys, (cell.rows, cell.dim))
    state = [rows] + [jnp.zeros_like(rows)] * STATE_FIELDS[optimizer]
    state = [jnp.copy(array) for array in state]

    def lookup(state: Any, ids: Any, grads: Any) -> Any:
        return state, jnp.take(state[0], ids, axis=0, mode="clip")

    def scatter_add(state: Any, ids: Any, grads: Any) -> Any:
        acts = jnp.take(state[0], ids, axis=0, mode="clip")
        return [state[0].at[ids].add(-LEARNING_RATE * grads)], acts

    def unique(state: Any, ids: Any, grads: Any) -> Any:
        acts = jnp.take(state[0], ids, axis=0, mode="clip")
        found, inverse = jnp.unique(
            ids, return_inverse=True, size=cell.ids, fill_value=cell.rows
        )
        g = jax.ops.segment_sum(grads, inverse, num_segments=cell.ids)
        at = [array.at[found].get(mode="clip") for array in state]
        if optimizer == "adagrad":
            sums = at[1] + g * g
            new = [at[0] - LEARNING_RATE * g / (jnp.sqrt(sums) + 1e-10), sums]
        else:
            m, v = 0.9 * at[1] + 0.1 * g, 0.999 * at[2] + 0.001 * g * g
            new = [at[0] - LEARNING_RATE * m / (jnp.sqrt(v) + 1e-8), m, v]
        state = [
            array.at[found].set(value, mode="drop", unique_indices=True)
            for array, value in zip(state, new, strict=True)
        ]
        return state, acts

    ids = [jnp.asarray(batch.astype(np.int32)) for batch in batches]
    step = scatter_add if optimizer == "sgd" else unique
    return state, ids, {"lookup": lookup, "step": step}


@functools.cache
def copy_bytes_per_ms() -> float:
    """Bytes read and written in a millisecond by a copy of 2 GiB."""
    words = jnp.zeros((2**29,), jnp.uint32)
    copy = jax.jit(lambda words: words + jnp.uint32(1))
    times = []
    for _ in range(10):
        jax.block_until_ready(words)
        start = time.perf_counter()
        for _ in range(5):
            words = copy(words)
        jax.block_until_ready(words)
        times.append((time.perf_counter() - start) / 5)
    return 2 * words.nbytes / (1e3 * statistics.median(times))


def copy_ms(cell: Cell, optimizer: str, turns: int) -> dict[str, float]:
    """A copy that moves the bytes which each phase has to move at least."""
    distinct = statistics.mean(len(np.unique(batch)) for batch in batches_of(cell))
    rows = 4 * cell.dim * distinct
    out = 4 * cell.dim * cell.ids
    lookup = cell.hit_rate * rows + out
    step = lookup + out + (1 + cell.hit_rate) * (1 + STATE_FIELDS[optimizer]) * rows
    return {
        "lookup": lookup / copy_bytes_per_ms(),
        "step": step / copy_bytes_per_ms(),
    }


def torch_ms(cell: Cell, optimizer: str, turns: int) -> dict[str, float]:
    """Embedding(sparse=True) and its optimizer, by events."""
    import torch  # takes seconds, and is not always there

    emb = torch.nn.Embedding(cell.rows, cell.dim, sparse=True, device="cuda")
    make = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.SparseAdam,
    }[optimizer]
    update = make(emb.parameters(), lr=LEARNING_RATE)
    grads = torch.ones(cell.ids, cell.dim, device="cuda")
    words = torch.zeros(FLUSH_WORDS, dtype=torch.int32, device="cuda")
    ids = [torch.from_numpy(batch).cuda() for batch in batches_of(cell)]

    def step(now: Any) -> None:
        emb(now).backward(grads)
        update.step()
        update.zero_grad()

    times: dict[str, list[float]] = {"lookup": [], "step": []}
    for k in range(turns + WARM_TURNS):
        for phase, run in (("lookup", emb), ("step", step)):
            words.add_(1)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(ids[k % len(ids)])
            end.record()
            torch.cuda.synchronize()
            times[phase].append(begin.elapsed_time(end))
    return {
        phase: statistics.median(many[WARM_TURNS:]) for phase, many in times.items()
    }


def jax_turns(
    make: Any, cell: Cell, optimizer: str, turns: int
) -> dict[str, list[device_time.Turn]]:
    """The turns of each phase of one system that runs in JAX."""
    grads = jnp.asarray(
        np.random.default_rng(0).standard_normal((cell.ids, cell.dim), np.float32)
    )
    state, batches, phases = make(cell, optimizer, batches_of(cell))
    found = {}
    for phase, function in phases.items():
        count = cell.turns(turns)
        found[phase], state = device_turns(function, state, batches, grads, count)
    return found


def median_ms(turns: list[device_time.Turn]) -> float:
    """Milliseconds of a turn."""
    return statistics.median(turn.ms for turn in turns)


def jax_ms(make: Any, cell: Cell, optimizer: str, turns: int) -> dict[str, float]:
    """Milliseconds by phase of one system that runs in JAX."""
    found = jax_turns(make, cell, optimizer, turns)
    return {phase: median_ms(turns) for phase, turns in found.items()}


def kernels_of(turns: list[device_time.Turn]) -> str:
    """Microseconds by kernel: medians, in order of first appearance."""
    shares = [turn.shares() for turn in turns]
    names = dict.fromkeys(name for share in shares for name in share)
    parts = []
    for name in names:
        us = 1e3 * statistics.median(share.get(name, 0.0) for share in shares)
        parts.append(f"{name.removesuffix('Kernel')} {us:.1f}")
    return ", ".join(parts)


def print_kernels(cell: Cell, optimizer: str, turns: int) -> None:
    """One line a phase of this library: where its time goes."""
    for phase, found in jax_turns(ours, cell, optimizer, turns).items():
        setting = f"{cell.dist} {cell.ids} dim {cell.dim} {optimizer} {phase}"
        print(f"{setting}: {median_ms(found):.4f} ms; us: {kernels_of(found)}")


SYSTEMS: dict[str, Callable[[Cell, str, int], dict[str, float]]] = {
    "oneemb_jax": functools.partial(jax_ms, ours),
    "copy": copy_ms,
    "JAX": functools.partial(jax_ms, jax_rows),
    "torch": torch_ms,
}


def grid() -> list[tuple[Cell, str]]:
    """A million ids and 64 k, wide and narrow rows, finds and inserts."""
    rows, million = 1_700_000, 2**20
    zipf, uniform = (Cell(rows, million, 128, dist) for dist in ("zipf", "uniform"))
    cells = [(zipf, name) for name in OPTIMIZERS]
    cells += [(Cell(rows, 2**16, 128, "zipf"), name) for name in OPTIMIZERS]
    cells += [(uniform, "sgd"), (uniform, "adam")]
    cells += [(Cell(rows, million, 16, "zipf"), name) for name in ("sgd", "adam")]
    cells += [(uniform, "adagrad")]
    return [*cells, (Cell(8 * million, million, 64, "unique", 0.6), "sgd")]


def line_of(cell: Cell, optimizer: str, system: str, ms: dict[str, float]) -> str:
    """One row of the table that is printed."""
    distinct = statistics.mean(len(np.unique(batch)) for batch in batches_of(cell))
    return (
        f"| {cell.dist} | {cell.ids} | {distinct:.0f} | {cell.hit_rate} | {cell.dim} | "
        f"{optimizer} | {system} | {ms['lookup']:.4f} | {ms['step']:.4f} |"
    )


HEADER = """| ids | n | n_unique | hit rate | dim | optimizer | system | lookup | step |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measures system after system and prints one line a cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument(
        "--kernels", action="store_true", help="this library alone, by kernel"
    )
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=["oneemb_jax", "JAX", "copy"]
    )
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no cell after these"
    )
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        sys.exit("gpu.py: JAX has no GPU here.")
    print(f"card: {jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds")
    turns = 30 if options.quick else 150
    if options.kernels:
        for cell, optimizer in grid():
            print_kernels(cell, optimizer, turns)
        return
    print(HEADER, flush=True)
    begin = time.monotonic()
    for system in options.systems:
        for cell, optimizer in grid():
            if cell.inserts and system in ("JAX", "torch"):
                continue  # arrays have no rows that are missing
            if time.monotonic() - begin > options.seconds:
                print(f"no time left for {system}")
                break
            ms = SYSTEMS[system](cell, optimizer, turns)
            print(line_of(cell, optimizer, system, ms), flush=True)


if __name__ == "__main__":
    main()
