"""Memory of a long run: it stays where it is, and the budgets are what it takes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import oneemb_jax as oe
import tiers_training
from oneemb_jax.cache import close_cached, open_store

MIB = 2**20
#: Of the run whose memory is compared with its budgets: 10,000 take minutes.
STEPS = int(os.environ.get("ONEEMB_MEMORY_STEPS", "400"))
CACHE_MB, HOST_CACHE_MB = 64, 64
ROWS, BATCH, DIM = 800_000, 2048, 64


def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["host_mem", "ssd"])
def test_ten_thousand_steps_leave_no_memory_behind(tmp_path, kind):
    every = [tiers_training.batch(t) for t in range(100)]
    with tiers_training.embedding(tiers_training.options(kind, tmp_path)) as emb:
        table = emb.init()
        sizes = []
        for t in range(10_000):
            later = every[(t + 1) % 100]
            table = tiers_training.step(table, every[t % 100], later)
            if t % 1000 == 999:
                oe.check(table)
                sizes.append(resident_bytes())
        assert oe.stats(table)["victims"] > 10_000
    close_cached("killed")
    # A leak of the rows of a batch would be 2,000 bytes a step.
    assert (sizes[-1] - sizes[1]) / 8000 < 300, sizes


@functools.partial(jax.jit, donate_argnums=0)
def step(table, ids, later):
    table = oe.prefetch(oe.stage(table, ids), later)
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, acts)


def unaccounted_bytes():
    """What is resident beyond what the store says it has, buffers included.

    A reader or a compaction begins when two fetches meet, or enough rows are dead:
    its buffers are no leak, and are as large from the start as they ever get.
    """
    store = open_store("budgets")
    assert store is not None
    said = store.stats()["memory_bytes"]
    # Four readers, two writers with the keys of a segment, and 28 bytes a row.
    buffers = 4 * 12.1 * MIB + 2 * (4.1 * MIB + 10_000_000)
    assert said <= HOST_CACHE_MB * MIB + buffers + 28 * ROWS
    return resident_bytes() - said


def train(table, steps, seed):
    """The table, and the most unaccounted memory in each tenth of the steps."""
    random = np.random.default_rng(seed)
    later = oe.pack_ids(random.integers(0, ROWS, BATCH))
    peaks = []
    for tenth in np.array_split(np.arange(steps), 10):
        peak = 0
        for t in tenth:
            ids, later = later, oe.pack_ids(random.integers(0, ROWS, BATCH))
            table = step(table, ids, later)
            if t % 5 == 0:
                oe.check(table)
                peak = max(peak, unaccounted_bytes())
        peaks.append(peak)
    return table, peaks


def run_within_budgets(folder):
    """The most unaccounted memory of a long run in each tenth of its steps."""
    options = oe.make_cached_ssd_store_options(
        CACHE_MB, folder, host_cache_budget_mb=HOST_CACHE_MB
    )
    with oe.MultiTableEmbedding(
        "budgets", DIM, "float32", "int64", store_options=options, optimizer=oe.sgd(0.1)
    ) as emb:
        table = emb.init()
        assert 0.95 <= oe.stats(table)["bytes"] / (CACHE_MB * MIB) <= 1.001
        for first in range(0, ROWS, BATCH):
            ids = oe.pack_ids(np.arange(first, first + BATCH))
            table = step(table, ids, ids)
        # Else the SSD's index grows for as long as rows come to it the first time.
        table = oe.flush(table)
        table, _ = train(table, max(200, STEPS // 10), seed=1)
        table, peaks = train(table, STEPS, seed=2)
        assert oe.stats(table)["victims"] > 100 * STEPS
    return peaks


PROGRAM = """
import json, sys
from test_tiers_memory import run_within_budgets
print(json.dumps(run_within_budgets(sys.argv[1])))
"""


@pytest.mark.slow
def test_memory_is_what_the_budgets_say(tmp_path):
    # A process of its own: what other tests leave to the allocator is no matter.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
    )
    peaks = json.loads(run.stdout)
    # A quarter of a batch's rows, left behind in each step, would be over it.
    growth = max(peaks[5:]) - max(peaks[:5])
    assert growth <= 0.05 * (CACHE_MB + HOST_CACHE_MB) * MIB, peaks
