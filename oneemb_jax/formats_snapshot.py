"""Snapshots of this package's own, for the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from oneemb_jax import oneflow_rows
from oneemb_jax import snapshot_files as files
from oneemb_jax._ffi import native
from oneemb_jax.formats import Format, Lines, Progress, Wish
from oneemb_jax.manifest import Manifest
from oneemb_jax.memory import human_bytes
from oneemb_jax.oneflow_format import check_key_type
from oneemb_jax.spec import TableSpec
from oneemb_jax.store import StoreError

_FILES = ("MANIFEST", "LIVE")


def is_snapshot(path: Path) -> bool:
    """Whether a folder looks like a snapshot itself, whole or not."""
    return any((path / name).is_file() for name in _FILES)


def _has_snapshots(path: Path) -> bool:
    return (path / "snap").is_dir()


def _is_ours(paths: Sequence[Path]) -> bool:
    if all(is_snapshot(path) or _has_snapshots(path) for path in paths):
        return True
    ranks = files.rank_folders(str(paths[0]))
    return len(paths) == 1 and any(_has_snapshots(Path(path)) for path in ranks)


def _places(paths: Sequence[Path]) -> str | tuple[str, ...]:
    """What ``snapshot_files`` takes: a root, or the folders of ranks."""
    if len(paths) == 1 and not _has_snapshots(paths[0]):
        return str(paths[0])
    return tuple(map(str, paths))


def _names(paths: Sequence[Path]) -> list[str]:
    if is_snapshot(paths[0]):
        return [paths[0].absolute().name]
    return files.list_names(_places(paths))


def folders_of(paths: Sequence[Path], name: str) -> list[str]:
    """The folders of a snapshot, one a rank."""
    if is_snapshot(paths[0]):
        return [str(path) for path in paths]
    return files.find_parts(_places(paths), name, "inspect")


# --- inspect ---


def _describe(paths: Sequence[Path]) -> Lines:
    lines: Lines = []
    sizes: dict[tuple[int, int], int] = {}
    for name in _names(paths):
        folders = folders_of(paths, name)
        lines += describe_snapshot(folders, name)
        for folder in folders:
            for entry in os.scandir(folder):
                found = entry.stat()
                sizes[found.st_dev, found.st_ino] = found.st_size
    stored = human_bytes(sum(sizes.values()))
    return [("stored", f"{stored}, files that snapshots share counted once"), *lines]


def describe_snapshot(folders: Sequence[str], name: str) -> Lines:
    """A snapshot in a few lines, or why it can't be read."""
    try:
        readers = [native.SnapshotReader(files.encode_path(x)) for x in folders]
    except (StoreError, OSError) as error:
        return [("snapshot", f"{name}: unreadable: {error}")]
    rows, width = sum(x.rows for x in readers), readers[0].row_bytes
    size = f"{rows} rows, {human_bytes(rows * width)}"
    try:
        manifest = files.open_parts(folders)[0].manifest
    except (StoreError, ValueError) as error:
        return [("snapshot", f"{name}: {size}; {error}")]
    if manifest.num_ranks > 1:
        size += f", {manifest.num_ranks} ranks"
    if manifest.spec is None or manifest.state is None:
        keys = f"{manifest.key_type} keys"
        text = f"rows of {manifest.row_words} float32, {keys}; no table"
        return [("snapshot", f"{name}: {size}"), ("written", text)]
    lines = [("snapshot", f"{name}: {size}, step {manifest.state.step}")]
    return lines + _describe_spec(manifest.spec)


def _describe_spec(spec: TableSpec) -> Lines:
    dims = "+".join(map(str, spec.column_dims))
    shared = "shared keys" if spec.shared_keys else "keys"
    constant = not callable(spec.optimizer.learning_rate)
    shown = repr(spec.optimizer) if constant else f"{spec.optimizer.name}, a schedule"
    columns = ("embedding", *spec.optimizer.state_fields)
    layout = [f"{name} {spec.embedding_dim}" for name in columns]
    layout += [f"{name} 1" for name, _ in spec.optimizer.row_fields]
    return [
        ("table", f"{spec.name!r}, {spec.num_tables} table(s), dim {dims}, "
         f"{shared} {spec.key_type}"),
        ("optimizer", shown),
        ("row", f"{', '.join(layout)}: {human_bytes(4 * spec.row_words)}"),
    ]  # fmt: skip


# --- verify ---


def _rows(paths: Sequence[Path], name: str) -> int:
    try:
        parts = [files.encode_path(folder) for folder in folders_of(paths, name)]
        return sum(native.SnapshotReader(part).rows for part in parts)
    except (StoreError, OSError):
        return 0  # verify says why


def verify_folders(folders: Sequence[str], done: Progress) -> Iterator[str]:
    """Findings in the parts of a snapshot: one sentence for the first of each."""
    for folder in folders:
        try:
            native.verify_snapshot(files.encode_path(folder), done)
        except (StoreError, OSError) as error:
            yield str(error)


def _verify(paths: Sequence[Path], name: str, done: Progress) -> Iterator[str]:
    return verify_folders(folders_of(paths, name), done)


# --- convert ---


class SnapshotRows:
    """Rows of a snapshot as ``Wish`` wants them; a ``formats.Reader``."""

    def __init__(self, folders: Sequence[str], name: str, wish: Wish) -> None:
        """Opens the parts and checks that the wish can be met."""
        self.name, self._wish = name, wish
        self._parts = files.open_parts(folders)
        manifest = self._parts[0].manifest
        self._spec = manifest.spec
        self.key_type = check_key_type(wish.key_type or manifest.key_type, "convert")
        if np.dtype(self.key_type).itemsize != np.dtype(manifest.key_type).itemsize:
            raise ValueError(
                f"--key-type {self.key_type}: the keys are {manifest.key_type}."
            )
        self.storage_dim = self._width(manifest)

    def _width(self, manifest: Manifest) -> int:
        spec = manifest.spec
        if spec is None:
            if self._wish.embedding_only:
                raise ValueError(
                    "--embedding-only: these rows were written without a table; "
                    "where the state of an optimizer begins is not known."
                )
            return manifest.row_words
        dim = spec.embedding_dim
        if self._wish.embedding_only:
            return dim
        if self._wish.like_oneflow:
            return oneflow_rows.storage_dim(spec.optimizer, dim, "--to oneflow")
        return dim * spec.optimizer.size_factor + spec.optimizer.num_row_words

    def _values(self, raw: np.ndarray) -> np.ndarray:
        words = raw.view(np.uint32)
        spec = self._spec
        if spec is None or self._wish.embedding_only or not self._wish.like_oneflow:
            return np.ascontiguousarray(words[:, : self.storage_dim]).view(np.float32)
        embedding = np.ascontiguousarray(words[:, : spec.embedding_dim])
        return oneflow_rows.join(
            spec.optimizer,
            embedding.view(np.float32),
            spec.state_of(words),
            "--to oneflow",
        )

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for part in self._parts:
            for ids, tables, raw in part.reader.items():
                yield files.as_keys(ids, self.key_type, part.folder), tables, raw

    def __len__(self) -> int:
        """Rows of all parts."""
        return sum(part.reader.rows for part in self._parts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((keys, self._values(raw)) for keys, _, raw in self._batches())

    def keys(self) -> Iterator[np.ndarray]:
        """The keys alone."""
        return (keys for keys, _, _ in self._batches())

    def tables(self) -> Iterator[np.ndarray]:
        """The table ids alone, uint16."""
        return (tables for _, tables, _ in self._batches())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parts = []


def _open(paths: Sequence[Path], name: str, wish: Wish) -> SnapshotRows:
    return SnapshotRows(folders_of(paths, name), name, wish)


SNAPSHOT = Format(
    title="oneemb_jax snapshots",
    recognises=_is_ours,
    snapshots=_names,
    parts=_names,
    describe=_describe,
    rows=_rows,
    verify=_verify,
    open=_open,
)
