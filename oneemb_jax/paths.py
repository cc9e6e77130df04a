"""Paths of folders as users give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def folder_path(path: Any, argument: str) -> str:
    """A path as text.

    Args:
        path: what the user passed.
        argument: where, as in "save(path)", for messages.

    Raises:
        TypeError: if it is no path.
        ValueError: if it is empty, has a NUL, or begins with "~", of which neither
            Python nor the system makes a home folder.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{argument}: {path!r} is no path; pass that of a folder.")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise ValueError(f"{argument}: path {path!r} is empty, or has a NUL in it.")
    if Path(name).parts[:1] == ("~",):
        raise ValueError(
            f"{argument}: path {path!r} would be a folder named '~'; for one in your "
            "home pass os.path.expanduser(path)."
        )
    return name
