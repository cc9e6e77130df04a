"""A cached table against a dict, under any order of operations."""

import tempfile
from typing import Any

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import oneemb_jax as oe
from oneemb_jax.cache import budget_for

SLOTS, TABLES = 8, 2
#: All batches have one size: few programs are compiled.
BATCH = 4
IDS = st.lists(
    st.sampled_from([*range(20), 2**32, 2**63 - 1, -1]),
    min_size=BATCH,
    max_size=BATCH,
)
OF = st.lists(st.integers(0, TABLES - 1), min_size=BATCH, max_size=BATCH)
RATE = 0.5


@jax.jit
def _stage(table, ids, tables):
    return oe.stage(table, ids, tables)


@jax.jit
def _prefetch(table, ids, tables):
    return oe.prefetch(table, ids, tables)


@jax.jit
def _lookup(table, ids, tables):
    return oe.lookup(table, ids, tables)


def make_embedding(kind: str, folder: str) -> oe.MultiTableEmbedding:
    def embedding(name: str, options: Any) -> oe.MultiTableEmbedding:
        ones = oe.make_table_options(oe.make_constant_initializer(1.0))
        return oe.MultiTableEmbedding(
            name,
            2,
            "float32",
            "int64",
            tables=[ones] * TABLES,
            store_options=options,
            optimizer=oe.sgd(RATE),
        )

    with embedding("budget", oe.make_device_mem_store_options(capacity=1)) as plain:
        budget = budget_for(plain.spec, SLOTS)
    make = {
        "ssd": oe.make_cached_ssd_store_options,
        "host_mem": oe.make_cached_host_mem_store_options,
    }[kind]
    return embedding("model", make(budget, folder))


class CachedTable(RuleBasedStateMachine):
    """Rows whose gradients are 1 lose ``RATE`` for each position of an id."""

    @initialize(kind=st.sampled_from(["ssd", "host_mem"]))
    def begin(self, kind: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.embedding = make_embedding(kind, self.folder.name)
        self.table = self.embedding.init()
        self.rows: dict[tuple[int, int], float] = {}
        self.staged: set[tuple[int, int]] = set()
        self.saved: dict[str, dict[tuple[int, int], float]] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.embedding.close()
            self.folder.cleanup()

    def batch(self, ids: list[int], of: list[int]) -> tuple[Any, Any, list[Any]]:
        keys = list(zip(ids, of, strict=True))
        return oe.pack_ids(np.array(ids)), np.array(of, np.int32), keys

    @rule(ids=IDS, of=OF)
    def stage(self, ids: list[int], of: list[int]) -> None:
        words, tables, keys = self.batch(ids, of)
        self.table = _stage(self.table, words, tables)
        self.staged = set(keys)

    @rule(ids=IDS, of=OF)
    def prefetch(self, ids: list[int], of: list[int]) -> None:
        words, tables, _ = self.batch(ids, of)
        self.table = _prefetch(self.table, words, tables)

    @rule(ids=IDS, of=OF)
    def look_up(self, ids: list[int], of: list[int]) -> None:
        words, tables, keys = self.batch(ids, of)
        acts, _ = _lookup(self.table, words, tables)
        for key, row in zip(keys, np.array(acts), strict=True):
            # Others may be in the cache still.
            if key in self.staged or np.isfinite(row).all():
                assert row.tolist() == [self.rows.get(key, 1.0)] * 2

    @rule(ids=IDS, of=OF, first=st.booleans())
    def train(self, ids: list[int], of: list[int], first: bool) -> None:
        if first:
            self.stage(ids, of)
        words, tables, keys = self.batch(ids, of)
        acts, ctx = _lookup(self.table, words, tables)
        self.table = oe.update(self.table, ctx, np.ones_like(acts))
        if np.isfinite(acts).all():
            for key in keys:
                self.rows[key] = self.rows.get(key, 1.0) - RATE
        else:
            assert not first

    @rule(ids=IDS, of=OF, value=st.integers(-5, 5))
    def write(self, ids: list[int], of: list[int], value: int) -> None:
        _, tables, keys = self.batch(ids, of)
        rows = np.full((BATCH, 2), value, np.float32)
        self.table = oe.set_rows(self.table, np.array(ids), rows, table_ids=tables)
        self.rows |= dict.fromkeys(keys, float(value))
        self.staged = set(keys)

    @rule()
    def flush(self) -> None:
        self.table = oe.flush(self.table)

    @rule(ids=IDS, of=OF)
    def get(self, ids: list[int], of: list[int]) -> None:
        _, tables, keys = self.batch(ids, of)
        rows = oe.get_rows(self.table, np.array(ids), tables)
        assert rows.embedding[:, 0].tolist() == [self.rows.get(k, 1.0) for k in keys]
        assert rows.found.tolist() == [key in self.rows for key in keys]

    @rule()
    def list_all(self) -> None:
        found = {}
        for ids, tables, rows in oe.items(self.table, batch_size=5):
            for i, table, row in zip(ids, tables, rows, strict=True):
                assert (int(i), int(table)) not in found
                found[int(i), int(table)] = float(row[0])
        assert found == self.rows

    @precondition(lambda self: len(self.saved) < 3)
    @rule()
    def save(self) -> None:
        name = f"{len(self.saved)}"
        self.embedding.save_snapshot(self.table, name)
        self.saved[name] = dict(self.rows)

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.saved)))
        self.table = self.embedding.load_snapshot(name)
        self.rows = dict(self.saved[name])
        self.staged = set()

    @invariant()
    def counts_rows(self) -> None:
        if hasattr(self, "table"):
            assert oe.size(self.table) == len(self.rows)
            assert oe.stats(self.table)["stale"] == 0


TestCachedTable = CachedTable.TestCase
TestCachedTable.settings = settings(max_examples=30, stateful_step_count=30)
