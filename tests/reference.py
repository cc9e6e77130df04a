"""Tables as a dict of rows, in float64 NumPy: what the kernels are held to.

Written from the papers and OneFlow's kernels, not from our C++: no blocks, no
lanes, no slots. Ids may be anything hashable, such as (table, id).
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np

Row = dict[str, Any]  # "embedding" and the state, float64 arrays or scalars


def _sgd(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    if p.momentum:
        row["momentum"] = p.momentum * row["momentum"] + g
        g = g + p.momentum * row["momentum"] if p.nesterov else row["momentum"]
    row["embedding"] = row["embedding"] - lr * g


def _corrections(p: Any, step: int) -> tuple[float, float]:
    if not p.bias_correction:
        return 1.0, 1.0
    return 1 - p.beta1 ** (step + 1), 1 - p.beta2 ** (step + 1)


def _moments(p: Any, row: Row, g: np.ndarray) -> None:
    row["m"] = p.beta1 * row["m"] + (1 - p.beta1) * g
    row["v"] = p.beta2 * row["v"] + (1 - p.beta2) * g**2


def _adam(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    c1, c2 = _corrections(p, step)
    _moments(p, row, g)
    v = row["v"]
    if p.name == "amsgrad":
        v = row["v_max"] = np.maximum(row["v_max"], v)
    move = row["m"] / c1 / (np.sqrt(v / c2) + p.eps)
    row["embedding"] = row["embedding"] - lr * move


def _adagrad(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    squares = g**2 if p.name == "adagrad" else np.mean(g**2)
    row["sum"] = row["sum"] + squares
    row["embedding"] = row["embedding"] - lr * g / (np.sqrt(row["sum"]) + p.eps)


def _ftrl(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    new = row["sum"] + g**2
    sigma = (new**p.lr_power - row["sum"] ** p.lr_power) / lr
    z = row["z"] + g - sigma * row["embedding"]
    shrunk = np.sign(z) * p.lambda1 - z
    w = shrunk / ((p.beta + new**p.lr_power) / lr + p.lambda2)
    row["sum"], row["z"] = new, z
    row["embedding"] = np.where(np.abs(z) < p.lambda1, 0.0, w)


def _smart_decay_adam(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    k = step + 1 - int(row["last_step"])
    # Every update that the row was not in, one at a time.
    catchup = sum(p.beta1**i for i in range(1, k)) * row["m"]
    for field, beta in (("m", p.beta1), ("v", p.beta2)):
        row[field] = beta ** (k - 1) * row[field]
    _moments(p, row, g)
    move = (row["m"] + catchup) / (np.sqrt(row["v"]) + p.eps)
    row["embedding"] = row["embedding"] - lr * move
    row["last_step"] = np.float64(step + 1)


def _lamb(p: Any, row: Row, g: np.ndarray, lr: float, step: int) -> None:
    c1, c2 = _corrections(p, step)
    _moments(p, row, g)
    w = row["embedding"]
    u = row["m"] / c1 / (np.sqrt(row["v"] / c2) + p.eps) + p.weight_decay * w
    norms = np.linalg.norm(w), np.linalg.norm(u)
    ratio = norms[0] / norms[1] if min(norms) > 0 else 1.0
    row["embedding"] = w - lr * ratio * u


_STEPS: dict[str, Callable[..., None]] = {
    "sgd": _sgd,
    "adam": _adam,
    "amsgrad": _adam,
    "adagrad": _adagrad,
    "rowwise_adagrad": _adagrad,
    "ftrl": _ftrl,
    "smart_decay_adam": _smart_decay_adam,
    "lamb": _lamb,
}


class ReferenceTable:
    """Rows by id, and how far every number in them has moved."""

    def __init__(
        self, dim: int, optimizer: Any, initial_rows: Callable[[Any], Any]
    ) -> None:
        """``initial_rows(id)`` gives the embedding of a row never updated."""
        self.dim = dim
        self.optimizer = optimizer
        self.initial_rows = initial_rows
        self.rows: dict[Hashable, Row] = {}
        self.travel: dict[Hashable, Row] = {}
        self.step = 0

    def _initial_row(self, key: Hashable) -> Row:
        row: Row = {"embedding": np.asarray(self.initial_rows(key), np.float64)}
        first = self.optimizer.initial_accumulator_value
        for name in self.optimizer.state_fields:
            row[name] = np.full(self.dim, first if name == "sum" else 0.0)
        for name, _ in self.optimizer.row_fields:
            row[name] = np.float64(first if name == "sum" else 0.0)
        return row

    def row(self, key: Hashable) -> Row:
        """A row as it stands; reading stores nothing."""
        return self.rows.get(key) or self._initial_row(key)

    def field(self, name: str, ids: Iterable[Hashable]) -> np.ndarray:
        """``"embedding"`` or a state, one entry an id."""
        return np.stack([self.row(key)[name] for key in ids])

    def travel_of(self, name: str, ids: Iterable[Hashable]) -> np.ndarray:
        """The summed absolute changes of a field, one entry an id."""
        return np.stack(
            [
                np.zeros_like(self.row(key)[name])
                + self.travel.get(key, {}).get(name, 0)
                for key in ids
            ]
        )

    def learning_rate(self) -> float:
        """The optimizer's own rate for the coming update."""
        given = self.optimizer.learning_rate
        rate: Any = given(self.step) if callable(given) else given
        return float(rate)

    def update(
        self,
        ids: Iterable[Hashable],
        grads: Any,
        lr: float | None = None,
        grad_scale: float = 1.0,
    ) -> None:
        """One update: gradients of one id are added up, other rows stay."""
        p = self.optimizer
        rate = self.learning_rate() if lr is None else lr
        rate /= 1 + self.step * p.lr_decay
        sums: dict[Hashable, np.ndarray] = {}
        for key, grad in zip(ids, np.asarray(grads, np.float64), strict=True):
            sums[key] = sums.get(key, np.zeros(self.dim)) + grad
        for key, grad in sums.items():
            before = self.row(key)
            row = dict(before)
            self._step(row, grad * grad_scale, rate)
            travel = self.travel.setdefault(key, {})
            for name in row:
                moved = np.abs(row[name] - before[name])
                travel[name] = travel.get(name, 0.0) + moved
            self.rows[key] = row
        self.step += 1

    def _step(self, row: Row, g: np.ndarray, rate: float) -> None:
        p, w = self.optimizer, row["embedding"]
        own_decay = p.name == "lamb" or p.decoupled
        _STEPS[p.name](
            p, row, g if own_decay else g + p.weight_decay * w, rate, self.step
        )
        if p.decoupled:
            row["embedding"] = row["embedding"] - rate * p.weight_decay * w
