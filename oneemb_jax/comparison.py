"""A snapshot's table and an embedding's, compared: what may differ and what not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from oneemb_jax.initializers import Initializer
from oneemb_jax.optimizer import HYPER_PARAMETERS, Optimizer
from oneemb_jax.spec import TableSpec

#: What may be passed over when it differs: it matters to rows to come alone.
IGNORABLE = ("key_type", "optimizer", "seed", "tables")


class Difference(NamedTuple):
    """One thing in which two tables differ.

    Attributes:
        field: the argument of the embedding's constructor.
        saved: what the snapshot has.
        wanted: what the embedding has.
        ignorable: whether rows mean the same nevertheless.
    """

    field: str
    saved: Any
    wanted: Any
    ignorable: bool

    def __str__(self) -> str:
        return (
            f"{self.field}: the snapshot has {self.saved}, the embedding {self.wanted}"
        )


def _dims(spec: TableSpec) -> int | list[int]:
    return spec.column_dims[0] if len(spec.column_dims) == 1 else [*spec.column_dims]


def differences(saved: TableSpec, wanted: TableSpec) -> list[Difference]:
    """All in which two tables differ, but for names, capacities, learning rates.

    Args:
        saved: the spec in the snapshot.
        wanted: the spec that its rows shall serve.
    """
    width = saved.id_words == wanted.id_words
    fewer = wanted.num_tables < saved.num_tables
    candidates = [
        Difference("embedding_dim", _dims(saved), _dims(wanted), False),
        Difference("key_type", saved.key_type, wanted.key_type, width),
        Difference("key_space", saved.key_space, wanted.key_space, False),
        Difference("padding_idx", saved.padding_idx, wanted.padding_idx, False),
        Difference("tables", saved.num_tables, wanted.num_tables, not fewer),
        Difference("seed", saved.seed, wanted.seed, True),
        *_optimizer_candidates(saved.optimizer, wanted.optimizer),
    ]
    pairs = zip(saved.initializers, wanted.initializers, strict=False)
    for i, (old, new) in enumerate(pairs):
        candidates.append(Difference(f"tables[{i}]", _shown(old), _shown(new), True))
    return [x for x in candidates if x.saved != x.wanted]


def _shown(columns: tuple[Initializer, ...]) -> str:
    same = len(set(columns)) == 1
    return repr(columns[0]) if same else repr([*columns])


def keeps_state(saved: Optimizer, wanted: Optimizer) -> bool:
    """Whether two optimizers keep the same of a row."""
    return (saved.name, saved.state_fields) == (wanted.name, wanted.state_fields)


def _keeps_nothing(optimizer: Optimizer) -> bool:
    return not optimizer.state_fields and not optimizer.num_row_words


def _optimizer_candidates(saved: Optimizer, wanted: Optimizer) -> list[Difference]:
    # One that keeps nothing of a row can leave what another kept.
    state_fits = keeps_state(saved, wanted) or _keeps_nothing(wanted)
    if saved.name != wanted.name:
        return [Difference("optimizer", saved.name, wanted.name, state_fits)]
    return [
        Difference(
            f"optimizer.{field}",
            getattr(saved, field),
            getattr(wanted, field),
            state_fits or field != "momentum",
        )
        for field in HYPER_PARAMETERS
    ]


def check_ignore(ignore: Any, call: str) -> tuple[str, ...]:
    """Names of things that may differ, as a tuple.

    Raises:
        ValueError: if one is not in ``IGNORABLE``.
    """
    names = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    for name in names:
        if name not in IGNORABLE:
            raise ValueError(
                f"{call}(ignore={ignore!r}): {name!r} can't be passed over; only "
                f"{', '.join(IGNORABLE)} can, where the rows mean the same."
            )
    return names


def check_same(
    saved: TableSpec, wanted: TableSpec, ignore: Sequence[str], call: str
) -> None:
    """ValueError that lists every difference which is not to be passed over."""
    found = [
        x
        for x in differences(saved, wanted)
        if not (x.ignorable and _root(x.field) in ignore)
    ]
    if not found:
        return
    lines = [f"  {difference}" for difference in found]
    remedy = "Make the embedding as the snapshot has it."
    if any(x.ignorable for x in found):
        remedy += _advice(found, ignore)
    leaves_state = not keeps_state(saved.optimizer, wanted.optimizer)
    if leaves_state and all(x.ignorable for x in found):
        remedy += f" What {saved.optimizer.name} kept of each row is left out then."
    raise ValueError(
        "\n".join([f"{call}: the snapshot is of another table.", *lines, remedy])
    )


def _advice(found: list[Difference], ignore: Sequence[str]) -> str:
    free = sorted({_root(x.field) for x in found if x.ignorable})
    names = sorted({*free, *ignore})
    return (
        f" Rows mean the same whatever {', '.join(free)}: with load_snapshot(ignore="
        f"{names}) the embedding's count from now on."
    )


def _root(field: str) -> str:
    """The argument that a field belongs to: tables of tables[3]."""
    return field.partition(".")[0].partition("[")[0]
