"""Growing, reading and writing tables from the host, against a dict."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import oneemb_jax as oe
from helpers import make_spec, make_table, train
from oneemb_jax.table import init_table, num_buckets

IDS = st.lists(st.integers(-3, 40), min_size=1, max_size=12)


class TableMachine(RuleBasedStateMachine):
    """Random operations on a small table and on a dict of rows."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.table = make_table(self.dim, capacity=8, num_tables=2, name="machine")
        self.model = {}

    def initial(self, ids, tables):
        return np.asarray(oe.lookup(self.empty(), ids, tables)[0])

    def empty(self):
        return make_table(self.dim, capacity=8, num_tables=2, name="machine")

    def admit(self, ids, tables, values):
        for key, value in zip(zip(tables, ids, strict=True), values, strict=True):
            if key not in self.model and len(self.model) < self.table.capacity:
                self.model[key] = value

    @rule(ids=IDS, seed=st.integers(0, 99))
    def update(self, ids, seed):
        rng = np.random.default_rng(seed)
        ids = np.array(ids)
        tables = rng.integers(0, 2, len(ids))
        grads = rng.integers(-4, 5, (len(ids), self.dim)).astype(np.float32)
        self.admit(ids, tables, self.initial(ids, tables))
        self.table = train(self.table, ids, grads, table_ids=tables)
        for key, grad in zip(zip(tables, ids, strict=True), grads, strict=True):
            if key in self.model:
                self.model[key] = self.model[key] - np.float32(0.5) * grad

    @rule(ids=IDS, value=st.floats(-4, 4, width=16))
    def write(self, ids, value):
        ids, tables = np.array(ids), np.zeros(len(ids), np.int64)
        values = np.float32(value) + np.arange(len(ids), dtype=np.float32)[:, None]
        values = np.broadcast_to(values, (len(ids), self.dim))
        new = {(0, key) for key in ids.tolist()} - set(self.model)
        if len(self.model) + len(new) > self.table.capacity:
            with pytest.raises(ValueError, match=r"oe\.grow"):
                oe.set_rows(self.table, ids, values, table_ids=tables)
            return
        self.table = oe.set_rows(self.table, ids, values, table_ids=tables)
        for key, row in zip(ids.tolist(), values, strict=True):
            self.model[0, key] = row

    @precondition(lambda self: self.table.capacity < 64)
    @rule()
    def grow(self):
        self.table = oe.grow(self.table)

    @rule(ids=IDS)
    def read(self, ids):
        ids, tables = np.array(ids), np.ones(len(ids), np.int64)
        rows = oe.get_rows(self.table, ids, tables)
        initial = self.initial(ids, tables)
        for i, key in enumerate(ids.tolist()):
            assert rows.found[i] == ((1, key) in self.model)
            wanted = self.model.get((1, key), initial[i])
            np.testing.assert_allclose(rows.embedding[i], wanted, atol=1e-4)

    @invariant()
    def holds_the_model(self):
        assert oe.size(self.table) == len(self.model)
        seen = {}
        for ids, tables, rows in oe.items(self.table, batch_size=5):
            assert len(ids) <= 5
            for key, row in zip(zip(tables, ids, strict=True), rows, strict=True):
                assert key not in seen
                seen[key] = row
        assert seen.keys() == self.model.keys()
        for key, row in seen.items():
            np.testing.assert_allclose(row, self.model[key], atol=1e-4)


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=15, stateful_step_count=15)


@settings(max_examples=15)  # each is compiled
@given(st.integers(1, 300), st.integers(0, 300))
def test_growing_keeps_every_bit_of_every_row(rows, more):
    table = make_table(2, capacity=rows, optimizer=oe.adagrad(0.1))
    ids = np.arange(rows)
    table = train(table, ids, np.ones((rows, 2), np.float32))
    larger = oe.grow(table, rows + more)
    assert larger.capacity == rows + more
    assert larger.index.shape == (num_buckets(rows + more), 16)
    for one, other in zip(
        oe.get_rows(table, ids)[:1], oe.get_rows(larger, ids)[:1], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        oe.get_rows(table, ids).state["sum"], oe.get_rows(larger, ids).state["sum"]
    )
    assert oe.stats(larger)["step"] == 1


def test_the_old_table_survives_growth_and_donation():
    table = train(make_table(2), [1], np.ones((1, 2), np.float32))
    larger = oe.grow(table)
    jax.jit(lambda table: table, donate_argnums=0)(larger)
    assert oe.size(table) == 1


@pytest.mark.parametrize("capacity", [0, -1, 3, 2**31])
def test_growing_to_less_or_too_much(capacity):
    with pytest.raises(ValueError, match="grow\\(capacity="):
        oe.grow(make_table(2, capacity=4), capacity)


def test_state_is_read_and_written():
    table = make_table(2, optimizer=oe.adam(0.1))
    table = train(table, [4], np.array([[1.0, -1.0]]).astype(np.float32))
    rows = oe.get_rows(table, [4, 5])
    assert set(rows.state) == {"m", "v"}
    np.testing.assert_allclose(rows.state["m"], [[0.1, -0.1], [0, 0]], rtol=1e-6)
    copy = oe.set_rows(
        make_table(2, optimizer=oe.adam(0.1)), [4, 5], rows.embedding, rows.state
    )
    again = oe.get_rows(copy, [4, 5])
    np.testing.assert_array_equal(again.state["v"], rows.state["v"])
    assert again.found.all()


def test_state_words_of_a_row():
    table = make_table(3, optimizer=oe.smart_decay_adam(0.1))
    for _ in range(3):
        table = train(table, [4], np.ones((1, 3), np.float32))
    rows = oe.get_rows(table, [4, 5])
    np.testing.assert_array_equal(rows.state["last_step"], [3, 0])
    assert rows.state["last_step"].dtype == np.uint32


def test_a_row_given_twice_takes_the_last():
    table = oe.set_rows(make_table(1), [1, 2, 1], [[1.0], [2.0], [3.0]])
    np.testing.assert_array_equal(oe.get_rows(table, [1, 2]).embedding, [[3], [2]])


def test_set_rows_refuses_before_it_writes():
    table = make_table(2, padding_idx=0, num_tables=2, capacity=4)
    good = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="padding_idx"):
        oe.set_rows(table, [0], good, table_ids=0)
    with pytest.raises(ValueError, match="2 is no table"):
        oe.set_rows(table, [1], good, table_ids=2)
    with pytest.raises(ValueError, match=r"shape \(1, 3\), wanted \(1, 2\)"):
        oe.set_rows(table, [1], np.zeros((1, 3)), table_ids=0)
    with pytest.raises(ValueError, match="not in the state"):
        oe.set_rows(table, [1], good, {"m": good}, table_ids=0)
    assert oe.size(table) == 0


def test_nothing_read_or_written():
    table = make_table(2)
    rows = oe.get_rows(table, [])
    assert rows.embedding.shape == (0, 2)
    assert oe.size(oe.set_rows(table, [], np.zeros((0, 2)))) == 0
    assert list(oe.items(table)) == []


def test_items_of_every_key_type():
    for key_type, values in (
        ("int32", [-1, 5]),
        ("uint32", [2**32 - 1]),
        ("int64", [-(2**63), 5]),
        ("uint64", [2**64 - 1]),
    ):
        table = make_table(1, key_type=key_type)
        ids = np.array(values, key_type)
        table = train(table, ids, np.ones((len(ids), 1), np.float32))
        found = np.concatenate([part for part, _, _ in oe.items(table)])
        assert found.dtype == np.dtype(key_type)
        assert sorted(found) == sorted(ids)


def compiled(caplog, function):
    """Names of what JAX compiles while ``function`` runs."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        function()
    messages = [record.getMessage() for record in caplog.records]
    return [m.split()[1] for m in messages if m.startswith("Compiling")]


def test_items_compile_once(caplog):
    table = make_table(5, capacity=3000)
    table = train(table, np.arange(2900), np.ones((2900, 5), np.float32))
    first = compiled(caplog, lambda: list(oe.items(table, 64)))
    assert len(first) == 2, first
    assert compiled(caplog, lambda: list(oe.items(table, 64))) == []


def test_rows_of_many_sizes_compile_a_few_times(caplog):
    table = make_table(7, capacity=100)

    def read_and_write():
        written = table
        for n in range(1, 41):
            rows = oe.get_rows(written, np.arange(n))
            assert rows.embedding.shape == (n, 7)
            written = oe.set_rows(written, np.arange(n), np.full((n, 7), float(n)))
            assert oe.size(written) == n

    names = compiled(caplog, read_and_write)
    assert len([name for name in names if "read_rows" in name]) == 7
    assert len([name for name in names if "write_rows" in name]) == 7
    assert len(names) == 14, names


def cards():
    table = make_table((16, 1))
    yield jax.device_get(train(table, [1], np.ones((1, 17), np.float32))), "1 of 64"
    yield jax.eval_shape(lambda: table), "64 (shapes only)"
    yield jax.tree.map(lambda leaf: leaf.sharding, table), "no arrays of a table"
    yield jax.tree.map(lambda leaf: leaf.astype(float), table), "no arrays"
    yield jax.tree.map(lambda leaf: None, table), "no arrays"
    yield dataclasses.replace(table, step="x"), "no arrays"
    yield dataclasses.replace(table, rows=None), "no arrays"
    yield jax.tree.map(lambda leaf: leaf[:0], table), "no arrays"


def test_the_card_never_raises():
    for table, wanted in cards():
        assert "Table 'test_" in repr(table)
        assert wanted in repr(table), repr(table)


@pytest.mark.any_promotion
def test_the_card_inside_a_model():
    table = make_table(2)

    class Model(nnx.Module):
        def __init__(self):
            self.table = nnx.Variable(table)

    assert "Table" in str(Model())
    assert "Table" in str(nnx.state(Model()))


def test_the_card():
    table = train(make_table((16, 1)), [1], np.ones((1, 17), np.float32))
    card = repr(table)
    assert "17 = 16+1" in card
    assert "1 of 64 (1.6%), step 1" in card
    jax.jit(lambda table: (repr(table), table)[1], donate_argnums=0)(table)
    assert "donated" in repr(table)


def test_a_table_stays_on_the_device_it_was_made_for():
    device = jax.devices("cpu")[1]
    table = init_table(make_spec(4), device)
    table = train(table, np.array([1, 2]), np.ones((2, 4), np.float32))
    assert table.rows.devices() == {device}
    assert oe.grow(table).rows.devices() == {device}
    table = oe.set_rows(table, [9], np.ones((1, 4)))
    assert table.rows.devices() == {device}
    assert oe.get_rows(table, [9]).found.tolist() == [True]


def test_items_of_a_table_that_was_donated_meanwhile():
    table = oe.set_rows(make_table(capacity=64), np.arange(40), np.ones((40, 4)))
    rest = oe.items(table, batch_size=4)
    next(rest)
    jax.jit(lambda table: table, donate_argnums=0)(table)
    with pytest.raises(ValueError, match="donated to an earlier call"):
        list(rest)


def test_tables_are_compared_by_identity():
    a, b = make_table(), make_table()
    assert a == a
    assert a != b
    assert a in [b, a]


def test_grow_takes_a_whole_number_of_any_type():
    wrong: list[Any] = [8.5, True, "9"]
    whole: Any = 1e3
    assert oe.grow(make_table(capacity=8), whole).capacity == 1000
    for capacity in wrong:
        with pytest.raises(TypeError, match="pass a whole number"):
            oe.grow(make_table(capacity=8), capacity)


def test_a_list_that_jit_has_traced():
    with pytest.raises(TypeError, match=r"lookup\(ids=\[...\]\): a list of traced"):
        jax.jit(oe.lookup)(make_table(), [1, 2, 3])


def test_state_is_given_by_name():
    state: Any = [[1.0]]
    with pytest.raises(TypeError, match=r"set_rows\(state=\.\.\.\): list; pass a dict"):
        oe.set_rows(make_table(2), [1], [[1.0, 2.0]], state)
