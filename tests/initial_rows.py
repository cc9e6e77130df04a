"""Initial rows in NumPy, written from the definition and not from the C++.

Slow and plain; tests compare bits. Philox is that of Salmon et al. (2011), four
words a block; column c takes word c % 4 of block c // 4.
"""

from statistics import NormalDist
from typing import Any

import numpy as np

F32, U64 = np.float32, np.uint64


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of counters uint64[..., 4], words below 2**32; the same shape."""
    mask = U64(0xFFFFFFFF)
    c0, c1, c2, c3 = (counter[..., i].astype(U64) for i in range(4))
    for r in range(10):
        k0 = U64((key[0] + r * 0x9E3779B9) % 2**32)
        k1 = U64((key[1] + r * 0xBB67AE85) % 2**32)
        a, b = U64(0xD2511F53) * c0, U64(0xCD9E8D57) * c2
        c0, c1 = (b >> U64(32)) ^ c1 ^ k0, b & mask
        c2, c3 = (a >> U64(32)) ^ c3 ^ k1, a & mask
    return np.stack([c0, c1, c2, c3], -1)


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """``a * b + c`` of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there (its last bit
    set if anything was lost), after which rounding to float32 errs nowhere.
    """
    p, c = np.broadcast_arrays(np.float64(a) * np.float64(b), np.float64(c))
    s = p + c
    t = s - p
    lost = (p - (s - t)) + (c - t)  # of the sum, exactly
    even = s.view(np.int64) % 2 == 0
    toward = np.nextafter(s, np.where(lost > 0, np.inf, -np.inf))
    return np.where((lost != 0) & even, toward, s).astype(F32)


def poly(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """A polynomial, lowest power first, by fused steps from the highest."""
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y = fma(y, x, F32(c))
    return y


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of normal float32, as core/numeric.h defines it."""
    e = (x.view(np.int32) - np.int32(0x3F2AAAAB)) >> 23
    f = np.ldexp(x, -e) - F32(1)
    p = poly(
        f, 0.333333387, -0.249998194, 0.199993061, -0.166796157,
        0.143128361, -0.121952855, 0.106613869, -0.128471139, 0.123579300,
    )  # fmt: skip
    low = F32(float.fromhex("0x1.0BFBE8p-15"))
    tail = fma(e, low, (f * f) * fma(f, p, F32(-0.5)))
    return fma(e, F32(float.fromhex("0x1.62ep-1")), f + tail)


def sin_cos_two_pi(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sin and cos of ``2 pi u``, as core/numeric.h defines them."""
    quarter = np.floor(np.float64(u) * 4 + 0.5).astype(np.int64)
    r = (u - quarter / 4).astype(F32)
    z = r * r
    low = float.fromhex("-0x1.777A5Cp-23")
    p = poly(z, low, -41.3417022, 81.6052038, -76.6977741, 41.4698896)
    s = fma(r, F32(2 * np.pi), r * p)
    q = poly(z, -19.7392087, 64.9393265, -85.4437417, 59.2459643)
    c = fma(z, q, F32(1))
    sin = np.choose(quarter % 4, [s, c, -s, -c])
    cos = np.choose(quarter % 4, [c, -s, -c, s])
    return sin, cos


def normal(words: np.ndarray) -> np.ndarray:
    """Standard normal draws of uint64[..., 4]: cos and sin of two words each."""
    radius_words, angle_words = words[..., 0::2], words[..., 1::2]
    u = fma((radius_words >> U64(1)).astype(F32), F32(2.0**-31), F32(2.0**-32))
    radius = np.sqrt(F32(-2) * log(u))
    sin, cos = sin_cos_two_pi((angle_words >> U64(8)).astype(F32) * F32(2.0**-24))
    return np.stack([radius * cos, radius * sin], -1).reshape(words.shape)


def trunc_normal(
    words: np.ndarray, mean: float, std: float, a: float, b: float
) -> np.ndarray:
    """Draws of a normal between a and b, by the standard library's quantile."""
    low, high, sign = (a - mean) / std, (b - mean) / std, 1.0
    if low + high > 0:
        low, high, sign = -high, -low, -1.0
    cdf = NormalDist().cdf
    bounds = cdf(low), cdf(high)
    u = (words.astype(np.float64) + 0.5) / 2.0**32
    p = bounds[0] + u * (bounds[1] - bounds[0])
    x = mean + sign * std * np.vectorize(NormalDist().inv_cdf, otypes=[float])(p)
    return np.clip(x, a, b).astype(F32)


def values(initializer: Any, words: np.ndarray) -> np.ndarray:
    """The values that an initializer gives to words uint64[..., 4]."""
    params = initializer.params
    if initializer.type == "constant":
        return np.full(words.shape, params[0], F32)
    if initializer.type == "uniform":
        low, high = F32(params[0]), F32(params[1])
        u = (words >> U64(8)).astype(F32) * F32(2.0**-24)
        x = fma(high - low, u, low)
        return np.where(x < high, x, np.nextafter(high, low))
    if initializer.type == "normal":
        mean, std = F32(params[0]), F32(params[1])
        return fma(std, normal(words), mean)
    return trunc_normal(words, *params)


def initial_rows(
    initializers: Any,
    column_dims: tuple[int, ...],
    seed: int,
    tables: Any,
    ids: Any,
    shared_keys: bool = False,
) -> np.ndarray:
    """Initial rows float32[n, sum(column_dims)].

    Args:
        initializers: ``[table][column]``, as in a TableSpec.
        column_dims: width of each column.
        seed: of the embedding.
        tables: ints[n].
        ids: ints[n], signed or not.
        shared_keys: whether draws leave the table out.
    """
    dim = sum(column_dims)
    tables = np.asarray(tables, np.int64)
    words = np.array([int(x) % 2**64 for x in ids], U64)
    counter = np.zeros((len(words), -(-dim // 4), 4), U64)
    counter[..., 0] = (words & U64(0xFFFFFFFF))[:, np.newaxis]
    counter[..., 1] = (words >> U64(32))[:, np.newaxis]
    counter[..., 2] = 0 if shared_keys else tables.astype(U64)[:, np.newaxis]
    counter[..., 3] = np.arange(counter.shape[1], dtype=U64)
    drawn = philox(counter, (seed % 2**32, seed >> 32))
    columns = np.repeat(np.arange(len(column_dims)), column_dims)
    rows = np.empty((len(words), dim), F32)
    for table in np.unique(tables):
        for k, initializer in enumerate(initializers[table]):
            here, there = tables == table, columns == k
            made = values(initializer, drawn[here]).reshape(here.sum(), -1)[:, :dim]
            rows[np.ix_(here, there)] = made[:, there]
    return rows
