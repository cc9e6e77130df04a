"""PrefetchScheduler pairs batches with later ids, and loses none, whatever happens."""

import functools
import gc
import itertools
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from step_batches import BIG, make_batches


def steps(pairs: Any) -> list[int]:
    return [batch["step"] for batch, _ in pairs]


def collect(pairs: Any, seen: list[int], announced: list[Any] | None = None) -> None:
    """Keeps what came, for loops that end in an exception."""
    for batch, ids in pairs:
        seen.append(batch["step"])
        if announced is not None:
            announced.append(ids)


def by_hand(ids: list[np.ndarray], depth: int) -> list[np.ndarray]:
    """The ids that each step announces, by index into the whole list."""
    announced = []
    for t, own in enumerate(ids):
        later = ids[t + depth] if t + depth < len(ids) else own
        later = later if len(later) else own
        rows = [later[row % len(later)] for row in range(len(own))]
        announced.append(np.array(rows, np.int64).reshape(own.shape))
    return announced


@given(st.lists(st.integers(0, 4), max_size=9), st.integers(1, 6), st.booleans())
def test_pairs_are_those_of_a_list(sizes: list[int], depth: int, as_iterator: bool):
    ids = [BIG + 100 * t + np.arange(2 * n).reshape(n, 2) for t, n in enumerate(sizes)]
    source = iter(ids) if as_iterator else ids
    pairs = list(oe.PrefetchScheduler(source, lambda batch: batch, depth=depth))
    assert all(batch is own for (batch, _), own in zip(pairs, ids, strict=True))
    for (_, announced), wanted in zip(pairs, by_hand(ids, depth), strict=True):
        assert announced.dtype == np.uint32
        assert oe.unpack_ids(announced).tolist() == wanted.tolist()


def test_a_batch_is_handed_out_as_it_is():
    batches = make_batches(3)
    for (batch, _), own in zip(
        oe.PrefetchScheduler(batches, "ids"), batches, strict=True
    ):
        assert batch is own
        assert batch["ids"].dtype == np.int64


@pytest.mark.parametrize("depth", [1, 3])
def test_reads_no_further_than_needed(depth: int):
    read = itertools.count()
    scheduler = oe.PrefetchScheduler(
        ({"ids": np.array([n])} for n in read), "ids", depth=depth
    )
    next(iter(scheduler))
    assert next(read) == depth + 1


class Point(NamedTuple):
    ids: np.ndarray


@pytest.mark.parametrize("ids", [lambda batch: batch.ids, "ids"])
def test_ids_by_function_or_attribute(ids: Any):
    ((_, announced),) = oe.PrefetchScheduler([Point(np.array([BIG]))], ids)
    assert oe.unpack_ids(announced).tolist() == [BIG]


def test_ids_of_several_embeddings():
    batches = [{"user": np.array([t]), "item": np.arange(t + 1)} for t in range(2)]
    (_, first), (_, last) = oe.PrefetchScheduler(
        batches, lambda b: {"u": b["user"], "i": [b["item"]]}
    )
    assert oe.unpack_ids(first["u"]).tolist() == [1]
    assert oe.unpack_ids(first["i"][0]).tolist() == [0]  # cut to its own batch's shape
    assert oe.unpack_ids(last["i"][0]).tolist() == [0, 1]


def test_every_axis_is_fitted_by_itself():
    batches = [
        np.array([[1, 2, 3]]),
        np.array([[7, 8], [9, 10]]),
        np.zeros((2, 3), int),
    ]
    pairs = list(oe.PrefetchScheduler(batches, lambda batch: batch))
    announced = [oe.unpack_ids(ids).tolist() for _, ids in pairs]
    assert announced == [[[7, 8, 7]], [[0, 0], [0, 0]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize(
    "ids",
    [
        oe.pack_ids(np.array([BIG, 1])),
        np.array([1, 2], np.int32),
        jnp.array([1, 2], jnp.uint32),
    ],
    ids=["packed", "int32", "jax"],
)
def test_32_bit_ids_pass_unchanged(ids: Any):
    ((_, announced),) = oe.PrefetchScheduler([ids], lambda batch: batch)
    assert announced is ids


def test_ids_of_jax_arrays_are_fitted():
    batches = [jnp.arange(3), jnp.arange(2) + 5]
    pairs = list(oe.PrefetchScheduler(batches, lambda batch: batch))
    assert [announced.tolist() for _, announced in pairs] == [[5, 6, 5], [5, 6]]


# Ends


class Watched:
    """A source that knows whether it is open."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.open = 0
        self.fails_at = fails_at

    def __iter__(self) -> Iterator[Any]:
        self.open += 1
        try:
            for batch in make_batches(12):
                if batch["step"] == self.fails_at:
                    raise OSError("the disk is gone")
                yield batch
        finally:
            self.open -= 1


def leave_by_break(pairs: Any) -> None:
    for batch, _ in pairs:
        if batch["step"] == 5:
            break


def leave_by(error: type[BaseException], pairs: Any) -> None:
    try:
        for batch, _ in pairs:
            if batch["step"] == 5:
                raise error
    except error:
        pass
    else:
        pytest.fail(f"{error} did not come through")


LEAVES = {
    "end": list,
    "break": leave_by_break,
    "exception": functools.partial(leave_by, ZeroDivisionError),
    "Ctrl-C": functools.partial(leave_by, KeyboardInterrupt),
}


@pytest.fixture
def no_collector():
    """Ends must not wait for the collector of cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_what_a_loop_opened_is_closed(leave: Any):
    source = Watched()
    scheduler = oe.PrefetchScheduler(source, "ids", depth=2)
    leave(scheduler)
    assert source.open == 0
    assert steps(scheduler) == list(range(12))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_a_generator_ends_with_the_only_loop_over_it(leave: Any):
    source = Watched()
    leave(oe.PrefetchScheduler(iter(source), "ids", depth=2))
    assert source.open == 0


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_with_closes_a_generator(leave: Any):
    source = Watched()
    with oe.PrefetchScheduler(iter(source), "ids") as scheduler:
        leave(scheduler)
    assert source.open == 0
    assert scheduler.get_state()["batches"] >= 6
    for use in (lambda: list(scheduler), lambda: scheduler.set_state({"batches": 0})):
        with pytest.raises(ValueError, match="is closed"):
            use()
    scheduler.close()


def test_interrupted_while_reading():
    """Ctrl-C is not kept for later, unlike the source's own errors."""

    def batches() -> Iterator[Any]:
        yield from make_batches(3)
        raise KeyboardInterrupt

    seen: list[int] = []
    scheduler = oe.PrefetchScheduler(batches(), "ids", depth=2)
    with pytest.raises(KeyboardInterrupt):
        collect(scheduler, seen)
    assert seen == [0]
    assert scheduler.get_state() == {"batches": 1}
    assert steps(scheduler) == [1, 2]


@pytest.mark.parametrize("as_iterator", [False, True])
@pytest.mark.parametrize("depth", [1, 4, 20])
def test_an_error_comes_in_the_place_of_its_batch(depth: int, as_iterator: bool):
    source = Watched(fails_at=5)
    scheduler = oe.PrefetchScheduler(
        iter(source) if as_iterator else source, "ids", depth=depth
    )
    seen: list[int] = []
    announced: list[Any] = []
    with pytest.raises(OSError, match="the disk is gone") as caught:
        collect(scheduler, seen, announced)
    assert seen == [0, 1, 2, 3, 4]
    wanted = [step + depth if step + depth < 5 else step for step in seen]
    first_ids = [int(oe.unpack_ids(ids)[0, 0]) for ids in announced]
    assert first_ids == [BIG + 1000 * step for step in wanted]
    assert scheduler.get_state() == {"batches": 5}
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "__iter__"
    assert source.open == 0
    with pytest.raises(ValueError if as_iterator else OSError):
        list(scheduler)


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration])
def test_an_error_of_ids_comes_in_the_place_of_its_batch(error: type[Exception]):
    def ids(batch: Any) -> Any:
        if batch["step"] == 3:
            raise error
        return batch["ids"]

    seen: list[int] = []
    wanted = RuntimeError if error is StopIteration else error
    with pytest.raises(wanted):
        collect(oe.PrefetchScheduler(make_batches(6), ids, depth=2), seen)
    assert seen == [0, 1, 2]


def test_a_newer_loop_ends_an_older_one():
    scheduler = oe.PrefetchScheduler(make_batches(6), "ids")
    older = iter(scheduler)
    next(older)
    assert steps(scheduler) == list(range(6))
    newer = iter(scheduler)
    assert next(newer)[0]["step"] == 0
    with pytest.raises(RuntimeError, match="another loop"):
        next(older)
    assert next(newer)[0]["step"] == 1


def test_length():
    scheduler = oe.PrefetchScheduler(make_batches(6), "ids")
    assert len(scheduler) == 6
    endless = oe.PrefetchScheduler(iter(make_batches(6)), "ids")
    with pytest.raises(TypeError, match=r"no len\(\)"):
        len(endless)
    assert len(list(endless)) == 6


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": 5}, TypeError, r"batches=\.\.\.\): int is not iterable"),
        ({"batches": {"ids": [1]}}, TypeError, "got a dict, which is one batch"),
        ({"batches": "train.txt"}, TypeError, "got a str"),
        ({"ids": 3}, TypeError, r"ids=3\): pass a function"),
        ({"ids": None}, TypeError, r"ids=None\): pass a function"),
        ({"depth": 0}, ValueError, r"depth=0\): use 1 or more"),
        ({"depth": -2}, ValueError, r"depth=-2\): use 1 or more"),
        ({"depth": True}, TypeError, r"depth=True\): pass a whole number"),
        ({"depth": 1.0}, TypeError, r"depth=1.0\): pass a whole number"),
        ({"check_every": 0}, ValueError, r"check_every=0\): use 1 or more"),
    ],
)
def test_wrong_arguments(arguments: Any, error: Any, message: str):
    with pytest.raises(error, match=rf"PrefetchScheduler\(.*{message}"):
        oe.PrefetchScheduler(**{"batches": [], "ids": "ids", **arguments})


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("idz", KeyError, r"'idz'\): a batch of type dict has no such key"),
        (lambda _: None, ValueError, "got None from a batch"),
        (lambda _: [1, 2], TypeError, r"got the int 1.*pass np\.asarray"),
        (lambda _: np.ones(2), TypeError, "dtype float64; ids are integers"),
        (lambda _: jnp.ones(2), TypeError, "dtype float32; ids are integers"),
        (lambda b: np.ones([1] * b["step"], int), ValueError, "those of the first"),
    ],
)
def test_wrong_ids(ids: Any, error: Any, message: str):
    with pytest.raises(error, match=rf"PrefetchScheduler\(ids=.*{message}"):
        list(oe.PrefetchScheduler(make_batches(4), ids))


@pytest.mark.parametrize("state", [None, 3, {}, {"batches": -1}, {"batches": True}])
def test_wrong_states(state: Any):
    with pytest.raises(ValueError, match=r"set_state\(state=.*get_state returned"):
        oe.PrefetchScheduler(make_batches(4), "ids").set_state(state)


def test_states_that_cannot_be():
    short = oe.PrefetchScheduler(make_batches(4), "ids")
    with pytest.raises(ValueError, match="after 5 batches, and the source has 4"):
        short.set_state({"batches": 5})
    under_way = oe.PrefetchScheduler(iter(make_batches(4)), "ids")
    assert next(iter(under_way))[0]["step"] == 0
    with pytest.raises(ValueError, match=r"list_iterator cannot go back, and 2 of its"):
        under_way.set_state({"batches": 1})
    assert steps(under_way) == [1, 2, 3]
