"""Initial rows: their bits, their distributions, and what is refused."""

import copy
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import make_table
from initial_rows import fma, initial_rows, normal, philox
from oneemb_jax.initializers import as_initializer

F32 = np.float32
ALL = [
    oe.make_constant_initializer(-0.75),
    oe.make_uniform_initializer(),
    oe.make_uniform_initializer(0.5, 1.0),
    oe.make_uniform_initializer(-3e-3, 1e-3),
    oe.make_normal_initializer(),
    oe.make_normal_initializer(2.0, 0.01),
    oe.make_trunc_normal_initializer(),
    oe.make_trunc_normal_initializer(1.0, 0.5, 1.5, 9.0),
    oe.make_trunc_normal_initializer(0.0, 0.05, -0.3, 0.01),
]


def draw(initializer, ids, dim=64, **changes):
    """Initial rows of ids, as lookup reads them."""
    table = make_table(dim, initializer=initializer, **changes)
    return np.asarray(oe.lookup(table, np.asarray(ids))[0])


# The oracle first: a wrong one would approve of anything.


def test_oracle_philox_gives_the_known_answers():
    # The vectors that the authors publish with Random123.
    counters = np.array(
        [[0] * 4, [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]],
        np.uint64,
    )
    keys = [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xA4093822, 0x299F31D0)]
    answers = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    for counter, key, answer in zip(counters, keys, answers, strict=True):
        np.testing.assert_array_equal(philox(counter, key), answer)


FLOATS = st.floats(-(2.0**20), 2.0**20, width=32).filter(
    lambda x: x == 0 or abs(x) > 2.0**-20
)


@given(FLOATS, FLOATS, FLOATS)
def test_oracle_fma_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = F32(fma(F32(a), F32(b), F32(c)))
    near = [got, *(np.nextafter(got, F32(side)) for side in (-np.inf, np.inf))]
    errors = [abs(Fraction(float(x)) - exact) for x in near]
    assert errors[0] == min(errors)


def test_oracle_normal_is_box_and_muller():
    words = np.random.default_rng(0).integers(0, 2**32, (1000, 4), np.uint64)
    radius = np.sqrt(-2 * np.log((words[:, 0::2] // 2 + 0.5) / 2.0**31))
    angle = 2 * np.pi * (words[:, 1::2] // 256) / 2.0**24
    wanted = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    np.testing.assert_allclose(normal(words), wanted.reshape(1000, 4), atol=2e-6)


# Bits.


@pytest.mark.parametrize("dims", [(1,), (17,), (64,), (128,), (16, 1), (3, 5, 9)])
@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_bits_equal_the_oracle(initializer, dims):
    ids = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (40, 3))
    seed = 2**63 + 12345
    rows = draw(initializer, ids, dims, num_tables=3, seed=seed)
    initializers = ((initializer,) * len(dims),) * 3
    wanted = initial_rows(initializers, dims, seed, np.tile(range(3), 40), ids.ravel())
    np.testing.assert_array_equal(rows.reshape(wanted.shape), wanted)


def test_columns_and_tables_with_initializers_of_their_own():
    initializers = ((ALL[1], ALL[4], ALL[6]), (ALL[0], ALL[7], ALL[2]))
    table = make_table((3, 5, 9), initializers=initializers)
    ids = np.arange(50).reshape(25, 2)
    rows = np.asarray(oe.lookup(table, ids)[0])
    wanted = initial_rows(initializers, (3, 5, 9), 3, np.tile([0, 1], 25), ids.ravel())
    np.testing.assert_array_equal(rows.reshape(wanted.shape), wanted)


def test_shared_keys_draw_alike_in_every_table():
    ids = np.repeat(np.arange(10), 2).reshape(10, 2)
    rows = draw(ALL[4], ids, num_tables=2, shared_keys=True)
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    wanted = initial_rows(((ALL[4],),), (64,), 3, [0] * 10, range(10), shared_keys=True)
    np.testing.assert_array_equal(rows[:, 0], wanted)
    separate = draw(ALL[4], ids, num_tables=2)
    assert not np.any(separate[:, 0] == separate[:, 1])


def test_a_row_does_not_depend_on_the_batch():
    table = make_table(17, initializer=ALL[4])
    ids = np.random.default_rng(2).integers(0, 2**62, 300)
    rows = np.asarray(oe.lookup(table, ids)[0])
    backwards = np.asarray(oe.lookup(table, ids[::-1].copy())[0])
    np.testing.assert_array_equal(rows, backwards[::-1])
    alone = np.asarray(oe.lookup(table, ids[123])[0])
    np.testing.assert_array_equal(rows[123], alone)
    jitted = jax.jit(oe.lookup)(table, oe.pack_ids(ids))[0]
    np.testing.assert_array_equal(rows, jitted)


# Distributions. Seeds are fixed, so these pass always or never; each bound is
# what chance passes once in a million times or less.


def ks_distance(sample, cdf):
    """Kolmogorov and Smirnov: sqrt(n) times the largest difference of cdfs."""
    x = np.sort(sample.astype(np.float64).ravel())
    steps = np.arange(len(x) + 1) / len(x)
    expected = cdf(x)
    gap = np.maximum(expected - steps[:-1], steps[1:] - expected).max()
    return gap * np.sqrt(len(x))


def uniform_cdf(low, high):
    return lambda x: (x - low) / (high - low)


def trunc_cdf(mean, std, a, b):
    dist = NormalDist(mean, std)
    cdf = np.vectorize(dist.cdf)
    return lambda x: (cdf(x) - dist.cdf(a)) / (dist.cdf(b) - dist.cdf(a))


CDFS = [
    (oe.make_uniform_initializer(-0.5, 0.25), uniform_cdf(-0.5, 0.25)),
    (oe.make_normal_initializer(1.0, 0.5), np.vectorize(NormalDist(1.0, 0.5).cdf)),
    (oe.make_trunc_normal_initializer(), trunc_cdf(0, 1, -2, 2)),
    (oe.make_trunc_normal_initializer(0, 1, 1, 5), trunc_cdf(0, 1, 1, 5)),
    (oe.make_trunc_normal_initializer(0, 1, -9, 0.5), trunc_cdf(0, 1, -9, 0.5)),
]


@pytest.mark.parametrize(("initializer", "cdf"), CDFS, ids=[repr(i) for i, _ in CDFS])
def test_distribution(initializer, cdf):
    assert ks_distance(draw(initializer, np.arange(2000)), cdf) < 2.7


MOMENTS = [
    (oe.make_uniform_initializer(-1.0, 3.0), 1.0, 16 / 12, 0.0, 1.8),
    (oe.make_normal_initializer(-2.0, 3.0), -2.0, 9.0, 0.0, 3.0),
    # Of a normal cut at 2 standard deviations.
    (oe.make_trunc_normal_initializer(), 0.0, 0.773741, 0.0, 2.36551),
]


@pytest.mark.parametrize(
    ("initializer", "mean", "variance", "skew", "kurtosis"),
    MOMENTS,
    ids=lambda x: x.type if isinstance(x, oe.Initializer) else "",
)
def test_moments(initializer, mean, variance, skew, kurtosis):
    x = draw(initializer, np.arange(4000)).astype(np.float64)
    z = (x - mean) / np.sqrt(variance)
    error = 5 / np.sqrt(x.size)
    assert abs(z.mean()) < error
    assert abs((z**2).mean() - 1) < error * np.sqrt(2)
    assert abs((z**3).mean() - skew) < error * np.sqrt(15)
    assert abs((z**4).mean() - kurtosis) < error * np.sqrt(96)


def worst_correlation(a, b=None):
    """Of the columns of a with those of b (itself: with its others), in sigmas."""
    a = (a - a.mean(0)) / a.std(0)
    other = a if b is None else (b - b.mean(0)) / b.std(0)
    r = a.T @ other / len(a)
    if b is None:
        np.fill_diagonal(r, 0)
    return np.abs(r).max() * np.sqrt(len(a))


@pytest.mark.parametrize("initializer", [ALL[1], ALL[4], ALL[6]], ids=repr)
def test_draws_are_independent(initializer):
    ids = np.arange(4000)
    rows = draw(initializer, ids).astype(np.float64)
    # Sizes too: a pair of normal draws shares a radius, whose square's halves
    # are independent all the same.
    for x in (rows, (rows - rows.mean()) ** 2):
        assert worst_correlation(x) < 6  # between columns
        assert worst_correlation(x[:-1], x[1:]) < 6  # between neighbouring ids
        assert worst_correlation(x[: len(x) // 2], x[len(x) // 2 :]) < 6
    high = draw(initializer, ids + 2**32)
    assert worst_correlation(rows, high) < 6
    assert worst_correlation(rows, draw(initializer, ids, seed=4)) < 6
    assert worst_correlation(rows, draw(initializer, ids, seed=3 + 2**32)) < 6


def test_tables_are_independent():
    ids = np.repeat(np.arange(8000), 2).reshape(-1, 2)
    rows = draw(ALL[1], ids, num_tables=2)
    assert worst_correlation(rows[:, 0], rows[:, 1]) < 6


@pytest.mark.parametrize("initializer", [ALL[1], ALL[4], ALL[6]], ids=repr)
def test_no_value_comes_twice_in_a_row(initializer):
    # OneFlow's rows of 128 have 35 distinct values, or 68.
    rows = draw(initializer, np.arange(100), 128)
    assert min(len(np.unique(row)) for row in rows) == 128
    assert len(np.unique(rows)) > 0.99 * rows.size


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (3, 4), (0, 63)])
@pytest.mark.parametrize("initializer", [ALL[1], ALL[4]], ids=repr)
def test_pairs_of_columns_fill_the_square(initializer, pair):
    rows = draw(initializer, np.arange(20000))[:, list(pair)]
    cells = rows.argsort(0).argsort(0) * 8 // len(rows)
    counts = np.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)
    expected = len(rows) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 49 + 6 * np.sqrt(2 * 49)  # 49 degrees of freedom


def test_draws_stay_in_their_range():
    ids = np.arange(20000)
    rows = draw(oe.make_uniform_initializer(0.5, 1.0), ids)
    assert rows.min() >= 0.5
    assert rows.max() < 1.0
    for a, b in [(-0.3, 0.01), (1.5, 1.6), (-30.0, -29.0), (20.0, 21.0), (36.0, 37.0)]:
        rows = draw(oe.make_trunc_normal_initializer(0.0, 1.0, a, b), ids[:1000])
        assert F32(a) <= rows.min() < rows.max() <= F32(b)


# Degenerate parameters.


@pytest.mark.parametrize(
    "initializer",
    [
        oe.make_uniform_initializer(0.5, 0.5),
        oe.make_normal_initializer(0.5, 0.0),
        oe.make_trunc_normal_initializer(0.5, 0.0, -1.0, 1.0),
        oe.make_trunc_normal_initializer(0.5, 0.0, 0.5, 1.0),
        oe.make_constant_initializer(0.5),
    ],
    ids=repr,
)
def test_no_width_gives_a_constant(initializer):
    np.testing.assert_array_equal(draw(initializer, [1, 2], 5), F32(0.5))


def test_extreme_floats():
    huge = float(np.finfo(F32).max)
    rows = draw(oe.make_uniform_initializer(0.0, huge), np.arange(100))
    assert np.isfinite(rows).all()
    rows = draw(oe.make_uniform_initializer(1.0, 1.0 + 2**-23), np.arange(100))
    np.testing.assert_array_equal(rows, 1.0)


# The Python objects.


def test_defaults_are_the_seed_systems():
    assert oe.make_uniform_initializer() == oe.make_uniform_initializer(0.0, 1.0)
    assert oe.make_normal_initializer() == oe.make_normal_initializer(0.0, 1.0)
    assert oe.make_trunc_normal_initializer() == oe.make_trunc_normal_initializer(
        mean=0.0, std=1.0, a=-2.0, b=2.0
    )


def test_initializers_are_values():
    tenth: Any = np.float32(0.1)
    one: Any = oe.make_uniform_initializer(-0.1, tenth)
    assert one == oe.make_uniform_initializer(-0.1, 0.1)
    assert hash(one) == hash(oe.make_uniform_initializer(-0.1, 0.1))
    assert one != oe.make_uniform_initializer(-0.1, 0.2)
    assert oe.make_normal_initializer(0, 1) != oe.make_uniform_initializer(0, 1)
    with pytest.raises(AttributeError):
        one.params = (0.0, 1.0)


@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_dicts_of_oneflow(initializer):
    names = {
        "constant": ["value"],
        "uniform": ["low", "high"],
        "normal": ["mean", "std"],
        "trunc_normal": ["mean", "std", "a", "b"],
    }[initializer.type]
    given = {
        "type": initializer.type,
        **dict(zip(names, initializer.params, strict=True)),
    }
    before = copy.deepcopy(given)
    assert as_initializer(given, "test") == initializer
    assert given == before


NAN, INF = float("nan"), float("inf")
REFUSED = [
    (oe.make_constant_initializer, (NAN,), ValueError, r"value=nan.*finite"),
    (oe.make_constant_initializer, (1e39,), ValueError, r"value=1e\+39.*float32"),
    (oe.make_constant_initializer, ("0",), TypeError, r"value='0'.*number"),
    (oe.make_constant_initializer, (None,), TypeError, r"value=None.*number"),
    (oe.make_uniform_initializer, (1, 0), ValueError, r"low=1.0, high=0.0.*swap"),
    (oe.make_uniform_initializer, (0, INF), ValueError, r"high=inf.*finite"),
    (oe.make_uniform_initializer, (-3e38, 3e38), ValueError, r"narrow"),
    (oe.make_normal_initializer, (0, -1), ValueError, r"std is negative"),
    (oe.make_normal_initializer, (NAN, 1), ValueError, r"mean=nan.*finite"),
    (oe.make_trunc_normal_initializer, (0, -1), ValueError, r"std is negative"),
    (oe.make_trunc_normal_initializer, (0, 1, 2, -2), ValueError, r"a must be below b"),
    (oe.make_trunc_normal_initializer, (0, 1, 1, 1 + 1e-9), ValueError, r"float32"),
    (oe.make_trunc_normal_initializer, (0, 1, 40, 41), ValueError, r"falls between"),
    (oe.make_trunc_normal_initializer, (0, 1, -41, -40), ValueError, r"falls between"),
    (oe.make_trunc_normal_initializer, (0, 1, 37, 38), ValueError, r"falls between"),
    (oe.make_trunc_normal_initializer, (9, 0, -1, 1), ValueError, r"falls between"),
    (oe.make_trunc_normal_initializer, (0, 1, -INF, 1), ValueError, r"a=-inf.*finite"),
]


@pytest.mark.parametrize(("make", "args", "error", "match"), REFUSED)
def test_bad_parameters(make, args, error, match):
    with pytest.raises(error, match=match) as caught:
        make(*args)
    assert make.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ("uniform", TypeError, r"here: 'uniform' is no initializer.*make_uniform"),
        ({}, ValueError, r"here: .*type None; use one of \['constant'"),
        ({"type": "xavier"}, ValueError, r"type 'xavier'; use one of"),
        ({"type": ["normal"]}, ValueError, r"use one of"),
        ({"type": "normal", "mean": 0.0}, ValueError, r"parameters mean, std, all"),
        ({"type": "constant", "value": 0, "x": 1}, ValueError, r"parameters value"),
        ({"type": "normal", "mean": 0, "std": -1}, ValueError, r"std is negative"),
    ],
)
def test_bad_dicts(value, error, match):
    with pytest.raises(error, match=match):
        as_initializer(value, "here")


@pytest.mark.parametrize(
    ("kind", "params"), [("xavier", (1.0,)), ("normal", (1.0,)), ("constant", ())]
)
def test_bad_types(kind, params):
    with pytest.raises(ValueError, match=r"use one of constant\('value',\), uniform"):
        oe.Initializer(kind, params)
