"""A row as OneFlow lays it out, [embedding | optimizer state], and as we do."""

from __future__ import annotations

import numpy as np

from oneemb_jax.optimizer import Optimizer

#: State of OneFlow's optimizers in the order of a row, by our names. Momentum is
#: in rows of SGD only if there is any.
_FIELDS = {
    "sgd": ("momentum",),
    "adam": ("m", "v"),
    "adagrad": ("sum",),
    "ftrl": ("sum", "z"),
    "smart_decay_adam": ("m", "v"),
}
_LAST_STEP = "last_step"


def state_names(optimizer: Optimizer, call: str) -> tuple[str, ...]:
    """Names of what follows the embedding, one for each D columns.

    Raises:
        ValueError: if OneFlow has no such optimizer.
    """
    if optimizer.name not in _FIELDS:
        raise ValueError(
            f"{call}: OneFlow has no {optimizer.name}, so no rows with its state; "
            "optimizer_state=False takes the embeddings alone. It has: "
            f"{', '.join(_FIELDS)}."
        )
    return _FIELDS[optimizer.name] if optimizer.num_state_fields else ()


def storage_dim(optimizer: Optimizer, dim: int, call: str) -> int:
    """float32 of a row of OneFlow's with this optimizer.

    Smart decay keeps the step that last touched a row as an int64, so after an
    even number of columns.
    """
    columns = dim * (1 + len(state_names(optimizer, call)))
    if optimizer.name == "smart_decay_adam":
        return columns + columns % 2 + 2
    return columns


def counts_updates(optimizer: Optimizer) -> bool:
    """Whether an update depends on how many there were before."""
    return (
        callable(optimizer.learning_rate)
        or optimizer.bias_correction
        or optimizer.lr_decay != 0
        or optimizer.name == "smart_decay_adam"
    )


def split(
    optimizer: Optimizer, dim: int, rows: np.ndarray, call: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embedding and state, as ``set_rows`` takes them, of rows of OneFlow's.

    Args:
        optimizer: whose state it is.
        dim: width of the embedding.
        rows: float32[n, storage_dim].
        call: the public function, for messages.

    Raises:
        ValueError: if a row was last touched at a step that is none.
    """
    state = {}
    for i, name in enumerate(state_names(optimizer, call), start=1):
        state[name] = rows[:, i * dim : (i + 1) * dim]
    if optimizer.name == "smart_decay_adam":
        steps = np.ascontiguousarray(rows[:, -2:]).view("<i8").reshape(-1)
        bad = steps[(steps < 0) | (steps >= 2**32)]
        if bad.size:
            raise ValueError(
                f"{call}: a row was last updated at step {bad[0]}, expected 0 to "
                "2**32 - 1; these are no rows of smart_decay_adam."
            )
        state[_LAST_STEP] = steps.astype(np.uint32)
    return rows[:, :dim], state


def join(
    optimizer: Optimizer,
    embedding: np.ndarray,
    state: dict[str, np.ndarray],
    call: str,
) -> np.ndarray:
    """Undoes ``split``: float32[n, storage_dim]."""
    count, dim = embedding.shape
    rows = np.zeros((count, storage_dim(optimizer, dim, call)), np.float32)
    rows[:, :dim] = embedding
    for i, name in enumerate(state_names(optimizer, call), start=1):
        rows[:, i * dim : (i + 1) * dim] = state[name]
    if optimizer.name == "smart_decay_adam":
        steps = state[_LAST_STEP].astype("<i8").reshape(count, 1)
        rows[:, -2:] = steps.view("<f4")
    return rows
