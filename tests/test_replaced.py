"""Saves and snapshots that others replace, or write beside, at the same time."""

import fcntl
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax import restoring, saved_files, snapshot
from oneemb_jax.store import StoreError
from snapshots import embedding


def ssd(folder: Path) -> dict[str, Any]:
    options = oe.make_cached_ssd_store_options(0.1, folder)
    return {"store_options": options}


def filled(emb: Any, n: int) -> oe.Table:
    """A table with rows 0 to n, each of which says n."""
    return oe.set_rows(emb.init(), np.arange(n), np.full((n, 4), n, np.float32))


def holds(table: oe.Table, n: int) -> bool:
    """Whether it is that of ``filled``."""
    rows = {
        int(i): row.tolist()
        for ids, _, many in oe.items(table)
        for i, row in zip(ids, many, strict=True)
    }
    return rows == {i: [n] * 4 for i in range(n)} and oe.size(table) == n


def after(monkeypatch: Any, owner: Any, name: str, act: Any, times: int = 1) -> None:
    """Acts right before the first calls of a function."""
    function, left = getattr(owner, name), [times]

    def acting(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act()
        return function(*args, **options)

    monkeypatch.setattr(owner, name, acting)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (restoring, "table_folder"),  # whose error is that of a mixture
        (restoring, "open_part"),
        (restoring, "read_array"),
        (snapshot, "load_cached"),
    ],
)
def test_restore_of_what_is_replaced_meanwhile(
    tmp_path, monkeypatch, cached, owner, name
):
    changes = ssd(tmp_path / "c") if cached else {}
    with (
        embedding(tmp_path / "a", name="writer") as writer,
        embedding(tmp_path / "b", **changes) as emb,
    ):

        def save(n: int) -> None:
            numbers = np.full(3, n)
            oe.save(tmp_path / "x", overwrite=True, t=filled(writer, n), n=n, a=numbers)

        save(1)
        after(monkeypatch, owner, name, lambda: save(3))
        state = oe.restore(tmp_path / "x", like={"t": emb})
        n = 1 if name == "load_cached" and not cached else 3
        assert (state["n"], state["a"].tolist()) == (n, [n] * 3)
        assert holds(state["t"], n)
        oe.check(state["t"])


@pytest.mark.parametrize("cached", [False, True])
def test_load_of_a_snapshot_that_is_replaced_meanwhile(tmp_path, monkeypatch, cached):
    changes = ssd(tmp_path / "c") if cached else {}
    with (
        embedding(tmp_path / "a", name="writer") as writer,
        embedding(tmp_path / "b", **changes) as emb,
    ):

        def save(n: int) -> None:
            if "latest" in writer.list_snapshots():
                writer.delete_snapshot("latest")
            writer.save_snapshot(filled(writer, n), "latest")

        save(1)
        owner, name = (snapshot, "load_cached") if cached else (snapshot, "_add_rows")
        after(monkeypatch, owner, name, lambda: save(3))
        assert holds(emb.load_snapshot(tmp_path / "a/0-1/snap/latest"), 3)


def test_a_save_that_is_replaced_each_time(tmp_path, monkeypatch):
    def save() -> None:
        oe.save(tmp_path / "x", overwrite=True, a=np.arange(3))

    save()
    after(monkeypatch, restoring, "read_tree", save, 1000)
    with pytest.raises(BlockingIOError, match="replaced by somebody"):
        oe.restore(tmp_path / "x")


def test_a_save_that_goes_meanwhile(tmp_path, monkeypatch):
    oe.save(tmp_path / "x", a=np.arange(3))
    move = lambda: (tmp_path / "x").rename(tmp_path / "y")  # noqa: E731
    after(monkeypatch, restoring, "read_array", move)
    with pytest.raises(FileNotFoundError, match="no folder of save's"):
        oe.restore(tmp_path / "x")


def test_restore_into_an_embedding_that_is_closed(tmp_path):
    with embedding(tmp_path / "a", **ssd(tmp_path / "a")) as old:
        oe.save(tmp_path / "x", t=filled(old, 5))
    with embedding(tmp_path / "b", **ssd(tmp_path / "b")) as new:
        table = filled(new, 7)
        with pytest.raises(ValueError, match="'saved' is closed; make it anew"):
            oe.restore(tmp_path / "x", like={"t": old})
        assert holds(table, 7)
    three: Any = 3
    with pytest.raises(TypeError, match=r"restore\(like=3\): pass a dict"):
        oe.restore(tmp_path / "x", like=three)


def test_init_that_was_compiled_before_close(tmp_path):
    with embedding(tmp_path / "a", **ssd(tmp_path / "a")) as emb:
        init = jax.jit(emb.init)
        assert oe.size(init()) == 0
    with pytest.raises(Exception, match="'saved' is closed; make the embedding anew"):
        jax.block_until_ready(init())
    with embedding(tmp_path / "a", **ssd(tmp_path / "a")) as emb:
        assert oe.size(emb.init()) == 0  # nobody has the folder


def test_an_iteration_under_way_keeps_nothing(tmp_path):
    options = oe.make_cached_ssd_store_options(0.05, tmp_path)
    with embedding(tmp_path, store_options=options) as emb:
        table, n = emb.init(), 500
        for start in range(0, 3 * n, n):
            ids = np.arange(start, start + n)
            table = oe.stage(table, oe.pack_ids(ids))
            table = oe.set_rows(table, ids, np.ones((n, 4), np.float32))
        batches = oe.items(table, 100)
        seen = [len(next(batches)[0]) for _ in range(12)]
        assert sum(seen) > table.capacity  # it reads the Store by now
        again = emb.init()
        assert oe.size(again) == 0
        with pytest.raises(StoreError, match="has been closed"):
            list(batches)


def test_counts_of_a_store_that_is_closed_meanwhile(tmp_path, monkeypatch):
    with embedding(tmp_path, **ssd(tmp_path)) as emb:
        table = emb.init()
        counters = "oneemb_jax.counters.check_current"
        monkeypatch.setattr(counters, lambda *_, **__: emb.close())
        with pytest.raises(oe.TableError, match="is closed"):
            oe.size(table)


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".partial-" in path.name]


def test_what_killed_saves_left_goes_with_the_next(tmp_path):
    left = [tmp_path / f".step_{i}.partial-0123abc{i}" for i in range(3)]
    for path in left:
        (path / "table-0").mkdir(parents=True)
    others = [tmp_path / ".step_1.partial", tmp_path / "step_1.partial-0123abcd"]
    for path in others:
        path.mkdir()
    held = os.open(left[2], os.O_RDONLY)  # by a process that lives
    fcntl.flock(held, fcntl.LOCK_EX)
    oe.save(tmp_path / "step_9", a=np.arange(3))
    os.close(held)
    assert [path.exists() for path in left] == [False, False, True]
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(("owner", "name"), [(os, "open"), (fcntl, "flock")])
def test_a_folder_that_was_taken_for_an_abandoned_one(
    tmp_path, monkeypatch, owner, name
):
    clean = lambda: saved_files._remove_abandoned(tmp_path)  # noqa: E731
    after(monkeypatch, owner, name, clean)
    oe.save(tmp_path / "x", a=np.arange(3))
    assert oe.restore(tmp_path / "x")["a"].tolist() == [0, 1, 2]
    assert partials(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_that_make_one_folder(tmp_path, monkeypatch, overwrite):
    def other() -> None:
        oe.save(tmp_path / "x", a=1)

    after(monkeypatch, saved_files, "_place", other)
    if overwrite:
        oe.save(tmp_path / "x", overwrite=True, a=2)
    else:
        with pytest.raises(FileExistsError, match="made by somebody meanwhile"):
            oe.save(tmp_path / "x", a=2)
    assert oe.restore(tmp_path / "x") == {"a": 2 if overwrite else 1}
    assert partials(tmp_path) == []


def test_one_that_overwrites_what_another_removes(tmp_path, monkeypatch):
    oe.save(tmp_path / "x", a=1)
    move = lambda: (tmp_path / "x").rename(tmp_path / "y")  # noqa: E731
    after(monkeypatch, saved_files, "_exchange", move)
    oe.save(tmp_path / "x", overwrite=True, a=2)
    assert oe.restore(tmp_path / "x") == {"a": 2}
    assert partials(tmp_path) == []


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    oe.save(tmp_path / "step_1", a=1)
    (tmp_path / "latest").symlink_to("step_1")
    oe.save(tmp_path / "latest", overwrite=True, a=2)
    assert (tmp_path / "latest").is_symlink()
    assert oe.restore(tmp_path / "step_1") == {"a": 2}


def test_masked_arrays_are_refused(tmp_path):
    with pytest.raises(TypeError, match="x: a masked array"):
        oe.save(tmp_path / "x", x=np.ma.masked_array([1, 2], [True, False]))
