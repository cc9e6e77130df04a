"""torch: `nn.Embedding` and `nn.EmbeddingBag` with sparse gradients."""

import functools
import os

import numpy as np
import torch
from cells import (
    BETA1,
    BETA2,
    EPS,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Batches,
    Cell,
)

torch.set_num_threads(len(os.sched_getaffinity(0)))


def _make_optimizer(name: str, weight: torch.nn.Parameter) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([weight], lr=LEARNING_RATE)
    if name == "adagrad":
        return torch.optim.Adagrad(
            [weight],
            lr=LEARNING_RATE,
            eps=EPS,
            initial_accumulator_value=INITIAL_ACCUMULATOR,
        )
    return torch.optim.SparseAdam(
        [weight], lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPS
    )


class _Torch:
    """One embedding module and its optimizer."""

    dense = False

    def __init__(
        self,
        batches: Batches,
        module: torch.nn.Module,
        weight: torch.nn.Parameter,
        optimizer: torch.optim.Optimizer,
        extra: tuple[torch.Tensor, ...] = (),
    ) -> None:
        self._batches = batches
        self._ids = [torch.from_numpy(b) for b in batches.ids]
        self._grads = torch.from_numpy(batches.grads)
        self._module = module
        self._weight = weight
        self._optimizer = optimizer
        self._extra = extra
        self._acts: torch.Tensor | None = None

    def _forward(self, k: int) -> torch.Tensor:
        return self._module(self._ids[self._batches.pick(k)], *self._extra)

    def _backward(self, acts: torch.Tensor) -> None:
        acts.backward(self._grads)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def lookup(self, k: int) -> None:
        """Reads without recording a graph."""
        with torch.no_grad():
            self._forward(k)

    def prepare(self, k: int) -> None:
        """The forward pass that `update` goes back through."""
        self._acts = self._forward(k)

    def update(self, k: int) -> None:
        """Backward and the optimizer's step."""
        if self._acts is None:
            raise RuntimeError(f"update({k}) before prepare({k})")
        acts, self._acts = self._acts, None
        self._backward(acts)

    def step(self, k: int) -> None:
        """Forward, backward and the optimizer's step."""
        self._backward(self._forward(k))

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        with torch.no_grad():
            return self._forward(k).numpy()

    def weights(self) -> np.ndarray:
        """All rows."""
        return self._weight.detach().numpy().copy()

    def close(self) -> None:
        """Forgets the table; memory goes with its last user."""
        _table.cache_clear()


@functools.lru_cache(maxsize=1)
def _table(cell: Cell) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    """The rows and the optimizer of a cell, shared by the modules here."""
    rows = torch.empty(cell.rows, cell.dim).uniform_(-0.05, 0.05)
    weight = torch.nn.Parameter(rows)
    return weight, _make_optimizer(cell.optimizer, weight)


class TorchEmbedding(_Torch):
    """`nn.Embedding(sparse=True)`."""

    def __init__(self, cell: Cell, batches: Batches) -> None:
        weight, optimizer = _table(cell)
        module = torch.nn.Embedding(
            cell.rows, cell.dim, sparse=True, _weight=weight.detach()
        )
        module.weight = weight
        super().__init__(batches, module, weight, optimizer)


class TorchBag(_Torch):
    """`nn.EmbeddingBag(sparse=True)` with one id in each bag."""

    def __init__(self, cell: Cell, batches: Batches) -> None:
        weight, optimizer = _table(cell)
        module = torch.nn.EmbeddingBag(
            cell.rows, cell.dim, mode="sum", sparse=True, _weight=weight.detach()
        )
        module.weight = weight
        extra = (torch.arange(cell.ids),)
        super().__init__(batches, module, weight, optimizer, extra)
