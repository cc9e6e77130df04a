"""save and restore: tables beside pytrees, there and back."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import oneemb_jax as oe
from snapshots import UNIFORM, assert_same, contents, embedding, train

DTYPES = [
    "float32", "float16", "bfloat16", "float8_e4m3fn", "int4", "int8", "uint32",
    "int64", "float64", "complex64", "bool", "<M8[ns]", "<U3", "S2",
]  # fmt: skip
JAX_DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "complex64"]
SHAPES = st.sampled_from([(), (0,), (3,), (2, 0, 4), (2, 3)])


def any_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    numbers = np.random.default_rng(seed).integers(0, 7, shape)
    if dtype == "<M8[ns]":
        return numbers.astype("<M8[s]").astype(dtype)
    return np.asarray(numbers).astype(jnp.dtype(dtype))


SEEDS = st.integers(0, 9)
LEAVES = st.one_of(
    st.builds(any_array, st.sampled_from(DTYPES), SHAPES, SEEDS),
    st.builds(
        lambda *words: jnp.asarray(any_array(*words)),
        st.sampled_from(JAX_DTYPES),
        SHAPES,
        SEEDS,
    ),
    st.builds(np.float32, st.floats(width=32)),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.none(),
)
NAMES = st.text() | st.integers() | st.booleans()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_equal(a: Any, b: Any) -> None:
    """Same types, same bits, same order of keys."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert [*a] == [*b]
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif hasattr(a, "dtype"):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    elif isinstance(a, float):
        assert (a == b and math.copysign(1, a) == math.copysign(1, b)) or a != a
    elif not isinstance(a, complex) or a == a:
        assert a == b


@settings(max_examples=60)
@given(first=TREES, second=TREES)
def test_there_and_back(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("tree") / "save"
    oe.save(path, first=first, second=second)
    back = oe.restore(path)
    assert [*back] == ["first", "second"]
    assert_equal(back["first"], first)
    assert_equal(back["second"], second)
    assert [*oe.restore(path, "second")] == ["second"]
    try:
        leaves, structure = jax.tree.flatten(first)
    except ValueError:  # keys of a dict that JAX can't sort
        return
    like = oe.restore(path, like={"first": first})["first"]
    assert jax.tree.structure(like) == structure
    assert_equal(jax.tree.leaves(like), leaves)


def test_paths_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, error, message in [
        (None, TypeError, "None is no path"),
        (3, TypeError, "3 is no path"),
        ("", ValueError, "empty"),
        ("a\0b", ValueError, "NUL"),
        ("~/a", ValueError, "expanduser"),
    ]:
        for call in (functools.partial(oe.save, x=1), oe.restore):
            with pytest.raises(error, match=rf"(save|restore)\(path\).*{message}"):
                call(path)
    assert not list(tmp_path.iterdir())


def test_keys_of_jax_random(tmp_path):
    keys = {"one": jax.random.key(3), "many": jax.random.split(jax.random.key(4), 5)}
    oe.save(tmp_path / "a", keys=keys)
    for back in (
        oe.restore(tmp_path / "a"),
        oe.restore(tmp_path / "a", like={"keys": keys}),
    ):
        for name, key in keys.items():
            found = back["keys"][name]
            assert (found.dtype, found.shape) == (key.dtype, key.shape)
            np.testing.assert_array_equal(
                jax.random.key_data(found), jax.random.key_data(key)
            )


def test_anybody_can_read_the_arrays(tmp_path):
    oe.save(tmp_path / "a", params={"w": np.arange(3.0)})
    with np.load(tmp_path / "a" / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].tolist() == [0, 1, 2]


# --- tables ---


def test_a_table_beside_a_model(tmp_path):
    tx = optax.adamw(1e-3)
    params = {"w": jnp.ones((4, 2), jnp.bfloat16), "b": [jnp.zeros(2), None]}
    opt_state = tx.init(params)
    with embedding(None) as emb:
        table = train(emb.init(), 0, 3)
        oe.save(tmp_path / "a", table=table, params=params, opt_state=opt_state, step=3)
        like = {"table": emb, "opt_state": opt_state}
        state = oe.restore(tmp_path / "a", like=like)
        assert state["table"].spec == emb.spec
        assert_same(state["table"], table)
        assert_same(train(state["table"], 3, 6), train(table, 3, 6))
    assert_equal(state["params"], params)
    assert state["step"] == 3
    assert jax.tree.structure(state["opt_state"]) == jax.tree.structure(opt_state)
    for a, b in zip(
        *map(jax.tree.leaves, (state["opt_state"], opt_state)), strict=True
    ):
        assert_equal(a, b)


def test_a_table_without_its_embedding(tmp_path):
    with embedding(None, [2, 3], padding_idx=7, seed=5) as emb:
        table = oe.grow(train(emb.init(), 0, 3), 100)
        oe.save(tmp_path / "a", model=[table, {"x": 1}])
    back = oe.restore(tmp_path / "a")["model"][0]
    assert_same(back, table)
    assert back.capacity == 100
    assert back.spec.differences(table.spec).startswith("store (None, not ")
    assert back.spec.optimizer.learning_rate == 0.1
    assert_same(train(back, 3, 5), train(table, 3, 5))


def test_several_tables_and_what_they_may_be_filled_into(tmp_path):
    with embedding(None) as a, embedding(None, 3, name="b") as b:
        tables = {"a": train(a.init(), 0, 2), "b": train(b.init(), 0, 3)}
        oe.save(tmp_path / "s", tables=tables)
        device = jax.devices()[2]
        like = {"a": a, "b": b.init(device)}
        back = oe.restore(tmp_path / "s", like={"tables": like})["tables"]
        for name in tables:
            assert_same(back[name], tables[name])
        assert back["b"].rows.devices() == {device}
        # Each table is a snapshot, too.
        assert_same(a.load_snapshot(tmp_path / "s" / "table-0"), tables["a"])
        wrong = {"tables": {"a": b, "b": a}}
        with pytest.raises(ValueError, match="embedding_dim: the snapshot has 4"):
            oe.restore(tmp_path / "s", like=wrong)


def test_shapes_in_the_place_of_a_table(tmp_path):
    with embedding(None) as emb:
        table = train(emb.init(), 0, 2)
        oe.save(tmp_path / "s", table=table)
        shapes = jax.eval_shape(emb.init)
        for like in (shapes, jax.device_get(table)):
            assert_same(
                oe.restore(tmp_path / "s", like={"table": like})["table"], table
            )


def test_tables_go_where_like_has_them(tmp_path):
    devices = jax.devices()[:2]
    mesh = jax.make_mesh((2,), ("data",), devices=devices)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    second = jax.sharding.SingleDeviceSharding(devices[1])
    with embedding(None) as emb:
        table = train(emb.init(), 0, 2)
        oe.save(tmp_path / "s", table=table)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=second), table
        )
        likes = {jax.device_put(table, replicated): set(devices), shapes: {devices[1]}}
        for like, expected in likes.items():
            back = oe.restore(tmp_path / "s", like={"table": like})["table"]
            assert_same(back, table)
            assert back.rows.devices() == back.index.devices() == expected


def test_a_schedule_needs_the_embedding(tmp_path):
    optimizer = oe.sgd(optax.constant_schedule(0.1))
    with embedding(None, optimizer=optimizer) as emb:
        table = train(emb.init(), 0, 2)
        oe.save(tmp_path / "a", table=table)
        with pytest.raises(ValueError, match=r"was a schedule.*pass like="):
            oe.restore(tmp_path / "a")
        assert_same(oe.restore(tmp_path / "a", like={"table": emb})["table"], table)


def test_tables_that_share_keys(tmp_path):
    tables = [oe.make_table_options(UNIFORM)] * 3
    with embedding(None, tables=tables, key_space="shared") as emb:
        table = train(emb.init(), 0, 2)
        oe.save(tmp_path / "a", table=table)
        assert contents(oe.restore(tmp_path / "a")["table"]) == contents(table)


# --- other nodes ---


class Point(NamedTuple):
    x: Any
    y: Any


class Linear(eqx.Module):
    weight: jax.Array
    name: str = eqx.field(static=True)


def test_other_nodes_need_a_structure(tmp_path):
    tree = {"points": [Point(jnp.ones(2), {"z": 3}), Point(None, 2.5)]}
    oe.save(tmp_path / "a", tree=tree, rest=1)
    with pytest.raises(ValueError, match="pass like=") as caught:
        oe.restore(tmp_path / "a")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0] for line in lines] == [
        "  tree['points'][0]",
        "  tree['points'][1]",
    ]
    assert "test_saving.Point" in lines[0]
    assert oe.restore(tmp_path / "a", "rest") == {"rest": 1}
    empty = {"points": [Point(jnp.zeros(2), {"z": 0}), Point(None, 0.0)]}
    back = oe.restore(tmp_path / "a", like={"tree": empty})["tree"]
    assert type(back["points"][0]) is Point
    assert_equal(jax.tree.leaves(back), jax.tree.leaves(tree))


def test_models_of_equinox_and_flax(tmp_path):
    module = Linear(jnp.arange(3.0), "first")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    oe.save(tmp_path / "a", module=module, state=nnx.state(model))
    fresh = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    like = {"module": Linear(jnp.zeros(3), "second"), "state": fresh}
    back = oe.restore(tmp_path / "a", like=like)
    assert back["module"].name == "second"
    assert_equal(back["module"].weight, module.weight)
    assert_equal(jax.tree.leaves(back["state"]), jax.tree.leaves(nnx.state(model)))


def test_every_mismatch_is_listed(tmp_path):
    with embedding(None) as emb:
        saved = {
            "a": np.zeros(3), "b": jnp.ones(2), "c": 1, "d": emb.init(), "e": "x",
            "f": jax.random.key(0),
        }  # fmt: skip
        oe.save(tmp_path / "a", tree=saved)
        like = {
            "a": np.zeros(4), "b": jnp.ones(2, jnp.int32), "c": 1.0, "d": 3, "g": 1,
            "f": jax.random.split(jax.random.key(0)),
        }  # fmt: skip
        with pytest.raises(ValueError, match="do not match") as caught:
            oe.restore(tmp_path / "a", like={"tree": like})
    assert str(caught.value).splitlines()[1:] == [
        "  tree['a']: saved is float64[3], like has float64[4]",
        "  tree['b']: saved is float32[2], like has int32[2]",
        "  tree['c']: saved is int, like has float",
        "  tree['d']: saved is a table, like has int",
        "  tree['f']: saved is key[2], like has key[2, 2]",
        "  tree['g']: saved is nothing, like has int",
        "  tree['e']: saved is str, like has nothing",
    ]


def test_arrays_go_where_like_has_them(tmp_path):
    mesh = jax.make_mesh((4,), ("x",))
    split = jax.NamedSharding(mesh, jax.P("x"))
    spread = jax.device_put(jnp.arange(8.0), split)
    oe.save(tmp_path / "a", a=spread, b=np.ones(2, np.float32))
    shape = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split)
    for like in (spread, shape):
        back = oe.restore(tmp_path / "a", "a", like={"a": like})["a"]
        assert back.sharding == split
        assert_equal(np.asarray(back), np.arange(8, dtype=np.float32))
    assert not oe.restore(tmp_path / "a")["a"].committed
    like = {"a": np.zeros(8, np.float32), "b": jnp.zeros(2)}
    back = oe.restore(tmp_path / "a", like=like)
    assert type(back["a"]) is np.ndarray
    assert isinstance(back["b"], jax.Array)


def test_arrays_of_x64_do_not_lose_bits(tmp_path):
    with jax.enable_x64(True):
        oe.save(tmp_path / "a", x=jnp.arange(3.0))
        back = oe.restore(tmp_path / "a")["x"]
        assert back.dtype == np.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        oe.restore(tmp_path / "a")
    back = oe.restore(tmp_path / "a", like={"x": np.zeros(3)})["x"]
    assert back.dtype == np.float64


# --- what can't be ---


class Opaque:
    # Without its address: a test has the same name in every worker of pytest.
    def __repr__(self):
        return "Opaque()"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": [Opaque()]}, r"tree\['a'\]\[0\]: a Opaque can't be saved"),
        (np.array([Opaque()]), "tree: dtype 'object'"),
        (np.zeros(1, [("x", int)]), "tree: dtype"),
        ({1.5: 1}, "tree: the key 1.5"),
        ({(1,): 1}, r"tree: the key \(1,\)"),
        (b"bytes", "tree: a bytes"),
        (print, "tree: a builtin_function"),
        (Point(1, Opaque()), r"tree\.y: a Opaque"),
    ],
    ids=str,
)
def test_what_cannot_be_saved(tmp_path, tree, words):
    with pytest.raises(TypeError, match=words):
        oe.save(tmp_path / "a", tree=tree)
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls(tmp_path):
    with pytest.raises(ValueError, match="what to save"):
        oe.save(tmp_path / "a")
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda x: oe.save(tmp_path / "a", x=x))(jnp.ones(2))
    gone = jnp.ones(2)
    gone.delete()
    with pytest.raises(ValueError, match="x: was donated"):
        oe.save(tmp_path / "a", x=gone)
    too_wide = pytest.raises(ValueError, match="65540 bytes")
    with embedding(None, 2**14 + 1, optimizer=oe.sgd(0.1)) as emb, too_wide:
        oe.save(tmp_path / "a", x=emb.init())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no folder of save's"):
        oe.restore(tmp_path / "a")
    oe.save(tmp_path / "deep" / "er" / "a", x=1, path=2)
    assert oe.restore(str(tmp_path / "deep" / "er" / "a")) == {"x": 1, "path": 2}
    for words in [("z",), ()]:
        with pytest.raises(FileNotFoundError, match="no item 'z'; it has: x, path"):
            oe.restore(Path(tmp_path / "deep/er/a"), *words, like={"z": 1})
