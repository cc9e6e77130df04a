"""Files and names that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(path: Path) -> None:
    """After it, the names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """A new file with these bytes, on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
