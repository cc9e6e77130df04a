"""The formats on disk that the command line knows, told apart by their files.

A new format is one more entry in ``FORMATS``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from oneemb_jax import oneflow_format, oneflow_reader, oneflow_verify
from oneemb_jax.table import human_bytes

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
class Format:
    """What the command line can do with a format.

    Attributes:
        title: what a person calls it.
        recognises: whether the files at the paths have its signature.
        snapshots: names of the snapshots there.
        describe: what there is to say without reading rows.
        rows: how many rows a snapshot lists.
        verify: findings in a snapshot, one sentence each.
        open: a snapshot, with keys of the type given, or of the format's own.
    """

    title: str
    recognises: Callable[[Sequence[Path]], bool]
    snapshots: Callable[[Sequence[Path]], list[str]]
    describe: Callable[[Sequence[Path]], Lines]
    rows: Callable[[Sequence[Path], str], int]
    verify: Callable[[Sequence[Path], str, Progress], Iterator[str]]
    open: Callable[[Sequence[Path], str, str | None], Reader]


def _one_or_all(paths: Sequence[Path]) -> oneflow_format.Paths:
    """A single path may be a root; several are one a rank."""
    return paths[0] if len(paths) == 1 else paths


def _is_oneflow(paths: Sequence[Path]) -> bool:
    return all(
        path.is_dir()
        and (
            oneflow_format.is_rank(path)
            or any(oneflow_format.is_rank(child) for child in path.iterdir())
        )
        for path in paths
    )


def _oneflow_snapshots(paths: Sequence[Path]) -> list[str]:
    ranks = oneflow_format.find_ranks(_one_or_all(paths), "inspect")
    return oneflow_reader.list_names(ranks)


def _describe_oneflow(paths: Sequence[Path]) -> Lines:
    ranks = oneflow_format.find_ranks(_one_or_all(paths), "inspect")
    geometry = oneflow_reader.common_geometry(ranks)
    files = (p for r in ranks for d in ("keys", "values") for p in (r / d).glob("*"))
    stored = sum(path.stat().st_size for path in files)
    bits, per_block = 8 * geometry.key_size, geometry.values_per_block
    lines = [
        ("ranks", str(len(ranks))),
        ("keys", f"int{bits} or uint{bits}"),
        ("rows", f"{geometry.storage_dim} float32, {human_bytes(geometry.value_size)}"),
        ("blocks", f"{human_bytes(geometry.block_size)}, {per_block} rows in each"),
        ("stored", f"{human_bytes(stored)}, rows that no snapshot needs included"),
    ]
    names = oneflow_reader.list_names(ranks)
    sizes = ((name, _oneflow_size(ranks, name, geometry)) for name in names)
    return lines + [("snapshot", f"{name}: {size}") for name, size in sizes]


def _oneflow_size(
    ranks: list[Path], name: str, geometry: oneflow_format.Geometry
) -> str:
    """Rows and bytes of a snapshot, or why it can't be read."""
    try:
        chunks = oneflow_reader.all_chunks(ranks, name, geometry)
    except (ValueError, OSError) as error:
        return f"unreadable: {error}"
    rows = sum(chunk.rows for chunk in chunks)
    return f"{rows} rows, {human_bytes(rows * geometry.value_size)}"


def _oneflow_rows(paths: Sequence[Path], name: str) -> int:
    ranks = oneflow_format.find_ranks(_one_or_all(paths), "verify")
    files = (f for r in ranks for f in (r / "snapshots" / name).glob("index-*"))
    return sum(path.stat().st_size // 8 for path in files)


def _verify_oneflow(
    paths: Sequence[Path], name: str, progress: Progress
) -> Iterator[str]:
    return oneflow_verify.verify_ranks(_one_or_all(paths), name, "verify", progress)


def _open_oneflow(
    paths: Sequence[Path], name: str, key_type: str | None
) -> oneflow_reader.Snapshot:
    return oneflow_reader.open_ranks(
        _one_or_all(paths), name, key_type, None, "convert"
    )


FORMATS = (
    Format(
        title="OneFlow table",
        recognises=_is_oneflow,
        snapshots=_oneflow_snapshots,
        describe=_describe_oneflow,
        rows=_oneflow_rows,
        verify=_verify_oneflow,
        open=_open_oneflow,
    ),
)


def find_format(paths: Sequence[Path]) -> Format:
    """The format of what is at ``paths``.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if no format is recognised.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder.")
    for known in FORMATS:
        if known.recognises(paths):
            return known
    titles = ", ".join(known.title for known in FORMATS)
    raise ValueError(f"{paths[0]}: of no known format; known: {titles}.")
