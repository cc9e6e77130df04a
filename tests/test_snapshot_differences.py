"""Snapshots of one table in the embedding of another: what may differ."""

import numpy as np
import pytest

import oneemb_jax as oe
from snapshots import OPTIMIZERS, UNIFORM, contents, embedding, train


def test_another_table_is_refused_and_every_difference_named(tmp_path):
    with embedding(tmp_path) as emb:
        emb.save_snapshot(train(emb.init(), 0, 1), "one")
    changes = {"optimizer": oe.adam(0.5, beta1=0.5), "seed": 1, "key_type": "int32"}
    with (
        embedding(tmp_path, dim=[2, 3], name="x", **changes) as emb,
        pytest.raises(ValueError, match="load_snapshot") as caught,
    ):
        emb.load_snapshot("one")
    for field in ("embedding_dim", "key_type", "seed", "optimizer.beta1"):
        assert f"\n  {field}: the snapshot has " in str(caught.value)
    changes.pop("key_type")
    with embedding(tmp_path, name="x", **changes) as emb:
        loaded = emb.load_snapshot("one", ignore=["optimizer", "seed"])
        assert loaded.spec == emb.spec
        assert np.asarray(loaded.learning_rate).view(np.float32)[0] == 0.5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [3, 4])
@pytest.mark.parametrize("tier", ["device", "ssd"])
def test_rows_are_served_without_their_state(tmp_path, optimizer, dim, tier):
    with embedding(tmp_path / "a", dim, optimizer=OPTIMIZERS[optimizer]) as emb:
        table = train(emb.init(), 0, 5)
        path = emb.save_snapshot(table, "one")
        ids = np.concatenate([ids for ids, _, _ in oe.items(table)])
        expected = oe.get_rows(table, ids).embedding
    stores = {
        "device": oe.make_device_mem_store_options(capacity=64),
        "ssd": oe.make_cached_ssd_store_options(0.1, tmp_path / "b"),
    }
    options = {"optimizer": oe.sgd(0.5), "store_options": stores[tier]}
    with embedding(None, dim, name="serving", **options) as emb:
        table = emb.load_snapshot(path, ignore="optimizer")
        assert oe.size(table) == len(ids) > 0
        np.testing.assert_array_equal(oe.get_rows(table, ids).embedding, expected)
        assert not np.asarray(table.rows)[:, dim:].any()


def test_state_is_left_out_on_demand_alone(tmp_path):
    with embedding(tmp_path) as emb:
        path = emb.save_snapshot(train(emb.init(), 0, 1), "adam")
    with (
        embedding(None, name="sgd", optimizer=oe.sgd(0.1)) as emb,
        pytest.raises(
            ValueError, match=r"(?s)\['optimizer'\]\).* adam kept .* left out"
        ),
    ):
        emb.load_snapshot(path)
    other = pytest.raises(ValueError, match="has adam, the embedding adagrad")
    with embedding(None, name="other", optimizer=oe.adagrad(0.1)) as emb, other:
        emb.load_snapshot(path, ignore="optimizer")


def test_more_tables_than_were_saved(tmp_path):
    tables = [oe.make_table_options(UNIFORM)]
    with embedding(tmp_path, tables=tables * 2) as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "two")
    with embedding(tmp_path, tables=tables * 3) as emb:
        loaded = emb.load_snapshot("two", ignore="tables")
        assert contents(loaded) == contents(table)
    fewer = pytest.raises(ValueError, match="tables: the snapshot has 2")
    with embedding(tmp_path, tables=tables) as emb, fewer:
        emb.load_snapshot("two", ignore="tables")
