"""Measures steps of a cached table on a GPU beside a dense part.

    python benchmarks/gpu_tiers.py [--dense-ms MS] [--steps N] [--ids N]
                                   [--missing SHARE ...]

Of the ids of a batch a share lacks its row, and as many rows have to go, changed.
With a share of 1 that is what a cache costs where it is of no use, with 0 what it
costs where all rows fit. Batches repeat after a while, so all rows have been trained
before. Prefetched, a step should take as long as the longer of its dense part and
the moving of its rows.
"""

import argparse
import functools
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiers

import oneemb_jax as oe

BATCHES = 8  # of which the cache has room for two
WARM_UP = 2 * BATCHES


def dense_part(rounds: int) -> Any:
    """A chain of matrix products."""

    def dense(weight: jax.Array, seed: jax.Array) -> jax.Array:
        def one(_: int, x: jax.Array) -> jax.Array:
            return jnp.tanh(x @ weight)

        return jax.lax.fori_loop(0, rounds, one, weight + seed)[0, 0]

    return dense


def rounds_for(milliseconds: float, weight: jax.Array) -> int:
    """Products of a dense part that takes so long."""
    few, many = 8, 72
    seconds = []
    for rounds in (few, many):
        run = jax.jit(dense_part(rounds))
        out = run(weight, 0.0)
        out.block_until_ready()
        start = time.perf_counter()
        for _ in range(5):
            out = run(weight, 0.0)
        out.block_until_ready()
        seconds.append((time.perf_counter() - start) / 5)
    return max(1, round(1e-3 * milliseconds * (many - few) / (seconds[1] - seconds[0])))


def batches(count: int, missing: float) -> np.ndarray:
    """Ids of batches that have all but a share in common."""
    own = round(missing * count)
    common = np.tile(np.arange(count - own), (BATCHES, 1))
    others = count + np.arange(BATCHES * own).reshape(BATCHES, own)
    return np.concatenate([common, others], axis=1)


def step_ms(
    kind: str, prefetch: bool, rounds: int, missing: float, options: Any
) -> float:
    """Milliseconds of one step; of its dense part alone for kind "dense"."""
    weight = jnp.full((2048, 2048), 1e-3, jnp.bfloat16)
    dense = dense_part(rounds)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(table: Any, ids: jax.Array, later: jax.Array) -> Any:
        if kind == "dense":
            return table, dense(weight, ids[0, 0].astype(jnp.bfloat16) * 0)
        table = oe.stage(table, ids)
        if prefetch:
            table = oe.prefetch(table, later)
        acts, ctx = oe.lookup(table, ids)
        # The dense part wants the activations, and the update the dense part.
        out = dense(weight, acts[0, 0].astype(jnp.bfloat16) * 0)
        grads = acts + out.astype(jnp.float32) * 0
        return oe.update(table, ctx, grads), out

    ids = batches(options.ids, missing)
    every = [jnp.asarray(oe.pack_ids(one)) for one in ids]
    store = "device_mem" if kind == "dense" else kind
    rows = len(np.unique(ids))
    # A batch, what the next one lacks, and a little more.
    shape = (rows, options.dim, (1.01 + missing) * options.ids / rows)
    with (
        tempfile.TemporaryDirectory() as folder,
        tiers.make_embedding(store, folder, *shape, "gpu_tiers", oe.sgd(0.1)) as emb,
    ):
        table = emb.init()
        times = []
        for t in range(WARM_UP + options.steps):
            table, out = step(table, every[t % BATCHES], every[(t + 1) % BATCHES])
            if t + 1 >= WARM_UP and (t + 1 - WARM_UP) % BATCHES == 0:
                out.block_until_ready()
                times.append(time.perf_counter())
        oe.check(table)
    return 1e3 * statistics.median(np.diff(times)) / BATCHES


def main() -> None:
    """Measures one case after another and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense-ms", type=float, default=8)
    parser.add_argument("--ids", type=int, default=2**16, help="a batch, all different")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--missing", type=float, nargs="+", default=[1, 0.1, 0])
    parser.add_argument("--steps", type=int, default=5 * BATCHES)
    parser.add_argument(
        "--kinds", nargs="+", default=["device_mem", "cached_host_mem", "cached_ssd"]
    )
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        sys.exit("gpu_tiers.py: JAX has no GPU here.")
    rounds = rounds_for(options.dense_ms, jnp.full((2048, 2048), 1e-3, jnp.bfloat16))
    alone = step_ms("dense", False, rounds, 0, options)
    mib = options.ids * options.dim * 4 / 2**20
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {mib:.0f} MiB of rows"
    )
    print(f"a batch; the dense part of a step alone takes {alone:.2f} ms")
    print("| rows | missing | prefetched | step, ms | / dense part |")
    print("|---|---|---|---|---|", flush=True)
    for kind in options.kinds:
        for missing in [1] if kind == "device_mem" else options.missing:
            for prefetch in [False] if kind == "device_mem" else [False, True]:
                ms = step_ms(kind, prefetch, rounds, missing, options)
                text = "yes" if prefetch else "no"
                print(
                    f"| {kind} | {missing:.0%} | {text} | {ms:.2f} |"
                    f" {ms / alone:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
