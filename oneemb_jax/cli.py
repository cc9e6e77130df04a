"""The command line: python -m oneemb_jax inspect|verify|convert PATH."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from oneemb_jax._version import __version__
from oneemb_jax.formats import Progress, Reader, Wish, find_format
from oneemb_jax.formats_oneflow import ONEFLOW
from oneemb_jax.formats_save import SAVE
from oneemb_jax.formats_snapshot import SNAPSHOT, SnapshotRows
from oneemb_jax.memory import human_bytes
from oneemb_jax.oneflow_format import BLOCK_SIZES, KEY_TYPES
from oneemb_jax.oneflow_writer import SnapshotWriter
from oneemb_jax.store import StoreError

#: A new format is one more entry.
FORMATS = (SAVE, SNAPSHOT, ONEFLOW)
OK, FINDINGS, UNUSABLE = 0, 1, 2

_EPILOG = """\
exit status: 0 if all is well, 1 if verify found something, 2 if the arguments are
wrong or something can't be read or written."""


@contextlib.contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal where tqdm is installed, else a line for each tenth."""
    if quiet:
        yield lambda rows: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        yield _tenths(what, total)
        return
    with tqdm(total=total, desc=what, unit=" rows", unit_scale=True) as bar:
        yield bar.update


def _tenths(what: str, total: int) -> Progress:
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        before, done = done, done + rows
        if 10 * done // max(total, 1) > 10 * before // max(total, 1):
            percent = 100 * done // max(total, 1)
            print(f"{what}: {percent}%, {done} of {total} rows", file=sys.stderr)

    return advance


def _chosen(found: list[str], options: argparse.Namespace) -> list[str]:
    """What the user means: the snapshot named, or all."""
    if options.snapshot is None:
        return found
    if options.snapshot not in found:
        raise ValueError(
            f"{options.path[0]}: has no snapshot {options.snapshot!r}; found: "
            f"{', '.join(found) or 'none'}."
        )
    return [options.snapshot]


def inspect(options: argparse.Namespace) -> int:
    """Prints what is there, without reading rows."""
    known = find_format(FORMATS, options.path)
    print(f"{known.title}: {', '.join(map(str, options.path))}")
    for label, text in known.describe(options.path):
        print(f"  {label:9} {text}")
    return OK


def verify(options: argparse.Namespace) -> int:
    """Reads everything and prints what is wrong."""
    known = find_format(FORMATS, options.path)
    names = _chosen(known.parts(options.path), options)
    if not names:
        raise ValueError(f"{options.path[0]}: has no snapshot to verify.")
    findings = 0
    for name in names:
        count = 0
        with _progress(name, known.rows(options.path, name), options.quiet) as done:
            for finding in known.verify(options.path, name, done):
                print(f"{name}: {finding}", flush=True)
                count += 1
        findings += count
        if not count:
            print(f"{name}: nothing found")
    return FINDINGS if findings else OK


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterator[np.ndarray],
) -> None:
    """One array of an .npz, part by part."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A name to write to; becomes ``path`` when all is on the disk."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; nothing is overwritten.")
    part = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _counted(parts: Iterator[np.ndarray], done: Progress) -> Iterator[np.ndarray]:
    for part in parts:
        yield part
        done(len(part))


def _to_npz(reader: Reader, options: argparse.Namespace, done: Progress) -> None:
    """Arrays ``keys`` [n] and ``values`` float32[n, storage_dim].

    Snapshots of our own also have ``tables``, uint16[n].
    """
    count, width = len(reader), reader.storage_dim
    values = (rows for _, rows in reader)
    with (
        _new_file(options.output) as path,
        zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive,
    ):
        key_type = np.dtype(reader.key_type)
        _write_array(archive, "keys", key_type, (count,), reader.keys())
        if isinstance(reader, SnapshotRows):
            tables = np.dtype(np.uint16)
            _write_array(archive, "tables", tables, (count,), reader.tables())
        shape = (count, width)
        parts = _counted(values, done)
        _write_array(archive, "values", np.dtype(np.float32), shape, parts)


def _to_oneflow(reader: Reader, options: argparse.Namespace, done: Progress) -> None:
    """The same rows for another number of ranks or another block size."""
    with SnapshotWriter(
        options.output,
        reader.name,
        reader.key_type,
        reader.storage_dim,
        1 if options.ranks is None else options.ranks,
        options.block_size or 4096,
        "convert",
    ) as writer:
        for keys, rows in reader:
            writer.write(keys, rows)
            done(len(keys))


_TARGETS: dict[str, Callable[[Reader, argparse.Namespace, Progress], None]] = {
    "npz": _to_npz,
    "oneflow": _to_oneflow,
}


def convert(options: argparse.Namespace) -> int:
    """Writes the rows of one snapshot in another format."""
    for_oneflow = {"--ranks": options.ranks, "--block-size": options.block_size}
    given = [option for option, value in for_oneflow.items() if value is not None]
    if given and options.to != "oneflow":
        raise ValueError(f"{given[0]}: only --to oneflow has it.")
    known = find_format(FORMATS, options.path)
    names = _chosen(known.snapshots(options.path), options)
    if len(names) != 1:
        raise ValueError(
            f"{options.path[0]}: has {len(names)} snapshots "
            f"({', '.join(names) or 'none'}); choose one with --snapshot."
        )
    wish = Wish(options.key_type, options.to == "oneflow", options.embedding_only)
    with (
        known.open(options.path, names[0], wish) as reader,
        _progress(names[0], len(reader), options.quiet) as done,
    ):
        _TARGETS[options.to](reader, options, done)
        size = human_bytes(4 * reader.storage_dim * len(reader))
        print(f"{options.output}: {len(reader)} rows, {size}")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m oneemb_jax",
        description="Looks at, checks and converts tables on disk.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (inspect, verify, convert):
        sub = commands.add_parser(
            command.__name__, help=command.__doc__, description=command.__doc__
        )
        sub.set_defaults(run=command)
        sub.add_argument(
            "path",
            type=Path,
            nargs="+",
            help="a persistent_path, a snapshot, a folder that save wrote, a table of "
            "OneFlow's; or the folder of each rank",
        )
        if command is not inspect:
            sub.add_argument("--snapshot", metavar="NAME", help=_SNAPSHOT_HELP[command])
            sub.add_argument("--quiet", action="store_true", help="no progress")
        if command is convert:
            _add_convert_options(sub)
    return parser


_SNAPSHOT_HELP = {
    verify: "default: all there are",
    convert: "needed if there are several",
}


def _add_convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=sorted(_TARGETS), required=True)
    parser.add_argument("--output", type=Path, required=True, help="must not exist yet")
    parser.add_argument(
        "--key-type", choices=KEY_TYPES, help="default: signed, as wide as the keys"
    )
    parser.add_argument(
        "--embedding-only", action="store_true", help="no state of the optimizer"
    )
    ranks = "--to oneflow: for how many processes (1)"
    parser.add_argument("--ranks", type=int, metavar="N", help=ranks)
    block = "--to oneflow: the sector size of its disk (4096)"
    parser.add_argument("--block-size", type=int, choices=BLOCK_SIZES, help=block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the status to exit with."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, StoreError) as error:
        print(f"oneemb_jax: {error}", file=sys.stderr)
        return UNUSABLE
