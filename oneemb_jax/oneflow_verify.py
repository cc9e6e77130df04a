"""Everything about a snapshot of OneFlow's that can be told to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from oneemb_jax import oneflow_format as fmt
from oneemb_jax.oneflow_reader import (
    Chunk,
    Snapshot,
    common_geometry,
    rank_chunks,
    unlisted,
)


def _check_lengths(chunk: Chunk, geometry: fmt.Geometry) -> Iterator[str]:
    """Whether key and value file hold the same whole blocks.

    OneFlow lengthens both by whole blocks, first the values.
    """
    key_block = geometry.values_per_block * geometry.key_size
    blocks = []
    for path, block in ((chunk.keys, key_block), (chunk.values, geometry.block_size)):
        size = path.stat().st_size
        blocks.append(size // block)
        if size % block:
            yield f"{path}: {size} bytes, no whole number of blocks of {block}."
    if blocks[0] != blocks[1]:
        yield (
            f"{chunk.keys}: {blocks[0]} blocks, but {blocks[1]} in "
            f"{chunk.values.name}: OneFlow was stopped while it wrote rows."
        )


def _check_rows(
    snapshot: Snapshot,
    chunk: Chunk,
    keys: list[np.ndarray],
    done: Callable[[int], object],
) -> Iterator[str]:
    """Reads a chunk; leaves its keys in ``keys``."""
    bad = 0
    for found, rows in snapshot.read(chunk):
        keys.append(found)
        bad += int((~np.isfinite(rows).all(axis=1)).sum())
        done(len(found))
    if bad:
        yield f"{chunk.values}: {bad} rows hold NaN or infinity."


def _check_rank(
    snapshot: Snapshot, rank: int, chunks: list[Chunk], done: Callable[[int], object]
) -> Iterator[str]:
    keys: list[np.ndarray] = []
    for chunk in chunks:
        try:
            yield from _check_lengths(chunk, snapshot.geometry)
            yield from _check_rows(snapshot, chunk, keys, done)
        except (ValueError, OSError) as error:
            yield str(error)
    found = np.sort(np.concatenate(keys)) if keys else np.empty(0)
    twice = int((found[1:] == found[:-1]).sum())
    if twice:
        yield (
            f"{snapshot.ranks[rank]}: {twice} rows of snapshot {snapshot.name!r} have "
            "a key that another row has."
        )


def verify_ranks(
    paths: fmt.Paths,
    name: str,
    call: str,
    done: Callable[[int], object] = lambda rows: None,
) -> Iterator[str]:
    """Findings, one sentence each.

    Args:
        paths: as in ``open_snapshot``.
        name: of the snapshot.
        call: the public function, for messages.
        done: told of rows that were read, as they are.

    Raises:
        FileNotFoundError: if the table or one of its ranks is missing.
        ValueError: if its metadata is no table's.
    """
    fmt.check_name(name, call)
    ranks = fmt.find_ranks(paths, call)
    geometry = common_geometry(ranks)
    snapshot = Snapshot(ranks, name, geometry, f"int{8 * geometry.key_size}", [])
    for rank in range(len(ranks)):
        try:
            chunks = rank_chunks(ranks, rank, name, geometry)
            folder = ranks[rank] / "snapshots" / name
            for path in unlisted(folder, [chunk.number for chunk in chunks]):
                yield f"{path}: not in {fmt.LIST}; left by an older snapshot?"
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        yield from _check_rank(snapshot, rank, chunks, done)
