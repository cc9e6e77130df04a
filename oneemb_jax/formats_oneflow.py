"""OneFlow's tables, for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from oneemb_jax import oneflow_format, oneflow_reader, oneflow_verify
from oneemb_jax.formats import Format, Lines, Progress, Wish
from oneemb_jax.memory import human_bytes


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
    paths: Sequence[Path], name: str, wish: Wish
) -> oneflow_reader.Snapshot:
    if wish.embedding_only:
        raise ValueError(
            "--embedding-only: OneFlow's files do not say where the state of the "
            "optimizer begins."
        )
    return oneflow_reader.open_ranks(
        _one_or_all(paths), name, wish.key_type, None, "convert"
    )


ONEFLOW = Format(
    title="OneFlow table",
    recognises=_is_oneflow,
    snapshots=_oneflow_snapshots,
    parts=_oneflow_snapshots,
    describe=_describe_oneflow,
    rows=_oneflow_rows,
    verify=_verify_oneflow,
    open=_open_oneflow,
)
