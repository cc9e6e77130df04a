"""The description of a table in a snapshot: JSON, there and back, and compared."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import make_spec, make_table
from oneemb_jax import comparison
from oneemb_jax import manifest as mf
from snapshots import OPTIMIZERS

SMALL = st.floats(-10, 10, width=32)
INITIALIZERS = st.one_of(
    st.builds(oe.make_constant_initializer, SMALL),
    st.builds(oe.make_normal_initializer, SMALL, st.floats(0, 10, width=32)),
    st.just(oe.make_uniform_initializer(-0.1, 0.1)),
    st.just(oe.make_trunc_normal_initializer(std=0.05, a=-0.1, b=0.1)),
)


@st.composite
def specs(draw: st.DrawFn) -> Any:
    dims = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    columns = st.tuples(*(INITIALIZERS for _ in dims))
    return make_spec(
        dims,
        name=draw(st.text(min_size=1)),
        key_type=draw(st.sampled_from(["int32", "uint32", "int64", "uint64"])),
        initializers=tuple(draw(st.lists(columns, min_size=1, max_size=5))),
        optimizer=draw(st.sampled_from([*OPTIMIZERS.values()])),
        padding_idx=draw(st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1))),
        seed=draw(st.integers(0, 2**64 - 1)),
        shared_keys=draw(st.booleans()),
        capacity=draw(st.integers(1, 2**31 - 1)),
    )


def manifest_of(spec: Any, **changes: Any) -> mf.Manifest:
    state = mf.table_state(make_table())
    return mf.Manifest(spec.key_type, spec.row_words, spec, state, **changes)


@given(specs())
def test_there_and_back(spec):
    manifest = manifest_of(spec, rank=2, num_ranks=5)
    back = mf.decode_manifest(manifest.encode(), "here")
    assert back.spec is not None
    assert comparison.differences(spec, back.spec) == []
    assert back.encode() == manifest.encode()
    assert (back.spec.name, back.spec.capacity) == (spec.name, spec.capacity)
    rate: Any = back.spec.optimizer.learning_rate
    if not callable(spec.optimizer.learning_rate):
        assert (back.spec, rate) == (spec, spec.optimizer.learning_rate)
    else:
        with pytest.raises(ValueError, match="was a schedule"):
            rate(0)


def test_many_tables_fit():
    spec = make_spec(num_tables=2**16)
    assert len(manifest_of(spec).encode()) < 2000
    columns = [(oe.make_constant_initializer(i % 500),) for i in range(2**16)]
    assert len(manifest_of(make_spec(initializers=tuple(columns))).encode()) < 2**20


def _mutations(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Paths to everything inside JSON."""
    yield path
    children = enumerate(value) if isinstance(value, list) else ()
    for key, child in value.items() if isinstance(value, dict) else children:
        yield from _mutations(child, (*path, key))


WHOLE = json.loads(manifest_of(make_spec((2, 3), num_tables=3)).encode())
PATHS = [path for path in _mutations(WHOLE) if path]
#: What a damaged value is, or nothing: the entry is gone.
JUNK = [None, True, -1, 2**64, 0.5, "x", [], {}, [[]], ...]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_damage_is_a_value_error(path):
    """Whatever one value becomes: a manifest all the same, or a ValueError."""
    for junk in JUNK:
        data = copy.deepcopy(WHOLE)
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if junk is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = junk
        message = "here: "
        try:
            back = mf.decode_manifest(json.dumps(data).encode(), "here")
        except ValueError as error:
            message = str(error)
        else:
            assert back.spec is None or back.spec.row_words == back.row_words
        assert message.startswith("here: ")


@given(st.binary(max_size=50))
def test_other_bytes_are_no_table(user):
    with pytest.raises(ValueError, match="of no table"):
        mf.decode_manifest(user, "here")


def test_deep_json_is_no_table():
    with pytest.raises(ValueError, match="of no table"):
        mf.decode_manifest(b"[" * 10**5, "here")


def test_a_later_version_says_who_wrote_it():
    data = {**WHOLE, "version": 2, "writer": "9.9"}
    with pytest.raises(ValueError, match=r"format version 2, written by .* 9\.9"):
        mf.decode_manifest(json.dumps(data).encode(), "here")


BASE: dict[str, Any] = {"num_tables": 2, "optimizer": oe.adam(0.1), "seed": 3}
OTHER: list[tuple[dict[str, Any], str, bool]] = [
    ({"dim": 5}, "embedding_dim: the snapshot has 4, the embedding 5", False),
    ({"dim": (2, 2)}, "embedding_dim: the snapshot has 4, the embedding [2, 2]", False),
    ({"key_type": "uint64"}, "key_type: the snapshot has int64, the emb", True),
    ({"key_type": "int32"}, "key_type: the snapshot has int64, the emb", False),
    ({"shared_keys": True}, "key_space: the snapshot has separate", False),
    ({"padding_idx": 0}, "padding_idx: the snapshot has None", False),
    ({"seed": 4}, "seed: the snapshot has 3, the embedding 4", True),
    ({"num_tables": 3}, "tables: the snapshot has 2, the embedding 3", True),
    ({"num_tables": 1}, "tables: the snapshot has 2, the embedding 1", False),
    ({"optimizer": oe.lamb(0.1)}, "optimizer: the snapshot has adam", False),
    ({"optimizer": oe.adam(0.1, eps=0.5)}, "optimizer.eps: the snapshot", True),
    (
        {"initializer": oe.make_constant_initializer(0)},
        "tables[1]: the snapshot has uniform(low=-1.0, high=1.0), the embedding const",
        True,
    ),
]


@pytest.mark.parametrize(("changes", "words", "ignorable"), OTHER, ids=str)
def test_each_difference(changes, words, ignorable):
    saved, wanted = make_spec(**BASE), make_spec(**{**BASE, **changes})
    with pytest.raises(ValueError, match="load") as caught:
        comparison.check_same(saved, wanted, (), "load")
    assert words in str(caught.value)
    assert ("ignore=" in str(caught.value)) == ignorable
    ignored = comparison.check_ignore(comparison.IGNORABLE, "load")
    if ignorable:
        comparison.check_same(saved, wanted, ignored, "load")
    else:
        with pytest.raises(ValueError, match="load"):
            comparison.check_same(saved, wanted, ignored, "load")


def test_state_of_another_shape_is_never_passed_over():
    saved, wanted = oe.sgd(0.1), oe.sgd(0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"optimizer\.momentum: the snapshot has 0\.0"):
        comparison.check_same(
            make_spec(optimizer=saved), make_spec(optimizer=wanted), ["optimizer"], "c"
        )


def test_every_difference_is_listed():
    changes: dict[str, Any] = {}
    for change, _, _ in OTHER:
        changes.update(change)
    saved, wanted = make_spec(**BASE), make_spec(**{**BASE, **changes})
    with pytest.raises(ValueError, match="load") as caught:
        comparison.check_same(saved, wanted, (), "load")
    fields = [line.split(":")[0].strip() for line in str(caught.value).splitlines()]
    assert fields[1:-1] == [
        "embedding_dim", "key_type", "key_space", "padding_idx", "tables", "seed",
        "optimizer.eps", "tables[0]",
    ]  # fmt: skip


def test_names_capacities_and_learning_rates_may_differ():
    saved = make_spec(name="a", capacity=5, optimizer=oe.adam(0.1))
    wanted = make_spec(name="b", capacity=9, optimizer=oe.adam(lambda step: 0.1))
    assert comparison.differences(saved, wanted) == []


def test_only_some_things_can_be_ignored():
    assert comparison.check_ignore("seed", "load") == ("seed",)
    with pytest.raises(ValueError, match=r"'embedding_dim' can't be passed over"):
        comparison.check_ignore(["seed", "embedding_dim"], "load")
