"""Where snapshots of tables are, and what opens them: no rows are moved here.

Below a ``persistent_path`` there is a folder for each rank, named ``i-n``, as in
OneFlow; in it the store keeps its own (docs/formats/manifest.md).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from oneemb_jax import manifest as mf
from oneemb_jax._ffi import native
from oneemb_jax.spec import TableSpec

#: What tells a folder of save's (saving.py), which has snapshots in it.
TREE = "tree.json"

_RANK = re.compile(r"(\d{1,9})-(\d{1,9})")


def check_name(name: Any, call: str, argument: str = "name") -> str:
    """A snapshot's name; ValueError if it can't be one."""
    if not isinstance(name, str):
        raise TypeError(f"{call}({argument}={name!r}): pass a string.")
    try:
        native.check_snapshot_name(name)
    except ValueError as error:
        raise ValueError(f"{call}({argument}={name!r}): {error}.") from None
    return name


def encode_path(path: str | bytes | os.PathLike[Any]) -> bytes:
    """A path as the system has it; ValueError if none can be."""
    encoded = os.fsencode(path)
    if not encoded or b"\0" in encoded:
        raise ValueError(f"path {path!r}: empty, or with a NUL in it.")
    return encoded


def persistent_path(spec: TableSpec, call: str) -> str | tuple[str, ...]:
    """Where the store options say that snapshots are."""
    paths = getattr(spec.store, "persistent_path", None)
    if paths is None:
        raise ValueError(
            f"{call}: the store options of {spec.name!r} have no persistent_path; "
            "pass make_device_mem_store_options(persistent_path=...) a folder for "
            "snapshots."
        )
    return paths


def rank_folder(paths: str | tuple[str, ...], rank: int = 0, num_ranks: int = 1) -> str:
    """The folder of one rank: ``i-n`` below a single path, or the path listed."""
    if isinstance(paths, str):
        return os.path.join(paths, f"{rank:0{len(str(num_ranks))}d}-{num_ranks}")
    return paths[rank]


def rank_folders(paths: str | tuple[str, ...]) -> list[str]:
    """All folders that may have snapshots of a table, this rank's first."""
    if not isinstance(paths, str):
        return [*paths]
    first = rank_folder(paths)
    found = [first] if os.path.isdir(first) else []
    names = sorted(os.listdir(paths)) if os.path.isdir(paths) else []
    others = (os.path.join(paths, n) for n in names if _RANK.fullmatch(n))
    return found + [path for path in others if path != first]


def snapshot_path(folder: str, name: str) -> str:
    """The folder of a snapshot, in that of a rank."""
    return os.path.join(folder, "snap", name)


def list_names(paths: str | tuple[str, ...]) -> list[str]:
    """Names of the snapshots of all ranks, sorted, numbers in them by value."""
    folders = rank_folders(paths)
    names = {name for folder in folders for name in list_folder(folder)}
    return sorted(names, key=_by_numbers)


def _by_numbers(name: str) -> tuple[list[str | int], str]:
    """Sorts "a9b" before "a10": what is between numbers as text."""
    parts = re.split(r"([0-9]+)", name)  # text, number, text, ...
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def list_folder(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the snapshots in the folder of a rank, sorted."""
    return native.list_snapshots(encode_path(folder))


@dataclasses.dataclass(frozen=True)
class Part:
    """One rank's part of a table's snapshot, open."""

    folder: str
    reader: Any
    manifest: mf.Manifest


def open_part(folder: str) -> Part:
    """Opens the folder of a snapshot and checks all but its rows.

    Raises:
        FileNotFoundError: if there is none.
        StoreError: if it is damaged.
        ValueError: if it is no table's.
    """
    reader = native.SnapshotReader(encode_path(folder))
    manifest = mf.decode_manifest(reader.user, folder)
    if reader.row_bytes != 4 * manifest.row_words:
        raise ValueError(
            f"{folder}: rows of {reader.row_bytes} bytes, but its table has rows of "
            f"{4 * manifest.row_words}."
        )
    return Part(folder, reader, manifest)


def open_parts(folders: Sequence[str]) -> list[Part]:
    """Opens the snapshot whose first part is in the first folder, whole.

    Args:
        folders: of snapshots; those of all ranks, or more.

    Raises:
        ValueError: if parts are missing, or do not belong together.
    """
    first = open_part(folders[0])
    wanted = first.manifest.num_ranks
    if wanted > len(folders):
        raise ValueError(
            f"{first.folder}: part {first.manifest.rank + 1} of {wanted} of a table; "
            f"{len(folders)} given. Pass the folders of all ranks."
        )
    parts = [first, *map(open_part, folders[1:wanted])]
    parts.sort(key=lambda part: part.manifest.rank)
    for i, part in enumerate(parts):
        place = dataclasses.replace(part.manifest, rank=0)
        if part.manifest.rank != i or place != dataclasses.replace(
            parts[0].manifest, rank=0
        ):
            raise ValueError(f"{part.folder}: not part {i + 1} of one table.")
    return parts


def find_parts(
    paths: str | tuple[str, ...], name: str, call: str, argument: str = "name"
) -> list[str]:
    """Folders of a snapshot by name, one a rank.

    Raises:
        FileNotFoundError: if there is none, with the names that there are.
    """
    check_name(name, call, argument)
    folders = rank_folders(paths)
    found = [f for f in folders if os.path.isdir(snapshot_path(f, name))]
    if not found:
        names = list_names(paths)
        raise FileNotFoundError(
            f"{call}({argument}={name!r}): no such snapshot below {paths!r}; found: "
            f"{', '.join(names) or 'none'}."
        )
    ranks = [f for f in found if _same_table(f, found[0])]
    return [snapshot_path(folder, name) for folder in ranks]


def _same_table(folder: str, first: str) -> bool:
    """Whether two folders of ranks are of one table: 0-2 and 1-2, say."""
    ranks = [_RANK.fullmatch(os.path.basename(path)) for path in (folder, first)]
    numbers = [match[2] for match in ranks if match]
    return len(numbers) < 2 or numbers[0] == numbers[1]


def as_ids(keys: np.ndarray) -> np.ndarray:
    """Keys of any key type as the store has them: uint64, zero-extended."""
    return keys.view(f"u{keys.dtype.itemsize}").astype(np.uint64)


def as_keys(ids: np.ndarray, key_type: str, folder: str) -> np.ndarray:
    """Undoes ``as_ids``; ValueError if an id of 64 bits is no key of 32."""
    dtype = np.dtype(key_type)
    if dtype.itemsize == 4 and ids.size and int(ids.max()) >= 2**32:
        raise ValueError(f"{folder}: id {ids.max()} is no key of type {key_type}.")
    return ids.astype(f"u{dtype.itemsize}").view(dtype)


def located(spec: TableSpec, name: Any, call: str) -> list[str]:
    """Folders of a snapshot: by its name, or the path of its own folder."""
    is_path = isinstance(name, os.PathLike | bytes)
    if not is_path and not (isinstance(name, str) and os.sep in name):
        return find_parts(persistent_path(spec, call), name, call)
    folder = os.fsdecode(name)
    if os.path.isfile(os.path.join(folder, TREE)):
        raise ValueError(
            f"{call}(name={folder!r}): written by oe.save, which oe.restore reads; "
            "a table alone is in its folder table-0, table-1, ..."
        )
    return [folder]
