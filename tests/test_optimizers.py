"""Every optimizer against float64, and the rules of the record."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oneemb_jax as oe
from helpers import make_spec, make_table, train
from reference import ReferenceTable

OPTIMIZERS = {
    "sgd": oe.sgd(0.1),
    "sgd_decay": oe.sgd(0.1, weight_decay=0.1),
    "sgd_decoupled": oe.sgd(0.1, weight_decay=0.1, decoupled=True),
    "momentum": oe.sgd(0.1, momentum=0.9),
    "nesterov": oe.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": oe.adam(0.1),
    "adam_uncorrected": oe.adam(0.1, bias_correction=False, weight_decay=0.1),
    "adamw": oe.adamw(0.1, weight_decay=0.1),
    "amsgrad": oe.amsgrad(0.1, beta2=0.5),
    "adagrad": oe.adagrad(0.1),
    "adagrad_decay": oe.adagrad(
        0.1, lr_decay=0.1, initial_accumulator_value=0.1, weight_decay=0.1,
        decoupled=True,
    ),
    "rowwise_adagrad": oe.rowwise_adagrad(
        0.1, initial_accumulator_value=0.1, weight_decay=0.1
    ),
    "ftrl": oe.ftrl(0.1, lambda1=0.5, lambda2=0.1, beta=1.0),
    "ftrl_paper": oe.ftrl(0.1, lr_power=0.5, lambda1=0.5, weight_decay=0.1),
    "ftrl_power": oe.ftrl(0.1, lr_power=-0.2),
    "smart_decay_adam": oe.smart_decay_adam(0.1, weight_decay=0.1),
    "lamb": oe.lamb(0.1, weight_decay=0.1),
}  # fmt: skip
each_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS
)
IDS = np.arange(30) * 2**40 - 7
STEPS = 10


def one_step(table: oe.Table, ids: jax.Array, grads: jax.Array) -> oe.Table:
    _, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, grads)


jitted_step = jax.jit(one_step, donate_argnums=0)


def reference_of(table: oe.Table) -> ReferenceTable:
    rows = oe.get_rows(table, IDS).embedding
    initial = dict(zip(IDS.tolist(), rows, strict=True))
    spec = table.spec
    return ReferenceTable(spec.embedding_dim, spec.optimizer, initial.__getitem__)


def batch_of(step: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of which some repeat and some are missing, and their gradients."""
    random = np.random.default_rng(step)
    ids = random.choice(random.permutation(IDS)[:20], 50)
    return ids, random.normal(size=(50, dim)).astype(np.float32)


def check_fields(table: oe.Table, reference: ReferenceTable) -> None:
    """1e-6 of the largest number of a field and of the way a row has come."""
    rows, ids = oe.get_rows(table, IDS), IDS.tolist()
    for name, got in {"embedding": rows.embedding, **rows.state}.items():
        wanted = reference.field(name, ids)
        travel = reference.travel_of(name, ids)
        bound = 1e-6 * (np.abs(wanted).max() + travel)
        error = np.abs(got - wanted)
        assert np.all(error <= bound), f"{name}: {np.max(error / bound):.3g} x bound"


@each_optimizer
@pytest.mark.parametrize("dim", [3, 16, 65])
def test_ten_updates_agree_with_float64(optimizer: oe.Optimizer, dim: int):
    table = make_table(dim, optimizer=optimizer)
    reference = reference_of(table)
    for t in range(STEPS):
        ids, grads = batch_of(t, dim)
        table = jitted_step(table, oe.pack_ids(ids), grads)
        reference.update(ids.tolist(), grads)
    assert oe.size(table) == len(reference.rows)
    check_fields(table, reference)


@each_optimizer
def test_rows_outside_of_the_batch_do_not_move(optimizer: oe.Optimizer):
    table = train(make_table(16, optimizer=optimizer), *batch_of(0, 16))
    before = oe.get_rows(table, IDS)
    ids, grads = batch_of(1, 16)
    after = oe.get_rows(train(table, ids, grads), IDS)
    away = ~np.isin(IDS, ids)
    assert before.found[away].any()
    np.testing.assert_array_equal(after.embedding[away], before.embedding[away])
    assert list(after.state) == list(before.state)
    for name, state in after.state.items():
        np.testing.assert_array_equal(state[away], before.state[name][away])


@each_optimizer
def test_state_is_named_and_counted(optimizer: oe.Optimizer):
    dim = 6
    table = make_table(dim, optimizer=optimizer)
    state = oe.get_rows(table, IDS).state
    row_fields = dict(optimizer.row_fields)
    assert list(state) == [*optimizer.state_fields, *row_fields]
    for name, values in state.items():
        assert values.shape == (len(IDS),) if name in row_fields else (len(IDS), dim)
        assert values.dtype == row_fields.get(name, np.float32)
        first = optimizer.initial_accumulator_value if name == "sum" else 0
        np.testing.assert_array_equal(values, np.asarray(first, values.dtype))
    words = dim * (1 + optimizer.num_state_fields) + optimizer.num_row_words
    assert table.rows.shape[1] == words


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "ftrl", "lamb"])
def test_a_rate_of_zero_moves_nothing(name: str):
    table = make_table(5, optimizer=OPTIMIZERS[name])
    before = oe.get_rows(table, IDS).embedding
    table = train(table, IDS, np.ones((30, 5), np.float32), learning_rate=0.0)
    after = oe.get_rows(table, IDS)
    np.testing.assert_array_equal(after.embedding, before)
    assert all(np.isfinite(state).all() for state in after.state.values())


@pytest.mark.any_promotion
def test_a_schedule_counts_the_updates_of_the_table():
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.1})
    table = make_table(4, optimizer=oe.sgd(schedule))
    reference = reference_of(table)
    for t in range(4):
        ids, grads = batch_of(t, 4)
        table = train(table, ids, grads)
        reference.update(ids.tolist(), grads)
    check_fields(table, reference)


def test_update_takes_a_rate_and_a_scale():
    table = make_table(4, optimizer=oe.adagrad(0.1))
    reference = reference_of(table)
    for t, rate in enumerate([0.3, jnp.float32(0.02)]):
        ids, grads = batch_of(t, 4)
        table = train(table, ids, grads, learning_rate=rate, grad_scale=0.25)
        reference.update(ids.tolist(), grads, float(rate), 0.25)
    check_fields(table, reference)


def test_a_number_for_a_rate_does_not_retrace():
    traces = []

    @jax.jit
    def step(table: oe.Table, ids: jax.Array, grads: jax.Array) -> oe.Table:
        traces.append(1)
        return one_step(table, ids, grads)

    ids, grads = batch_of(0, 4)
    moved = []
    for rate in (0.1, 0.2):
        table = make_table(4, name="rate", optimizer=oe.sgd(rate))
        after = step(table, oe.pack_ids(ids), grads)
        pair = (oe.get_rows(t, ids).embedding for t in (after, table))
        moved.append(np.subtract(*pair))
    assert len(traces) == 1
    np.testing.assert_allclose(moved[1], 2 * moved[0], atol=1e-6)


# Parity with optax on dense rows: what a user would move from.


def dense_run(tx: Any, rows: np.ndarray, batches: list[Any]) -> np.ndarray:
    state = tx.init(jnp.asarray(rows))

    @jax.jit
    def step(params: Any, state: Any, places: Any, grads: Any) -> Any:
        dense = jnp.zeros_like(params).at[places].add(grads)
        updates, state = tx.update(dense, state, params)
        return optax.apply_updates(params, updates), state

    params: Any = jnp.asarray(rows)
    for places, grads in batches:
        params, state = step(params, state, places, grads)
    return np.asarray(params)


@pytest.mark.any_promotion
@pytest.mark.parametrize(
    ("optimizer", "tx"),
    [
        (oe.sgd(0.05), optax.sgd(0.05)),
        (
            oe.adagrad(0.05, initial_accumulator_value=0.1),
            optax.adagrad(0.05, initial_accumulator_value=0.1, eps=1e-10),
        ),
    ],
    ids=["sgd", "adagrad"],
)
def test_two_hundred_updates_agree_with_optax(optimizer: oe.Optimizer, tx: Any):
    dim, random = 16, np.random.default_rng(5)
    batches = [
        (random.integers(0, len(IDS), 40), random.normal(size=(40, dim)))
        for _ in range(200)
    ]
    batches = [(places, grads.astype(np.float32)) for places, grads in batches]
    table = make_table(dim, optimizer=optimizer)
    rows = oe.get_rows(table, IDS).embedding
    for places, grads in batches:
        table = jitted_step(table, oe.pack_ids(IDS[places]), grads)
    wanted = dense_run(tx, rows, batches)
    error = np.abs(oe.get_rows(table, IDS).embedding - wanted).max(axis=1)
    assert np.all(error <= 1e-5 * np.abs(wanted).max(axis=1))


# What other systems made of the same row and gradients, in float64 where they
# can: torch 2.13 (optim.SGD, Adam, AdamW, Adagrad) and FBGEMM 1.8.
ROW = np.array([[1.0, -0.5]], np.float32)
GRADS = np.array([[[0.5, -1.0]], [[0.25, 2.0]], [[-0.75, 0.125]], [[1.5, -0.5]]])
WIDE_ROW = np.array([[1.0, -0.5, 0.25, 2.0]], np.float32)
WIDE_GRADS = np.array(
    [[[0.5, -1.0, 0.25, 0.0]], [[0.25, 2.0, -1.0, 0.5]], [[-0.75, 0.125, 1.0, 1.0]]]
)


@pytest.mark.parametrize(
    ("optimizer", "row", "grads", "wanted"),
    [
        (
            oe.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            ROW, GRADS, [0.6164158608163371, -0.711045035225576],
        ),
        (
            oe.amsgrad(0.1, beta1=0.5, beta2=0.6, eps=1e-3, weight_decay=0.01),
            ROW, GRADS, [0.8015068469285278, -0.48859129818416985],
        ),
        (
            oe.adamw(0.1, beta1=0.5, beta2=0.6, eps=1e-3, weight_decay=0.1),
            ROW, GRADS, [0.7617543995247691, -0.4791462055762196],
        ),
        (
            oe.adagrad(0.1, lr_decay=0.1, eps=1e-3, weight_decay=0.1,
                       initial_accumulator_value=0.1),
            ROW, GRADS, [0.8606575201744339, -0.4682337871114775],
        ),
        (
            oe.rowwise_adagrad(0.1, eps=1e-3), WIDE_ROW, WIDE_GRADS,
            [0.9428669214, -0.4892503917, 0.2181915939, 1.8952953815],
        ),
    ],
    ids=["nesterov", "amsgrad", "adamw", "adagrad", "rowwise_adagrad"],
)  # fmt: skip
def test_other_systems_make_the_same_row(
    optimizer: oe.Optimizer, row: np.ndarray, grads: np.ndarray, wanted: list[float]
):
    table = make_table(row.shape[1], optimizer=optimizer)
    table = oe.set_rows(table, [9], row)
    for grad in grads.astype(np.float32):
        table = train(table, [9], grad)
    got = oe.get_rows(table, [9]).embedding[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


# The record.


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize(
    "make",
    [oe.sgd, oe.adam, oe.adamw, oe.amsgrad, oe.adagrad, oe.rowwise_adagrad, oe.ftrl,
     oe.smart_decay_adam, oe.lamb],
)  # fmt: skip
def test_a_bad_learning_rate_is_refused(make: Any, rate: float):
    with pytest.raises(ValueError, match=r"learning_rate=.*finite number, 0 or more"):
        make(rate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(oe.adam, beta1=1.0), r"beta1=1\.0.*\[0, 1\)"),
        (functools.partial(oe.lamb, beta2=-0.1), r"beta2=-0\.1.*\[0, 1\)"),
        (functools.partial(oe.sgd, 0.1, momentum=1.5), r"momentum=1\.5.*\[0, 1\)"),
        (functools.partial(oe.sgd, 0.1, nesterov=True), "momentum above 0"),
        (functools.partial(oe.adagrad, 0.1, eps=0.0), r"eps=0\.0.*above 0"),
        (functools.partial(oe.adagrad, 0.1, eps=1e-50), r"eps=1e-50.*above 0"),
        (functools.partial(oe.adagrad, 0.1, lr_decay=-1), r"lr_decay=-1\.0"),
        (functools.partial(oe.adam, weight_decay=float("nan")), "weight_decay=nan"),
        (functools.partial(oe.ftrl, lr_power=float("inf")), "lr_power=inf"),
        (functools.partial(oe.ftrl, lambda1=-1.0), r"lambda1=-1\.0"),
        (functools.partial(oe.ftrl, initial_accumulator_value=0), "must be above 0"),
        (functools.partial(oe.ftrl, initial_accumulator_value=1e-60), "at least"),
        (
            functools.partial(oe.ftrl, initial_accumulator_value=1e-30, lr_power=-2),
            "its power may be",
        ),
        (functools.partial(oe.Optimizer, "adamax", 0.1), r"adamax.*'adam', 'amsgrad'"),
        (functools.partial(oe.Optimizer, "sgd", 0.1, eps=0.1), "sgd has no eps"),
    ],
)
def test_a_bad_hyper_parameter_is_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("flag", ["no", None, 1, 0.0])
def test_a_flag_is_a_bool(flag: Any):
    with pytest.raises(TypeError, match=r"nesterov=.*True or False"):
        oe.sgd(0.1, momentum=0.9, nesterov=flag)
    flag = np.True_
    assert oe.sgd(0.1, momentum=0.9, nesterov=flag).nesterov is True


def test_what_is_no_number_is_shown():
    nothing: Any = None
    with pytest.raises(
        TypeError, match=r"momentum=\.\.\.\): None is no number .*here\.$"
    ):
        oe.sgd(0.1, momentum=nothing)


@pytest.mark.parametrize("rate", [None, "0.1", [0.1, 0.2]])
def test_a_learning_rate_is_a_number_or_a_schedule(rate: Any):
    with pytest.raises(TypeError, match="learning_rate"):
        oe.sgd(rate)


def test_a_traced_learning_rate_is_sent_to_update():
    with pytest.raises(TypeError, match=r"update\(learning_rate=...\)"):
        jax.jit(lambda rate: oe.sgd(rate) and 0)(0.1)


def test_numbers_of_numpy_and_jax_become_pythons():
    optimizer = oe.adam(jnp.float32(0.5), beta1=np.float64(0.25), eps=1)
    assert optimizer == oe.adam(0.5, beta1=0.25, eps=1.0)
    assert type(optimizer.learning_rate) is type(optimizer.beta1) is float


def test_equality_leaves_out_a_number_for_the_rate():
    assert oe.adam(0.1) == oe.adam(0.2)
    assert hash(oe.adam(0.1)) == hash(oe.adam(0.2))
    assert oe.adam(0.1) != oe.adam(0.1, beta1=0.8)
    assert oe.adam(0.1) != oe.amsgrad(0.1)
    assert oe.adamw(0.1, weight_decay=0.1) != oe.adam(0.1, weight_decay=0.1)
    assert oe.adam(0.1) != "adam"
    assert len({make_spec(name="x", optimizer=oe.sgd(r)) for r in (0.1, 0.2)}) == 1


def test_schedules_are_equal_by_identity():
    schedules = [optax.linear_schedule(0.1, 0.0, 9) for _ in range(2)]
    first, second = (oe.sgd(schedule) for schedule in schedules)
    assert first == oe.sgd(schedules[0])
    assert hash(first) == hash(oe.sgd(schedules[0]))
    assert first != second
    assert first != oe.sgd(0.1)


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        oe.sgd(0.1).momentum = 0.5  # pyright: ignore[reportAttributeAccessIssue]


def test_repr_is_the_call():
    for optimizer in [*OPTIMIZERS.values(), oe.adam(beta1=0.0), oe.ftrl(lr_power=0.0)]:
        assert eval(repr(optimizer), dict(vars(oe))) == optimizer
    assert repr(oe.sgd(0.1, momentum=0.5)) == "sgd(learning_rate=0.1, momentum=0.5)"


@pytest.mark.parametrize(
    ("optimizer", "size_factor", "storage_dim"),
    [
        (oe.sgd(0.1), 1, 5),
        (oe.sgd(0.1, momentum=0.9), 2, 10),
        (oe.adagrad(0.1), 2, 10),
        (oe.adam(), 3, 15),
        (oe.ftrl(), 3, 15),
        (oe.smart_decay_adam(), 3, 18),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes_are_those_of_oneflow(
    optimizer: oe.Optimizer, size_factor: int, storage_dim: int
):
    assert optimizer.size_factor == size_factor
    assert optimizer.storage_dim(5) == storage_dim
    assert optimizer.storage_dim(8) == size_factor * 8 + 2 * optimizer.num_row_words
