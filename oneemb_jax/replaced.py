"""Folders that another process may replace while they are read."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_Read = TypeVar("_Read")
_Path = TypeVar("_Path", str, os.PathLike[str])

#: Times that a folder is read anew before that is given up.
_ATTEMPTS = 20


def read_whole(
    locate: Callable[[], Sequence[_Path]], read: Callable[[Sequence[_Path]], _Read]
) -> _Read:
    """What ``read`` makes of folders that stood where they are all the while.

    Files of a folder are opened by path, one after the other: where somebody puts
    another folder in its place meanwhile, some would be of the one and some of the
    other. It is read once more then, whatever came of it.

    Args:
        locate: the folders, as they are now.
        read: reads them. What it has done is done again where they were replaced.

    Raises:
        BlockingIOError: if they are replaced whenever they are read.
    """
    for _ in range(_ATTEMPTS):
        folders = locate()
        with _held(folders) as in_place:
            try:
                found = read(folders)
            except Exception:
                if in_place():
                    raise
            else:
                if in_place():
                    return found
    raise BlockingIOError(
        errno.EAGAIN,
        f"replaced by somebody each of the {_ATTEMPTS} times that it was read",
        os.fspath(locate()[0]),
    )


@contextlib.contextmanager
def _held(folders: Sequence[_Path]) -> Iterator[Callable[[], bool]]:
    """Yields what says whether the folders are those that they were."""
    with contextlib.ExitStack() as stack:
        held = []
        for folder in folders:
            with contextlib.suppress(OSError):
                # Open, so that no other folder gets the number of its inode.
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, descriptor)
                held.append((folder, os.fstat(descriptor)))
        missing = [f for f in folders if f not in [folder for folder, _ in held]]

        def in_place() -> bool:
            try:
                same = all(os.path.samestat(os.stat(f), was) for f, was in held)
            except OSError:
                return False
            return same and not any(os.path.isdir(folder) for folder in missing)

        yield in_place
