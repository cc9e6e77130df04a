"""PrefetchScheduler over every kind of source, each of the same twelve batches.

What the state of the data is worth: a run that goes on from it misses and repeats
nothing.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import oneemb_jax as oe
from step_batches import BIG, make_batches


class Rows:
    """Of grain's and torch's kind: found by index."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"ids": np.int64(BIG + index), "step": np.int64(index // 2)}

    def __repr__(self) -> str:
        return "Rows()"


class GrainLike:
    """An iterator with get_state and set_state, which writes into its own state."""

    def __init__(self) -> None:
        self.state = {"next": 0}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.state["next"] == 12:
            raise StopIteration
        self.state["next"] += 1
        return make_batches(12)[self.state["next"] - 1]

    def get_state(self) -> dict[str, int]:
        return self.state

    def set_state(self, state: dict[str, int]) -> None:
        self.state = copy.deepcopy(state)


class GrainLoaderLike:
    """A loader whose iterators have the state."""

    def __iter__(self) -> GrainLike:
        return GrainLike()


class TorchLike:
    """A loader that has the state, for the iterator it makes next."""

    def __init__(self) -> None:
        self.at = 0
        self.begin_at = 0

    def __iter__(self) -> Iterator[Any]:
        self.at, self.begin_at = self.begin_at, 0
        while self.at < 12:
            self.at += 1
            yield make_batches(12)[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = self.begin_at = state["at"]


class TfLike:
    """A dataset that gives tensors, and NumPy when asked for it."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("iterated over by tensors")

    def as_numpy_iterator(self) -> Iterator[Any]:
        return iter(make_batches(12))


def grain_dataset() -> Any:
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(Rows()).batch(2).to_iter_dataset()


def grain_loader() -> Any:
    grain = pytest.importorskip("grain")
    return grain.DataLoader(
        data_source=Rows(),
        sampler=grain.samplers.IndexSampler(24, num_epochs=1),
        operations=[grain.transforms.Batch(2)],
    )


def torch_loader() -> Any:
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(Rows(), batch_size=2)


def stateful_loader() -> Any:
    loader = pytest.importorskip("torchdata.stateful_dataloader")
    return loader.StatefulDataLoader(Rows(), batch_size=2)


RESTARTING: dict[str, Callable[[], Any]] = {
    "list": lambda: make_batches(12),
    "grain-like loader": GrainLoaderLike,
    "torch-like": TorchLike,
    "tf-like": TfLike,
    "grain dataset": grain_dataset,
    "grain DataLoader": grain_loader,
    "torch DataLoader": torch_loader,
    "StatefulDataLoader": stateful_loader,
}
ITERATORS: dict[str, Callable[[], Any]] = {
    "generator": lambda: (batch for batch in make_batches(12)),
    "grain-like": GrainLike,
    "grain iterator": lambda: iter(grain_dataset()),
    "grain DataLoader's": lambda: iter(grain_loader()),
}
SOURCES = RESTARTING | ITERATORS
each_source = pytest.mark.parametrize("kind", SOURCES)
each_loader = pytest.mark.parametrize("kind", RESTARTING)
each_iterator = pytest.mark.parametrize("kind", ITERATORS)
torch_is_old = pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")


def first_steps(pairs: Any, count: int | None = None) -> list[int]:
    """Which batches come; of rows, the step of the first."""
    taken = itertools.islice(pairs, count)
    return [int(np.asarray(batch["step"]).reshape(-1)[0]) for batch, _ in taken]


@torch_is_old
@each_source
@pytest.mark.parametrize("depth", [1, 2, 5, 20])
def test_a_resumed_run_misses_and_repeats_nothing(kind: str, depth: int):
    make = SOURCES[kind]
    for done in (0, 1, 7, 11, 12):
        before = oe.PrefetchScheduler(make(), "ids", depth=depth)
        assert first_steps(before, done) == list(range(done))
        state = before.get_state()
        after = oe.PrefetchScheduler(make(), "ids", depth=3)
        after.set_state(state)
        assert first_steps(after) == list(range(done, 12))


@torch_is_old
@each_source
def test_the_state_stands_while_the_loop_goes_on(kind: str):
    scheduler = oe.PrefetchScheduler(SOURCES[kind](), "ids", depth=2)
    states = [scheduler.get_state()]
    states += [scheduler.get_state() for _ in scheduler]
    for done in (0, 5, 12):
        other = oe.PrefetchScheduler(SOURCES[kind](), "ids")
        other.set_state(states[done])
        assert first_steps(other) == list(range(done, 12))


@torch_is_old
@pytest.mark.parametrize("kind", [k for k in SOURCES if k != "generator"])
@pytest.mark.parametrize("depth", [2, 20])  # 20: read to the end by then
def test_a_running_loop_goes_back(kind: str, depth: int):
    scheduler = oe.PrefetchScheduler(SOURCES[kind](), "ids", depth=depth)
    seen, back = [], None
    for batch, _ in scheduler:
        seen.append(int(np.asarray(batch["step"]).reshape(-1)[0]))
        if len(seen) == 3:
            back = scheduler.get_state()
        if len(seen) == 6:
            scheduler.set_state(back)
    assert seen == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@torch_is_old
@pytest.mark.parametrize("kind", ["grain-like", "grain iterator", "grain DataLoader's"])
def test_the_state_is_the_sources_own(kind: str):
    scheduler = oe.PrefetchScheduler(SOURCES[kind](), "ids", depth=3)
    first_steps(scheduler, 4)
    bare = SOURCES[kind]()
    bare.set_state(scheduler.get_state())
    assert int(np.asarray(next(bare)["step"]).reshape(-1)[0]) == 4


@torch_is_old
@each_loader
def test_a_loader_gives_every_epoch(kind: str):
    scheduler = oe.PrefetchScheduler(RESTARTING[kind](), "ids", depth=2)
    for _ in range(3):
        assert first_steps(scheduler) == list(range(12))
    assert first_steps(scheduler, 5) == list(range(5))
    assert first_steps(scheduler) == list(range(12))


@torch_is_old
@each_loader
def test_epochs_go_on_after_a_resumed_one(kind: str):
    before = oe.PrefetchScheduler(RESTARTING[kind](), "ids")
    first_steps(before)
    first_steps(before, 4)
    after = oe.PrefetchScheduler(RESTARTING[kind](), "ids")
    after.set_state(before.get_state())
    assert first_steps(after) == list(range(4, 12))
    assert first_steps(after) == list(range(12))


@each_iterator
def test_an_iterator_goes_on_without_a_gap(kind: str):
    scheduler = oe.PrefetchScheduler(ITERATORS[kind](), "ids", depth=3)
    parts = [first_steps(scheduler, count) for count in (4, 1, 5, None)]
    assert list(itertools.chain(*parts)) == list(range(12))
    with pytest.raises(ValueError, match=r"batches=.*is used up.*a list or a loader"):
        list(scheduler)


def test_an_empty_source_is_no_error():
    assert list(oe.PrefetchScheduler([], "ids")) == []
    assert list(oe.PrefetchScheduler(iter([]), "ids")) == []
