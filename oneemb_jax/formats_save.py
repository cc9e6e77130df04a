"""Folders that save wrote, for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oneemb_jax import restoring, trees
from oneemb_jax.formats import Format, Lines, Progress, Wish
from oneemb_jax.formats_snapshot import (
    SnapshotRows,
    describe_snapshot,
    verify_folders,
)
from oneemb_jax.memory import human_bytes
from oneemb_jax.saving import ARRAYS
from oneemb_jax.snapshot_files import open_part
from oneemb_jax.store import StoreError


def _is_save(paths: Sequence[Path]) -> bool:
    return len(paths) == 1 and restoring.is_save(paths[0])


def _leaves(paths: Sequence[Path]) -> tuple[dict[str, Any], list[trees.Place]]:
    data = restoring.read_tree(paths[0])
    places = [
        p for name, item in data["items"].items() for p in trees.places(item, name)
    ]
    return data, places


def _tables(paths: Sequence[Path]) -> dict[str, int]:
    """Tables by the path of their leaf: the number of each."""
    _, places = _leaves(paths)
    return {path: leaf["table"] for path, leaf in places if "table" in leaf}


def _names(paths: Sequence[Path]) -> list[str]:
    return [*_tables(paths)]


def _describe(paths: Sequence[Path]) -> Lines:
    data, places = _leaves(paths)
    lines: Lines = []
    for name, item in data["items"].items():
        leaves = [leaf for _, leaf in trees.places(item) if "table" not in leaf]
        arrays = [leaf for leaf in leaves if "array" in leaf]
        if leaves or not trees.places(item):
            size = human_bytes(sum(map(trees.array_bytes, arrays)))
            others = len(leaves) - len(arrays)
            lines.append(
                ("item", f"{name}: {len(arrays)} arrays, {size}, {others} values")
            )
    for path, leaf in places:
        if "table" in leaf:
            folder = paths[0] / f"table-{leaf['table']}"
            lines += describe_snapshot([str(folder)], path)
    return lines


def _folder(paths: Sequence[Path], name: str) -> Path:
    data, _ = _leaves(paths)
    return restoring.table_folder(paths[0], data, _tables(paths)[name])


def _rows(paths: Sequence[Path], name: str) -> int:
    if name == ARRAYS:
        return 0
    try:
        return open_part(str(_folder(paths, name))).reader.rows
    except (StoreError, OSError, ValueError):
        return 0  # verify says why


def _parts(paths: Sequence[Path]) -> list[str]:
    return [ARRAYS, *_names(paths)]


def _verify(paths: Sequence[Path], name: str, done: Progress) -> Iterator[str]:
    if name == ARRAYS:
        _, places = _leaves(paths)
        yield from restoring.verify_arrays(paths[0], places)
        return
    try:
        folder = _folder(paths, name)
    except (StoreError, OSError) as error:
        yield str(error)
        return
    yield from verify_folders([str(folder)], done)


def _open(paths: Sequence[Path], name: str, wish: Wish) -> SnapshotRows:
    return SnapshotRows([str(_folder(paths, name))], name, wish)


SAVE = Format(
    title="folder of oneemb_jax.save",
    recognises=_is_save,
    snapshots=_names,
    parts=_parts,
    describe=_describe,
    rows=_rows,
    verify=_verify,
    open=_open,
)
