"""What the command line can do with a format on disk; each has a file of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

#: Told of rows that were read, as they are.
Progress = Callable[[int], object]
#: A label and what there is to say.
Lines = list[tuple[str, str]]


class Reader(Protocol):
    """An open snapshot: keys and rows in batches, as often as it is asked."""

    name: str
    key_type: str
    storage_dim: int

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...
    def keys(self) -> Iterator[np.ndarray]:
        """The keys alone, in the same order."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class Wish:
    """How a snapshot shall be read.

    Attributes:
        key_type: of the keys; None: the format's own.
        like_oneflow: rows laid out as OneFlow has them.
        embedding_only: rows without the state of their optimizer.
    """

    key_type: str | None = None
    like_oneflow: bool = False
    embedding_only: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A format on disk, told from others by its files.

    Attributes:
        title: what a person calls it.
        recognises: whether the files at the paths have its signature.
        snapshots: names of the snapshots there.
        parts: names of all that verify reads; the snapshots and what is beside.
        describe: what there is to say without reading rows.
        rows: how many rows a part lists.
        verify: findings in a part, one sentence each.
        open: a snapshot, to be read.
    """

    title: str
    recognises: Callable[[Sequence[Path]], bool]
    snapshots: Callable[[Sequence[Path]], list[str]]
    parts: Callable[[Sequence[Path]], list[str]]
    describe: Callable[[Sequence[Path]], Lines]
    rows: Callable[[Sequence[Path], str], int]
    verify: Callable[[Sequence[Path], str, Progress], Iterator[str]]
    open: Callable[[Sequence[Path], str, Wish], Reader]


def find_format(known: Sequence[Format], paths: Sequence[Path]) -> Format:
    """The one of the formats that is at ``paths``.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if no format is recognised.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder.")
    for one in known:
        if one.recognises(paths):
            return one
    titles = ", ".join(one.title for one in known)
    raise ValueError(f"{paths[0]}: of no known format; known: {titles}.")
