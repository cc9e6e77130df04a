"""The object face: arguments, names, and that it is the functions underneath."""

import copy
import gc
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import bits, make_table

ONE, MANY = oe.MultiTableEmbedding, oe.MultiTableMultiColumnEmbedding
UNIFORM = oe.make_uniform_initializer(-1.0, 1.0)


def make(kind: Any = ONE, **changes: Any) -> Any:
    """An embedding; every argument has a default here."""
    options = {
        "name": "emb",
        "embedding_dim": 4,
        "dtype": np.float32,
        "key_type": np.int64,
        "store_options": oe.make_device_mem_store_options(capacity=64),
        "optimizer": oe.sgd(0.5),
    }
    return kind(**{**options, **changes})


@pytest.mark.parametrize("kind", [ONE, MANY])
def test_parameters_are_the_seed_systems(kind):
    parameters = inspect.signature(kind).parameters
    assert [*parameters] == [
        "name",
        "embedding_dim",
        "dtype",
        "key_type",
        "tables",
        "store_options",
        "default_initializer",
        "padding_idx",
        "seed",
        "optimizer",
        "key_space",
    ]
    assert parameters["default_initializer"].default is None
    assert parameters["padding_idx"].default is None
    assert parameters["seed"].default == 0
    keywords = [k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keywords == ["optimizer", "key_space"]


def test_spec():
    with make(
        tables=[oe.make_table_options(UNIFORM)] * 3,
        optimizer=oe.adam(),
        padding_idx=-1,
        seed=2**64 - 1,
        key_space="shared",
    ) as emb:
        spec = emb.spec
    assert (spec.name, spec.column_dims, spec.key_type) == ("emb", (4,), "int64")
    assert spec.initializers == ((UNIFORM,),) * 3
    assert (spec.optimizer, spec.capacity) == (oe.adam(), 64)
    assert (spec.padding_idx, spec.seed, spec.shared_keys) == (-1, 2**64 - 1, True)
    assert (emb.name, emb.embedding_dim) == ("emb", 4)


@pytest.mark.parametrize("kind", [ONE, MANY])
def test_one_table_by_default(kind):
    with make(kind) as emb:
        assert emb.spec.initializers == ((oe.make_normal_initializer(0.0, 0.05),),)
    with make(kind, default_initializer={"type": "constant", "value": 2.0}) as emb:
        assert emb.spec.initializers == ((oe.make_constant_initializer(2.0),),)


def test_columns():
    deep, wide = UNIFORM, oe.make_constant_initializer(3.0)
    columns = [oe.make_column_options(deep), oe.make_column_options(wide)]
    tables = [oe.make_table_options(columns), oe.make_table_options(wide)]
    with make(MANY, embedding_dim=[3, 2], tables=tables) as emb:
        assert emb.spec.column_dims == (3, 2)
        assert emb.spec.initializers == ((deep, wide), (wide, wide))
        acts, _ = emb(emb.init(), np.array([[1, 2], [3, 4]]))
    first, second = emb.split(acts)
    assert (first.shape, second.shape) == ((2, 2, 3), (2, 2, 2))
    np.testing.assert_array_equal(jnp.concatenate([first, second], -1), acts)
    np.testing.assert_array_equal(second, 3.0)
    assert isinstance(emb.split(np.asarray(acts))[0], np.ndarray)


def test_columns_take_the_default_initializer():
    with make(MANY, embedding_dim=(1, 2), default_initializer=UNIFORM) as emb:
        assert emb.spec.initializers == ((UNIFORM, UNIFORM),)
    with make(MANY, embedding_dim=7) as emb:
        assert emb.spec.column_dims == (7,)


def test_split_refuses_other_shapes():
    with make(MANY, embedding_dim=[3, 2]) as emb:
        for shape in [(4,), (5, 1), ()]:
            with pytest.raises(ValueError, match=r"split\(acts=.*embedding_dim=5"):
                emb.split(np.zeros(shape))


@pytest.mark.parametrize(
    ("key_type", "name"),
    [
        (np.int32, "int32"),
        (np.uint32, "uint32"),
        (jnp.int64, "int64"),
        (jnp.uint32, "uint32"),
        (np.dtype("uint64"), "uint64"),
        ("int64", "int64"),
    ],
)
def test_key_types(key_type, name):
    with make(key_type=key_type) as emb:
        assert emb.spec.key_type == name
        acts, _ = emb(emb.init(), np.array([5], name))
        assert acts.shape == (1, 4)


@pytest.mark.parametrize("dtype", [np.float32, jnp.float32, "float32", np.dtype("f4")])
def test_dtypes(dtype):
    make(dtype=dtype).close()


def test_calls_are_lookups():
    ids = np.array([3, 2**40])
    with make(default_initializer=UNIFORM) as emb:
        table = emb.init()
        assert oe.is_table(table)
        acts, ctx = emb(table, ids)
        for other in (emb.forward(table, ids), oe.lookup(table, ids)):
            assert bits(other) == bits((acts, ctx))
        half, _ = emb(table, ids, dtype=jnp.bfloat16)
        assert half.dtype == jnp.bfloat16
        zeros = emb(table, ids, np.zeros(2, np.int32), dtype=jnp.float32)
        assert bits(zeros[0]) == bits(acts)
    jitted, _ = jax.jit(emb)(table, oe.pack_ids(ids))
    assert bits(jitted) == bits(acts)


def test_init_on_a_device():
    device = jax.devices()[-1]
    with make() as emb:
        assert emb.init(device).rows.devices() == {device}


def test_a_grown_and_trained_table_still_belongs():
    with make() as emb:
        table = emb.init()
        acts, ctx = emb(table, np.array([1, 2]))
        table = oe.grow(oe.update(table, ctx, jnp.ones_like(acts)))
        after, _ = emb(table, np.array([1, 2]))
    np.testing.assert_array_equal(after, acts - 0.5)


def test_a_table_of_another_embedding_is_refused():
    with make() as emb, make(name="other", seed=1) as other:
        for call in (emb, emb.forward):
            with pytest.raises(ValueError, match=r"another.*name .'other', not 'emb'"):
                call(other.init(), np.array([1]))
        with pytest.raises(TypeError, match=r"got ndarray, not a Table"):
            emb.forward(np.zeros(3), np.array([1]))


def test_a_name_is_taken_once():
    first = make()
    with pytest.raises(ValueError, match=r"name='emb'\).*`with`"):
        make(MANY)
    first.close()
    with make() as second:
        first.close()  # twice does no harm, not even to the next owner
        with pytest.raises(ValueError, match=r"'emb' is closed"):
            first.init()
        second.init()
        with pytest.raises(ValueError, match=r"exists already"):
            make()


def test_a_name_is_free_when_its_embedding_is_gone():
    emb = make()
    table = emb.init()
    del emb
    gc.collect()
    make().close()
    assert oe.size(table) == 0


def test_a_failed_constructor_takes_no_name():
    for _ in range(2):
        with pytest.raises(ValueError, match="key_space"):
            make(key_space="both")
    make().close()


def test_arguments_are_left_alone():
    initializer = {"type": "normal", "mean": 0.0, "std": 1.0}
    tables = [{"initializer": initializer}, {"columns": [{"initializer": initializer}]}]
    before = copy.deepcopy(tables)
    store = oe.make_device_mem_store_options(capacity=64, size_factor=1)
    for _ in range(2):
        make(tables=tables, store_options=store).close()
    assert tables == before
    assert store == oe.make_device_mem_store_options(capacity=64)


def test_repr_is_a_card():
    with make(MANY, name="x", embedding_dim=[16, 1], padding_idx=0) as emb:
        assert repr(emb) == (
            "MultiTableMultiColumnEmbedding 'x': 1 table(s)\n"
            "  dim       16+1 float32, keys int64, padding 0\n"
            "  optimizer sgd(learning_rate=0.5)\n"
            "  store     device memory, 64 rows"
        )
    with make(key_space="shared") as emb:
        assert "shared keys int64\n" in repr(emb)


TWO_COLUMNS = [oe.make_column_options(UNIFORM)] * 2
REFUSED = [
    ({"name": ""}, ValueError, r"name=''"),
    ({"name": 3}, TypeError, r"name=3.*string"),
    ({"embedding_dim": 0}, ValueError, r"embedding_dim=0.*from 1"),
    ({"embedding_dim": 1.5}, TypeError, r"embedding_dim=1.5.*whole"),
    ({"embedding_dim": True}, TypeError, r"embedding_dim=True.*whole"),
    ({"embedding_dim": 2**28}, ValueError, r"embedding_dim=268435456"),
    ({"dtype": np.float16}, ValueError, r"dtype=.*rows are float32.*lookup\(dtype"),
    ({"dtype": jnp.bfloat16}, ValueError, r"dtype=.*rows are float32"),
    ({"dtype": "single precision"}, TypeError, r"dtype='single precision'"),
    ({"dtype": None}, TypeError, r"dtype=None"),
    ({"key_type": np.int16}, ValueError, r"key_type=.*int32, uint32, int64, uint64"),
    ({"key_type": "float32"}, ValueError, r"key_type='float32'.*use one of"),
    ({"key_type": None}, TypeError, r"key_type=None"),
    ({"key_type": "long ago"}, TypeError, r"key_type='long ago'"),
    ({"tables": []}, ValueError, r"0 tables; pass 1 to 65536, or None"),
    ({"tables": [None]}, TypeError, r"tables\[0\]\): None is not made by"),
    ({"tables": UNIFORM}, TypeError, r"tables=.*pass a list of make_table_options"),
    (
        {"tables": [oe.make_table_options(UNIFORM)] * (2**16 + 1)},
        ValueError,
        r"65537 tables",
    ),
    (
        {"tables": [oe.make_table_options(UNIFORM), oe.make_table(TWO_COLUMNS)]},
        ValueError,
        r"tables\[1\]\): options of 2 column\(s\), but embedding_dim has 1",
    ),
    (
        {"tables": [oe.make_table(UNIFORM)], "default_initializer": UNIFORM},
        ValueError,
        r"default_initializer=.*without tables",
    ),
    ({"default_initializer": 0.5}, TypeError, r"default_initializer.*0.5 is no init"),
    ({"store_options": None}, TypeError, r"store_options=None.*make_device_mem"),
    ({"store_options": {"kv_store": {}}}, TypeError, r"store_options=.*make_device"),
    ({"padding_idx": 0.0}, TypeError, r"padding_idx=0.0.*whole"),
    ({"padding_idx": 2**63}, ValueError, r"padding_idx=.*to 9223372036854775807"),
    ({"padding_idx": -1, "key_type": "uint32"}, ValueError, r"=-1\).*to 4294967295"),
    ({"padding_idx": 2**31, "key_type": "int32"}, ValueError, r"from -2147483648"),
    ({"seed": -1}, ValueError, r"seed=-1"),
    ({"seed": 2**64}, ValueError, r"seed=18446744073709551616"),
    ({"seed": 0.5}, TypeError, r"seed=0.5"),
    ({"key_space": "both"}, ValueError, r"key_space='both'.*separate, shared"),
    ({"key_space": None}, ValueError, r"key_space=None"),
    ({"optimizer": "adam"}, TypeError, r"optimizer='adam'.*sgd, adam, adamw.*lamb"),
    ({"optimizer": oe.adam}, TypeError, r"optimizer=<function adam.*rowwise_adagrad"),
    ({"optimizer": None}, TypeError, r"optimizer=None.*smart_decay_adam"),
    (
        {"store_options": oe.make_device_mem_store_options(capacity=1, size_factor=3)},
        ValueError,
        r"size_factor=3, but sgd with embedding_dim=4 needs size_factor=1",
    ),
]


@pytest.mark.parametrize("kind", [ONE, MANY])
@pytest.mark.parametrize(("changes", "error", "match"), REFUSED)
def test_bad_arguments(kind, changes, error, match):
    with pytest.raises(error, match=match) as caught:
        make(kind, **changes)
    if "size_factor" not in match:
        assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "error", "match"),
    [
        ([], ValueError, r"embedding_dim=\[\]"),
        ([4, 0], ValueError, r"embedding_dim=0"),
        ([4, None], TypeError, r"embedding_dim=None"),
        ([2**30, 2**30], ValueError, r"embedding_dim=1073741824"),
    ],
)
def test_bad_columns(dims, error, match):
    with pytest.raises(error, match=match):
        make(MANY, embedding_dim=dims)


def test_several_columns_have_a_class_of_their_own():
    with pytest.raises(TypeError, match="use MultiTableMultiColumnEmbedding"):
        make(ONE, embedding_dim=[4])


def test_the_optimizer_is_required():
    with pytest.raises(TypeError, match="optimizer"):
        make(lambda optimizer, **others: ONE(**others))


def test_the_named_optimizers_are_all_there_are():
    with pytest.raises(TypeError) as caught:
        make(optimizer=None)
    made = {
        name
        for name in oe.__all__
        if name.islower()
        and inspect.signature(getattr(oe, name)).return_annotation == "Optimizer"
    }
    named = str(caught.value).partition("makes: ")[2].rstrip(".").split(", ")
    assert made == set(named)


def test_tables_that_share_arrays_are_donated_together():
    table = make_table(2)
    again = oe.reset_counters(table)
    jax.jit(lambda table: table, donate_argnums=0, keep_unused=True)(again)
    for call in (oe.size, oe.grow, oe.check, lambda t: oe.get_rows(t, [1])):
        for donated in (table, again):
            with pytest.raises(ValueError, match="was donated to an earlier call"):
                call(donated)
