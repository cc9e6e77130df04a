"""Criteo's click logs, read in blocks: bounded memory, whatever the files hold.

A line is a label, 13 whole numbers and 26 hexadecimal ids between tabs, in the
Kaggle and in the Terabyte logs alike. Fields may be empty, and lines may end
early. What is no such line is counted and passed over.
"""

import dataclasses
import gzip
import zlib
from collections.abc import Callable, Generator, Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np

NUM_DENSE = 13
NUM_TABLES = 26
NUM_FIELDS = 1 + NUM_DENSE + NUM_TABLES

#: The id of an empty field. Ids in the logs have 32 bits, so none is this one; it
#: has a row of its own, as any other id.
MISSING = 1 << 32

BLOCK_BYTES = 1 << 21
PIECE_BYTES = 1 << 16
#: Text without a line break, longer than this, is no line.
LONGEST_LINE = 1 << 16

_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)

_TAB, _NEWLINE, _RETURN, _MINUS = b"\t\n\r-"
_NO_DIGIT = 99
_DIGITS = np.full(256, _NO_DIGIT, np.int64)
_DIGITS[list(b"0123456789abcdef")] = np.arange(16)
_DIGITS[list(b"ABCDEF")] = np.arange(10, 16)

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class ReadReport:
    """What a reader met so far.

    Attributes:
        lines: Lines read, blank ones apart; `bad_lines` are among them.
        bad_lines: Lines passed over: too many fields, or one that is no number.
        skipped_files: Files of a folder without labels, such as Kaggle's test.txt.
        broken_files: Compressed files that end early or are damaged; what came
            before the end was read, and before damage all but `PIECE_BYTES`.
    """

    lines: int = 0
    bad_lines: int = 0
    skipped_files: list[str] = dataclasses.field(default_factory=list)
    broken_files: list[str] = dataclasses.field(default_factory=list)


class NoLabelsError(ValueError):
    """A file has Criteo's columns without the first, the label."""


def list_files(path: Path) -> list[Path]:
    """The files to read: `path` itself, or those of a folder by name.

    Raises:
        FileNotFoundError: If there is nothing at `path`, or nothing in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = sorted(
        file for file in path.iterdir() if file.is_file() and file.name[0] not in "._"
    )
    if not files:
        raise FileNotFoundError(f"{path}: the folder holds no files")
    return files


class CriteoReader:
    """Reads a file, or the files of a folder, as batches.

    Args:
        path: A log, plain or gzip (told by its first bytes), or a folder of logs.
        batch_size: Samples of a batch; the last one may be smaller.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"CriteoReader(batch_size={batch_size}): must be positive")
        self.files = list_files(path)
        self.batch_size = batch_size
        self.report = ReadReport()

    def batches(
        self, keep: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[Batch]:
        """Reads everything once; `report` starts anew.

        Args:
            keep: From the numbers of lines, i64[n], to the lines wanted, bool[n].
                A line has the same number in every pass.

        Yields:
            label f32[n], dense f32[n, 13] (0 where empty), ids i64[n, 26]
            (`MISSING` where empty).

        Raises:
            NoLabelsError: If no file has labels.
        """
        self.report = ReadReport()
        held: list[Batch] = []
        count = 0
        for samples in self._samples(keep):
            held.append(samples)
            count += len(samples["label"])
            if count >= self.batch_size:
                held, count = yield from self._full_batches(held)
        if count:
            yield _concatenate(held)

    def _full_batches(
        self, held: list[Batch]
    ) -> Generator[Batch, None, tuple[list[Batch], int]]:
        """Yields what fills batches; returns the rest, and how many it is."""
        samples = _concatenate(held)
        size, count = self.batch_size, len(samples["label"])
        for start in range(0, count - size + 1, size):
            yield {k: v[start : start + size] for k, v in samples.items()}
        left = {k: v[count - count % size :] for k, v in samples.items()}
        return [left], count % size

    def _samples(
        self, keep: Callable[[np.ndarray], np.ndarray] | None
    ) -> Iterator[Batch]:
        """The good lines of every block that are wanted."""
        for file in self.files:
            for block in self._blocks(file):
                samples, good = parse(block)
                numbers = self.report.lines + np.flatnonzero(good)
                self.report.lines += len(good)
                self.report.bad_lines += int((~good).sum())
                if keep is not None:
                    wanted = keep(numbers)
                    samples = {k: v[wanted] for k, v in samples.items()}
                yield samples

    def _blocks(self, file: Path) -> Iterator[bytes]:
        """Whole lines of a file; stops where it has no labels or is damaged."""
        try:
            with _open(file) as stream:
                for i, block in enumerate(_whole_lines(stream)):
                    if i == 0 and lacks_labels(block):
                        self._skip(file)
                        return
                    yield block
        except _DAMAGE as error:
            self.report.broken_files.append(f"{file}: {error}")

    def _skip(self, file: Path) -> None:
        self.report.skipped_files.append(str(file))
        if len(self.report.skipped_files) == len(self.files):
            raise NoLabelsError(
                f"{file}: the first column is no label; is this a test file? "
                "Training and evaluation need files with labels."
            )


def parse(block: bytes) -> tuple[Batch, np.ndarray]:
    """Turns whole lines into arrays, all lines at once.

    Args:
        block: Lines, each with its line break.

    Returns:
        The samples of the good lines, as `CriteoReader.batches` has them, and
        which lines are good, bool[lines]; blank lines do not count.
    """
    text = np.frombuffer(block, np.uint8)
    start, length, fields = _find_fields(text)
    label, is_label = _number(text, start[:, :1], length[:, :1], base=2, width=1)
    first, rest = slice(1, 1 + NUM_DENSE), slice(1 + NUM_DENSE, NUM_FIELDS)
    dense, is_dense = _signed(text, start[:, first], length[:, first])
    ids, is_id = _number(text, start[:, rest], length[:, rest], base=16, width=8)
    good = (fields <= NUM_FIELDS) & (length[:, 0] == 1) & is_label[:, 0]
    good &= is_dense.all(axis=1) & is_id.all(axis=1)
    ids[length[:, rest] == 0] = MISSING
    samples = {
        "label": label[good, 0].astype(np.float32),
        "dense": dense[good].astype(np.float32),
        "ids": ids[good],
    }
    return samples, good


def lacks_labels(block: bytes) -> bool:
    """Whether most lines have an id where the last of the 13 numbers should be."""
    text = np.frombuffer(block, np.uint8)
    start, length, fields = _find_fields(text)
    column = slice(NUM_DENSE, NUM_DENSE + 1)
    _, is_hex = _number(text, start[:, column], length[:, column], base=16, width=8)
    _, is_whole = _signed(text, start[:, column], length[:, column])
    full = fields > NUM_DENSE
    is_id = is_hex[:, 0] & ~is_whole[:, 0] & full
    return bool(2 * is_id.sum() > full.sum())


def _find_fields(text: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and length of the fields, i64[lines, 40], and how many a line has."""
    ends = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
    starts = np.concatenate([[0], ends + 1])[:-1]
    is_last = text[ends] == _NEWLINE
    lengths = ends - starts
    lengths -= is_last & (lengths > 0) & (text[ends - 1] == _RETURN)
    last = np.flatnonzero(is_last)
    first = np.concatenate([[0], last + 1])[:-1]
    fields = last - first + 1
    kept = (fields > 1) | (lengths[first] > 0)  # not blank
    first, fields = first[kept], fields[kept]
    column = np.arange(NUM_FIELDS)
    present = column < fields[:, None]
    index = np.where(present, first[:, None] + column, 0)
    return starts[index], np.where(present, lengths[index], 0), fields


def _number(
    text: np.ndarray, start: np.ndarray, length: np.ndarray, base: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values i64 of fields of digits, and whether they are; empty ones are 0."""
    value = np.zeros(start.shape, np.int64)
    valid = length <= width
    for i in range(min(width, length.max(initial=0))):
        inside = i < length
        digit = _DIGITS[text[np.where(inside, start + i, 0)]]
        valid &= ~inside | (digit < base)
        value = np.where(inside, value * base + digit, value)
    return value, valid


def _signed(
    text: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values i64 of whole numbers, and whether they are; empty ones are 0."""
    negative = (length > 1) & (text[np.where(length > 0, start, 0)] == _MINUS)
    value, valid = _number(text, start + negative, length - negative, 10, width=18)
    return np.where(negative, -value, value), valid


def _concatenate(held: list[Batch]) -> Batch:
    return {k: np.concatenate([samples[k] for samples in held]) for k in held[0]}


def _open(file: Path) -> BufferedIOBase:
    with file.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(file) if is_gzip else file.open("rb")


def _read_blocks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Everything in a stream; damage is raised after what came before it.

    A large read of a damaged file raises and takes with it what it had read.
    Small ones leave what earlier ones had.
    """
    held, damage, ended = bytearray(), None, False
    while not ended:
        try:
            piece = stream.read1(PIECE_BYTES)
        except _DAMAGE as error:
            piece, damage = b"", error
        held += piece
        ended = not piece
        if held and (ended or len(held) >= BLOCK_BYTES):
            yield bytes(held)
            held.clear()
    if damage is not None:
        raise damage


def _whole_lines(stream: BufferedIOBase) -> Iterator[bytes]:
    """Blocks that end with a line break; an endless line becomes a bad one."""
    left = b""
    for read in _read_blocks(stream):
        block = left + read
        end = block.rfind(b"\n") + 1
        left = block[end:]
        if len(left) > LONGEST_LINE:
            left = b"?" * LONGEST_LINE  # a bad line, and a bounded one
        if end:
            yield block[:end]
    if left:
        yield left + b"\n"
