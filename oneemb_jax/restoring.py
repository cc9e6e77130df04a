"""restore: what save wrote, back from its folder (saving.py draws it)."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import snapshot, trees
from oneemb_jax._ffi import native
from oneemb_jax._version import __version__
from oneemb_jax.cache import is_open
from oneemb_jax.paths import AnyPath, folder_path
from oneemb_jax.replaced import read_whole
from oneemb_jax.saved_files import read_array
from oneemb_jax.saving import ARRAYS, FORMAT, TABLE, VERSION, checksum
from oneemb_jax.snapshot_files import TREE, Part, encode_path, open_part
from oneemb_jax.spec import TableSpec
from oneemb_jax.store import StoreError
from oneemb_jax.table import Table
from oneemb_jax.templates import check, fill, leaves

#: What a damaged file makes of the readers of zip files and arrays.
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def is_save(path: Path) -> bool:
    """Whether a folder looks like one that ``save`` wrote."""
    return (path / TREE).is_file() and (path / ARRAYS).is_file()


def read_tree(path: Path) -> dict[str, Any]:
    """What ``tree.json`` says: items, and a checksum for each table.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is something else, or of a later version.
        StoreError: if it is damaged.
    """
    file = path / TREE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; {path} is no folder of save's.")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise StoreError(f"{file}: damaged, or not written by save.")
    if data.get("version") != VERSION:
        raise ValueError(
            f"{file}: of format version {data.get('version')!r}, written by "
            f"oneemb_jax {data.get('writer')}; this is oneemb_jax {__version__}."
        )
    found = {"items": data.get("items"), "tables": data.get("tables")}
    if data.get("crc32") != checksum(found):
        raise StoreError(f"{file}: damaged; its checksum is wrong.")
    return found


def table_folder(path: Path, data: dict[str, Any], number: int) -> Path:
    """The snapshot of a table; StoreError if it is not the one that was saved."""
    folder = path / f"{TABLE}-{number}"
    manifest = folder / "MANIFEST"
    if zlib.crc32(manifest.read_bytes()) != data["tables"][number]:
        raise StoreError(f"{manifest}: damaged, or of another save.")
    return folder


def verify_arrays(path: Path, places: list[trees.Place]) -> Iterator[str]:
    """A sentence for each array of a folder that is not as it was saved."""
    try:
        archive = zipfile.ZipFile(path / ARRAYS)
    except (zipfile.BadZipFile, OSError) as error:
        yield f"{path / ARRAYS}: {error}"
        return
    with archive:
        make = _Restorer(path, {}, archive)
        for place in places:
            if "array" in place.leaf:
                try:
                    make.array(place.leaf)
                except (StoreError, OSError) as error:
                    yield f"{place.path}: {error}"


class _CachedTable(NamedTuple):
    key: int  # of its leaf
    spec: TableSpec
    part: Part
    like: Any


class _Restorer:
    """Makes leaves from what JSON says of them: ``made``, by its ``id``."""

    def __init__(
        self, path: Path, data: dict[str, Any], archive: zipfile.ZipFile
    ) -> None:
        self.path, self.data, self.archive = path, data, archive
        self.made: dict[int, Any] = {}
        self.cached: list[_CachedTable] = []

    def array(self, leaf: dict[str, Any]) -> np.ndarray:
        shape = leaf["shape"]
        try:
            dtype, stored = trees.stored_dtype(leaf["dtype"])
            found = read_array(
                self.archive, leaf["array"], stored, shape, leaf["crc32"]
            )
        except _DAMAGE as error:
            raise StoreError(f"{self.path / ARRAYS}: damaged: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file begins
                raise
            raise StoreError(f"{self.path / ARRAYS}: damaged: {error}") from error
        return found.view(dtype).reshape(shape)

    def leaf(self, leaf: dict[str, Any], like: Any = None) -> Any:
        """A leaf as it was saved; where ``like`` is an array, as that is."""
        if "array" not in leaf:
            return trees.decode_number(leaf)
        array, kind = self.array(leaf), leaf["kind"]
        if kind == "key":
            return _placed(
                jax.random.wrap_key_data(jnp.asarray(array), impl=leaf["impl"]), like
            )
        if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
            kind = "jax"
        elif isinstance(like, np.ndarray):
            kind = "numpy"
        if kind == "jax":
            return _placed(_as_jax(array), like)
        return array if kind == "numpy" else array[()]

    def make(self, wanted: Iterable[tuple[dict[str, Any], Any]]) -> None:
        """Every leaf, with its like, but for cached tables, which are checked."""
        for leaf, like in wanted:
            if "table" not in leaf:
                self.made[id(leaf)] = self.leaf(leaf, like)
                continue
            spec, part = self.checked_table(leaf, like)
            if spec.is_cached:
                self.made[id(leaf)] = like  # until it is loaded
                self.cached.append(_CachedTable(id(leaf), spec, part, like))
            else:
                self.made[id(leaf)] = _load(spec, part, like)
        names = [table.spec.name for table in self.cached]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"restore(like=...): two tables are to be {name!r}, whose cached "
                    "table has one store; make an embedding for each."
                )

    def load_cached(self) -> None:
        """A cached table that is loaded ends the one that its embedding had.

        So all else has been made before, and first come those that end none.
        """
        for table in self.cached if len(self.cached) > 1 else ():
            native.verify_snapshot(encode_path(table.part.folder))
        for table in sorted(self.cached, key=lambda table: is_open(table.spec.name)):
            self.made[table.key] = _load(table.spec, table.part, table.like)

    def checked_table(self, leaf: dict[str, Any], like: Any) -> tuple[TableSpec, Part]:
        """What a table is to be, and its open snapshot: all of it but its rows."""
        part = open_part(str(table_folder(self.path, self.data, leaf["table"])))
        saved, state = part.manifest.spec, part.manifest.state
        if saved is None or state is None:
            raise ValueError(f"{part.folder}: rows alone, no table.")
        spec = saved if like is None else like.spec
        if like is None and callable(saved.optimizer.learning_rate):
            raise ValueError(
                f"restore: the learning rate of table {saved.name!r} was a schedule, "
                "which no file holds; pass like={...} with its embedding in the "
                "table's place."
            )
        snapshot.check_table(spec, [part], (), None, "restore")
        return spec, part


def _load(spec: TableSpec, part: Part, like: Any) -> Table:
    # A cached table has more rows than its capacity says.
    saved = 0 if part.manifest.state is None else part.manifest.state.capacity
    most = max(saved, spec.capacity, part.reader.rows)
    capacity = None if spec.is_cached else most
    # Its arrays may be shapes, as of jax.eval_shape.
    sharding = _sharding(like.rows) if isinstance(like, Table) else None
    devices = () if sharding is None else tuple(sharding.device_set)
    device = devices[0] if len(devices) == 1 else None
    table = snapshot.read_table(spec, [part], device, capacity, (), None, "restore")
    return table if len(devices) < 2 else jax.device_put(table, sharding)


def _as_jax(array: np.ndarray) -> jax.Array:
    made = jnp.asarray(array)
    if made.dtype != array.dtype:
        raise ValueError(
            f"restore: a JAX array of {array.dtype} needs x64 mode: turn it on "
            "(jax_enable_x64), or pass a NumPy array in its place in like."
        )
    return made


def _sharding(like: Any) -> jax.sharding.Sharding | None:
    """Where ``like`` says that an array goes, if it does."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return like.sharding
    committed = isinstance(like, jax.Array) and like.committed
    return like.sharding if committed else None


def _placed(array: jax.Array, like: Any) -> jax.Array:
    sharding = _sharding(like)
    return array if sharding is None else jax.device_put(array, sharding)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a file that is not ours leads to, as an error that names it."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise StoreError(f"{path / ARRAYS}: damaged: {error}") from error
    except (KeyError, IndexError, AttributeError, EOFError, RecursionError) as error:
        raise StoreError(f"{path}: damaged: {error!r}") from error


def restore(
    path: AnyPath, /, *names: str, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Gives back what :func:`save` wrote. Nothing of the files is executed.

    Dicts, lists, tuples, None, arrays, numbers and strings come back as they were.
    An item with other nodes, such as an optax state or a flax model, is filled
    into a structure given by ``like``. A table comes back as of the embedding
    given there, or else as of the one that the file describes.

    Args:
        path: the folder.
        *names: which items; all of them by default.
        like: for items by name, a pytree of the same structure: its arrays, or
            ``jax.ShapeDtypeStruct``, say what is expected and where it goes. In the
            place of a table, its embedding or another table of it (to make one of
            a cached embedding, even its shapes, ends its table: give the embedding).

    Returns:
        A dict of items by name.

    Raises:
        FileNotFoundError: if there is nothing, or no item of a name.
        TypeError: if ``like`` is no dict.
        ValueError: if an item does not match its ``like``, with all that differs,
            or needs one, or an embedding there is closed.
        StoreError: if a file is damaged.
        BlockingIOError: if it is replaced again and again while it is read; once
            or twice is no matter.

    A mismatch or a damaged file raises before anything has changed: a cached table
    of an embedding in ``like`` is as it was, and ends when all else is restored.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import oneemb_jax as oe
        >>> params = {"w": jnp.ones(2)}
        >>> opt_state = optax.adam(1e-3).init(params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     oe.save(folder + "/a", params=params, opt_state=opt_state)
        ...     state = oe.restore(folder + "/a", like={"opt_state": opt_state})
        >>> sorted(state), type(state["opt_state"][0]).__name__
        (['opt_state', 'params'], 'ScaleByAdamState')
    """
    if not isinstance(like, Mapping | None):
        raise TypeError(
            f"restore(like={like!r}): pass a dict, by the names of items: "
            'like={"table": emb}.'
        )
    folder, wanted = Path(folder_path(path, "restore(path)")), dict(like or {})
    return read_whole(lambda: [folder], lambda _: _read(folder, names, wanted))


def _read(folder: Path, names: tuple[str, ...], like: dict[str, Any]) -> dict[str, Any]:
    """The items of a folder that nobody replaces meanwhile."""
    with _damage_named(folder):
        data = read_tree(folder)
        items = data["items"]
        chosen = names or tuple(items)
        for name in (*chosen, *like):
            if name not in items:
                raise FileNotFoundError(
                    f"{folder}: has no item {name!r}; it has: {', '.join(items)}."
                )
        check(items, chosen, like)
        with zipfile.ZipFile(folder / ARRAYS) as archive:
            wanted = [
                pair
                for name in chosen
                for pair in leaves(items[name], like.get(name), name in like)
            ]
            restorer = _Restorer(folder, data, archive)
            restorer.make(wanted)

    def filled() -> dict[str, Any]:
        made = restorer.made
        return {
            name: fill(items[name], like[name], made)
            if name in like
            else trees.decode(items[name], lambda leaf: made[id(leaf)])
            for name in chosen
        }

    if restorer.cached:
        filled()  # a node of the user's may refuse what it is given
        with _damage_named(folder):
            restorer.load_cached()
    return filled()
