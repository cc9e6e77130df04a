"""PrefetchScheduler: batches, each with the ids of one that comes later."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from oneemb_jax.batch_ids import BatchIds, batch_ids, ids_function
from oneemb_jax.batches import BatchSource
from oneemb_jax.table import is_table
from oneemb_jax.watch import TableWatch

_CALL = "PrefetchScheduler"


class _Ahead(NamedTuple):
    """A batch that has been read and not yet handed out."""

    batch: Any
    ids: BatchIds
    position: Any  # of the source, with this batch the last one read


class PrefetchScheduler:
    """Pairs each batch with the ids that ``prefetch`` should fetch during its step.

    Step t gets batch t and the ids of batch t + ``depth``, which therefore have
    ``depth`` steps to come from host memory or SSD. Batches are handed out as
    they are, in order, each once; ``ids`` of 64-bit NumPy integers are packed. A
    batch whose ids are to enter ``jax.jit`` has them packed already, see
    :func:`pack_ids`.

    **Shapes.** ``next_ids`` has the shapes of the ids of its own batch, so a step
    compiles once for each shape of batch, as without a scheduler. Where the later
    batch is smaller (a ragged last one) its ids are repeated, which moves no row
    twice; where it is larger, what does not fit is left to ``stage``. In the last
    ``depth`` steps ``next_ids`` are the ids of the batch itself, which are in
    device memory by then. Batches 1 to ``depth`` - 1 of a run are announced by no
    step: ``stage`` fetches them.

    **State.** :meth:`get_state` is where the source stood before it was read ahead:
    just after the batch handed out last. It is the source's own state, so a run
    may resume with another depth, or without a scheduler.

    **Ends.** A list or loader is opened anew by every loop, from its beginning, and
    what was opened is closed when the loop ends: at the last batch, by ``break``,
    by an exception or by Ctrl-C. An iterator goes round once: a loop over it that
    is left early keeps what it has read ahead, so the next loop goes on without a
    gap; :meth:`close`, or ``with``, closes it. An exception of the source is raised
    in the place of the batch that it prevented, after those before it.

    Reading ahead is done by the loop itself, not by a thread: while the device
    runs a step the host is free to read, and sources have workers of their own.

    Args:
        batches: an iterable of batches, or an iterator: a list, a generator, a
            grain ``DataLoader``, dataset or iterator, a torch ``DataLoader``, a
            ``tf.data.Dataset`` (read by its ``as_numpy_iterator``), ... It has to
            make fresh arrays for each batch, not to write into the last one.
        ids: from a batch to its ids: a function, or the name of a key or
            attribute. Ids are an array, or a pytree of them, for several
            embeddings; structure, ranks and dtypes are those of the first batch. Of
            64 bits, they are packed: for keys of 32, return ids of 32.
        depth: steps from the announcement of a batch to its use; 1 by default.
            ``depth`` + 1 batches are held in memory.
        check_every: steps from one look of :meth:`watch` to the next; 100 by
            default.

    Raises:
        TypeError: if ``batches`` is not iterable or is one batch (a dict), ``ids``
            is no function or name, or a number is not whole.
        ValueError: if a number is not positive.

    Example:
        >>> import functools, jax, jax.numpy as jnp, numpy as np
        >>> import oneemb_jax as oe
        >>> emb = oe.MultiTableEmbedding(
        ...     "scheduler", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=100),
        ... )
        >>> table = emb.init()
        >>> @functools.partial(jax.jit, donate_argnums=0)
        ... def train_step(table, batch, next_ids):
        ...     table = oe.stage(table, batch["ids"])
        ...     table = oe.prefetch(table, next_ids)
        ...     acts, ctx = oe.lookup(table, batch["ids"])
        ...     loss = lambda acts: jnp.mean((acts.sum(-1) - batch["y"]) ** 2)
        ...     value, g_acts = jax.value_and_grad(loss)(acts)
        ...     return oe.update(table, ctx, g_acts), value
        >>> draw = np.random.default_rng(0)
        >>> batches = [
        ...     {"ids": oe.pack_ids(draw.integers(0, 2**40, 8)), "y": np.ones(8, "f4")}
        ...     for _ in range(10)
        ... ]
        >>> scheduler = oe.PrefetchScheduler(batches, ids=lambda b: b["ids"])
        >>> for batch, next_ids in scheduler:
        ...     table, loss = train_step(table, batch, next_ids)
        ...     scheduler.watch(table)
        >>> oe.check(table)
        >>> oe.size(table), scheduler.get_state()
        (80, {'batches': 10})
        >>> emb.close()
    """

    def __init__(
        self,
        batches: Iterable[Any],
        ids: Callable[[Any], Any] | str,
        *,
        depth: int = 1,
        check_every: int = 100,
    ) -> None:
        self._source = BatchSource(_check_batches(batches))
        self._ids_of = ids_function(ids, _CALL)
        self._depth = _check_count(depth, "depth")
        self._check_every = _check_count(check_every, "check_every")
        self._form: Any = None  # of the first batch's ids
        self._ahead: collections.deque[_Ahead] = collections.deque()
        self._ended = False  # the source has no more batches, or an error
        self._error: Exception | None = None
        self._position: Any = None
        self._placed = False  # the next loop begins where the source stands
        self._used_up = False  # an iterator has been read to its end
        self._closed = False
        self._loop = 0
        self._handed_out = 0
        self._waited = 0.0
        self._watches: dict[str, TableWatch] = {}

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yields (batch, next_ids)."""
        self._begin()
        loop = self._loop
        yielded = False
        try:
            while (entry := self._next_entry()) is not None:
                yielded = True
                yield entry.batch, self._next_ids(entry)
                if loop != self._loop:
                    raise RuntimeError(
                        f"{_CALL}: another loop over it has begun, or it was closed; "
                        "this one cannot go on."
                    )
            self._raise_at_end(yielded)
        finally:
            if loop == self._loop:
                self._leave()

    def __len__(self) -> int:
        """Batches of a round; TypeError where the source has no length."""
        sized: Any = self._source.batches
        return len(sized)

    def get_state(self) -> Any:
        """Where the data stands: just after the batch that was handed out last.

        Returns:
            What the source's ``get_state()`` or ``state_dict()`` returned there
            (grain: a dict from a dataset's iterator, bytes from that of a
            ``DataLoader``; torchdata: a dict). For a source without a state of its
            own, ``{"batches": n}``, the batches of this round so far.

        Example:
            >>> import numpy as np
            >>> import oneemb_jax as oe
            >>> ids = list(np.arange(6).reshape(3, 2))
            >>> scheduler = oe.PrefetchScheduler(ids, ids=lambda batch: batch)
            >>> for batch, next_ids in scheduler:
            ...     break
            >>> scheduler.get_state()
            {'batches': 1}
        """
        if self._position is None:
            self._check_open()
            self._source.open()
            self._placed = True
            self._position = self._source.position()
        return self._position

    def set_state(self, state: Any) -> None:
        """Goes to where :meth:`get_state` was called, here or in another process.

        The next loop, or the one that is running, goes on with the batch after.
        A source without a state of its own is read from its beginning and the
        batches before are passed over; that is right only if it gives the same
        batches in the same order again, so not for a loader that shuffles anew. A
        plain iterator has to be at its beginning.

        Raises:
            ValueError: if ``state`` is not of this kind of source, the source has
                fewer batches, or an iterator cannot go back.

        Example:
            >>> import numpy as np
            >>> import oneemb_jax as oe
            >>> ids = list(np.arange(6).reshape(3, 2))
            >>> scheduler = oe.PrefetchScheduler(ids, ids=lambda batch: batch)
            >>> scheduler.set_state({"batches": 1})
            >>> [batch.tolist() for batch, next_ids in scheduler]
            [[2, 3], [4, 5]]
        """
        self._check_open()
        self._source.go_to(state)
        self._forget()  # not before: a state that is refused loses no batch
        self._placed = True
        self._used_up = False
        self._position = self._source.position()

    def watch(self, table: Any) -> None:
        """Follows the counts of a table; call it with the table of each step.

        Every ``check_every`` calls it takes the counts along, and reads them two
        calls later: it holds no array of the table, which the next step may take,
        and waits for no step but one that is two back. So an error surfaces some
        steps late: call ``oe.check(table)`` after the loop. Tables of several
        embeddings are watched by one call each.

        Raises:
            TableError: what went wrong inside steps, as :func:`check` says it.
            OSError: if the store of a cached table could not read or write.
            TypeError: if ``table`` is no table, or is being traced.
            ValueError: if it was donated: pass the one that came back.
        """
        if not is_table(table):
            raise TypeError(
                f"watch(table=...): got {type(table).__name__}, not a Table; pass the "
                "table that the step returned."
            )
        name = table.spec.name
        if name not in self._watches:
            self._watches[name] = TableWatch(self._check_every)
        self._watches[name](table)

    def stats(self) -> dict[str, int | float]:
        """What happened so far; waits for nothing.

        Returns:
            A flat dict: ``batches`` handed out, ``data_wait_seconds`` spent waiting
            for the source, and for each table that is watched, under
            ``"<name>/..."``, all that :func:`oneemb_jax.stats` said of it when it was
            last looked at, with ``recent_hit_rate`` (and ``recent_cache_hit_rate``
            of a cached one) from one look to the next.

        Example:
            >>> import numpy as np
            >>> import oneemb_jax as oe
            >>> ids = list(np.arange(6).reshape(3, 2))
            >>> scheduler = oe.PrefetchScheduler(ids, ids=lambda batch: batch)
            >>> for batch, next_ids in scheduler:
            ...     pass
            >>> scheduler.stats()["batches"]
            3
        """
        told: dict[str, int | float] = {
            "batches": self._handed_out,
            "data_wait_seconds": self._waited,
        }
        for name, watch in self._watches.items():
            told |= {f"{name}/{key}": value for key, value in watch.stats().items()}
        return told

    def close(self) -> None:
        """Closes the source, an iterator of the caller's included."""
        self._closed = True
        self._loop += 1
        self._forget()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """A small card, for progress."""
        source = type(self._source.batches).__name__
        lines = [f"{_CALL} over {source}: depth {self._depth}"]
        waited = f"waited {self._waited:.1f} s for data"
        lines.append(f"  batches   {self._handed_out} handed out, {waited}")
        for name, watch in self._watches.items():
            lines += [f"  {name!r}: {words}" for words in watch.words()]
        return "\n".join(lines)

    def _begin(self) -> None:
        """Begins a loop: a new round, or what is left of the one under way."""
        self._check_open()
        self._loop += 1
        if self._source.one_round or self._placed:
            if self._position is None:
                self._position = self._source.position()
            return
        self._forget()
        self._source.open()
        self._position = self._source.position()

    def _leave(self) -> None:
        """Ends a loop, however it ended."""
        if not (self._source.one_round or self._placed):
            self._forget()
            self._source.end_round()

    def _forget(self) -> None:
        """Drops what was read ahead."""
        self._ahead.clear()
        self._ended, self._error = False, None

    def _next_entry(self) -> _Ahead | None:
        """The batch to hand out, when those up to ``depth`` later have been read."""
        start = time.perf_counter()
        while not self._ended and len(self._ahead) <= self._depth:
            self._placed = False
            try:
                self._ahead.append(self._read())
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self._error = True, error
        self._waited += time.perf_counter() - start
        if not self._ahead:
            return None
        entry = self._ahead.popleft()
        self._position = entry.position
        self._handed_out += 1
        return entry

    def _read(self) -> _Ahead:
        batch = self._source.read()
        try:
            ids = batch_ids(self._ids_of(batch), _CALL)
        except StopIteration as error:  # not the end of the data
            raise RuntimeError(f"{_CALL}(ids=...): it raised StopIteration.") from error
        self._check_form(ids)
        return _Ahead(batch, ids, self._source.position())

    def _check_form(self, ids: BatchIds) -> None:
        """The ids of every batch have the form of the first batch's."""
        if self._form is None:
            self._form = ids.form
        if ids.form != self._form:
            raise ValueError(
                f"{_CALL}(ids=...): ids of a batch are {ids.form}, those of the first "
                f"were {self._form}; a step wants one structure, dtype and rank."
            )

    def _next_ids(self, entry: _Ahead) -> Any:
        """Ids of the batch ``depth`` later, in the shapes of the entry's own."""
        later = entry if len(self._ahead) < self._depth else self._ahead[-1]
        return later.ids.fit(entry.ids)

    def _raise_at_end(self, yielded: bool) -> None:
        """Raises what ended the source before its time, or a loop over nothing."""
        error, self._error = self._error, None
        self._ended = False
        again, self._used_up = self._used_up, self._source.one_round
        try:
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame
        if again and not yielded:
            raise ValueError(
                f"{_CALL}(batches=...): the {type(self._source.batches).__name__} is "
                "used up: an iterator goes round once. Pass what can be gone over "
                "again, such as a list or a loader, or make both anew for each epoch."
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{_CALL}: it is closed; make a new one.")


def _check_batches(batches: Any) -> Any:
    """``batches``, if it can be iterated over."""
    if isinstance(batches, Mapping | str | bytes):
        raise TypeError(
            f"{_CALL}(batches=...): got a {type(batches).__name__}, which is one batch "
            "at most; pass an iterable of batches."
        )
    by_index = getattr(type(batches), "__getitem__", None) is not None
    if not isinstance(batches, Iterable) and not by_index:
        raise TypeError(
            f"{_CALL}(batches=...): {type(batches).__name__} is not iterable; pass a "
            "list, a generator or a data loader."
        )
    return batches


def _check_count(count: Any, argument: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{_CALL}({argument}={count!r}): pass a whole number.")
    if count < 1:
        raise ValueError(f"{_CALL}({argument}={count}): use 1 or more.")
    return int(count)
