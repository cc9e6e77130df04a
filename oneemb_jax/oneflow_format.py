"""OneFlow's persistent table on disk: names, geometry, and the owner of a key.

docs/formats/oneflow.md draws the format. A *rank* is a folder with what one
process of OneFlow wrote; a *row id* counts places in its files, chunk by chunk.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

#: A root with folders ``i-n``, or one folder a rank.
Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

KEY_TYPES = ("int32", "uint32", "int64", "uint64")
BLOCK_SIZES = (512, 4096)
#: Bytes of a full value file. OneFlow opens a table only if its chunks are of
#: this size, which no option changes.
CHUNK_BYTES = 4 << 30

LIST = "LIST"
LOCK = "LOCK"
#: Text files of one number each, and the field of Geometry it is.
METADATA = {
    "KEY_SIZE": "key_size",
    "VALUE_SIZE": "value_size",
    "PHYSICAL_BLOCK_SIZE": "physical_block_size",
    "NUM_LOGICAL_BLOCKS_PER_CHUNK": "blocks_per_chunk",
}
_RANK = re.compile(r"(\d{1,9})-(\d{1,9})")
_INDEX = re.compile(r"index-(\d{12})")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the rows of a rank lie in its files.

    Attributes:
        key_size: bytes of a key, 4 or 8.
        value_size: bytes of a row, optimizer state included.
        physical_block_size: 512 or 4096.
        blocks_per_chunk: blocks in one pair of key file and value file.
    """

    key_size: int
    value_size: int
    physical_block_size: int
    blocks_per_chunk: int

    @property
    def storage_dim(self) -> int:
        """float32 of a row."""
        return self.value_size // 4

    @property
    def block_size(self) -> int:
        """Bytes of a block: as many physical ones as a single row needs."""
        physical = self.physical_block_size
        return -(-self.value_size // physical) * physical

    @property
    def values_per_block(self) -> int:
        """Rows of a block; what they leave over stays empty."""
        return self.block_size // self.value_size

    @property
    def values_per_chunk(self) -> int:
        """Rows of a chunk."""
        return self.values_per_block * self.blocks_per_chunk

    def value_offsets(self, positions: np.ndarray) -> np.ndarray:
        """Bytes into the value file, int64[n], of places in a chunk, int64[n]."""
        block, place = np.divmod(positions, self.values_per_block)
        return block * self.block_size + place * self.value_size


def new_geometry(key_type: str, storage_dim: int, physical_block_size: int) -> Geometry:
    """The geometry that OneFlow gives to a new table."""
    key_size = np.dtype(key_type).itemsize
    one = Geometry(key_size, 4 * storage_dim, physical_block_size, 1)
    blocks = CHUNK_BYTES // one.block_size
    return dataclasses.replace(one, blocks_per_chunk=blocks)


def check_key_type(key_type: Any, call: str) -> str:
    """Name of a key type; ValueError if OneFlow has no such keys."""
    try:
        name = np.dtype(key_type).name
    except TypeError as error:
        raise TypeError(f"{call}(key_type={key_type!r}): not a dtype.") from error
    if key_type is None or name not in KEY_TYPES:
        raise ValueError(
            f"{call}(key_type={key_type!r}): use one of {', '.join(KEY_TYPES)}."
        )
    return name


def check_written(
    keys: np.ndarray, values: np.ndarray, key_type: str, storage_dim: int
) -> None:
    """ValueError if a ``write`` of a writer of rows does not take these arrays."""
    if keys.dtype != key_type or keys.ndim != 1:
        raise ValueError(
            f"write(keys=...): {keys.dtype}{[*keys.shape]}; expected {key_type}[n]."
        )
    if values.dtype != np.float32 or values.shape != (len(keys), storage_dim):
        raise ValueError(
            f"write(values=...): {values.dtype}{[*values.shape]}; expected "
            f"float32[{len(keys)}, {storage_dim}]."
        )


def check_name(name: Any, call: str) -> str:
    """A snapshot's name; it is a folder, so it must not lead elsewhere."""
    if not isinstance(name, str):
        raise TypeError(f"{call}(name={name!r}): pass a string.")
    if not name or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise ValueError(
            f"{call}(name={name!r}): a snapshot's name is that of a folder below "
            "snapshots/, without . or .. in it."
        )
    return name


def _read_number(path: Path) -> int:
    with path.open("rb") as file:
        text = file.read(64)
    if not re.fullmatch(rb"\s*[0-9]{1,18}\s*", text):
        raise ValueError(f"{path}: holds {text[:32]!r}, expected one number.")
    return int(text)


def read_geometry(rank: Path) -> Geometry:
    """The geometry that a rank's metadata files state.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if one of them states what no table has.
    """
    missing = [name for name in METADATA if not (rank / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{rank}: has no file {missing[0]}, so this is no table of OneFlow's; "
            f"expected {', '.join(METADATA)}."
        )
    numbers = {field: _read_number(rank / file) for file, field in METADATA.items()}
    geometry = Geometry(**numbers)
    legal = {
        "KEY_SIZE": (geometry.key_size in (4, 8), "4 or 8"),
        "VALUE_SIZE": (
            0 < geometry.value_size <= CHUNK_BYTES and geometry.value_size % 4 == 0,
            "a multiple of 4: rows are float32",
        ),
        "PHYSICAL_BLOCK_SIZE": (
            geometry.physical_block_size in BLOCK_SIZES,
            "512 or 4096",
        ),
    }
    for file, (fits, wanted) in legal.items():
        if not fits:
            found = numbers[METADATA[file]]
            raise ValueError(f"{rank / file}: states {found}, expected {wanted}.")
    _check_chunk(rank, geometry)
    return geometry


def _check_chunk(rank: Path, geometry: Geometry) -> None:
    """The fourth number follows from the others: a check of all four."""
    wanted = CHUNK_BYTES // geometry.block_size
    if geometry.blocks_per_chunk != wanted:
        raise ValueError(
            f"{rank}: NUM_LOGICAL_BLOCKS_PER_CHUNK states {geometry.blocks_per_chunk}, "
            f"expected {wanted}: VALUE_SIZE {geometry.value_size} and "
            f"PHYSICAL_BLOCK_SIZE {geometry.physical_block_size} make blocks of "
            f"{geometry.block_size}, and a chunk has {CHUNK_BYTES} bytes of them."
        )


def index_file(chunk: int) -> str:
    """Name of the index file of a chunk; key and value files are named alike."""
    return f"index-{chunk:012d}"


def index_chunk(name: str) -> int | None:
    """The chunk of an index file, or None if ``name`` is not one's."""
    match = _INDEX.fullmatch(name)
    return int(match[1]) if match else None


def rank_name(rank: int, num_ranks: int) -> str:
    """The folder that OneFlow makes for a rank below a root."""
    return f"{rank:0{len(str(num_ranks))}d}-{num_ranks}"


def _rank_of(path: Path) -> tuple[int, int] | None:
    """(rank, number of ranks) if a folder is named so."""
    match = _RANK.fullmatch(path.name)
    if match is None or int(match[1]) >= int(match[2]):
        return None
    return int(match[1]), int(match[2])


def is_rank(path: Path) -> bool:
    """Whether a folder looks like a rank's: it states the size of its keys."""
    return (path / "KEY_SIZE").is_file()


def find_ranks(paths: Paths, call: str) -> list[Path]:
    """The folders of all ranks, in order.

    Args:
        paths: a folder with folders ``i-n``, one of the latter if n is 1, or the
            folders of all ranks: in any order if they are named ``i-n``, else in
            that of their ranks.
        call: the public function, for messages.

    Raises:
        FileNotFoundError: if there is no table, or ranks are missing.
        ValueError: if there are tables of several numbers of ranks.
    """
    if not isinstance(paths, str | os.PathLike):
        ranks = [Path(path) for path in paths]
        if not ranks:
            raise ValueError(f"{call}(paths=[]): pass the folder of each rank.")
        return _in_order(ranks, call)
    root = Path(paths)
    if is_rank(root):
        return _in_order([root.absolute()], call)
    if not root.is_dir():
        raise FileNotFoundError(f"{call}(paths={str(root)!r}): no such folder.")
    ranks = [p for p in root.iterdir() if p.is_dir() and _rank_of(p) is not None]
    if not ranks:
        raise FileNotFoundError(
            f"{call}(paths={str(root)!r}): expected a table of OneFlow's: a folder "
            "for each rank, named like 0-1, or such a folder with a file KEY_SIZE."
        )
    return _in_order(ranks, call)


def _in_order(ranks: Iterable[Path], call: str) -> list[Path]:
    named = [(_rank_of(path), path) for path in ranks]
    if any(place is None for place, _ in named):
        return [path for _, path in named]
    places = sorted((place, path) for place, path in named if place is not None)
    totals = sorted({total for (_, total), _ in places})
    if len(totals) > 1:
        raise ValueError(
            f"{call}(paths=...): {places[0][1].parent} has ranks of tables of "
            f"{' and '.join(map(str, totals))} ranks; pass the paths of one table."
        )
    found = [rank for (rank, _), _ in places]
    missing = sorted(set(range(totals[0])) - set(found))
    if missing or len(set(found)) < len(found):
        names = ", ".join(path.name for _, path in places)
        wanted = ", ".join(rank_name(rank, totals[0]) for rank in missing[:8])
        raise FileNotFoundError(
            f"{call}(paths=...): found {names}; "
            + (f"missing: {wanted}." if missing else "a rank is there twice.")
        )
    return [path for _, path in places]


_PRIME1 = np.uint64(0x9E3779B185EBCA87)
_PRIME2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME3 = np.uint64(0x165667B19E3779F9)
_PRIME4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME5 = 0x27D4EB2F165667C5


def _rotate_left(words: np.ndarray, bits: int) -> np.ndarray:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))


def xxh64(words: np.ndarray, seed: int) -> np.ndarray:
    """XXH64 of each 64-bit word by itself (xla_ffi/core/hash.h).

    Args:
        words: uint64[n].
        seed: 0 to 2**64 - 1.

    Returns:
        uint64[n].

    Example:
        >>> [hex(h) for h in xxh64(np.array([0, 1], np.uint64), seed=1)]
        ['0x22c76afd15f0110f', '0x8afb45d6a8b39709']
    """
    start = np.uint64((seed + _PRIME5 + 8) % 2**64)
    hashes = start ^ (_rotate_left(words * _PRIME2, 31) * _PRIME1)
    hashes = _rotate_left(hashes, 27) * _PRIME1 + _PRIME4
    hashes ^= hashes >> np.uint64(33)
    hashes *= _PRIME2
    hashes ^= hashes >> np.uint64(29)
    hashes *= _PRIME3
    return hashes ^ (hashes >> np.uint64(32))


def owners(keys: np.ndarray, num_ranks: int) -> np.ndarray:
    """The rank that owns each key, int64[n]; 32-bit keys are zero-extended."""
    words = keys.view(f"u{keys.dtype.itemsize}").astype(np.uint64)
    return (xxh64(words, seed=1) % np.uint64(num_ranks)).astype(np.int64)
