"""A source of batches: read one by one, asked where it stands, put back there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class _HasState(Protocol):
    """How grain's iterators say where they stand."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@runtime_checkable
class _HasStateDict(Protocol):
    """How torchdata's StatefulDataLoader does."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


@runtime_checkable
class _HasNumpyIterator(Protocol):
    """A tf.data.Dataset, whose own iterator gives tensors that jit refuses."""

    def as_numpy_iterator(self) -> Iterator[Any]: ...


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


class BatchSource:
    """Batches from whatever can be iterated over.

    An iterator goes round once and is the caller's: it is read on from where it
    stands, and closed by ``close`` alone. Anything else is opened anew for every
    round, and what was opened is closed at the end of the round.

    A position is the source's own, where it or its iterator has one; else the
    number of batches read, ``{"batches": n}``, which is found again by reading
    that many.

    Attributes:
        batches: what the user passed.
        one_round: whether it is an iterator.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.one_round = isinstance(batches, Iterator)
        self._iterator: Any = batches if self.one_round else None
        self._read = 0

    def open(self) -> None:
        """Begins a round; an iterator stays where it stands."""
        if self.one_round:
            return
        self.end_round()
        numpy = isinstance(self.batches, _HasNumpyIterator)
        made = self.batches.as_numpy_iterator() if numpy else iter(self.batches)
        self._iterator, self._read = made, 0

    def read(self) -> Any:
        """The next batch; StopIteration after the last one."""
        batch = next(self._iterator)
        self._read += 1
        return batch

    def position(self) -> Any:
        """Where the source stands: a copy, since some go on writing into theirs."""
        # The source first: iterators of a StatefulDataLoader have the methods too,
        # and theirs are for the loader alone.
        for keeper in (self.batches, self._iterator):
            if isinstance(keeper, _HasState):
                return copy.deepcopy(keeper.get_state())
            if isinstance(keeper, _HasStateDict):
                return copy.deepcopy(keeper.state_dict())
        return {"batches": self._read}

    def go_to(self, position: Any) -> None:
        """Begins a round at what ``position`` returned, here or in another process."""
        if _keeps_position(self.batches):
            self.end_round()  # the next iterator takes the position, not this one
            _put(self.batches, position)
            self.open()
            return
        if self._iterator is None:
            self.open()
        if _keeps_position(self._iterator):
            _put(self._iterator, position)
        else:
            self._read_to(_count_of(position))

    def end_round(self) -> None:
        """Closes what ``open`` has opened."""
        if not self.one_round:
            iterator, self._iterator = self._iterator, None
            _close(iterator)

    def close(self) -> None:
        """Closes the iterator, the caller's own included."""
        iterator, self._iterator = self._iterator, None
        _close(iterator)

    def _read_to(self, count: int) -> None:
        """Starts over, and passes ``count`` batches."""
        if self.one_round and self._read:
            raise ValueError(
                f"set_state(state=...): {type(self.batches).__name__} cannot go back, "
                f"and {self._read} of its batches have been read. Make the iterator "
                "anew, and a PrefetchScheduler of it, and set the state first."
            )
        if self._read:
            self.open()
        for passed in range(count):
            try:
                self.read()
            except StopIteration:
                raise ValueError(
                    f"set_state(state=...): the state is after {count} batches, and "
                    f"the source has {passed}; resume with the data it was made with."
                ) from None


def _keeps_position(keeper: Any) -> bool:
    return isinstance(keeper, _HasState | _HasStateDict)


def _put(keeper: Any, position: Any) -> None:
    if isinstance(keeper, _HasState):
        keeper.set_state(position)
    else:
        keeper.load_state_dict(position)


def _count_of(position: Any) -> int:
    """The number in a position of our own making."""
    count = position.get("batches") if isinstance(position, Mapping) else None
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if count is None or not whole or count < 0:
        raise ValueError(
            f"set_state(state={position!r}): batches has no state of its own, so pass "
            "the {'batches': n} that get_state returned for such a source."
        )
    return int(count)


def _close(iterator: Any) -> None:
    if isinstance(iterator, _Closable):
        iterator.close()
