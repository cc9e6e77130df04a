"""Measures steps of a table in device memory, below a cache in host memory, on SSD.

    python benchmarks/tiers.py                  # 10^7 rows; some minutes, 3 GB of disk
    python benchmarks/tiers.py --rows 1000000   # a tenth of it

Zipf ids, and a cache of a tenth of the rows. For each store with and without
prefetch: the step's time, what the cache had, and the time that the disk alone
would take for the rows that it lacked, by fio's rates in the same folder, where fio
is installed. "beside" is what both take at once: the step in device memory while fio
reads, which share the processors as a step on SSD and its reads do. Below them, for
scale, what others published of theirs (docs/tiers.md). `tier_hits.py` measures a
cache that lacks nothing, `larger_than_memory.py` a table that memory cannot hold.
"""

import argparse
import functools
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from typing import Any

import cells
import jax
import jax.numpy as jnp
import machine
import numpy as np

import oneemb_jax as oe
from oneemb_jax.cache import budget_for
from oneemb_jax.host import write_raw_rows

FEATURES = 32
ADAGRAD = oe.adagrad(0.05)
#: Times of a step in device memory, as others published them: dynamicemb and FBGEMM
#: in corelib/dynamicemb/benchmark/benchmark_results.json of NVIDIA/recsys-examples
#: 43465aea (H100, Adam, 128 floats, 1,048,570 ids of a power law of 1.05);
#: HierarchicalKV in its README (A100 PCIe, finds of 1,048,576 keys, 64 floats).
PUBLISHED = {
    "dynamicemb, cache of the rows that are touched": 12.28 / 2.185,
    "dynamicemb, cache of 80 % of them": 24.33 / 2.185,
    "dynamicemb, 10 % of the rows in device memory": 33.31 / 2.185,
    "FBGEMM TBE, cache of the rows that are touched": 14.37 / 1.352,
    "FBGEMM TBE, cache of 80 % of them": 15.00 / 1.352,
    "FBGEMM TBE, 10 % of the rows in device memory": 24.07 / 1.352,
    "HierarchicalKV, half of the rows in device memory": 1.982 / 0.124,
}
#: What a store on SSD asks of the disk, for fio.
RANDOM_READS = ("--rw=randread", "--bs=4k", "--iodepth=128")
#: Bytes of the store for each row besides the row (docs/formats/segment.md).
ROW_HEADER = 24


def make_embedding(
    kind: str,
    folder: str,
    rows: int,
    dim: int,
    cache: float,
    name: str = "tiers",
    optimizer: oe.Optimizer = ADAGRAD,
) -> Any:
    """An embedding whose rows are in ``kind``, that share of them in the cache."""
    shape = (rows, dim, cache, name, optimizer)
    if kind == "device_mem":
        store: Any = oe.make_device_mem_store_options(capacity=rows)
    else:
        with make_embedding("device_mem", folder, *shape) as plain:
            budget = budget_for(plain.spec, int(rows * cache))
        make = {
            "cached_host_mem": oe.make_cached_host_mem_store_options,
            "cached_ssd": oe.make_cached_ssd_store_options,
        }[kind]
        store = make(budget, folder)
    return oe.MultiTableEmbedding(
        name,
        dim,
        "float32",
        "int64",
        store_options=store,
        optimizer=optimizer,
    )


def fill(table: oe.Table, rows: int) -> oe.Table:
    """Gives every id below ``rows`` a row."""
    chunk = min(2**16, 2 ** (table.capacity.bit_length() - 1))
    values = np.zeros((chunk, table.spec.row_words), np.uint32)
    for first in range(0, rows, chunk):
        ids = np.arange(first, min(first + chunk, rows))
        words = ids.view(np.uint32).reshape(-1, 2)
        tables = np.zeros(len(ids), np.int32)
        table = write_raw_rows(table, words, tables, values[: len(ids)])
    return oe.flush(table)


def make_weights(dim: int, hidden: int) -> list[jax.Array]:
    """Those of the two dense layers of ``make_step``."""
    keys = jax.random.split(jax.random.key(0))
    width = FEATURES * dim
    return [
        jax.random.normal(keys[0], (width, hidden)) * width**-0.5,
        jax.random.normal(keys[1], (hidden, 1)),
    ]


def make_step(dim: int) -> Any:
    """A step with two dense layers, so that there is work to overlap with."""

    def loss_of(weights: Any, acts: jax.Array) -> jax.Array:
        inputs = acts.reshape(-1, FEATURES * dim)
        hidden = jnp.tanh(inputs @ weights[0])
        return jnp.mean((hidden @ weights[1]) ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1), static_argnums=4)
    def step(
        table: oe.Table, weights: Any, ids: jax.Array, later: jax.Array, ahead: bool
    ) -> Any:
        table = oe.stage(table, ids)
        if ahead:
            table = oe.prefetch(table, later)
        acts, ctx = oe.lookup(table, ids)
        loss, grads = jax.value_and_grad(loss_of, (0, 1))(weights, acts)
        weights = [w - 0.01 * g for w, g in zip(weights, grads[0], strict=True)]
        return oe.update(table, ctx, grads[1]), weights, loss

    return step


def draw_batches(options: argparse.Namespace, seed: int) -> list[np.ndarray]:
    """Zipf ids of all batches of a run, packed."""
    random = np.random.default_rng(seed)
    count = options.warmup + options.steps + options.depth
    return [
        oe.pack_ids(cells.draw_ids(options.rows, options.ids, "zipf", random))
        for _ in range(count)
    ]


def measure(
    options: argparse.Namespace, table: oe.Table, batches: list[Any], ahead: bool
) -> tuple[oe.Table, dict[str, Any]]:
    """Times steps one by one, each waited for."""
    step = make_step(options.dim)
    weights = make_weights(options.dim, options.hidden)
    times = []
    for t in range(options.warmup + options.steps):
        if t == options.warmup:
            table = oe.reset_counters(table)
        start = time.perf_counter()
        later = batches[t + options.depth]
        table, weights, loss = step(table, weights, batches[t], later, ahead)
        loss.block_until_ready()
        if t >= options.warmup:
            times.append(time.perf_counter() - start)
    oe.check(table)
    stats = oe.stats(table)
    result = {"ms": 1e3 * statistics.median(times), "prefetch": ahead}
    names = ("cache_hit_rate", "cache_misses", "write_backs", "prefetched", "stalls")
    for name in names if table.spec.is_cached else ():
        result[name] = stats[name] / (1 if name.endswith("rate") else options.steps)
    return table, result


def fio(folder: str, *words: str) -> dict[str, Any]:
    """What fio says of one job on a file of 1 GiB in ``folder``."""
    command = ["fio", "--name=tiers", f"--directory={folder}", "--size=1g"]
    command += ["--direct=1", "--ioengine=libaio", "--runtime=5", "--time_based"]
    done = subprocess.run(
        [*command, "--output-format=json", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["jobs"][0]


def disk_rates(folder: str | None) -> list[dict[str, float]]:
    """Random reads of 4 KiB a second, bytes written a second; nothing without fio."""
    if folder is None or shutil.which("fio") is None:
        return []
    write = fio(folder, "--rw=write", "--bs=1m", "--iodepth=8")
    read = fio(folder, *RANDOM_READS)
    return [{"iops": read["read"]["iops"], "write": write["write"]["bw_bytes"]}]


def disk_ms(result: dict[str, Any], rates: dict[str, float], row_bytes: int) -> float:
    """The time of a step that the disk's rates allow."""
    written = result["write_backs"] * (row_bytes + ROW_HEADER)
    return 1e3 * (result["cache_misses"] / rates["iops"] + written / rates["write"])


def add_bound(
    result: dict[str, Any], disk: list[dict[str, float]], memory_ms: float, spec: Any
) -> None:
    """Says what the disk alone would take, by its rates before and after."""
    if disk:
        times = [disk_ms(result, rates, 4 * spec.row_words) for rates in disk]
        result["disk_ms"] = times
        result["ratio"] = result["ms"] / max(memory_ms, statistics.mean(times))


def measure_beside(
    options: argparse.Namespace, folder: str, table: oe.Table
) -> dict[str, float]:
    """Steps in device memory while fio reads at random, and its reads a second."""
    step = make_step(options.dim)
    weights = make_weights(options.dim, options.hidden)
    batches = draw_batches(options, seed=2)
    read: dict[str, Any] = {}
    job = threading.Thread(target=lambda: read.update(fio(folder, *RANDOM_READS)))
    times = []
    job.start()
    while job.is_alive():
        start = time.perf_counter()
        ids = batches[len(times) % len(batches)]
        table, weights, loss = step(table, weights, ids, ids, False)
        loss.block_until_ready()
        times.append(time.perf_counter() - start)
    job.join()
    return {"ms": 1e3 * statistics.median(times), "iops": read["read"]["iops"]}


def measure_store(
    options: argparse.Namespace, kind: str, memory_ms: float
) -> list[dict[str, Any]]:
    """Measures one store without and with prefetch; prints as it goes."""
    shape = (options.rows, options.dim, options.cache)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rates = functools.partial(disk_rates, folder if kind == "cached_ssd" else None)
        with make_embedding(kind, folder, *shape) as emb:
            table = fill(emb.init(), options.rows)
            disk = rates()
            for ahead in (False, True)[: 1 if kind == "device_mem" else 2]:
                # Others than before: those are in the cache.
                batches = draw_batches(options, seed=int(ahead))
                table, result = measure(options, table, batches, ahead)
                before, disk = disk, rates()
                add_bound(result, before + disk, memory_ms, emb.spec)
                if kind == "device_mem" and shutil.which("fio") is not None:
                    result["beside"] = measure_beside(options, folder, table)
                results.append(result)
                print(kind, json.dumps(result), flush=True)
    return results


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures all stores; the bound of a ratio needs the first of them."""
    answer: dict[str, Any] = {"machine": machine.card(), "stores": {}}
    memory_ms = 0.0
    for kind in options.stores:
        results = measure_store(options, kind, memory_ms)
        if kind == "device_mem":
            memory_ms = results[0]["ms"]
        answer["stores"][kind] = results
    return answer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--rows", type=int, default=10_000_000, help="of the table (%(default)s)")
    add("--cache", type=float, default=0.1, help="share in the cache (%(default)s)")
    add("--ids", type=int, default=16_384, help="of a batch (%(default)s)")
    add("--dim", type=int, default=32, help="of an embedding (%(default)s)")
    add("--hidden", type=int, default=256, help="width of the layer (%(default)s)")
    add("--warmup", type=int, default=500, help="steps (%(default)s)")
    add("--steps", type=int, default=150, help="measured (%(default)s)")
    add("--depth", type=int, default=2, help="steps read ahead (%(default)s)")
    stores = ("device_mem", "cached_host_mem", "cached_ssd")
    add("--stores", nargs="+", default=stores, choices=stores)
    add("--folder", help="where the store's files are; by default /tmp or like it")
    add("--json", type=pathlib.Path, default="out/benchmark-tiers.json")
    return made


def main() -> None:
    """Measures, and writes the JSON."""
    options = parser().parse_args()
    machine.keep_freed_memory()
    answer = run(options)
    for name, times in PUBLISHED.items():
        print(f"published: {name}: {times:.1f} times device memory")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(answer, indent=2) + "\n")
    print(f"numbers: {options.json}")


if __name__ == "__main__":
    main()
