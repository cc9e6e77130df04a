"""Training a DLRM through an embedding table that grows.

The step is one jitted function whose arguments are donated: rows are read,
differentiated and updated in place. Between steps the host reads how many rows
the table had one or two steps ago, which waits for nothing, and doubles a table in
device memory before it could be full. One on SSD or in host memory grows there.
"""

import collections
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from dlrm_data import Batch
from dlrm_model import Params, forward, loss_and_logits
from dlrm_report import Metrics
from tqdm import tqdm

import oneemb_jax as oe

#: Steps that may be under way while the host prepares the next batch.
STEPS_IN_FLIGHT = 2
#: A table grows when this share of its rows is taken.
FULL_ENOUGH = 0.8
#: Steps between two points of the history.
WINDOW = 25


class State(NamedTuple):
    """All that training changes."""

    params: Params
    opt_state: optax.OptState
    table: oe.Table


class Pending(NamedTuple):
    """A step under way, or done and not yet looked at."""

    most_new: int  # rows that it can have added
    labels: np.ndarray  # f32[batch]
    logits: jax.Array  # f32[batch], before the update
    rows: jax.Array  # u32[], after the update


def make_train_step(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Makes the jitted step; `tx` is the optimizer of the MLPs."""

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(
        params: Params,
        opt_state: optax.OptState,
        table: oe.Table,
        batch: dict[str, jax.Array],
        next_ids: jax.Array,
    ) -> tuple[State, jax.Array, jax.Array]:
        table = oe.stage(table, batch["ids"])
        table = oe.prefetch(table, next_ids)
        acts, ctx = oe.lookup(table, batch["ids"])
        (_, logits), (grads, act_grads) = jax.value_and_grad(
            loss_and_logits, argnums=(0, 1), has_aux=True
        )(params, acts, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        new_params: Any = optax.apply_updates(params, updates)
        table = oe.update(table, ctx, act_grads)
        return State(new_params, opt_state, table), logits, oe.num_rows(table)

    return train_step


@functools.partial(jax.jit, donate_argnums=1)
def predict(
    params: Params, table: oe.Table, batch: dict[str, jax.Array]
) -> tuple[oe.Table, jax.Array]:
    """Logits f32[batch]; no row appears by it, though a cached one may move."""
    table = oe.stage(table, batch["ids"])
    acts, _ = oe.lookup(table, batch["ids"])
    return table, forward(params, acts, batch["dense"])


def evaluate(state: State, batches: Iterator[Batch]) -> tuple[State, Metrics]:
    """Loss and AUC over batches that training has not seen."""
    metrics = Metrics()
    for batch in batches:
        table, logits = predict(state.params, state.table, _to_device(batch))
        state = state._replace(table=table)
        metrics.add(batch["label"], np.asarray(logits))
    return state, metrics


class Trainer:
    """Runs steps, keeps the history and lets the table grow.

    Args:
        state: What to start from.
        tx: Optimizer of the MLPs.
        held_out: Makes the batches of an evaluation.
        evaluate_every: Steps between evaluations; 0 for none.

    Attributes:
        state: The newest one; the arrays of older ones are gone, donated.
        history: Loss, AUC, rows and capacity of each window of steps.
        evaluations: Loss and AUC of each evaluation.
        growth: When the table grew, with how many rows, to what capacity.
        steps: Steps done.
        samples: Samples trained on.
        seconds: Time that took, reading and compiling included, evaluations not.
    """

    def __init__(
        self,
        state: State,
        tx: optax.GradientTransformation,
        held_out: Callable[[], Iterator[Batch]],
        evaluate_every: int,
    ) -> None:
        self.state = state
        self.history: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.growth: list[dict[str, int]] = []
        self.steps = 0
        self.samples = 0
        self.seconds = 0.0
        self._step = make_train_step(tx)
        self._held_out = held_out
        self._evaluate_every = evaluate_every
        self._pending: collections.deque[Pending] = collections.deque()
        self._rows = oe.size(state.table)
        self._window = Metrics()

    def train(self, batches: Iterator[Batch], total: int | None) -> bool:
        """Trains on all batches, or until Ctrl-C.

        Args:
            batches: Where the samples come from.
            total: Their number for the progress bar, where it is known.

        Returns:
            Whether it was interrupted.
        """
        bar = tqdm(total=total, unit=" samples", unit_scale=True, smoothing=0.1)
        with bar, _interruption() as interrupted:
            start = time.monotonic()
            for batch, next_ids in oe.PrefetchScheduler(batches, "ids"):
                self._one_step(batch, next_ids)
                bar.update(len(batch["ids"]))
                if self.steps % WINDOW == 0:
                    self._end_window(bar)
                if self._evaluate_every and self.steps % self._evaluate_every == 0:
                    self._take_in(waiting=0)
                    paused = time.monotonic()
                    self.evaluate()
                    start += time.monotonic() - paused
                if interrupted():
                    break
            self._take_in(waiting=0)
            self.seconds += time.monotonic() - start
            self._end_window(bar)
        return interrupted()

    def evaluate(self) -> Metrics:
        """Evaluates, and notes the result."""
        self.state, metrics = evaluate(self.state, self._held_out())
        point = {"samples": self.samples, "loss": metrics.loss, "auc": metrics.auc}
        self.evaluations.append(point)
        return metrics

    def _one_step(self, batch: Batch, next_ids: np.ndarray) -> None:
        most_new = self._grow_if_needed(batch["ids"])
        inputs = _to_device(batch)
        self.state, logits, rows = self._step(*self.state, inputs, next_ids)
        self._pending.append(Pending(most_new, batch["label"], logits, rows))
        self._take_in(waiting=STEPS_IN_FLIGHT)
        self.steps += 1
        self.samples += len(batch["ids"])

    def _grow_if_needed(self, ids: np.ndarray) -> int:
        """Doubles the table while the steps under way could fill it.

        Returns:
            Distinct ids i64[batch, tables] of the step about to start: the most
            rows that it can add.
        """
        if self.state.table.spec.is_cached:
            return 0  # what is below it grows by itself
        new = _count_distinct(ids)
        most = self._rows + new + sum(step.most_new for step in self._pending)
        capacity = wanted = self.state.table.capacity
        while most > wanted or self._rows > FULL_ENOUGH * wanted:
            wanted *= 2
        if wanted > capacity:
            self._take_in(waiting=0)
            self.state = self.state._replace(table=oe.grow(self.state.table, wanted))
            self.growth.append(
                {"samples": self.samples, "rows": self._rows, "capacity": wanted}
            )
        return new

    def _take_in(self, waiting: int) -> None:
        """Notes what finished steps saw, until `waiting` steps are left."""
        while len(self._pending) > waiting:
            step = self._pending.popleft()
            self._rows = int(step.rows)
            self._window.add(step.labels, np.asarray(step.logits))

    def _end_window(self, bar: Any) -> None:
        if not self._window.samples:
            return
        capacity = self.state.table.capacity
        load = f"load {self._rows / capacity:.0%}"
        if self.state.table.spec.is_cached:
            load = f"cache {capacity:,}"
        point = {
            "samples": self.samples,
            "loss": self._window.loss,
            "auc": self._window.auc,
            "rows": self._rows,
            "capacity": capacity,
        }
        self.history.append(point)
        self._window = Metrics()
        bar.set_postfix_str(
            f"loss {point['loss']:.4f}, AUC {point['auc']:.4f}, "
            f"rows {self._rows:,}, {load}"
        )


def _to_device(batch: Batch) -> Batch:
    """What a step takes: ids packed, and no truths of synthetic clicks."""
    inputs = {key: batch[key] for key in ("label", "dense")}
    return inputs | {"ids": oe.pack_ids(batch["ids"])}


def _count_distinct(ids: np.ndarray) -> int:
    """Distinct pairs of table and id in i64[batch, tables], ids below 2**33."""
    keys = np.sort((ids + (np.arange(ids.shape[1]) << 33)).reshape(-1))
    return 1 + int(np.count_nonzero(np.diff(keys)))


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C end the loop after a whole step; a second one ends it at once.

    An exception inside a step would lose the arrays that were donated to it.
    """
    met: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        del frame
        met.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(met)
    finally:
        signal.signal(signal.SIGINT, previous)
