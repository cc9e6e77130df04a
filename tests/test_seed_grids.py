"""OneFlow's own test grids of the embedding updates: same cases, same bounds.

500 rows of 128 columns whose whole line, state included, begins uniform in
[0, 1); in each update the first n of the ids, n random, get gradients uniform in
[0, 1), and the rest of the batch is id 0 over and over with none. With
``traced``, the learning rate and the scale are operands and one update in two is
skipped at random; without it they are constants and nothing is skipped. A
skipped update is no step of the table, so the formulas count those applied.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_table

ROWS, DIM, UPDATES = 500, 128, 10
DOWN_SCALE = 10.0
Line = dict[str, np.ndarray]  # embedding and state, each [ROWS, DIM]


def grid(**axes: list[Any]) -> Any:
    """One test case for every combination."""
    cases = [pytest.param(*case, id="-".join(f"{name}={value}" for name, value in
             zip(axes, case, strict=True)))
             for case in itertools.product(*axes.values())]  # fmt: skip
    return pytest.mark.parametrize(list(axes), cases)


@functools.partial(jax.jit, donate_argnums=0)
def update(table: oe.Table, ids: Any, grads: Any, **options: Any) -> oe.Table:
    _, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, grads, **options)


def batches(traced: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray, bool]]:
    """How many ids are valid, all ids, gradients, and whether to apply them."""
    random = np.random.default_rng(0)
    for _ in range(UPDATES):
        valid = int(random.integers(1, ROWS))
        ids = np.where(np.arange(ROWS) < valid, np.arange(ROWS), 0)
        grads = random.uniform(size=(ROWS, DIM)).astype(np.float32)
        grads[valid:] = 0
        yield valid, ids, grads, not traced or bool(random.integers(2))


def check(
    optimizer: oe.Optimizer,
    formula: Callable[[Line, np.ndarray, float, int], None],
    scale: float,
    lr: float,
    traced: bool,
    tolerance: float = 1e-3,
) -> None:
    """Ten updates by the table and by ``formula(line, g, lr, step)``.

    The optimizer holds the rate ``lr`` too; with ``traced`` it must not be the
    one that is used, so the table gets another.
    """
    ids, fields = np.arange(ROWS), ("embedding", *optimizer.state_fields)
    random = np.random.default_rng(1)
    start = {name: random.uniform(size=(ROWS, DIM)) for name in fields}
    table = make_table(DIM, name="grid", optimizer=optimizer, capacity=ROWS)
    state = {name: start[name] for name in optimizer.state_fields}
    table = oe.set_rows(table, ids, start["embedding"], state=state)
    line = {name: values.astype(np.float32) for name, values in start.items()}
    line = {name: values.astype(np.float64) for name, values in line.items()}
    step = 0
    for valid, batch, grads, apply in batches(traced):
        options: dict[str, Any] = {"grad_scale": np.float32(scale / DOWN_SCALE)}
        if traced:
            options |= {"learning_rate": np.float32(lr), "apply": np.bool_(apply)}
        table = update(table, oe.pack_ids(batch), grads, **options)
        if apply:
            touched = {name: values[:valid] for name, values in line.items()}
            formula(touched, grads[:valid] * (scale / DOWN_SCALE), lr, step)
            step += 1
    rows = oe.get_rows(table, ids)
    got = {"embedding": rows.embedding, **rows.state}
    assert 0 < step <= UPDATES
    for name in fields:
        np.testing.assert_allclose(
            got[name], line[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@grid(
    momentum=[0, 0.9],
    weight_decay=[0, 0.1],
    scale=[1, 0.1],
    lr=[1, 0.9],
    traced=[True, False],
)
def test_sgd(momentum: float, weight_decay: float, scale: float, lr: float,
             traced: bool):  # fmt: skip
    def formula(line: Line, g: np.ndarray, rate: float, step: int) -> None:
        move = g
        if momentum:
            line["momentum"][:] = momentum * line["momentum"] + g
            move = line["momentum"]
        w = line["embedding"]
        w -= rate * move + rate * weight_decay * w

    held = 7.0 if traced else lr
    optimizer = oe.sgd(held, momentum, weight_decay=weight_decay, decoupled=True)
    check(optimizer, formula, scale, lr, traced)


@grid(
    weight_decay=[0, 0.1],
    scale=[1, 0.1],
    lr=[1, 1.5],
    bias_correction=[True, False],
    beta1=[0.9, 0.8],
    beta2=[0.9, 0.8],
    traced=[True, False],
)
def test_adam(weight_decay: float, scale: float, lr: float, bias_correction: bool,
              beta1: float, beta2: float, traced: bool):  # fmt: skip
    # OneFlow's kernel without operands has no step, so it corrects nothing.
    corrects = bias_correction and traced

    def formula(line: Line, g: np.ndarray, rate: float, step: int) -> None:
        c1 = 1 - beta1 ** (step + 1) if corrects else 1
        c2 = 1 - beta2 ** (step + 1) if corrects else 1
        w, m, v = line["embedding"], line["m"], line["v"]
        m[:] = beta1 * m + (1 - beta1) * g
        v[:] = beta2 * v + (1 - beta2) * g * g
        w -= rate / c1 * m / (np.sqrt(v) / np.sqrt(c2) + 1e-5) + rate * weight_decay * w

    optimizer = oe.adam(
        7.0 if traced else lr,
        beta1=beta1,
        beta2=beta2,
        eps=1e-5,
        bias_correction=corrects,
        weight_decay=weight_decay,
        decoupled=True,
    )
    check(optimizer, formula, scale, lr, traced)


@grid(weight_decay=[0, 0.1], lr_decay=[0, 0.1], scale=[1, 0.1], lr=[0.3, 1.5])
def test_adagrad(weight_decay: float, lr_decay: float, scale: float, lr: float):
    def formula(line: Line, g: np.ndarray, rate: float, step: int) -> None:
        rate = rate / (1 + step * lr_decay)
        w, total = line["embedding"], line["sum"]
        total += g * g
        w -= rate / (np.sqrt(total) + 1e-5) * g + rate * weight_decay * w

    optimizer = oe.adagrad(
        7.0, lr_decay=lr_decay, eps=1e-5, weight_decay=weight_decay, decoupled=True
    )
    check(optimizer, formula, scale, lr, traced=True)


@grid(
    weight_decay=[0],
    lr_power=[-0.2, -0.05],
    lambda1=[0.1],
    lambda2=[0],
    beta=[1],
    scale=[1, 0.1],
    lr=[0.3, 1.5],
    traced=[True, False],
)
def test_ftrl(weight_decay: float, lr_power: float, lambda1: float, lambda2: float,
              beta: float, scale: float, lr: float, traced: bool):  # fmt: skip
    def formula(line: Line, g: np.ndarray, rate: float, step: int) -> None:
        w, total, z = line["embedding"], line["sum"], line["z"]
        new = total + g * g
        sigma = (new**lr_power - total**lr_power) / rate
        z += g - sigma * w
        total[:] = new
        step_size = (beta + new**lr_power) / rate + lambda2
        w[:] = (np.sign(z) * lambda1 - z) / step_size
        w[np.abs(z) < lambda1] = 0

    optimizer = oe.ftrl(
        7.0 if traced else lr,
        weight_decay=weight_decay,
        lr_power=lr_power,
        lambda1=lambda1,
        lambda2=lambda2,
        beta=beta,
    )
    check(optimizer, formula, scale, lr, traced, tolerance=1e-4)
