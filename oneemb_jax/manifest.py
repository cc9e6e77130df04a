"""What a snapshot says of its table besides rows, as JSON.

Nothing here knows where the rows are. docs/formats/table.md draws the JSON.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from oneemb_jax._version import __version__
from oneemb_jax.ids import WORDS
from oneemb_jax.initializers import PARAMETERS, Initializer
from oneemb_jax.optimizer import HYPER_PARAMETERS, Optimizer
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import COUNTERS, Table, counter_values

FORMAT = "oneemb_jax table"
VERSION = 1


def lost_schedule(step: Any) -> Any:
    """Stands for a learning rate that was a schedule, which no file can hold."""
    raise ValueError(
        "the learning rate was a schedule, which a snapshot does not hold; load the "
        "table into its embedding."
    )


@dataclasses.dataclass(frozen=True)
class TableState:
    """What a table knows besides its rows.

    Attributes:
        capacity: rows that it had room for.
        step: updates so far.
        generation: changes so far, modulo 2**32.
        learning_rate: float32 bits of its constant learning rate.
        counters: uint64 values by the names of ``table.COUNTERS``.
    """

    capacity: int
    step: int
    generation: int
    learning_rate: int
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of one rank's part of a table.

    Attributes:
        key_type: of the ids.
        row_words: 32-bit words of a row, optimizer state included.
        spec: the table's, without store options; None where rows were written
            alone, by a persistent table writer.
        state: None likewise.
        rank: which part this is.
        num_ranks: of how many.
        writer: version of the package that wrote it.
    """

    key_type: str
    row_words: int
    spec: TableSpec | None = None
    state: TableState | None = None
    rank: int = 0
    num_ranks: int = 1
    writer: str = __version__

    def encode(self) -> bytes:
        """The description as JSON."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "writer": self.writer,
            "key_type": self.key_type,
            "row_words": self.row_words,
            "rank": self.rank,
            "num_ranks": self.num_ranks,
            "spec": None if self.spec is None else _encode_spec(self.spec),
            "state": None if self.state is None else dataclasses.asdict(self.state),
        }
        return json.dumps(data, allow_nan=False).encode("ascii")


def table_state(table: Table) -> TableState:
    """The state of a table as it stands; waits for it."""
    return TableState(
        capacity=table.capacity,
        step=int(np.array(table.step)[0]),
        generation=int(np.array(table.generation)[0]),
        learning_rate=int(np.array(table.learning_rate)[0]),
        counters=counter_values(table),
    )


def describe_table(table: Table) -> Manifest:
    """The manifest of a whole table; waits for it."""
    spec = table.spec
    return Manifest(spec.key_type, spec.row_words, spec, table_state(table))


# --- JSON ---


def _encode_spec(spec: TableSpec) -> dict[str, Any]:
    rate = spec.optimizer.learning_rate
    distinct = list(dict.fromkeys(x for columns in spec.initializers for x in columns))
    place = {initializer: i for i, initializer in enumerate(distinct)}
    runs: list[list[Any]] = []
    for columns in spec.initializers:
        places = [place[initializer] for initializer in columns]
        if runs and runs[-1][1] == places:
            runs[-1][0] += 1
        else:
            runs.append([1, places])
    return {
        "name": spec.name,
        "embedding_dim": list(spec.column_dims),
        "dtype": "float32",
        "key_space": spec.key_space,
        "padding_idx": spec.padding_idx,
        "seed": spec.seed,
        "capacity": spec.capacity,
        "optimizer": {
            "name": spec.optimizer.name,
            "learning_rate": None if callable(rate) else rate,
            **{field: getattr(spec.optimizer, field) for field in HYPER_PARAMETERS},
        },
        "initializers": [
            {"type": x.type, **dict(zip(PARAMETERS[x.type], x.params, strict=True))}
            for x in distinct
        ],
        "tables": runs,
    }


def decode_manifest(user: bytes, where: str) -> Manifest:
    """The manifest in a snapshot's own words.

    Args:
        user: what the snapshot holds besides rows.
        where: its path, for messages.

    Raises:
        ValueError: if that is no table's, or one of a later version.
    """
    try:
        data = json.loads(user)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(
            f"{where}: a snapshot, but of no table: it was saved through a Store; "
            "load it into one."
        )
    if data.get("version") != VERSION:
        raise ValueError(
            f"{where}: its table is of format version {data.get('version')!r}, "
            f"written by oneemb_jax {data.get('writer')}; this is oneemb_jax "
            f"{__version__}, which reads version {VERSION}."
        )
    try:
        return _decode(data)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{where}: the description of its table is damaged, or of a later "
            f"version: {error}"
        ) from error


def _decode(data: dict[str, Any]) -> Manifest:
    spec = data["spec"]
    key_type = _one_of(data, "key_type", WORDS)
    manifest = Manifest(
        key_type=key_type,
        row_words=_whole(data, "row_words", 1),
        spec=None if spec is None else _decode_spec(spec, key_type),
        state=None if data["state"] is None else _decode_state(data["state"]),
        rank=_whole(data, "rank"),
        num_ranks=_whole(data, "num_ranks", 1),
        writer=str(data["writer"]),
    )
    decoded = manifest.spec
    if (decoded is None) != (manifest.state is None):
        raise ValueError("spec and state go together")
    if decoded is not None and decoded.row_words != manifest.row_words:
        raise ValueError(f"row_words {manifest.row_words}, spec {decoded.row_words}")
    if manifest.rank >= manifest.num_ranks:
        raise ValueError(f"rank {manifest.rank} of {manifest.num_ranks}")
    return manifest


def _whole(data: dict[str, Any], name: str, least: int = 0, bits: int = 64) -> int:
    value = data[name]
    if type(value) is not int or not least <= value < 2**bits:
        raise ValueError(f"{name} is {value!r}")
    return value


def _one_of(data: dict[str, Any], name: str, known: Any) -> str:
    value = data[name]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}")
    return value


def _decode_state(data: dict[str, Any]) -> TableState:
    counters = data["counters"]
    return TableState(
        capacity=_whole(data, "capacity", 1),
        step=_whole(data, "step", bits=32),
        generation=_whole(data, "generation", bits=32),
        learning_rate=_whole(data, "learning_rate", bits=32),
        counters={name: _whole(counters, name) for name in COUNTERS},
    )


def _decode_spec(data: dict[str, Any], key_type: str) -> TableSpec:
    _one_of(data, "dtype", ("float32",))
    dims = data["embedding_dim"]
    padding = data["padding_idx"]
    if padding is not None and type(padding) is not int:
        raise ValueError(f"padding_idx is {padding!r}")
    return TableSpec(
        name=str(data["name"]),
        column_dims=tuple(_whole({"dim": dim}, "dim", 1, 31) for dim in dims),
        key_type=key_type,
        initializers=_decode_tables(data, len(dims)),
        optimizer=_decode_optimizer(data["optimizer"]),
        capacity=_whole(data, "capacity", 1),
        padding_idx=padding,
        seed=_whole(data, "seed"),
        shared_keys=_one_of(data, "key_space", ("separate", "shared")) == "shared",
    )


def _decode_tables(
    data: dict[str, Any], num_columns: int
) -> tuple[tuple[Initializer, ...], ...]:
    distinct = []
    for entry in data["initializers"]:
        names = PARAMETERS[_one_of(entry, "type", PARAMETERS)]
        distinct.append(Initializer(entry["type"], tuple(entry[n] for n in names)))
    tables: list[tuple[Initializer, ...]] = []
    for count, places in data["tables"]:
        repeated = _whole({"tables": count}, "tables", 1, 17)
        if len(places) != num_columns or len(tables) + repeated > 2**16:
            raise ValueError(f"tables: {len(places)} columns, {repeated} more tables")
        tables += [tuple(distinct[place] for place in places)] * repeated
    if not tables or not num_columns:
        raise ValueError("there are no tables, or no columns")
    return tuple(tables)


def _decode_optimizer(data: dict[str, Any]) -> Optimizer:
    values = {**data}
    name, rate = values.pop("name"), values.pop("learning_rate")
    return Optimizer(name, lost_schedule if rate is None else rate, **values)
