"""save and restore: tables and dense pytrees in one folder, in one step.

tree.json     what the items are made of (trees.py), with a checksum
arrays.npz    the arrays, for anybody with NumPy
table-<i>/    each table, a snapshot that load_snapshot opens too
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from oneemb_jax import snapshot, trees
from oneemb_jax._version import __version__
from oneemb_jax.durable import write_file
from oneemb_jax.paths import AnyPath, folder_path
from oneemb_jax.saved_files import new_folder, write_arrays
from oneemb_jax.snapshot_files import TREE
from oneemb_jax.table import Table

FORMAT = "oneemb_jax save"
VERSION = 1
ARRAYS = "arrays.npz"
TABLE = "table"


def checksum(items: Any) -> int:
    """Of what JSON says, however it is written."""
    return zlib.crc32(json.dumps(items, sort_keys=True).encode())


def _write_tables(folder: Path, tables: list[Table]) -> list[int]:
    """Writes the tables; a checksum for each, which tells it from any other."""
    work, found = folder / "work", []
    for i, table in enumerate(tables):
        name = f"{TABLE}-{i}"
        written = snapshot.write_table(table, str(work), name, "save")
        os.rename(written, folder / name)
        found.append(zlib.crc32((folder / name / "MANIFEST").read_bytes()))
    if tables:
        shutil.rmtree(work)
    return found


def save(path: AnyPath, /, *, overwrite: bool = False, **items: Any) -> None:
    """Saves tables and any pytrees of arrays into a new folder, in one step.

    When it returns, all of it is on the disk; a process that is killed meanwhile
    leaves what was there before, whole.

    Args:
        path: the folder; its parents are made.
        overwrite: whether it may replace what an earlier ``save`` wrote there.
        **items: pytrees by name. Leaves may be tables, arrays of JAX and NumPy
            (bfloat16 and its like, and keys of ``jax.random``, included), numbers
            and strings.

    Raises:
        TypeError: if something in an item can't be saved; names it.
        ValueError: if there is nothing to save, or ``path`` has something else.
        FileExistsError: if ``path`` exists.
        OSError: if writing fails; ``path`` is as it was then.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "save", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]])
        ...     path = folder + "/step_1"
        ...     oe.save(path, table=table, params={"w": np.ones(3)}, step=1)
        ...     state = oe.restore(path, like={"table": emb})
        >>> oe.size(state["table"]), state["params"], state["step"]
        (1, {'w': array([1., 1., 1.])}, 1)
    """
    target = Path(folder_path(path, "save(path)")).absolute()
    if target.is_symlink():  # the link stays, what it points to is replaced
        target = target.resolve()
    if not items:
        raise ValueError("save(): pass what to save by name: params=params, ...")
    contents = trees.Contents([], [])
    encoded = {name: trees.encode(x, name, contents) for name, x in items.items()}
    for table in contents.tables:
        snapshot.check_savable(table, "save")
    exists = os.path.lexists(target)
    if exists and not overwrite:
        raise FileExistsError(
            f"save({str(target)!r}): exists already; pass overwrite=True to replace "
            "it, or another path."
        )
    if exists and not (target / TREE).is_file():
        raise ValueError(
            f"save({str(target)!r}): not a folder that save wrote; it is left alone."
        )
    with new_folder(target, overwrite) as folder:
        data = {"items": encoded, "tables": _write_tables(folder, contents.tables)}
        head = {"format": FORMAT, "version": VERSION, "writer": __version__}
        write_arrays(folder / ARRAYS, contents.arrays)
        text = json.dumps({**head, "crc32": checksum(data), **data})
        write_file(folder / TREE, text.encode())
