"""What tables take of a device's memory, in words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import jax


def human_bytes(count: float) -> str:
    """A byte count as a person writes it.

    Example:
        >>> human_bytes(1536)
        '1.5 KiB'
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


@contextlib.contextmanager
def memory_explained(
    shapes: Sequence[jax.ShapeDtypeStruct], call: str, advice: str
) -> Iterator[None]:
    """Adds to JAX's error of a device without memory what was to go there.

    Args:
        shapes: of all arrays that are made within.
        call: the public function.
        advice: what would need less.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            count = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
            size = human_bytes(count)
            error.add_note(f"{call}: the table's arrays take {size}. Try {advice}.")
        raise
