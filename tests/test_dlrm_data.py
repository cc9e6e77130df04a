"""The reader of Criteo's logs against one that goes line by line."""

import gzip
import re
import zlib

import dlrm_data
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

MISSING = dlrm_data.MISSING

KAGGLE = (
    b"1\t1\t26\t6\t0\t1382\t4\t15\t2\t181\t1\t2\t\t2\t68fd1e64\t80e26c9b\tfb936136"
    b"\t7b4723c4\t25c83c98\t7e0ccccf\tde7995b8\t1f89b562\ta73ee510\ta8cd5504"
    b"\tb2cb9c98\t37c9c164\t2824a5f6\t1adce6ef\t8ba8b39a\t891b62e7\te5ba7672"
    b"\tf54016b9\t21ddcdc9\tb1252a9d\t07b5194c\t\t3a171ecb\tc5c50484\te8b83407"
    b"\t9727dd16"
)
TERABYTE = (
    b"0\t\t-1\t\t3\t4294967296\t1\t0\t\t76\t\t1\t\t0\tAD98E872\t8b5b1c2a\t9c0d9ac9"
    b"\t\t1f1\t0\t47907db5\t7a5bd1a3\te1f1d0b2\tc9b3ae41\t00000000\tffffffff\t8\t"
    b"9\ta\tb\tc\td\te\tf\t10\t11\t12\t13\t14\t15"
)


def read_line(line):
    """(label, dense, ids) of a line without its break; None if it is bad."""
    fields = line.split(b"\t")
    if len(fields) > 40 or fields[0] not in (b"0", b"1"):
        return None
    fields += [b""] * (40 - len(fields))
    if not all(re.fullmatch(rb"(-?[0-9]{1,18})?", field) for field in fields[1:14]):
        return None
    if not all(re.fullmatch(rb"[0-9a-fA-F]{0,8}", field) for field in fields[14:]):
        return None
    dense = [float(field or b"0") for field in fields[1:14]]
    ids = [int(field, 16) if field else MISSING for field in fields[14:]]
    return float(fields[0]), dense, ids


def read_text(text):
    """Samples of the good lines, and for each line that is not blank if it is."""
    lines = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    lines = [read_line(line) for line in lines if line]
    return [line for line in lines if line], [line is not None for line in lines]


def assert_same(samples, expected):
    label, dense, ids = zip(*expected, strict=True) if expected else ((), (), ())
    np.testing.assert_array_equal(samples["label"], np.array(label, np.float32))
    dense = np.array(dense, np.float32).reshape(-1, 13)
    np.testing.assert_array_equal(samples["dense"], dense)
    ids = np.array(ids, np.int64).reshape(-1, 26)
    np.testing.assert_array_equal(samples["ids"], ids)
    assert samples["label"].dtype == samples["dense"].dtype == np.float32
    assert samples["ids"].dtype == np.int64


def join(batches):
    batches = list(batches)
    if not batches:
        return dlrm_data.parse(b"\n")[0]
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def field(good):
    """A field that is mostly as it should be, or empty, or anything."""
    noise = st.sampled_from([b"-", b"--1", b"x", b"1 ", b"0x1", b"+1", b"1.0", b"g"])
    return st.one_of(good, good, good, st.just(b""), noise)


@st.composite
def raw_lines(draw):
    """A line with any number of columns."""
    whole = st.integers(-(10**18), 10**19).map(lambda n: str(n).encode())
    few = st.integers(-3, 99).map(lambda n: str(n).encode())
    label = draw(field(st.sampled_from([b"0", b"1", b"1", b"2", b"01"])))
    numbers = [draw(field(st.one_of(few, whole))) for _ in range(3)]
    hexes = st.text("0123456789abcdefABCDEF", min_size=1, max_size=9)
    ids = [draw(field(hexes.map(str.encode))) for _ in range(3)]
    order = st.lists(st.integers(0, 2), min_size=41, max_size=41)
    picks = draw(order)
    fields = [label, *(numbers[i] for i in picks[:13]), *(ids[i] for i in picks[13:])]
    return b"\t".join(fields[: draw(st.integers(0, 42))])


@given(
    lines=st.lists(raw_lines(), max_size=8),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=8, max_size=8),
)
def test_parse_is_as_line_by_line(lines, ends):
    text = b"".join(map(b"".join, zip(lines, ends, strict=False)))
    expected, good = read_text(text)
    samples, found = dlrm_data.parse(text)
    assert found.tolist() == good
    assert_same(samples, expected)


@pytest.mark.parametrize("line", [KAGGLE, TERABYTE])
def test_both_layouts(line):
    samples, good = dlrm_data.parse(line + b"\n")
    assert good.tolist() == [True]
    assert_same(samples, [read_line(line)])
    assert (samples["ids"] == MISSING).sum() == 1
    assert samples["dense"][0].tolist().count(0.0) >= 2


@pytest.mark.parametrize("line", [b"1", b"0\t5", KAGGLE[:40], KAGGLE[:-1]])
def test_short_lines_are_good(line):
    samples, good = dlrm_data.parse(line + b"\r\n")
    assert good.tolist() == [True]
    assert_same(samples, [read_line(line)])


@pytest.mark.parametrize(
    "line",
    [
        b"2" + KAGGLE[1:],
        b"\t5",
        KAGGLE + b"\t",
        KAGGLE.replace(b"68fd1e64", b"168fd1e64"),
        KAGGLE.replace(b"1382", b"1382.5"),
        b"label\tI1\tI2",
        b"\x00\xff\xfe" * 50,
        KAGGLE.replace(b"\t", b","),
    ],
)
def test_bad_lines_are_counted(line):
    samples, good = dlrm_data.parse(line + b"\n" + KAGGLE + b"\n")
    assert good.tolist() == [False, True]
    assert_same(samples, [read_line(KAGGLE)])


def good_line(i):
    """Different for each number, with a field missing here and there."""
    numbers = ["" if (i + j) % 7 == 0 else str(i * j - 3) for j in range(13)]
    ids = ["" if (i + j) % 5 == 0 else f"{i * 977 + j:x}" for j in range(26)]
    return "\t".join([str(i % 2), *numbers, *ids]).encode()


BAD = (b"garbage", b"2\t1", KAGGLE + b"\t0", b"1\tx")


@pytest.mark.parametrize("compressed", [False, True])
@given(
    kinds=st.lists(st.integers(0, 6), max_size=30),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    block=st.integers(1, 3000),
    size=st.integers(1, 9),
)
def test_blocks_and_batches(
    compressed, tmp_path_factory, kinds, end, last, block, size
):
    lines = [BAD[k] if k < len(BAD) else good_line(i) for i, k in enumerate(kinds)]
    text = end.join(lines) + (end if last else b"")
    file = tmp_path_factory.mktemp("log") / "log"
    file.write_bytes(gzip.compress(text) if compressed else text)
    reader = dlrm_data.CriteoReader(file, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlrm_data, "BLOCK_BYTES", block)
        patch.setattr(dlrm_data, "PIECE_BYTES", block)
        batches = list(reader.batches())
    expected, good = read_text(text)
    assert_same(join(batches), expected)
    assert (reader.report.lines, reader.report.bad_lines) == (
        len(good),
        good.count(False),
    )
    assert all(len(batch["label"]) == size for batch in batches[:-1])
    assert all(0 < len(batch["label"]) <= size for batch in batches)


def test_an_endless_line_is_one_bad_line(tmp_path, monkeypatch):
    monkeypatch.setattr(dlrm_data, "BLOCK_BYTES", 1 << 14)
    longest = []
    parse = dlrm_data.parse
    monkeypatch.setattr(
        dlrm_data, "parse", lambda block: longest.append(len(block)) or parse(block)
    )
    file = tmp_path / "log"
    file.write_bytes(KAGGLE + b"\n" + b"1\t" * 2_000_000 + b"\n" + TERABYTE)
    reader = dlrm_data.CriteoReader(file, 10)
    assert_same(join(reader.batches()), [read_line(KAGGLE), read_line(TERABYTE)])
    assert (reader.report.lines, reader.report.bad_lines) == (3, 1)
    assert max(longest) < 1 << 18


def test_held_out_lines_are_the_others(tmp_path):
    file = tmp_path / "log"
    lines = [BAD[0] if i % 3 == 0 else good_line(i) for i in range(200)]
    file.write_bytes(b"\n".join(lines))
    reader = dlrm_data.CriteoReader(file, 16)
    train = join(reader.batches(lambda n: n % 4 != 3))
    test = join(reader.batches(lambda n: n % 4 == 3))
    expected = [(i, read_line(line)) for i, line in enumerate(lines)]
    expected = [(i, line) for i, line in expected if line]
    assert_same(train, [line for i, line in expected if i % 4 != 3])
    assert_same(test, [line for i, line in expected if i % 4 == 3])
    assert reader.report.lines == 200


@pytest.mark.parametrize("damage", ["cut", "checksum", "noise"])
def test_what_came_before_the_damage_is_read(tmp_path, damage):
    numbers = np.random.default_rng(0).integers(0, 2**20, 3000)
    text = b"\n".join(map(good_line, map(int, numbers))) + b"\n"
    whole = gzip.compress(text)
    middle = len(whole) // 2
    data, least = {
        "cut": (whole[:middle], zlib.decompressobj(31).decompress(whole[:middle])),
        "checksum": (whole[:-8] + bytes(8), text),
        # The piece with the first bad byte is lost.
        "noise": (whole[:middle] + b"\xff" * 1000, text[: len(text) // 3]),
    }[damage]
    (tmp_path / "a.gz").write_bytes(data)
    (tmp_path / "b").write_bytes(KAGGLE)
    reader = dlrm_data.CriteoReader(tmp_path, 64)
    found = join(reader.batches())
    (broken,) = reader.report.broken_files
    assert broken.startswith(f"{tmp_path / 'a.gz'}: ")
    expected = read_text(least[: least.rindex(b"\n")])[0]
    assert len(expected) > 900
    if damage != "noise":
        assert len(found["label"]) == len(expected) + 1
    assert_same({k: v[: len(expected)] for k, v in found.items()}, expected)
    assert_same({k: v[-1:] for k, v in found.items()}, [read_line(KAGGLE)])


def test_a_folder(tmp_path):
    (tmp_path / "day_1.gz").write_bytes(gzip.compress(good_line(1)))
    (tmp_path / "day_0").write_bytes(good_line(0))
    (tmp_path / "test.txt").write_bytes(KAGGLE[2:])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "_SUCCESS").write_bytes(good_line(7))
    (tmp_path / ".part").write_bytes(good_line(8))
    (tmp_path / "folder").mkdir()
    reader = dlrm_data.CriteoReader(tmp_path, 10)
    assert_same(join(reader.batches()), [read_line(good_line(i)) for i in (0, 1)])
    assert reader.report.skipped_files == [str(tmp_path / "test.txt")]
    assert (reader.report.lines, reader.report.bad_lines) == (2, 0)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dlrm_data.CriteoReader(tmp_path / "none", 1)
    with pytest.raises(FileNotFoundError, match="holds no files"):
        dlrm_data.CriteoReader(tmp_path, 1)
    file = tmp_path / "test.txt"
    file.write_bytes(KAGGLE[2:])
    with pytest.raises(ValueError, match="batch_size=0"):
        dlrm_data.CriteoReader(file, 0)
    reader = dlrm_data.CriteoReader(file, 1)
    with pytest.raises(dlrm_data.NoLabelsError, match="is this a test file"):
        list(reader.batches())
