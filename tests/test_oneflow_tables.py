"""OneFlow's snapshots into tables and back, the state of each optimizer included."""

import itertools
import struct

import numpy as np
import pytest

import oneemb_jax as oe
import oneemb_jax.oneflow as oneflow
from helpers import train
from oneflow_files import read_slowly, write_table

_names = itertools.count()

DIM = 6
#: OneFlow's order of a row behind the embedding (docs/formats/oneflow.md).
OPTIMIZERS = [
    (oe.sgd(0.1), []),
    (oe.sgd(0.1, momentum=0.9), ["momentum"]),
    (oe.sgd(0.1, momentum=0.9, nesterov=True), ["momentum"]),
    (oe.adam(0.1), ["m", "v"]),
    (oe.adam(0.1, bias_correction=False), ["m", "v"]),
    (oe.adamw(0.1), ["m", "v"]),
    (oe.adagrad(0.1, initial_accumulator_value=0.5), ["sum"]),
    (oe.adagrad(0.1, lr_decay=0.1), ["sum"]),
    (oe.ftrl(0.1), ["sum", "z"]),
    (oe.smart_decay_adam(0.1), ["m", "v"]),
]
NOT_ONEFLOWS = [oe.amsgrad(0.1), oe.rowwise_adagrad(0.1), oe.lamb(0.1)]


def embedding(optimizer=None, dim=DIM, capacity=64, key_type="int64", **options):
    return oe.MultiTableEmbedding(
        f"oneflow_{next(_names)}",
        dim,
        "float32",
        key_type,
        store_options=oe.make_device_mem_store_options(capacity=capacity),
        optimizer=optimizer if optimizer is not None else oe.sgd(0.1),
        **options,
    )


def tables(count, initializer=None):
    one = initializer or oe.make_constant_initializer(0.0)
    return [oe.make_table_options(one)] * count


def draw(key_type="int64", width=DIM, count=20, seed=0):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(key_type)
    keys = rng.integers(limits.min, limits.max, count, key_type, endpoint=True)
    keys[:3] = 1, limits.min, limits.max
    rows = rng.uniform(0.5, 1.0, (count, width)).astype(np.float32)
    return keys, rows


def oneflow_row(parts, step=None):
    """Bytes of a row as OneFlow lays it out: fields, padding, an int64 step."""
    data = b"".join(np.asarray(part, "<f4").tobytes() for part in parts)
    if step is not None:
        data += bytes(-len(data) % 8) + struct.pack("<q", step)
    return data


@pytest.mark.parametrize(("optimizer", "fields"), OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dim", [1, 5, 8])
def test_the_state_of_every_optimizer(tmp_path, optimizer, fields, dim):
    smart = optimizer.name == "smart_decay_adam"
    keys, values = draw(width=dim * (1 + len(fields)))
    parts = [np.split(row, 1 + len(fields)) for row in values]
    steps = np.arange(len(keys)) if smart else [None] * len(keys)
    raw = [oneflow_row(p, s) for p, s in zip(parts, steps, strict=True)]
    rows = np.frombuffer(b"".join(raw), "<f4").reshape(len(keys), -1)
    write_table(tmp_path, [(keys, rows)], num_ranks=2)
    emb = embedding(optimizer, dim)
    table = oneflow.import_snapshot(emb, tmp_path, "final", step=30)
    assert (oe.size(table), oe.stats(table)["step"]) == (len(keys), 30)
    found = oe.get_rows(table, keys)
    assert found.found.all()
    np.testing.assert_array_equal(found.embedding, values[:, :dim])
    for i, field in enumerate(fields, start=1):
        wanted = values[:, i * dim : (i + 1) * dim]
        np.testing.assert_array_equal(found.state[field], wanted)
    if smart:
        np.testing.assert_array_equal(found.state["last_step"], steps)
    assert len(found.state) == len(fields) + smart
    # And back, byte for byte.
    out = tmp_path / "out"
    count = oneflow.export_snapshot(table, out, "again", num_ranks=3)
    assert count == len(keys)
    wanted = zip(keys.view(np.uint64).tolist(), raw, strict=True)
    assert sorted(read_slowly(out, "again")) == sorted(wanted)


@pytest.mark.parametrize(("optimizer", "fields"), OPTIMIZERS, ids=repr)
def test_training_goes_on_as_if_nothing_had_happened(tmp_path, optimizer, fields):
    del fields
    keys = np.arange(10)
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 10, DIM)).astype(np.float32)
    emb = embedding(optimizer)
    table = emb.init()
    for i in range(3):
        table = train(table, keys[i:], grads[i, i:])
    oneflow.export_snapshot(table, tmp_path / "table", "third")
    again = oneflow.import_snapshot(emb, tmp_path / "table", "third", step=3)
    for i in range(3, 6):
        table = train(table, keys, grads[i])
        again = train(again, keys, grads[i])
    one, other = oe.get_rows(table, keys), oe.get_rows(again, keys)
    np.testing.assert_array_equal(one.embedding, other.embedding)
    for field, values in one.state.items():
        np.testing.assert_array_equal(values, other.state[field])


@pytest.mark.parametrize("key_type", ["int32", "uint32", "int64", "uint64"])
def test_every_key_type(tmp_path, key_type):
    keys, rows = draw(key_type)
    write_table(tmp_path / "in", [(keys, rows)], num_ranks=3)
    emb = embedding(key_type=key_type)
    table = oneflow.import_snapshot(emb, tmp_path / "in", "final")
    np.testing.assert_array_equal(oe.get_rows(table, keys).embedding, rows)
    oneflow.export_snapshot(
        table, tmp_path / "out", "final", num_ranks=5, physical_block_size=512
    )
    slow = (sorted(read_slowly(tmp_path / place)) for place in ("in", "out"))
    assert next(slow) == next(slow)


def test_many_rows(tmp_path):
    """More than one batch in and out, with rows rewritten in between."""
    count = 150_000
    keys = np.random.default_rng(0).permutation(count).astype(np.int64) * 2**40
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    with embedding(dim=2, capacity=count) as emb:
        table = emb.init()
        for part in np.array_split(np.arange(count), 5):
            table = oe.set_rows(table, keys[part], rows[part])
        oneflow.export_snapshot(table, tmp_path / "out", "final", num_ranks=2)
        again = oneflow.import_snapshot(emb, tmp_path / "out", "final")
    assert oe.size(again) == count
    np.testing.assert_array_equal(oe.get_rows(again, keys).embedding, rows)
    assert oneflow.verify_snapshot(tmp_path / "out", "final") == []


def test_columns(tmp_path):
    keys, rows = draw(width=2 * 5)
    write_table(tmp_path, [(keys, rows)])
    emb = oe.MultiTableMultiColumnEmbedding(
        "oneflow_columns",
        [4, 1],
        "float32",
        "int64",
        store_options=oe.make_device_mem_store_options(capacity=64),
        optimizer=oe.adagrad(0.1),
    )
    table = oneflow.import_snapshot(emb, tmp_path, "final")
    acts, _ = emb(table, keys)
    deep, wide = emb.split(acts)
    np.testing.assert_array_equal(deep, rows[:, :4])
    np.testing.assert_array_equal(wide, rows[:, 4:5])


def test_tables_that_share_their_keys(tmp_path):
    keys, rows = draw()
    write_table(tmp_path / "in", [(keys, rows)])
    emb = embedding(tables=tables(3), key_space="shared")
    table = oneflow.import_snapshot(emb, tmp_path / "in", "final")
    for i in range(3):
        acts, _ = oe.lookup(table, keys, np.array(i))
        np.testing.assert_array_equal(acts, rows)
    with pytest.raises(ValueError, match=r"table_of=.*share their keys"):
        oneflow.import_snapshot(emb, tmp_path / "in", "final", table_of=lambda k: k)
    oneflow.export_snapshot(table, tmp_path / "out", "final")
    slow = (sorted(read_slowly(tmp_path / place)) for place in ("in", "out"))
    assert next(slow) == next(slow)


def test_tables_that_keep_their_keys_separate(tmp_path):
    keys = np.arange(3, 33)
    rows = np.random.default_rng(0).standard_normal((30, DIM)).astype(np.float32)
    write_table(tmp_path / "in", [(keys, rows)])
    emb = embedding(tables=tables(3))
    with pytest.raises(ValueError, match=r"table_of=None.*key_space='shared'"):
        oneflow.import_snapshot(emb, tmp_path / "in", "final")
    table = oneflow.import_snapshot(
        emb, tmp_path / "in", "final", table_of=lambda keys: keys % 3
    )
    found = oe.get_rows(table, keys, (keys % 3).astype(np.int32))
    np.testing.assert_array_equal(found.embedding, rows)
    assert not oe.get_rows(table, keys, (keys % 3 + 1) % 3).found.any()
    oneflow.export_snapshot(table, tmp_path / "out", "final")
    slow = (sorted(read_slowly(tmp_path / place)) for place in ("in", "out"))
    assert next(slow) == next(slow)


def test_the_same_id_in_two_tables(tmp_path):
    emb = embedding(tables=tables(2))
    ids, table_ids = np.array([7, 7, 8]), np.array([0, 1, 1])
    rows = np.arange(3 * DIM, dtype=np.float32).reshape(3, DIM)
    table = oe.set_rows(emb.init(), ids, rows, table_ids=table_ids)
    with pytest.raises(ValueError, match="key 7 was written twice"):
        oneflow.export_snapshot(table, tmp_path / "out", "final")
    assert list(tmp_path.iterdir()) == []
    oneflow.export_snapshot(
        table, tmp_path / "out", "final", key_of=lambda ids, tables: 2 * ids + tables
    )
    assert {key for key, _ in read_slowly(tmp_path / "out")} == {14, 15, 17}
    with pytest.raises(ValueError, match=r"key_of=.*int32.*expected int64\[3\]"):
        oneflow.export_snapshot(
            table, tmp_path / "x", "final", key_of=lambda ids, tables: tables
        )


@pytest.mark.parametrize(
    ("table_of", "message"),
    [
        (lambda keys: keys % 3 - 1, "is in table -1, but there are 2"),
        (lambda keys: keys * 0 + 2, "is in table 2, but there are 2"),
        (lambda keys: keys / 2, "dtype float64"),
        (lambda keys: 0, r"shape \(\); expected integers of shape \(20,\)"),
    ],
)
def test_a_wrong_table_of(tmp_path, table_of, message):
    keys, rows = draw()
    write_table(tmp_path, [(np.abs(keys // 2), rows)])
    emb = embedding(tables=tables(2))
    with pytest.raises(ValueError, match=message):
        oneflow.import_snapshot(emb, tmp_path, "final", table_of=table_of)


def test_capacity(tmp_path):
    keys, rows = draw()
    write_table(tmp_path, [(keys, rows)])
    emb = embedding(capacity=19)
    with pytest.raises(ValueError, match=r"has 20 rows.*room for 19.*grow=True"):
        oneflow.import_snapshot(emb, tmp_path, "final")
    table = oneflow.import_snapshot(emb, tmp_path, "final", grow=True)
    assert (table.capacity, oe.size(table)) == (20, 20)
    np.testing.assert_array_equal(oe.get_rows(table, keys).embedding, rows)
    large = oneflow.import_snapshot(embedding(), tmp_path, "final", grow=True)
    assert large.capacity == 64


@pytest.mark.parametrize("optimizer", [*NOT_ONEFLOWS, oe.adam(0.1)], ids=repr)
def test_embeddings_without_their_state(tmp_path, optimizer):
    keys, rows = draw(width=2 * DIM)  # of Adagrad, say
    write_table(tmp_path / "in", [(keys, rows)])
    emb = embedding(optimizer)
    with pytest.raises(ValueError, match="optimizer_state=False"):
        oneflow.import_snapshot(emb, tmp_path / "in", "final", step=1)
    table = oneflow.import_snapshot(
        emb, tmp_path / "in", "final", optimizer_state=False
    )
    found = oe.get_rows(table, keys)
    np.testing.assert_array_equal(found.embedding, rows[:, :DIM])
    new = oe.get_rows(emb.init(), keys)
    for field, values in new.state.items():
        np.testing.assert_array_equal(found.state[field], values)
    oneflow.export_snapshot(table, tmp_path / "out", "final", optimizer_state=False)
    words = keys.view(np.uint64).tolist()
    wanted = zip(words, (row[:DIM].tobytes() for row in rows), strict=True)
    assert sorted(read_slowly(tmp_path / "out")) == sorted(wanted)
    with pytest.raises(ValueError, match="too few for embedding_dim=13"):
        oneflow.import_snapshot(
            embedding(dim=13), tmp_path / "in", "final", optimizer_state=False
        )


@pytest.mark.parametrize("optimizer", NOT_ONEFLOWS, ids=repr)
def test_optimizers_that_oneflow_does_not_have(tmp_path, optimizer):
    table = embedding(optimizer).init()
    with pytest.raises(ValueError, match=f"OneFlow has no {optimizer.name}"):
        oneflow.export_snapshot(table, tmp_path / "out", "final")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("optimizer", "needed"),
    [
        (oe.sgd(0.1), False),
        (oe.sgd(lambda step: 0.1), True),
        (oe.adam(0.1), True),
        (oe.adam(0.1, bias_correction=False), False),
        (oe.adagrad(0.1), False),
        (oe.adagrad(0.1, lr_decay=0.1), True),
        (oe.ftrl(0.1), False),
        (oe.smart_decay_adam(0.1), True),
    ],
    # Without addresses: a test has the same name in every worker of pytest.
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_the_step_is_asked_for_where_it_counts(tmp_path, optimizer, needed):
    width = optimizer.storage_dim(DIM)
    write_table(tmp_path, [(np.arange(3), np.zeros((3, width), np.float32))])
    emb = embedding(optimizer)
    if needed:
        with pytest.raises(ValueError, match=r"step=None.*pass step="):
            oneflow.import_snapshot(emb, tmp_path, "final")
    else:
        table = oneflow.import_snapshot(emb, tmp_path, "final")
        assert oe.stats(table)["step"] == 0
    table = oneflow.import_snapshot(emb, tmp_path, "final", step=2**32 - 1)
    assert oe.stats(table)["step"] == 2**32 - 1


@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (2**32, ValueError), (1.0, TypeError)]
)
def test_a_wrong_step(tmp_path, step, error):
    with pytest.raises(error, match=r"import_snapshot\(step="):
        oneflow.import_snapshot(embedding(), tmp_path, "final", step=step)


@pytest.mark.parametrize("last", [-1, 2**32, 5])
def test_a_wrong_last_step(tmp_path, last):
    row = oneflow_row([np.ones(3 * DIM)], last)
    rows = np.frombuffer(row, "<f4").reshape(1, -1)
    write_table(tmp_path, [(np.array([7]), rows)])
    emb = embedding(oe.smart_decay_adam(0.1))
    message = f"last updated at step {last}"
    with pytest.raises(ValueError, match=message):
        oneflow.import_snapshot(emb, tmp_path, "final", step=4)


def test_the_row_of_padding_idx_is_left_out(tmp_path):
    keys, rows = draw()
    write_table(tmp_path, [(keys, rows)])
    emb = embedding(padding_idx=int(keys[1]))
    with pytest.warns(UserWarning, match=f"padding_idx {keys[1]}"):
        table = oneflow.import_snapshot(emb, tmp_path, "final")
    assert oe.size(table) == 19
    assert not oe.get_rows(table, keys[1:2]).found.any()
    emb = embedding(padding_idx=12345)
    assert oe.size(oneflow.import_snapshot(emb, tmp_path, "final")) == 20


def test_a_key_that_is_there_twice(tmp_path):
    keys, rows = draw()
    write_table(tmp_path, [(keys, rows)])
    path = tmp_path / "0-1" / "keys" / "key-000000000000"
    stored = np.fromfile(path, "<i8")
    stored[5] = stored[6]
    stored.tofile(path)
    with pytest.raises(ValueError, match="1 rows have a key that another row has"):
        oneflow.import_snapshot(embedding(), tmp_path, "final")


def test_what_is_no_embedding_and_no_table(tmp_path):
    table = embedding().init()
    with pytest.raises(TypeError, match=r"embedding=.*got Table"):
        oneflow.import_snapshot(table, tmp_path, "final")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"export_snapshot\(table="):
        oneflow.export_snapshot(None, tmp_path, "final")  # pyright: ignore[reportArgumentType]


def test_another_key_type_or_width(tmp_path):
    keys, rows = draw("int32")
    write_table(tmp_path, [(keys, rows)])
    with pytest.raises(ValueError, match="keys have 4 bytes, but key_type=int64"):
        oneflow.import_snapshot(embedding(), tmp_path, "final")
    emb = embedding(oe.adagrad(0.1), key_type="int32")
    with pytest.raises(ValueError, match=r"storage_dim=6, but adagrad .* needs 12"):
        oneflow.import_snapshot(emb, tmp_path, "final")


@pytest.mark.parametrize("name", oneflow.__all__)
def test_public_names_are_documented(name):
    doc = getattr(oneflow, name).__doc__
    assert doc
    assert name == "Snapshot" or ">>> " in doc
