"""lookup and update under JAX's transformations and inside other libraries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import oneemb_jax as oe
from helpers import make_table, table_bits, train

IDS = np.array([[1, 2, 2], [3, 1, 5]])
WEIGHT = np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(4, 2)


def loss_of(weight, acts):
    return jnp.sum(jnp.tanh(acts @ weight) ** 2)


def exact_loss(acts):
    """Its gradient has one rounding-free form, in any compilation."""
    return jnp.sum(acts * acts)


def step(table, ids):
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, jax.grad(exact_loss)(acts))


@pytest.fixture
def expected():
    """Three steps, one after another, outside of jit."""
    table = make_table(4, optimizer=oe.adagrad(0.1), name="transforms")
    for shift in range(3):
        table = step(table, IDS + shift)
    return table_bits(table)


@pytest.fixture
def table():
    return make_table(4, optimizer=oe.adagrad(0.1), name="transforms")


@pytest.mark.parametrize("donate", [(), (0,)])
def test_jit(table, expected, donate):
    compiled = jax.jit(step, donate_argnums=donate)
    for shift in range(3):
        table = compiled(table, oe.pack_ids(IDS + shift))
    assert table_bits(table) == expected


@pytest.mark.parametrize("make", [oe.grow, lambda table: step(table, IDS)])
@pytest.mark.parametrize("first", [True, False])
def test_donating_one_of_two_tables_leaves_the_other(table, make, first):
    both = [table, make(table)]
    donated, other = both if first else both[::-1]
    jax.jit(lambda table: step(table, IDS), donate_argnums=0)(donated)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(other))
    assert oe.size(oe.grow(step(other, IDS))) == len(np.unique(IDS))


def test_without_donation_the_old_table_stays(table):
    before = table_bits(table)
    jax.jit(step)(table, oe.pack_ids(IDS))
    assert table_bits(table) == before


def test_scan(table, expected):
    batches = oe.pack_ids(np.stack([IDS + shift for shift in range(3)]))
    scan = jax.jit(
        lambda table, batches: jax.lax.scan(
            lambda table, ids: (step(table, ids), None), table, batches
        )[0],
        donate_argnums=0,
    )
    assert table_bits(scan(table, batches)) == expected


def test_while(table, expected):
    batches = oe.pack_ids(np.stack([IDS + shift for shift in range(3)]))

    @jax.jit
    def loop(table):
        return jax.lax.fori_loop(
            0, 3, lambda i, table: step(table, jnp.asarray(batches)[i]), table
        )

    assert table_bits(loop(table)) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_cond(table, expected, reverse):
    @jax.jit
    def maybe(table, ids, flag):
        branches = [lambda table: step(table, ids), lambda table: table]
        if reverse:
            flag = ~flag
            branches.reverse()
        return jax.lax.cond(flag, *branches, table)

    skipped = oe.pack_ids(IDS + 100)
    for shift in range(3):
        table = maybe(table, oe.pack_ids(IDS + shift), np.True_)
        table = maybe(table, skipped, np.False_)
    assert table_bits(table) == expected


def test_checkpoint(table, expected):
    @jax.jit
    def outside(table, ids):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, jax.grad(jax.checkpoint(exact_loss))(acts))

    @jax.jit
    def inside(table, ids):
        acts, ctx = jax.checkpoint(oe.lookup)(table, ids)
        return oe.update(table, ctx, jax.grad(exact_loss)(acts))

    for variant in (outside, inside):
        trained = table
        for shift in range(3):
            trained = variant(trained, oe.pack_ids(IDS + shift))
        assert table_bits(trained) == expected


def test_a_checkpoint_that_reads_again(table):
    """The lookup runs twice; the dense gradient is what it is without."""

    def dense_loss(weight, table, ids):
        return loss_of(weight, oe.lookup(table, ids)[0])

    ids = oe.pack_ids(IDS)
    plain = jax.jit(jax.grad(dense_loss))(WEIGHT, table, ids)
    again = jax.jit(jax.grad(jax.checkpoint(dense_loss)))(WEIGHT, table, ids)
    np.testing.assert_allclose(plain, again, rtol=1e-6)


def test_vmap_is_refused(table):
    with pytest.raises(ValueError, match=r"lookup does not work under jax\.vmap"):
        jax.vmap(lambda ids: oe.lookup(table, ids)[0])(oe.pack_ids(IDS))
    tables = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), table)
    with pytest.raises(ValueError, match="vmap"):
        jax.vmap(lambda table: oe.lookup(table, IDS)[0])(tables)
    _, ctx = oe.lookup(table, IDS)
    with pytest.raises(ValueError, match="update does not work under"):
        jax.vmap(lambda grad: oe.update(table, ctx, grad).step)(jnp.ones((3, 2, 3, 4)))


def test_shard_map_with_a_table_on_every_device(table):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def read(weight, table, ids):
        def local(weight, ids):
            return jax.lax.psum(loss_of(weight, oe.lookup(table, ids)[0]), "x")

        return jax.shard_map(
            local, mesh=mesh, in_specs=(spec(), spec("x")), out_specs=spec()
        )(weight, ids)

    ids = oe.pack_ids(IDS)
    sharded = jax.jit(jax.value_and_grad(read))(WEIGHT, table, ids)
    plain = jax.value_and_grad(lambda w: loss_of(w, oe.lookup(table, ids)[0]))(WEIGHT)
    for got, wanted in zip(sharded, plain, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_value_and_grad_within_shard_map(table):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def loss(weight, table, ids):
        return loss_of(weight, oe.lookup(table, ids)[0])

    def local(weight, table, ids):
        value, grads = oe.value_and_grad(loss, (0, 1))(weight, table, ids)
        return value[None], grads[0], grads[1].grads[0], oe.global_norm(grads[1])[None]

    ids = oe.pack_ids(IDS)
    value, g_weight, g_acts, norms = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(spec(), spec(), spec("x")),
            out_specs=(spec("x"), spec(), spec("x"), spec("x")),
        )
    )(WEIGHT, table, ids)
    wanted, (wanted_g, sparse) = oe.value_and_grad(loss, (0, 1))(WEIGHT, table, ids)
    np.testing.assert_allclose(value.sum(), wanted, rtol=1e-5)
    np.testing.assert_allclose(g_weight, wanted_g, rtol=1e-5)
    np.testing.assert_allclose(g_acts, sparse.grads[0], rtol=1e-5)
    for i, part in enumerate(np.split(ids, 2)):
        _, grad = oe.value_and_grad(loss, 1)(WEIGHT, table, part)
        np.testing.assert_allclose(norms[i], oe.global_norm(grad), rtol=1e-5)


@pytest.mark.any_promotion
def test_optax_step_with_everything_donated(table):
    optimizer = optax.adam(1e-2)
    params = {"w": jnp.asarray(WEIGHT)}

    def train_step(params, opt_state, table, ids):
        table = oe.stage(table, ids)
        acts, ctx = oe.lookup(table, ids)
        loss, (g, g_acts) = jax.value_and_grad(
            lambda params, acts: loss_of(params["w"], acts), argnums=(0, 1)
        )(params, acts)
        updates, opt_state = optimizer.update(g, opt_state, params)
        table = oe.update(table, ctx, g_acts)
        return optax.apply_updates(params, updates), opt_state, table, loss

    compiled = jax.jit(train_step, donate_argnums=(0, 1, 2))
    opt_state, losses = optimizer.init(params), []
    for _ in range(20):
        params, opt_state, table, loss = compiled(
            params, opt_state, table, oe.pack_ids(IDS)
        )
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_a_table_stays_out_of_parameter_trees(table):
    model = {"w": jnp.ones(3), "table": table}
    arrays = eqx.filter(model, eqx.is_inexact_array)
    assert sum(leaf.size for leaf in jax.tree.leaves(arrays)) == 3
    with pytest.raises(TypeError):
        jax.grad(lambda model: oe.lookup(model["table"], IDS)[0].sum())(model)


@pytest.mark.any_promotion
def test_equinox(table):
    class Model(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, acts):
            return jax.vmap(self.linear)(acts.reshape(acts.shape[0], -1))

    model = Model(eqx.nn.Linear(12, 1, key=jax.random.key(0)))
    start = oe.get_rows(table, IDS).embedding

    @eqx.filter_jit
    def train_step(model, table, ids):
        acts, ctx = oe.lookup(table, ids)

        def loss(both):
            model, acts = both
            return jnp.mean((model(acts) - 1.0) ** 2)

        value, (g_model, g_acts) = eqx.filter_value_and_grad(loss)((model, acts))
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, g_model))
        return model, oe.update(table, ctx, g_acts), value

    losses = []
    for _ in range(10):
        model, table, value = train_step(model, table, oe.pack_ids(IDS))
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert (oe.get_rows(table, IDS).embedding != start).all()


@pytest.mark.any_promotion
def test_nnx(table):
    model = nnx.Linear(12, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    start = oe.get_rows(table, IDS).embedding

    @nnx.jit
    def train_step(model, optimizer, table, ids):
        acts, ctx = oe.lookup(table, ids)

        def loss(model, acts):
            return jnp.mean((model(acts.reshape(acts.shape[0], -1)) - 1.0) ** 2)

        value, (g_model, g_acts) = nnx.value_and_grad(
            loss, argnums=(nnx.DiffState(0, nnx.Param), 1)
        )(model, acts)
        optimizer.update(model, g_model)
        return oe.update(table, ctx, g_acts), value

    losses = []
    for _ in range(10):
        table, value = train_step(model, optimizer, table, oe.pack_ids(IDS))
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert (oe.get_rows(table, IDS).embedding != start).all()


def test_gradient_accumulation_and_loss_scale(table):
    """Half precision, a loss scale and two microbatches, as one plain batch."""
    grads = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    ids = np.stack([IDS, IDS + 1])
    contexts = [oe.lookup(table, part)[1] for part in ids]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
    scaled = oe.update(table, stacked, grads * 1024, grad_scale=1 / 1024)
    plain = train(table, ids, grads)
    assert table_bits(scaled) == table_bits(plain)
