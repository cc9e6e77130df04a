"""One optimizer step in NumPy and float64: what every system is held to."""

from collections.abc import Callable

import numpy as np
from cells import (
    BETA1,
    BETA2,
    EPS,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Batches,
    Cell,
    make_batches,
)
from systems import System

CHECK_ROWS = 2_000
CHECK_IDS = 3_000


class Reference:
    """A table in float64, with the step of one optimizer.

    Args:
        optimizer: `sgd`, `adagrad` or `adam`.
        weights: The rows to start from.
        dense: Whether rows outside a batch take a step too, with a gradient of
            zero, as a dense optimizer's do.
    """

    def __init__(self, optimizer: str, weights: np.ndarray, dense: bool) -> None:
        self.optimizer = optimizer
        self.dense = dense
        self.weights = weights.astype(np.float64)
        start = INITIAL_ACCUMULATOR if optimizer == "adagrad" else 0
        self.first = np.zeros_like(self.weights)
        self.second = np.full_like(self.weights, start)
        self.steps = 0

    def step(self, ids: np.ndarray, grads: np.ndarray) -> None:
        """Applies one batch: `ids` i64[n], `grads` f32[n, dim]."""
        total = np.zeros_like(self.weights)
        np.add.at(total, ids, grads.astype(np.float64))
        at = slice(None) if self.dense else np.unique(ids)
        g = total[at]
        self.steps += 1
        if self.optimizer == "sgd":
            self.weights[at] -= LEARNING_RATE * g
        elif self.optimizer == "adagrad":
            self.second[at] += g * g
            self.weights[at] -= LEARNING_RATE * g / (np.sqrt(self.second[at]) + EPS)
        else:
            self.first[at] += (1 - BETA1) * (g - self.first[at])
            self.second[at] += (1 - BETA2) * (g * g - self.second[at])
            upper = self.first[at] / (1 - BETA1**self.steps)
            lower = np.sqrt(self.second[at] / (1 - BETA2**self.steps)) + EPS
            self.weights[at] -= LEARNING_RATE * upper / lower


def check(
    name: str, build: Callable[[Cell, Batches], System], dim: int, optimizer: str
) -> str | None:
    """Compares two small steps of a system with the reference.

    The first step goes through `step`, the second through `update`, so that
    both of the calls that are timed are checked, and `lookup` between them.

    Args:
        name: Named in the answer.
        build: Makes the system for a cell.
        dim: Width of a row.
        optimizer: Its optimizer.

    Returns:
        What is wrong, or None.
    """
    cell = Cell(CHECK_ROWS, CHECK_IDS, dim, "zipf", optimizer)
    batches = make_batches(cell, count=2)
    system = build(cell, batches)
    try:
        reference = Reference(optimizer, system.weights(), system.dense)
        for k, phase in enumerate(("step", "update")):
            before = reference.weights[batches.ids[k]]
            looked_up = np.max(np.abs(system.activations(k) - before))
            if phase == "update":
                system.prepare(k)
            getattr(system, phase)(k)
            reference.step(batches.ids[k], batches.grads)
            moved = np.max(np.abs(system.weights() - reference.weights))
            worst = max(looked_up, moved)
            if not worst <= 1e-3 * LEARNING_RATE:
                return (
                    f"{name}, {optimizer}, dim {dim}: off by {moved:.1e} after "
                    f"{phase} {k + 1}, by {looked_up:.1e} in its lookup"
                )
    finally:
        system.close()
    return None
