"""Batches that know their step, for the tests of PrefetchScheduler."""

from typing import Any

import numpy as np

BIG = 2**40


def make_batches(count: int, size: int = 3, last: int | None = None) -> list[Any]:
    """Batches of {"ids": i64[size, 2], "step"}; the last one has ``last`` rows."""
    rows = [size] * count
    if count and last is not None:
        rows[-1] = last
    starts = BIG + 1000 * np.arange(count)
    return [
        {"ids": start + np.arange(2 * n).reshape(n, 2), "step": step}
        for step, (start, n) in enumerate(zip(starts, rows, strict=True))
    ]
