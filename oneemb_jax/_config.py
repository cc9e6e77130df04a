"""The environment variables of the library, all of them."""

from __future__ import annotations

import os


def num_threads() -> int:
    """``ONEEMB_NUM_THREADS``: threads a CPU kernel splits its work for.

    0, the default, means as many as XLA's own pool has. Results do not depend
    on it.
    """
    text = os.environ.get("ONEEMB_NUM_THREADS", "0")
    if not text.isdecimal():
        raise ValueError(
            f"ONEEMB_NUM_THREADS={text!r}: use 0 (XLA's own number) or a "
            "positive whole number."
        )
    return int(text)


def instruction_set() -> str:
    """``ONEEMB_ISA``: ``auto`` (default), ``baseline`` or ``v3`` (AVX2)."""
    text = os.environ.get("ONEEMB_ISA", "auto")
    if text not in ("auto", "baseline", "v3"):
        raise ValueError(f"ONEEMB_ISA={text!r}: use auto, baseline or v3.")
    return text
