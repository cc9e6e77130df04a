"""The record of an optimizer: hyper-parameters, their checks, the state's shape.

The functions that make one are in ``optimizers.py``, the formulas that read it in
xla_ffi/core/optimizer_math.h.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

#: From the updates done before, an int32 scalar, to the learning rate.
Schedule = Callable[[Any], Any]


class _Kind(NamedTuple):
    code: int  # OptimizerKind in xla_ffi/core/optimizer_config.h
    hyper: tuple[str, ...]  # the hyper-parameters it reads
    state_fields: tuple[str, ...] = ()
    row_fields: tuple[tuple[str, Any], ...] = ()


_DECAY = ("weight_decay", "decoupled")
_ADAM = ("beta1", "beta2", "eps")
_FTRL = ("initial_accumulator_value", "lr_power", "lambda1", "lambda2", "beta")
_KINDS = {
    "sgd": _Kind(0, ("momentum", "nesterov", *_DECAY)),
    "adam": _Kind(2, (*_ADAM, "bias_correction", *_DECAY), ("m", "v")),
    "amsgrad": _Kind(3, (*_ADAM, "bias_correction", *_DECAY), ("m", "v", "v_max")),
    "adagrad": _Kind(
        4, ("eps", "lr_decay", "initial_accumulator_value", *_DECAY), ("sum",)
    ),
    "rowwise_adagrad": _Kind(
        5, ("eps", "initial_accumulator_value", *_DECAY), (), (("sum", np.float32),)
    ),
    "ftrl": _Kind(6, (*_FTRL, "weight_decay"), ("sum", "z")),
    "smart_decay_adam": _Kind(
        7, (*_ADAM, "weight_decay"), ("m", "v"), (("last_step", np.uint32),)
    ),
    "lamb": _Kind(8, (*_ADAM, "bias_correction", "weight_decay"), ("m", "v")),
}
_MOMENTUM = _Kind(1, _KINDS["sgd"].hyper, ("momentum",))
_FLAGS = ("nesterov", "bias_correction", "decoupled")
_NOT_ZERO = ("beta1", "beta2", "bias_correction", "lr_power")  # by default
_BELOW_ONE = ("momentum", "beta1", "beta2")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Optimizer:
    """An optimizer and its hyper-parameters; made by ``sgd``, ``adam`` and so on.

    Hashable and static in ``jax.jit``. Two optimizers are equal if nothing but a
    number for a learning rate tells them apart; schedules must be the same object.

    Attributes:
        name: of the function that makes it.
        learning_rate: a number, 0 or more, or a schedule.
        momentum, nesterov, beta1, beta2, eps, bias_correction, weight_decay,
            decoupled, lr_decay, initial_accumulator_value, lr_power, lambda1,
            lambda2, beta: as the function took them; 0 or False where it has none.

    Example:
        >>> import oneemb_jax as oe
        >>> optimizer = oe.adam(1e-3, weight_decay=0.01)
        >>> optimizer.name, optimizer.state_fields, optimizer.storage_dim(16)
        ('adam', ('m', 'v'), 48)
        >>> optimizer == oe.adam(2e-3, weight_decay=0.01)
        True
    """

    name: str
    learning_rate: float | Schedule
    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    bias_correction: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    lr_power: float = 0.0
    lambda1: float = 0.0
    lambda2: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        """Checks every value and turns numbers into Python's own."""
        if self.name not in _KINDS:
            raise ValueError(f"Optimizer(name={self.name!r}): use one of {[*_KINDS]}.")
        if not callable(self.learning_rate):
            self._set("learning_rate", _rate(self.learning_rate, self.name))
        for field in HYPER_PARAMETERS:
            value = getattr(self, field)
            if field not in _KINDS[self.name].hyper:
                if value:
                    raise ValueError(f"{self.name} has no {field}; got {value!r}.")
            elif field in _FLAGS:
                self._set(field, _flag(field, value, self.name))
            else:
                self._set(field, _hyper(field, value, self.name))
        if self.nesterov and not self.momentum:
            raise ValueError("sgd(nesterov=True): needs a momentum above 0.")
        if self.name == "ftrl":
            _check_power(self.initial_accumulator_value, self.lr_power)

    def _set(self, field: str, value: float | bool) -> None:
        object.__setattr__(self, field, value)

    def _identity(self) -> tuple[Any, ...]:
        rate = id(self.learning_rate) if callable(self.learning_rate) else None
        return (self.name, rate, *(getattr(self, field) for field in HYPER_PARAMETERS))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Optimizer):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        values = [f"learning_rate={self.learning_rate!r}"]
        for field in _KINDS[self.name].hyper:
            value = getattr(self, field)
            if value or field in _NOT_ZERO:
                values.append(f"{field}={value!r}")
        return f"{self.name}({', '.join(values)})"

    @property
    def _kind(self) -> _Kind:
        return _MOMENTUM if self.momentum else _KINDS[self.name]

    @property
    def kind(self) -> int:
        """The optimizer's code, int32, for the kernels."""
        return self._kind.code

    def hyper(self) -> np.ndarray:
        """The hyper-parameters as the kernels read them: float64[14]."""
        coupled = 0.0 if self.decoupled else self.weight_decay
        values = {field: getattr(self, field) for field in HYPER_PARAMETERS}
        values["weight_decay"] = coupled
        values["decoupled"] = self.weight_decay - coupled
        return np.array(list(values.values()), np.float64)

    @property
    def state_fields(self) -> tuple[str, ...]:
        """Names of the state kept for every column, in the order of the row."""
        return self._kind.state_fields

    @property
    def row_fields(self) -> tuple[tuple[str, Any], ...]:
        """Name and dtype of each word of state kept once a row."""
        return self._kind.row_fields

    @property
    def num_state_fields(self) -> int:
        """How many float32 a column has beside the embedding."""
        return len(self.state_fields)

    @property
    def num_row_words(self) -> int:
        """How many 32-bit words a row has beside its columns."""
        return len(self.row_fields)

    @property
    def size_factor(self) -> int:
        """OneFlow's ``size_factor``: float32 of a column, the embedding included."""
        return 1 + self.num_state_fields

    def storage_dim(self, embedding_dim: int) -> int:
        """OneFlow's ``storage_dim``: 32-bit words that it keeps for a row.

        It counts the step of ``smart_decay_adam`` as two words at an even place.
        """
        columns = self.size_factor * embedding_dim
        if self.name == "smart_decay_adam":
            return columns + columns % 2 + 2
        return columns + self.num_row_words


#: In the order of the fields of OptimizerConfig.
HYPER_PARAMETERS = tuple(field.name for field in dataclasses.fields(Optimizer)[2:])

_TINY = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)


def _number(value: Any, argument: str, otherwise: str = "") -> float:
    try:
        if isinstance(value, str):
            raise TypeError("a string")
        return float(value)
    except (TypeError, ValueError) as error:
        shown = repr(value) if isinstance(value, str | None) else type(value).__name__
        raise TypeError(
            f"{argument}: {shown} is no number whose value is known here.{otherwise}"
        ) from error


def _flag(field: str, value: Any, name: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}({field}={value!r}): pass True or False.")
    return bool(value)


def _check_power(initial: float, lr_power: float) -> None:
    """ValueError unless FTRL can divide by its accumulator to the power.

    The step of an element whose gradients were all 0 would be 0 / 0, or infinite.
    """
    with np.errstate(all="ignore"):
        power = np.float32(initial) ** np.float32(lr_power)
    if initial < _TINY or not _TINY <= power <= _HUGE:
        raise ValueError(
            f"ftrl(initial_accumulator_value={initial}, lr_power={lr_power}): the "
            f"first must be above 0, {_TINY:.2g} at least, and neither it nor its "
            "power may be beyond what float32 holds."
        )


def _rate(value: Any, name: str) -> float:
    rate = _number(
        value,
        f"{name}(learning_rate=...)",
        " A traced learning rate goes to update(learning_rate=...).",
    )
    if not 0 <= rate <= _HUGE:
        raise ValueError(
            f"{name}(learning_rate={rate}): use a finite number, 0 or more, or a "
            "schedule."
        )
    return rate


def _hyper(field: str, value: Any, name: str) -> float:
    number = _number(value, f"{name}({field}=...)")
    if field in _BELOW_ONE:
        fits, wanted = 0 <= number < 1, "a number in [0, 1)"
    elif field == "eps":
        # The kernels add it to a float32 and divide by that.
        fits, wanted = _TINY <= number <= _HUGE, f"above 0, {_TINY:.2g} at least"
    elif field == "lr_power":
        fits, wanted = -_HUGE <= number <= _HUGE, "a finite number"
    else:
        fits, wanted = 0 <= number <= _HUGE, "a finite number, 0 or more"
    if not fits:
        raise ValueError(f"{name}({field}={number}): use {wanted}.")
    return number
