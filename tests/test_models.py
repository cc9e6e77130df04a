"""Models of equinox and flax that hold a table, and optax beside one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import oneemb_jax as oe
from helpers import make_table, table_bits

pytestmark = pytest.mark.any_promotion
IDS = np.array([[1, 2], [3, 1], [7, 2]])


class Model(eqx.Module):
    """Its lookup is deep inside."""

    table: oe.Table
    linear: eqx.nn.Linear

    def __call__(self, ids):
        acts, _ = oe.lookup(self.table, ids)
        return jax.vmap(self.linear)(acts.reshape(len(acts), -1))[:, 0]


def is_trained(leaf):
    return oe.is_table(leaf) or eqx.is_inexact_array(leaf)


def make_model():
    linear = eqx.nn.Linear(8, 1, key=jax.random.key(0))
    return Model(make_table(4, optimizer=oe.sgd(0.1), name="model"), linear)


def explicit_step(model, ids):
    """The same step with lookup and update in the open."""
    acts, ctx = oe.lookup(model.table, ids)

    def loss(linear, acts):
        out = jax.vmap(linear)(acts.reshape(len(acts), -1))[:, 0]
        return jnp.mean((out - 1.0) ** 2)

    g_linear, g_acts = jax.grad(loss, argnums=(0, 1))(model.linear, acts)
    steps = jax.tree.map(lambda g: -0.1 * g, g_linear)
    linear = eqx.apply_updates(model.linear, steps)
    return Model(oe.update(model.table, ctx, g_acts), linear)


def test_an_equinox_model_that_holds_a_table():
    @eqx.filter_jit
    def train_step(model, ids):
        trained, rest = eqx.partition(model, is_trained, is_leaf=oe.is_table)

        def loss(trained):
            model = eqx.combine(trained, rest, is_leaf=oe.is_table)
            return jnp.mean((model(ids) - 1.0) ** 2)

        value, grads = oe.value_and_grad(loss)(trained)
        table = oe.update(model.table, grads.table)
        steps = jax.tree.map(lambda g: -0.1 * g, grads.linear)
        return Model(table, eqx.apply_updates(model.linear, steps)), value

    model, reference, losses = make_model(), make_model(), []
    for _ in range(5):
        model, value = train_step(model, oe.pack_ids(IDS))
        reference = explicit_step(reference, IDS)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(
        oe.get_rows(model.table, IDS).embedding,
        oe.get_rows(reference.table, IDS).embedding,
        rtol=1e-5,
    )
    np.testing.assert_allclose(model.linear.weight, reference.linear.weight, rtol=1e-5)


class Tower(nnx.Module):
    """Holds a table as a variable that is no parameter."""

    def __init__(self, table, rngs):
        self.table = nnx.Variable(table)
        self.linear = nnx.Linear(8, 1, rngs=rngs)

    def head(self, acts):
        return self.linear(acts.reshape(len(acts), -1))[:, 0]


def test_an_nnx_model_that_holds_a_table():
    model = Tower(make_table(4, name="tower"), nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, ids):
        table = model.table.get_value()
        acts, ctx = oe.lookup(table, ids)

        def loss(model, acts):
            return jnp.mean((model.head(acts) - 1.0) ** 2)

        arguments = (nnx.DiffState(0, nnx.Param), 1)
        value, (g_model, g_acts) = nnx.value_and_grad(loss, argnums=arguments)(
            model, acts
        )
        optimizer.update(model, g_model)
        model.table.set_value(oe.update(table, ctx, g_acts))
        return value

    losses = [float(train_step(model, optimizer, oe.pack_ids(IDS))) for _ in range(5)]
    assert losses[-1] < losses[0]
    table = model.table.get_value()
    assert isinstance(table, oe.Table)
    assert (oe.size(table), oe.stats(table)["step"]) == (4, 5)


def test_optimizers_of_optax_beside_a_table():
    """A mask keeps a table out of the tree; without one it is copied into it."""
    params = {"w": jnp.ones(2), "table": make_table(4, capacity=1000)}
    dense = {"w": True, "table": False}
    state = optax.masked(optax.adam(1e-3), dense).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 10
    careless = optax.adam(1e-3).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(careless)) > 8000


def test_a_model_travels_through_jit_untouched():
    model = make_model()
    again = eqx.filter_jit(lambda model: model)(model)
    assert table_bits(again.table) == table_bits(model.table)
