"""The builder of OneFlow's files that the other tests trust, pinned."""

import struct

import numpy as np
import pytest

from oneemb_jax import oneflow_format
from oneflow_files import RankFiles, owner, read_slowly, write_table, xxh64

PRIME32 = 2654435761


def sanity_buffer(size: int) -> bytes:
    """The input of the test vectors that xxHash publishes."""
    data, state = bytearray(), PRIME32
    for _ in range(size):
        data.append(state >> 56)
        state = state * 11400714785074694797 % 2**64
    return bytes(data)


# Published with the reference implementation of XXH64; they never change.
VECTORS = [
    (0, 0, 0xEF46DB3751D8E999),
    (0, PRIME32, 0xAC75FDA2929B17EF),
    (1, 0, 0xE934A84ADB052768),
    (1, PRIME32, 0x5014607643A9B4C3),
    (4, 0, 0x9136A0DCA57457EE),
    (4, PRIME32, 0xCAAB286BD8E9FDB5),
    (8, 0, 0xCDBCF538E71D1348),
    (8, PRIME32, 0xFE0C047A5353CDAC),
    (14, 0, 0x8282DCC4994E35C8),
    (14, PRIME32, 0xC3BD6BF63DEB6DF0),
]


@pytest.mark.parametrize(("size", "seed", "wanted"), VECTORS)
def test_xxh64_by_the_published_vectors(size, seed, wanted):
    assert xxh64(sanity_buffer(size), seed) == wanted
    if size == 8:
        word = np.frombuffer(sanity_buffer(8), "<u8")
        assert oneflow_format.xxh64(word, seed).tolist() == [wanted]


@pytest.mark.parametrize("seed", [0, 1, PRIME32, 2**64 - 1])
def test_xxh64_of_many_words(seed):
    words = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    words = np.concatenate([words, np.array([0, 1, 2**32, 2**64 - 1], np.uint64)])
    wanted = [xxh64(struct.pack("<Q", word), seed) for word in words.tolist()]
    assert oneflow_format.xxh64(words, seed).tolist() == wanted


@pytest.mark.parametrize("key_type", ["int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 1000])
def test_owners(key_type, num_ranks):
    limits = np.iinfo(key_type)
    keys = np.random.default_rng(1).integers(
        limits.min, limits.max, 300, key_type, endpoint=True
    )
    keys = np.concatenate([keys, np.array([0, limits.min, limits.max], key_type)])
    words = keys.view(f"u{keys.dtype.itemsize}").tolist()
    wanted = [owner(word, num_ranks) for word in words]
    assert oneflow_format.owners(keys, num_ranks).tolist() == wanted


def test_golden_bytes():
    """The worked example of docs/formats/oneflow.md; files of OneFlow's agree."""
    rank = RankFiles(key_size=8, dim=48, block=512)
    one, two, three = (np.full(48, x, "<f4").tobytes() for x in (1, 2, 3))
    rank.put([(7, one), (2**63, two)])
    rank.put([(7, three)])
    rank.save("final")
    files = rank.files()
    assert files.pop("snapshots/final/index-000000000000") in (
        bytes.fromhex("0100000000000000 0200000000000000"),
        bytes.fromhex("0200000000000000 0100000000000000"),
    )
    garbage = b"\xa5" * 128
    assert files == {
        "LOCK": b"",
        "KEY_SIZE": b"8\n",
        "VALUE_SIZE": b"192\n",
        "PHYSICAL_BLOCK_SIZE": b"512\n",
        "NUM_LOGICAL_BLOCKS_PER_CHUNK": b"8388608\n",
        "keys/key-000000000000": bytes.fromhex(
            "0700000000000000 0000000000000080 0700000000000000 0000000000000000"
        ),
        "values/value-000000000000": b"".join(
            [one, two, garbage, three, b"\xa5" * 192, garbage]
        ),
        "snapshots/final/LIST": b"index-000000000000\n",
    }


def test_rows_of_several_blocks():
    rank = RankFiles(key_size=4, dim=300, block=512)
    rank.put([(7, bytes(1200)), (8, b"\x01" * 1200)])
    files = rank.files()
    assert files["NUM_LOGICAL_BLOCKS_PER_CHUNK"] == b"2796202\n"
    assert files["keys/key-000000000000"] == bytes.fromhex("07000000 08000000")
    values = files["values/value-000000000000"]
    assert values == bytes(1200) + b"\xa5" * 336 + b"\x01" * 1200 + b"\xa5" * 336


def test_chunks():
    rank = RankFiles(key_size=4, dim=128, block=512, chunk_bytes=1024)
    rank.put((key, bytes([key]) * 512) for key in range(5))
    rank.put([(2, b"\xff" * 512), (3, b"\xfe" * 512)])
    rank.save("final")
    files = rank.files()
    assert sorted(rank.values) == [0, 1, 2, 3]
    assert files["snapshots/final/LIST"].count(b"\n") == 4 - 1  # chunk 1 is dead
    assert files["keys/key-000000000003"] == bytes.fromhex("03000000")
    assert files["snapshots/final/index-000000000003"] == struct.pack("<Q", 6)


def test_the_slow_reader_reads_what_was_put(tmp_path):
    keys = np.array([5, -1, 0], np.int64)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_table(tmp_path, [(keys, rows), (keys[:1], rows[2:])], num_ranks=2)
    found = dict(read_slowly(tmp_path))
    assert found == {
        5: rows[2].tobytes(),
        2**64 - 1: rows[1].tobytes(),
        0: rows[2].tobytes(),
    }
