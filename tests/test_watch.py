"""A jitted train loop over a scheduler: traces, bits, counts that surface late."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_cached, make_table, table_bits
from oneemb_jax import watch as watch_module
from oneemb_jax.cache import close_cached
from oneemb_jax.counters import raise_counted
from oneemb_jax.watch import STEPS_IN_FLIGHT, without_rows


def make_step() -> Any:
    """A step that counts how often it was traced."""
    traced: list[Any] = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(table, batch, next_ids):
        traced.append(jax.tree.map(lambda x: x.shape, (batch, next_ids)))
        table = oe.stage(table, batch["ids"])
        table = oe.prefetch(table, next_ids)
        acts, ctx = oe.lookup(table, batch["ids"])
        grads = jax.grad(lambda acts: jnp.sum(acts * acts))(acts)
        return oe.update(table, ctx, grads)

    return step, traced


def make_batches(sizes: list[int]) -> list[Any]:
    draw = np.random.default_rng(1)
    return [{"ids": oe.pack_ids(draw.integers(0, 2**62, n))} for n in sizes]


def one_step(table: oe.Table, ids: Any) -> oe.Table:
    acts, ctx = oe.lookup(table, np.asarray(ids))
    return oe.update(table, ctx, jnp.ones_like(acts))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_an_epoch_compiles_once_for_each_shape_of_batch(depth: int):
    batches = make_batches([8] * 9 + [5])
    step, traced = make_step()
    table = make_table(capacity=256)
    scheduler = oe.PrefetchScheduler(batches, "ids", depth=depth, check_every=1)
    for _ in range(2):
        for batch, next_ids in scheduler:
            table = step(table, batch, next_ids)
            scheduler.watch(table)
    assert len(traced) == 2
    assert [shapes[1] for shapes in traced] == [(8, 2), (5, 2)]
    assert oe.size(table) == 77


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("stop", [0, 4, 10])
def test_a_resumed_run_ends_in_the_same_bits(depth: int, stop: int):
    batches = make_batches([8] * 9 + [5])

    def train(table: oe.Table, scheduler: Any, steps: int) -> oe.Table:
        step, _ = make_step()
        for _, (batch, next_ids) in zip(range(steps), scheduler, strict=False):
            table = step(table, batch, next_ids)
        return table

    def fresh(scheduler_depth: int) -> Any:
        return oe.PrefetchScheduler(iter(batches), "ids", depth=scheduler_depth)

    whole = train(make_table(capacity=256, name="resumed"), fresh(1), 10)
    first = fresh(depth)
    table = train(make_table(capacity=256, name="resumed"), first, stop)
    second = fresh(2)
    second.set_state({"batches": stop})
    assert table_bits(train(table, second, 10)) == table_bits(whole)


def test_counts_come_along_without_rows():
    table = one_step(make_table(16, capacity=4096), [1, 2, 3])
    seen = without_rows(table)
    for name in ("index", "rows", "clock"):
        assert isinstance(getattr(seen, name), jax.ShapeDtypeStruct)
    wanted = oe.stats(table)
    donate = jax.jit(lambda table: one_step(table, [4]), donate_argnums=0)
    newer = donate(table)
    assert table.counters.is_deleted()
    assert oe.stats(seen) == wanted
    assert oe.size(newer) == 4


def full_table() -> oe.Table:
    return make_table(1, capacity=2, name="full")


@pytest.mark.parametrize("every", [1, 3])
def test_an_error_surfaces_some_steps_late(every: int):
    scheduler = oe.PrefetchScheduler([], "ids", check_every=every)
    table = full_table()
    raised_at, message = None, ""
    for step in range(20):
        table = one_step(table, [1, 2, 3] if step == 4 else [1])
        try:
            scheduler.watch(table)
        except oe.TableError as error:
            raised_at, message = step, str(error)
            break
    assert "'full': 1 gradients were dropped" in message
    looked_at = -(-4 // every) * every  # the first look at step 4 or later
    assert raised_at == looked_at + STEPS_IN_FLIGHT
    table = oe.reset_counters(table)
    for _ in range(2 * every + STEPS_IN_FLIGHT):
        table = one_step(table, [1])
        scheduler.watch(table)


def test_watch_reads_no_count_of_a_step_in_flight(monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []

    def note(table: oe.Table, counters: dict[str, int]) -> None:
        read.append(int(np.asarray(table.step)[0]))
        raise_counted(table, counters)

    monkeypatch.setattr(watch_module, "raise_counted", note)
    scheduler = oe.PrefetchScheduler([], "ids", check_every=1)
    table = make_table()
    for step in range(1, 8):
        table = one_step(table, [step])
        scheduler.watch(table)
        assert read == list(range(1, step + 1 - STEPS_IN_FLIGHT))


def test_stats_of_two_embeddings():
    scheduler = oe.PrefetchScheduler(make_batches([4] * 5), "ids", check_every=1)
    assert scheduler.stats() == {"batches": 0, "data_wait_seconds": 0.0}
    users, items = make_table(name="users"), make_table(name="items")
    for number, _ in enumerate(scheduler):
        users, items = one_step(users, [7]), one_step(items, [number])
        scheduler.watch(users)
        scheduler.watch(items)
    told = scheduler.stats()
    assert told["batches"] == 5
    assert told["data_wait_seconds"] > 0
    assert told["users/step"] == told["items/step"] == 3
    assert (told["users/hits"], told["users/misses"]) == (2, 1)
    assert told["users/hit_rate"] == pytest.approx(2 / 3)
    assert told["users/recent_hit_rate"] == 1.0
    assert told["items/recent_hit_rate"] == 0.0
    card = repr(scheduler)
    assert "batches   5 handed out" in card
    assert "  'users': hit rate 100.0% of late, 66.7% in all" in card


def test_recent_hits_begin_anew_with_the_counters():
    scheduler = oe.PrefetchScheduler([], "ids", check_every=1)
    table = make_table()
    for step in range(8):
        table = one_step(table, [1])
        table = oe.reset_counters(table) if step == 3 else table
        scheduler.watch(table)
        recent = scheduler.stats().get(f"{table.spec.name}/recent_hit_rate", 0)
        assert 0 <= recent <= 1
    name = table.spec.name
    assert scheduler.stats()[f"{name}/recent_hit_rate"] == 1.0
    assert scheduler.stats()[f"{name}/hits"] == 2


def test_what_cannot_be_watched():
    scheduler = oe.PrefetchScheduler([], "ids")
    with pytest.raises(TypeError, match=r"watch\(table=.*got int, not a Table"):
        scheduler.watch(3)
    with pytest.raises(TypeError, match="being traced; call it outside of jit"):
        jax.jit(scheduler.watch)(make_table())
    table = make_table()
    jax.jit(lambda table: one_step(table, [1]), donate_argnums=0)(table)
    scheduler = oe.PrefetchScheduler([], "ids")
    with pytest.raises(ValueError, match=r"watch\(table=.*donated"):
        scheduler.watch(table)


@pytest.fixture
def cached(tmp_path: Path):
    """Twelve slots over a store in host memory."""
    table = make_cached(tmp_path, 12)
    yield table
    close_cached(table.spec.name)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_cached_table_is_watched_while_it_trains(cached: oe.Table, depth: int):
    table, name = cached, cached.spec.name
    step, traced = make_step()
    batches = [{"ids": oe.pack_ids(np.arange(4) + 4 * (n % 5))} for n in range(20)]
    scheduler = oe.PrefetchScheduler(batches, "ids", depth=depth, check_every=1)
    for batch, next_ids in scheduler:
        table = step(table, batch, next_ids)
        scheduler.watch(table)
    oe.check(table)
    assert len(traced) == 1
    told = scheduler.stats()
    assert told[f"{name}/step"] == 20 - STEPS_IN_FLIGHT
    assert told[f"{name}/cache_misses"] >= 20
    assert 0 <= told[f"{name}/recent_cache_hit_rate"] <= 1
    assert f"{name!r}: cache hit rate" in repr(scheduler)


def test_unstaged_ids_of_a_cached_table_surface(cached: oe.Table):
    scheduler = oe.PrefetchScheduler([], "ids", check_every=1)
    table = one_step(cached, [1, 2])  # not staged
    for _ in range(STEPS_IN_FLIGHT):
        scheduler.watch(table)
    with pytest.raises(oe.TableError, match=r"call oe\.stage"):
        scheduler.watch(table)


def test_a_closed_store_surfaces(cached: oe.Table):
    scheduler = oe.PrefetchScheduler([], "ids", check_every=1)
    close_cached(cached.spec.name)
    for _ in range(STEPS_IN_FLIGHT):
        scheduler.watch(cached)
    with pytest.raises(oe.TableError, match="is closed"):
        scheduler.watch(cached)
