"""How rows begin: what an id reads before the first update has touched it.

A value depends on nothing but the embedding's seed, the table, the id and the
column; xla_ffi/core/initializers.h draws it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

#: The kinds of initializers, by their codes in xla_ffi/core/initializers.h, and
#: the parameters of each.
PARAMETERS = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "normal": ("mean", "std"),
    "trunc_normal": ("mean", "std", "a", "b"),
}
_CODES = {kind: code for code, kind in enumerate(PARAMETERS)}
_LARGEST = float(np.finfo(np.float32).max)
#: The kernels invert probabilities that are normal float64.
_LEAST_PROBABILITY = 1e-290


@dataclasses.dataclass(frozen=True, repr=False)
class Initializer:
    """A distribution of initial values; made by ``make_uniform_initializer`` etc.

    Attributes:
        type: "constant", "uniform", "normal" or "trunc_normal".
        params: the parameters of that type, in the order of its function; kept as
            the float32 that the kernels compute with.

    Example:
        >>> import oneemb_jax as oe
        >>> initializer = oe.make_uniform_initializer(-0.5, 0.5)
        >>> initializer
        uniform(low=-0.5, high=0.5)
        >>> initializer == oe.make_uniform_initializer(low=-0.5, high=0.5)
        True
    """

    type: str
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the parameters."""
        names = PARAMETERS.get(self.type)
        if names is None or len(names) != len(self.params):
            wanted = ", ".join(f"{k}{PARAMETERS[k]}" for k in PARAMETERS)
            raise ValueError(
                f"Initializer(type={self.type!r}, params={self.params!r}): use one "
                f"of {wanted}."
            )
        pairs = zip(names, self.params, strict=True)
        params = tuple(self._number(name, value) for name, value in pairs)
        object.__setattr__(self, "params", params)
        if self.type == "uniform":
            self._check_uniform(*params)
        elif self.type == "normal":
            self._check_std(params[1])
        elif self.type == "trunc_normal":
            self._check_trunc_normal(*params)

    def __repr__(self) -> str:
        pairs = zip(PARAMETERS[self.type], self.params, strict=True)
        shown = ", ".join(f"{name}={np.float32(value)!s}" for name, value in pairs)
        return f"{self.type}({shown})"

    def _number(self, name: str, value: Any) -> float:
        """A parameter as the float32 nearest to it."""
        call = f"make_{self.type}_initializer"
        try:
            if isinstance(value, str | bytes):
                raise TypeError("a string")
            number = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{call}({name}={value!r}): pass a number.") from error
        if not abs(number) <= _LARGEST:
            raise ValueError(
                f"{call}({name}={number}): pass a finite number that fits float32."
            )
        return float(np.float32(number))

    def _fail(self, why: str) -> ValueError:
        pairs = zip(PARAMETERS[self.type], self.params, strict=True)
        given = ", ".join(f"{name}={value}" for name, value in pairs)
        return ValueError(f"make_{self.type}_initializer({given}): {why}")

    def _check_uniform(self, low: float, high: float) -> None:
        if low > high:
            raise self._fail("low is above high; swap them.")
        if high - low > _LARGEST:
            raise self._fail("high - low must fit float32; narrow the range.")

    def _check_std(self, std: float) -> None:
        if std < 0:
            raise self._fail("std is negative; pass 0 or more.")

    def _check_trunc_normal(self, mean: float, std: float, a: float, b: float) -> None:
        self._check_std(std)
        if a >= b:
            raise self._fail("a must be below b, as float32; move them apart.")
        inside = a <= mean <= b if std == 0 else self._between_cuts()[1] > 0
        if not inside:
            raise self._fail(
                "no value to speak of falls between a and b; they are absolute "
                "values, not numbers of standard deviations. Move them to the mean."
            )

    def _between_cuts(self) -> tuple[float, float, bool]:
        """Of a truncated normal: probability below and between the cuts; mirrored.

        Seen from the side where probabilities are small, because there float64
        has its precision.
        """
        mean, std, a, b = self.params
        low, high = (a - mean) / std, (b - mean) / std
        mirrored = low + high > 0
        if mirrored:
            low, high = -high, -low
        cdf_low = _normal_cdf(low)
        span = _normal_cdf(high) - cdf_low
        return cdf_low, span if span >= _LEAST_PROBABILITY else 0.0, mirrored

    def encode(self) -> tuple[float, ...]:
        """The initializer as the kernels read it: ``DecodeInitializer`` in C++."""
        code = float(_CODES[self.type])
        if self.type == "uniform":
            low, high = map(np.float32, self.params)
            below_high = np.nextafter(high, low)
            scale = np.float32(high - low)
            return (code, float(low), float(scale), 0.0, float(below_high), 0.0, 0.0)
        if self.type == "trunc_normal" and self.params[1] > 0:
            mean, std, a, b = self.params
            cdf_low, span, mirrored = self._between_cuts()
            return (code, mean, -std if mirrored else std, a, b, cdf_low, span)
        if self.type == "normal":
            return (code, *self.params, 0.0, 0.0, 0.0, 0.0)
        return (0.0, self.params[0], 0.0, 0.0, 0.0, 0.0, 0.0)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def as_initializer(value: Any, argument: str) -> Initializer:
    """``value`` as an Initializer; OneFlow's dicts are understood.

    Args:
        value: an Initializer, or a dict such as ``{"type": "normal", "mean": 0.0,
            "std": 0.05}``.
        argument: who wants it, for messages.

    Raises:
        TypeError: if it is something else.
        ValueError: if the dict names no initializer, or not its parameters.
    """
    if isinstance(value, Initializer):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{argument}: {value!r} is no initializer; make one with "
            "oe.make_uniform_initializer, make_normal_initializer, "
            "make_trunc_normal_initializer or make_constant_initializer."
        )
    kind = value.get("type")
    names = PARAMETERS.get(kind) if isinstance(kind, str) else None
    if names is None:
        raise ValueError(
            f"{argument}: an initializer of type {kind!r}; use one of {[*PARAMETERS]}."
        )
    if set(value) != {"type", *names}:
        raise ValueError(
            f"{argument}: {dict(value)!r}: the type {kind!r} has the parameters "
            f"{', '.join(names)}, all of them."
        )
    return Initializer(str(kind), tuple(value[name] for name in names))


def make_constant_initializer(value: float) -> Initializer:
    """Every element is ``value``.

    Args:
        value: a finite number.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not finite in float32.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_constant_initializer(0.5)
        constant(value=0.5)
    """
    return Initializer("constant", (value,))


def make_uniform_initializer(low: float = 0.0, high: float = 1.0) -> Initializer:
    """Elements uniform in [low, high).

    Args:
        low: the smallest value.
        high: never drawn, unless ``low == high``.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is not finite in float32, or ``low > high``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_uniform_initializer(-0.1, 0.1)
        uniform(low=-0.1, high=0.1)
    """
    return Initializer("uniform", (low, high))


def make_normal_initializer(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """Elements normal with the given mean and standard deviation.

    Args:
        mean: of the distribution.
        std: standard deviation, 0 or more.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is not finite in float32, or ``std < 0``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_normal_initializer(std=0.05)
        normal(mean=0.0, std=0.05)
    """
    return Initializer("normal", (mean, std))


def make_trunc_normal_initializer(
    mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Initializer:
    """Elements normal, but those outside [a, b] are never drawn.

    ``mean`` and ``std`` are those of the normal before it is cut.

    Args:
        mean: of the normal.
        std: standard deviation of the normal, 0 or more.
        a: the smallest value; an absolute value, as in OneFlow, and not a number
            of standard deviations.
        b: the largest value; likewise.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is not finite in float32, ``std < 0``, ``a >= b``, or the
            normal has practically nothing between ``a`` and ``b``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_trunc_normal_initializer(std=0.05, a=-0.1, b=0.1)
        trunc_normal(mean=0.0, std=0.05, a=-0.1, b=0.1)
    """
    return Initializer("trunc_normal", (mean, std, a, b))
