"""Embeddings with a cached table: their options, their init, and their end."""

import jax
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import all_rows, train

IDS = np.array([1, 2, 2, 3])
PACKED = oe.pack_ids(IDS)
GRADS = np.ones((4, 4), np.float32)


def test_embedding(tmp_path):
    options = oe.make_cached_ssd_store_options(0.25, tmp_path, host_cache_budget_mb=1)
    with oe.MultiTableEmbedding(
        "cached", 4, "float32", "int64", optimizer=oe.sgd(0.1), store_options=options
    ) as emb:
        assert "SSD" in repr(emb)
        table = oe.stage(emb.init(), IDS)
        acts, _ = emb(table, IDS)
        assert np.isfinite(acts).all()
        assert "slots" in repr(table)
        assert oe.stats(table)["bytes"] <= 0.25 * 2**20 + 200
    with pytest.raises(oe.TableError, match="is closed"):
        oe.check(table)


def test_who_asks_for_shapes_empties_nothing(tmp_path):
    options = oe.make_cached_ssd_store_options(0.25, tmp_path / "store")
    with oe.MultiTableEmbedding(
        "shapes", 4, "float32", "int64", optimizer=oe.sgd(0.1), store_options=options
    ) as emb:
        table = train(emb.init(), IDS, GRADS)
        rows = all_rows(table)
        oe.save(tmp_path / "snapshot", table=table)
        shapes = jax.eval_shape(emb.init)
        assert [x.shape for x in jax.tree.leaves(shapes)] == [
            x.shape for x in jax.tree.leaves(table)
        ]
        load = emb.load_snapshot
        with pytest.raises(ValueError, match=r"outside of jax\.jit"):
            jax.eval_shape(lambda: load(tmp_path / "snapshot" / "table-0"))
        table = train(table, IDS, 0 * GRADS)
        oe.check(table)
        assert all_rows(table) == rows
        restored = oe.restore(tmp_path / "snapshot", like={"table": shapes})["table"]
        assert all_rows(restored) == rows


def test_init_as_part_of_a_program(tmp_path):
    options = oe.make_cached_ssd_store_options(0.25, tmp_path)
    with oe.MultiTableEmbedding(
        "jitted", 4, "float32", "int64", optimizer=oe.sgd(0.1), store_options=options
    ) as emb:

        @jax.jit
        def first_step():
            return oe.stage(emb.init(), PACKED)

        train(first_step(), IDS + 10, GRADS)
        table = train(first_step(), IDS, GRADS)  # begins anew
        assert oe.stats(table)["inserts"] == oe.size(table) == 3
        rows = all_rows(table)
        assert all_rows(train(emb.init(), IDS, GRADS)) == rows
        with pytest.raises(oe.TableError, match="a Store that is gone"):
            oe.check(table)


def test_options():
    make_ssd = oe.make_cached_ssd_store_options
    assert make_ssd(1, "x", host_cache_budget_mb=8).store_kind == "cached_ssd"
    assert oe.make_cached_host_mem_store_options(1, ["x"], 5).store_kind == "host"
    for bad, message in {
        ("a", "x"): r"cache_budget_mb='a'\): pass a number",
        (-1, "x"): r"cache_budget_mb=-1\): pass a number of MiB, above 0",
        (1, "x", 5, 1, -1, 4096, -1): r"host_cache_budget_mb=-1\).*, 0 or more",
        (0, "x"): r"cache_budget_mb=0\): a step reads",
        (1, None): r"persistent_path=None\): pass a folder",
        (1, ("x", "y")): r"2 folders",
        (1, "x", 0): r"capacity=0\)",
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            make_ssd(*bad)
    with pytest.raises(ValueError, match="no room for one row"):
        oe.MultiTableEmbedding(
            "small",
            4,
            "float32",
            "int64",
            optimizer=oe.sgd(0.1),
            store_options=make_ssd(0.00001, "x"),
        )
