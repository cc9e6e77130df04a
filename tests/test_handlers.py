"""Handlers refuse every buffer that is not of the dtype they were written for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_cached, make_table
from oneemb_jax import _ffi, tiers

IDS = np.array([3, 4, 3])
ROWS = ([5], [[1.0, 2.0]], {"sum": [[0.0, 0.0]]})
CALLS = {
    "create": lambda table: make_table(2, capacity=table.capacity),
    "grow": lambda table: oe.grow(table, 2 * table.capacity),
    "lookup": lambda table: oe.lookup(table, IDS),
    "read_rows": lambda table: oe.get_rows(table, IDS),
    "write_rows": lambda table: oe.set_rows(table, *ROWS),
    "stage": lambda table: oe.stage(table, IDS),
    "prefetch": lambda table: oe.prefetch(table, IDS),
    "write_down": lambda table: tiers.write_down(table, "write_down"),
    "flush": oe.flush,
}
TABLE = "index rows clock counters layout_version"
CACHED = f"{TABLE} generation residency store_nonce"
BATCH = "ids table_ids"
LOOKUP = f"{BATCH} slots layout_version counts gradients"
SCALARS = "learning_rate grad_scale apply"
ACTS = "acts slots layout_version counts"
# Of a custom call: its operands and those of its results that are not operands,
# as messages name them.
PLAIN = {
    "create": ("", "index rows clock"),
    "grow": (TABLE, "index rows clock"),
    "lookup": (f"index rows layout_version {BATCH}", ACTS),
    "read_rows": (f"index rows {BATCH}", "out slots"),
    "write_rows": (f"{TABLE} step {BATCH} values", ""),
    "update": (
        f"index rows clock counters step layout_version generation {SCALARS} {LOOKUP}",
        "",
    ),
    "global_norm": (LOOKUP, ""),
}
OF_CACHED = {
    "stage": (f"{CACHED} {BATCH}", ""),
    "prefetch": (f"{CACHED} {BATCH}", ""),
    "lookup": (f"{CACHED} {BATCH}", ACTS),
    "read_rows": (f"{CACHED} {BATCH}", "out slots"),
    "write_rows": (f"{CACHED} {BATCH} values", ""),
    "update": (f"{CACHED} step {SCALARS} {LOOKUP}", ""),
    "write_down": (CACHED, "written"),
    "flush": (CACHED, "residency generation"),
}


def cases(calls):
    """Every buffer of every call: its place, and what messages call it."""
    return [
        (call, kind, i, name)
        for call, (operands, results) in calls.items()
        for kind, names in (("operand", operands), ("result", results))
        for i, name in enumerate(names.split())
    ]


def other(dtype):
    """A dtype that no handler takes in the place of this one."""
    return np.dtype(np.int32 if dtype == np.uint32 else np.uint32)


def run(call, table, monkeypatch, change):
    """Calls it on the table; ``change`` has the last word on the custom call."""
    ctx = oe.lookup(table, IDS)[1]
    grads = jnp.ones((3, 2))
    last = {
        "update": lambda table: oe.update(table, ctx, grads),
        "global_norm": lambda _: oe.global_norm(ctx, grads),
    }
    real = _ffi.call

    def changed(target, results, *operands, aliases=None, **attributes):
        wanted = target.removeprefix("oneemb_").replace("cached_", "")
        if wanted.removesuffix("_cached") == call:
            results, operands, aliases = list(results), list(operands), aliases or {}
            change(results, operands, aliases)
        return real(target, results, *operands, aliases=aliases, **attributes)

    monkeypatch.setattr(_ffi, "call", changed)
    with jax.disable_jit():
        jax.block_until_ready((CALLS | last)[call](table))


def refuse(call, table, monkeypatch, kind, place, name):
    def change(results, operands, aliases):
        at = aliases.get(place) if kind == "operand" else place
        if at is not None:
            dtype = other(results[at].dtype)
            results[at] = jax.ShapeDtypeStruct(results[at].shape, dtype)
        if kind == "operand":
            array = operands[place]
            operands[place] = jnp.zeros(array.shape, other(array.dtype))

    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"{name}: (shape|neither)"):
        run(call, table, monkeypatch, change)


@pytest.mark.parametrize(("call", "kind", "place", "name"), cases(PLAIN))
def test_a_buffer_of_another_dtype(monkeypatch, call, kind, place, name):
    table = make_table(2, optimizer=oe.adagrad(0.1))
    refuse(call, table, monkeypatch, kind, place, name)


@pytest.mark.parametrize(("call", "kind", "place", "name"), cases(OF_CACHED))
def test_a_buffer_of_a_cached_table(tmp_path, monkeypatch, call, kind, place, name):
    table = make_cached(tmp_path, 8, 2, optimizer=oe.adagrad(0.1))
    refuse(call, table, monkeypatch, kind, place, name)


def not_in_place(call, table, monkeypatch):
    def change(results, operands, aliases):
        del aliases[max(aliases)]

    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{call}: .*not .* in place"):
        run(call, table, monkeypatch, change)


@pytest.mark.parametrize("call", ["write_rows", "update"])
def test_a_write_to_a_copy_would_be_lost(monkeypatch, call):
    not_in_place(call, make_table(2, optimizer=oe.adagrad(0.1)), monkeypatch)


@pytest.mark.parametrize("call", ["stage", "prefetch", "write_rows", "update"])
def test_so_would_one_of_a_cached_table(tmp_path, monkeypatch, call):
    table = make_cached(tmp_path, 8, 2, optimizer=oe.adagrad(0.1))
    not_in_place(call, table, monkeypatch)


def test_a_smaller_table_to_grow_into(monkeypatch):
    def change(results, operands, aliases):
        for i, result in enumerate(results[1:], 1):
            shape = (1, *result.shape[1:])
            results[i] = jax.ShapeDtypeStruct(shape, result.dtype)

    with pytest.raises(jax.errors.JaxRuntimeError, match="the new table is smaller"):
        run("grow", make_table(2), monkeypatch, change)
