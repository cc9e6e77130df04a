"""What the tests of snapshots share: embeddings to save, and tables compared."""

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np

import oneemb_jax as oe
from oneemb_jax.items import raw_items

OPTIMIZERS = {
    "sgd": oe.sgd(0.1),
    "momentum": oe.sgd(0.1, momentum=0.9),
    "adam": oe.adam(0.1),
    "amsgrad": oe.amsgrad(0.1, weight_decay=0.1),
    "adagrad": oe.adagrad(0.1, lr_decay=0.1),
    "rowwise_adagrad": oe.rowwise_adagrad(0.1),
    "ftrl": oe.ftrl(0.1, lambda1=0.5),
    "smart_decay_adam": oe.smart_decay_adam(0.1),
    "lamb": oe.lamb(0.1, weight_decay=0.1),
    "schedule": oe.sgd(lambda step: 0.5 / (1.0 + step.astype(np.float32))),
}
UNIFORM = oe.make_uniform_initializer(-1.0, 1.0)


@contextlib.contextmanager
def embedding(folder: Any, dim: Any = 4, capacity: int = 64, **changes: Any) -> Any:
    """An embedding with snapshots in ``folder``; closed at the end."""
    options: dict[str, Any] = {
        "name": "saved",
        "embedding_dim": dim,
        "dtype": "float32",
        "key_type": "int64",
        "default_initializer": None if "tables" in changes else UNIFORM,
        "optimizer": oe.adam(0.1),
        "store_options": oe.make_device_mem_store_options(folder, capacity),
    }
    with oe.MultiTableMultiColumnEmbedding(**{**options, **changes}) as emb:
        yield emb


@contextlib.contextmanager
def largest_file(most: int) -> Iterator[None]:
    """No file gets, or reserves, more bytes: an OSError, as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(table: oe.Table) -> dict[tuple[int, int], bytes]:
    """Every row to the bit, by (table, id)."""
    found = {}
    for ids, tables, rows in raw_items(table, 7):
        for id_, of, row in zip(ids, tables, rows, strict=True):
            assert (int(of), int(id_)) not in found
            found[int(of), int(id_)] = row.tobytes()
    return found


def assert_same(a: oe.Table, b: oe.Table) -> None:
    """Equal in all but slots and capacity."""
    assert contents(a) == contents(b)
    for leaf in ("counters", "step", "generation", "learning_rate"):
        np.testing.assert_array_equal(getattr(a, leaf), getattr(b, leaf), leaf)


def batches(
    num_tables: int, dim: int, start: int, stop: int, most: int = 40
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids [8, num_tables], some of them extreme, and gradients, a step each."""
    for step in range(start, stop):
        random = np.random.default_rng(step)
        ids = random.integers(0, most, (8, num_tables)).astype(np.int64)
        ids[ids == 3] = -1
        ids[ids == 4] = 2**63 - 1
        ids[ids == 5] = -(2**63)
        yield ids, random.standard_normal((8, num_tables, dim)).astype(np.float32)


def train(table: oe.Table, start: int, stop: int, most: int = 40) -> oe.Table:
    """Steps from ``start`` to ``stop``; the batches depend on the step alone."""
    spec = table.spec
    for ids, grads in batches(spec.num_tables, spec.embedding_dim, start, stop, most):
        _, ctx = oe.lookup(table, ids)
        table = oe.update(table, ctx, grads)
    return table
