"""The systems that are compared, and which of them can run here."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from cells import Batches, Cell


class System(Protocol):
    """A table with its optimizer, ready for the batches of one cell.

    `lookup`, `update` and `step` are timed: they return when the work is done
    and what they made is let go, as one turn of a training loop does.
    """

    dense: bool  # a step moves the rows outside its batch too

    def lookup(self, k: int) -> None:
        """Reads the rows of batch `k`."""

    def prepare(self, k: int) -> None:
        """Does what comes before `update(k)`; not timed."""

    def update(self, k: int) -> None:
        """Applies the gradients of batch `k`."""

    def step(self, k: int) -> None:
        """Reads the rows of batch `k`, then applies its gradients."""

    def activations(self, k: int) -> np.ndarray:
        """What `lookup(k)` reads, f32[n, dim]; for the check."""
        ...

    def weights(self) -> np.ndarray:
        """The rows without their state, f32[rows, dim]; for the check."""
        ...

    def close(self) -> None:
        """Lets all memory go."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A system that may be built for a cell.

    Attributes:
        name: What tables call it.
        role: `ours`, `peer`, `native` (the plain kernel), `limit` or `fresh` (the
            limit of calls that allocate their output).
        module: Where its class is, and below what is imported to find out
            whether it can run here.
        builder: The class, called with a cell and its batches.
        optimizers: Those that it has.
    """

    name: str
    role: str
    module: str
    builder: str
    optimizers: tuple[str, ...] = ("sgd", "adagrad", "adam")

    def build(self, cell: Cell, batches: Batches) -> System:
        """Makes the table and compiles or warms up nothing yet."""
        make: Callable[[Cell, Batches], System] = getattr(
            importlib.import_module(self.module), self.builder
        )
        return make(cell, batches)


KINDS = (
    Kind("oneemb_jax", "ours", "ours", "Ours"),
    Kind("torch Embedding(sparse)", "peer", "peers_torch", "TorchEmbedding"),
    Kind("torch EmbeddingBag(sparse)", "peer", "peers_torch", "TorchBag"),
    Kind("FBGEMM TBE", "peer", "peers_fbgemm", "Fbgemm", ("sgd", "adagrad")),
    Kind("jnp.take + optax", "peer", "peers_jax", "TakeOptax"),
    Kind("JAX .at[].add", "peer", "peers_jax", "ScatterAdd", ("sgd",)),
    Kind("JAX unique + segment_sum", "peer", "peers_jax", "Unique"),
    Kind("plain AVX2 kernel", "native", "native", "Native"),
    Kind("limit", "limit", "native", "Limit"),
    Kind("limit, fresh output", "fresh", "native", "FreshLimit"),
)


def available(names: list[str] | None = None) -> tuple[list[Kind], dict[str, str]]:
    """Finds the systems that can run here.

    Args:
        names: Parts of names; only systems that match one are taken.

    Returns:
        The systems, and why each of the others is left out.
    """
    found: list[Kind] = []
    left_out: dict[str, str] = {}
    for kind in KINDS:
        if names and not any(n.lower() in kind.name.lower() for n in names):
            left_out[kind.name] = "not asked for"
            continue
        try:
            importlib.import_module(kind.module)
        except (ImportError, OSError, RuntimeError) as error:
            left_out[kind.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            found.append(kind)
    return found, left_out
