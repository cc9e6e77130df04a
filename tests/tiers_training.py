"""A training run that may be killed: goes on from its last snapshot.

python tiers_training.py FOLDER KIND STEPS prints each step that it has done, and at
the end a digest of all that the run made.
"""

import hashlib
import re
import sys

import jax
import numpy as np

import oneemb_jax as oe

BATCH, TABLES, DIM = 8, 2, 4
IDS = 150
#: Steps from one snapshot to the next.
EVERY = 3


def embedding(store_options, name="killed"):
    return oe.MultiTableEmbedding(
        name,
        DIM,
        "float32",
        "int64",
        tables=[oe.make_table_options(oe.make_uniform_initializer(-1.0, 1.0))] * TABLES,
        store_options=store_options,
        optimizer=oe.adam(0.05),
        seed=3,
    )


def batch(t):
    ids = np.random.default_rng(t).integers(0, IDS, (BATCH, TABLES))
    return oe.pack_ids(ids)


@jax.jit
def step(table, ids, later):
    table = oe.prefetch(oe.stage(table, ids), later)
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, acts)


def digest(table):
    """Of every row, its state, and the counts that a run is to repeat."""
    ids = np.repeat(np.arange(IDS)[:, np.newaxis], TABLES, 1)
    rows = oe.get_rows(table, ids)
    state = [rows.state[name] for name in sorted(rows.state)]
    counts = [oe.stats(table)[n] for n in ("rows", "step", "hits", "misses")]
    every = [rows.embedding, rows.found, *state, np.array(counts)]
    return hashlib.sha256(b"".join(array.tobytes() for array in every)).hexdigest()


def options(kind, folder):
    if kind == "device_mem":
        return oe.make_device_mem_store_options(folder, capacity=2 * IDS)
    make = {
        "ssd": oe.make_cached_ssd_store_options,
        "host_mem": oe.make_cached_host_mem_store_options,
    }[kind]
    return make(0.004, folder)  # 31 rows: two batches


def newest(emb):
    """The step of the last snapshot, and the names of all."""
    names = emb.list_snapshots()
    return max((int(re.sub(r"\D", "", name)) for name in names), default=0), names


def run(folder, kind, steps):
    with embedding(options(kind, folder)) as emb:
        done, _ = newest(emb)
        table = emb.load_snapshot(f"step_{done}") if done else emb.init()
        for t in range(done, steps):
            table = step(table, batch(t), batch(t + 1))
            if t % EVERY == EVERY - 1:
                older = newest(emb)[1]
                emb.save_snapshot(table, f"step_{t + 1}")
                for name in older:
                    emb.delete_snapshot(name)
            print(t, flush=True)
        oe.check(table)
        return digest(table)


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2], int(sys.argv[3])), flush=True)
