"""value_and_grad: what it follows, and that it never returns a silent zero."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import all_rows, make_cached, make_table, table_bits, train

IDS = np.array([[1, 2], [2, 3]])


def explicit(table, weight):
    acts, ctx = oe.lookup(table, IDS)
    value, (g_weight, g_acts) = jax.value_and_grad(
        lambda weight, acts: jnp.sum(jnp.sin(acts) * weight), argnums=(0, 1)
    )(weight, acts)
    return value, g_weight, oe.update(table, ctx, g_acts)


def loss(weight, table):
    return jnp.sum(jnp.sin(oe.lookup(table, IDS)[0]) * weight)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_equals_the_explicit_form(wrap):
    table = make_table(3)
    value, g_weight, wanted = explicit(table, 2.0)
    got, (g, sparse) = wrap(oe.value_and_grad(loss, (0, 1)))(2.0, table)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(g, g_weight, rtol=1e-6)
    assert isinstance(sparse, oe.SparseGrad)
    assert table_bits(oe.update(table, sparse)) == table_bits(wanted)


@pytest.mark.parametrize("make", [list, tuple])
def test_gradients_of_several_losses(make):
    """One a microbatch: an update sums them, and so does the norm."""
    table = make_table(3)
    gradients = make(
        oe.value_and_grad(lambda table, ids=ids: oe.lookup(table, ids)[0].sum())(table)[
            1
        ]
        for ids in ([5, 7], [7, 9, 7])
    )
    _, ctx = oe.lookup(table, [5, 7, 7, 9, 7])
    ones = jnp.ones((5, 3))
    assert oe.global_norm(gradients) == oe.global_norm(ctx, ones)
    wanted = table_bits(oe.update(table, ctx, ones))
    assert table_bits(oe.update(table, gradients)) == wanted
    with pytest.raises(TypeError, match="a list of those"):
        oe.update(table, [])
    with pytest.raises(TypeError, match="a list of those"):
        oe.update(table, [gradients[0], ctx])


@pytest.mark.parametrize("kind", ["ssd", "host_mem"])
def test_a_cached_table(tmp_path, kind):
    table, cached = make_table(3), make_cached(tmp_path, dim=3, kind=kind)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(weight, table):
        table = oe.stage(table, IDS)
        value, (g, sparse) = oe.value_and_grad(loss, (0, 1))(weight, table)
        return oe.update(table, sparse), value, g

    for _ in range(3):
        table, *wanted = step(2.0, table)
        cached, *got = step(2.0, cached)
        assert got == wanted
    assert all_rows(cached) == all_rows(table)
    assert oe.size(cached) == 3


def test_one_argument_and_aux():
    table = make_table(3)

    def with_aux(table):
        acts, ctx = oe.lookup(table, IDS)
        return acts.sum(), {"slots": ctx.slots, "acts": acts}

    (value, aux), sparse = oe.value_and_grad(with_aux, has_aux=True)(table)
    assert value == aux["acts"].sum()
    np.testing.assert_array_equal(sparse.grads[0], np.ones((2, 2, 3)))


def test_several_lookups_and_tables():
    first, second = make_table(2), make_table(3)

    def two(tables, weight):
        a, _ = oe.lookup(tables["a"], np.array([1]))
        b, _ = oe.lookup(tables["b"], np.array([7, 8]))
        c, _ = oe.lookup(tables["a"], np.array([2, 1]))
        return (a.sum() + 2 * b.sum() + 3 * c.sum()) * weight["w"]

    tables = {"a": first, "b": second}
    _, (grads, g_weight) = oe.value_and_grad(two, (0, 1))(tables, {"w": 1.0})
    assert set(g_weight) == {"w"}
    assert [len(grads[name].grads) for name in "ab"] == [2, 1]
    updated = oe.update(first, grads["a"])
    before = oe.get_rows(first, [1, 2]).embedding
    after = oe.get_rows(updated, [1, 2]).embedding
    np.testing.assert_array_equal(after[0], before[0] - np.float32(0.5 * 4))
    np.testing.assert_array_equal(after[1], before[1] - np.float32(0.5 * 3))
    assert oe.size(oe.update(second, grads["b"])) == 2


def test_deep_inside_a_model():
    table = make_table(3)

    class Tower:
        def __init__(self, table):
            self.table = table

        def __call__(self, weight):
            def helper():
                return oe.lookup(self.table, IDS)[0]

            return helper().sum() * weight

    value, sparse = oe.value_and_grad(lambda table: Tower(table)(3.0))(table)
    np.testing.assert_array_equal(sparse.grads[0], np.full((2, 2, 3), 3.0))
    assert np.isfinite(value)


def test_other_tables_are_constants():
    table, teacher = make_table(3), make_table(3)

    def distil(table):
        own, _ = oe.lookup(table, IDS)
        other, _ = oe.lookup(teacher, IDS)
        return jnp.sum(own * other)

    _, sparse = oe.value_and_grad(distil)(table)
    assert len(sparse.grads) == 1
    np.testing.assert_array_equal(sparse.grads[0], oe.lookup(teacher, IDS)[0])


def test_the_same_table_as_a_constant():
    """As a target network: closed over, or as an argument of its own."""
    table, other = make_table(3), np.array([5, 6])

    def closed_over(own):
        target, _ = oe.lookup(table, other)
        acts, _ = oe.lookup(own, IDS)
        late, _ = oe.lookup(table, IDS)
        return acts.sum() * target.sum() + late.sum()

    def argument(own, target):
        acts = oe.lookup(own, IDS)[0]
        return acts.sum() * oe.lookup(target, other)[0].sum()

    wanted = np.full((2, 2, 3), oe.lookup(table, other)[0].sum())
    for wrap in (lambda f: f, jax.jit):
        for sparse in (
            wrap(lambda t: oe.value_and_grad(closed_over)(t)[1])(table),
            wrap(lambda t: oe.value_and_grad(argument)(t, t)[1])(table),
            wrap(lambda t: oe.value_and_grad(argument)(t, table)[1])(table),
        ):
            assert len(sparse.grads) == 1
            np.testing.assert_allclose(sparse.grads[0], wanted, rtol=1e-6)


def test_a_teacher_behind_a_compiled_function():
    """JAX runs its Python once for two traces of the loss."""
    table, teacher = make_table(3), make_table(3)
    read = jax.jit(lambda ids: oe.lookup(teacher, ids)[0])

    def distil(table):
        target = read(oe.pack_ids(IDS))
        return (oe.lookup(table, IDS)[0] * target).sum()

    _, sparse = oe.value_and_grad(distil)(table)
    np.testing.assert_array_equal(sparse.grads[0], oe.lookup(teacher, IDS)[0])


def test_lookups_that_change_between_traces():
    table, calls = make_table(3), []

    def restless(table):
        calls.append(1)
        return sum(oe.lookup(table, IDS)[0].sum() for _ in calls)

    with pytest.raises(ValueError, match="traces the loss twice"):
        oe.value_and_grad(restless)(table)
    calls += [1, 1]

    def shrinking(table):
        calls.pop()
        return sum(oe.lookup(table, IDS)[0].sum() for _ in calls)

    with pytest.raises(ValueError, match="traces the loss twice"):
        oe.value_and_grad(shrinking)(table)


def test_no_tracer_leaks():
    table = make_table(3)
    with jax.checking_leaks():
        for wrap in (lambda f: f, jax.jit):
            wrap(oe.value_and_grad(loss, (0, 1)))(2.0, table)


def test_argnums_of_numpy():
    table = make_table(3)
    argnums: Any
    for argnums in (np.int64(1), np.array(1), -1):
        _, sparse = oe.value_and_grad(loss, argnums)(2.0, table)
        assert isinstance(sparse, oe.SparseGrad)
    for argnums in ("1", 1.0, [0.0], None):
        with pytest.raises(TypeError, match=r"value_and_grad\(argnums="):
            oe.value_and_grad(loss, argnums)


def test_a_table_nobody_reads_has_an_empty_gradient():
    table = make_table(3)
    _, (_, sparse) = oe.value_and_grad(lambda w, table: w * 2.0, (0, 1))(1.0, table)
    assert sparse.grads == ()
    assert oe.global_norm(sparse) == 0.0
    after = oe.update(table, sparse)
    assert (oe.size(after), oe.stats(after)["step"]) == (0, 1)
    with pytest.raises(ValueError, match="at least one lookup"):
        oe.update(table, [], [])


def test_accumulation_by_scan():
    table = make_table(3)
    batches = np.stack([IDS, IDS + 1, IDS + 2])

    @jax.jit
    def accumulate(table, batches):
        def body(carry, ids):
            _, sparse = oe.value_and_grad(
                lambda table: jnp.sin(oe.lookup(table, ids)[0]).sum()
            )(table)
            return carry, sparse

        return oe.update(table, jax.lax.scan(body, 0, batches)[1])

    grads = jnp.cos(oe.lookup(table, batches)[0])
    updated = accumulate(table, oe.pack_ids(batches))
    np.testing.assert_allclose(
        oe.get_rows(updated, np.arange(1, 6)).embedding,
        oe.get_rows(train(table, batches, grads), np.arange(1, 6)).embedding,
        rtol=1e-6,
    )


def scan_inside(table):
    def body(total, ids):
        return total + oe.lookup(table, ids)[0].sum(), None

    return jax.lax.scan(body, 0.0, oe.pack_ids(IDS))[0]


def while_inside(table):
    return jax.lax.fori_loop(
        0, 2, lambda i, total: total + oe.lookup(table, IDS)[0].sum(), 0.0
    )


def cond_inside(table):
    def read():
        return oe.lookup(table, IDS)[0].sum()

    return jax.lax.cond(table.step[0] > 5, lambda: 0.0, read)


def jit_inside(table):
    return jax.jit(lambda table: oe.lookup(table, IDS)[0].sum())(table)


_compiled_before = jax.jit(lambda table: oe.lookup(table, IDS)[0].sum())


def cached_jit_inside(table):
    """JAX does not run the Python of a function that it has compiled before."""
    return _compiled_before(table)


def checkpoint_inside(table):
    return jax.checkpoint(lambda table: oe.lookup(table, IDS)[0].sum())(table)


def derived_table(table):
    acts, ctx = oe.lookup(table, IDS)
    return oe.lookup(oe.update(table, ctx, acts), IDS)[0].sum()


def custom_vjp_inside(table):
    """What the user says is the gradient knows of no table."""

    @jax.custom_vjp
    def read(weight):
        return (oe.lookup(table, IDS)[0] * weight).sum()

    read.defvjp(lambda weight: (read(weight), weight), lambda weight, g: (g,))
    return read(2.0)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "hidden",
    [
        custom_vjp_inside,
        scan_inside,
        while_inside,
        cond_inside,
        jit_inside,
        cached_jit_inside,
        checkpoint_inside,
        derived_table,
    ],
)
def test_what_it_cannot_follow_raises(tmp_path, hidden, cached):
    table = oe.stage(make_cached(tmp_path, dim=3), IDS) if cached else make_table(3)
    _compiled_before(table)
    with pytest.raises(ValueError, match=r"cannot follow.*acts, ctx = oe\.lookup"):
        oe.value_and_grad(hidden)(table)


def test_plain_grad_raises():
    table = make_table(3)
    with pytest.raises(TypeError, match="uint32"):
        jax.grad(lambda table: oe.lookup(table, IDS)[0].sum())(table)
    with pytest.raises(TypeError, match="uint32"):
        jax.value_and_grad(loss, 1)(2.0, table)


def test_bad_arguments():
    table = make_table(3)
    with pytest.raises(TypeError, match="scalar"):
        oe.value_and_grad(lambda table: oe.lookup(table, IDS)[0])(table)
    with pytest.raises(TypeError, match=r"the loss is str.*has_aux"):
        oe.value_and_grad(lambda table: "x")(table)
    with pytest.raises(TypeError, match=r"has_aux=True.*\(loss, aux\)"):
        oe.value_and_grad(lambda table: loss(1.0, table), has_aux=True)(table)
    with pytest.raises(TypeError, match=r"leaf of str.*argnums"):
        oe.value_and_grad(loss, (0, 1))("x", table)
    with pytest.raises(TypeError, match="dtype int32"):
        oe.value_and_grad(loss, (0, 1))(jnp.int32(2), table)
    with pytest.raises(ValueError, match="argnums"):
        oe.value_and_grad(loss, 5)(2.0, table)
    with pytest.raises(ValueError, match=r"twice|two"):
        oe.value_and_grad(lambda a, b: loss(1.0, a) + loss(1.0, b), (0, 1))(
            table, table
        )
