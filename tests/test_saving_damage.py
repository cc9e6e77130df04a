"""Folders of save that are overwritten, killed, damaged or made to deceive."""

import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax import saved_files, saving
from oneemb_jax.store import StoreError
from snapshots import assert_same, embedding, train
from test_snapshot_damage import child


@pytest.fixture
def saved(tmp_path):
    with embedding(None) as emb:
        table = train(emb.init(), 0, 2)
        tree = {"w": np.arange(6.0), "x": [1, 2.5, "three"]}
        oe.save(tmp_path / "a", table=table, tree=tree)
        yield tmp_path / "a", table


def test_overwrite(saved):
    path, _ = saved
    before = sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        oe.save(path, x=1)
    oe.save(path, overwrite=True, x=2)
    assert oe.restore(path) == {"x": 2}
    assert sorted(p.name for p in path.iterdir()) == ["arrays.npz", "tree.json"]
    oe.save(path, overwrite=True, x=3)
    assert oe.restore(path) == {"x": 3}
    assert sorted(p.name for p in path.parent.iterdir()) == before


def test_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("all of it")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(ValueError, match="not a folder that save wrote"):
            oe.save(tmp_path / name, overwrite=True, x=1)
    assert (tmp_path / "mine" / "thesis").read_text() == "all of it"


def test_a_file_system_that_cannot_exchange(saved, monkeypatch):
    path, _ = saved

    def refuses(a, b):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(saved_files, "native", type("n", (), {"exchange": refuses}))
    with pytest.raises(OSError, match="save under another name"):
        oe.save(path, overwrite=True, x=1)
    assert sorted(oe.restore(path)) == ["table", "tree"]
    assert [p.name for p in path.parent.iterdir()] == ["a"]


KILLED = """
import os, signal, sys
import numpy as np
import oneemb_jax as oe
from oneemb_jax import saved_files, saving, snapshot
path, where, overwrite = sys.argv[1:]
module, name = {
    "table": (saving, "_write_tables"),
    "arrays": (saving, "write_arrays"),
    "tree": (saving, "write_file"),
    "exchange": (saved_files, "_exchange"),
    "after": (saved_files.shutil, "rmtree"),
}[where]
whole = getattr(module, name)

def dies(*words, **options):
    if where != "after":
        whole(*words, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, dies)
oe.save(path, overwrite=overwrite == "True", x=np.arange(1000.0))
print("saved")
"""


@pytest.mark.parametrize("where", ["table", "arrays", "tree", "exchange", "after"])
def test_a_killed_save_leaves_the_old_one_whole(saved, where):
    path, table = saved
    done = child(KILLED, path, where, True)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    state = oe.restore(path)
    if where in ("exchange", "after"):
        assert state["x"].tolist() == [*range(1000)]
    else:
        assert_same(state["table"], table)
    # What was left behind goes with the next save to the same place.
    assert len([*path.parent.iterdir()]) == 2
    oe.save(path, overwrite=True, x=1)
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_a_killed_first_save_leaves_nothing_by_its_name(tmp_path):
    done = child(KILLED, tmp_path / "a", "tree", False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):
        oe.restore(tmp_path / "a")
    oe.save(tmp_path / "a", x=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_save_that_goes_on_is_not_taken_for_abandoned(tmp_path):
    part = tmp_path / ".a.partial-01234567"
    part.mkdir()
    held = os.open(part, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    oe.save(tmp_path / "a", x=1)
    assert part.exists()
    os.close(held)
    oe.save(tmp_path / "a", overwrite=True, x=1)
    assert not part.exists()


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def fails(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_file", fails)
    with pytest.raises(OSError, match="No space"):
        oe.save(tmp_path / "a", x=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tree.json", "arrays.npz"])
def test_a_flipped_bit_is_found_or_harmless(saved, name):
    path, _ = saved
    whole = (path / name).read_bytes()
    wanted = repr(oe.restore(path, "tree"))
    found = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (path / name).write_bytes(damaged)
        try:
            assert repr(oe.restore(path, "tree")) == wanted
        except (StoreError, ValueError):
            found += 1
    assert found > len(whole) // 2


@pytest.mark.parametrize("name", ["tree.json", "arrays.npz", "table-0/MANIFEST"])
def test_a_file_cut_off_or_gone(saved, name):
    path, _ = saved
    whole = (path / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (path / name).write_bytes(whole[:length])
        with pytest.raises(StoreError, match=name.split("/")[-1]):
            oe.restore(path)
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.split("/")[-1]):
        oe.restore(path)


def test_files_of_two_saves_do_not_mix(saved):
    path, table = saved
    oe.save(path.parent / "b", table=train(table, 2, 3), tree={"w": np.arange(6.0) + 1})
    for name in ("arrays.npz", "table-0"):
        mixed = shutil.copytree(path, path.parent / f"mixed-{name}")
        if name == "table-0":
            shutil.rmtree(mixed / name)
            shutil.copytree(path.parent / "b" / name, mixed / name)
        else:
            shutil.copy(path.parent / "b" / name, mixed / name)
        with pytest.raises(StoreError, match=name):
            oe.restore(mixed)


def rewrite(path: Path, **changes: object) -> None:
    """tree.json with other leaves and a checksum that is right again."""
    data = json.loads((path / "tree.json").read_text())
    data["items"]["tree"]["dict"][0][1].update(changes)
    found = {"items": data["items"], "tables": data["tables"]}
    data["crc32"] = saving.checksum(found)
    (path / "tree.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "O"},
        {"dtype": "object"},
        {"dtype": "float32"},
        {"dtype": "f8, f8"},
        {"dtype": 7},
        {"dtype": "U0"},
        {"shape": [7]},
        {"shape": [10**12]},
        {"shape": [-6]},
        {"shape": [2.5]},
        {"shape": None},
        {"array": 9},
        {"array": "x"},
        {"crc32": 0},
    ],
    ids=str,
)
def test_leaves_made_to_deceive(saved, changes):
    path, _ = saved
    rewrite(path, **changes)
    with pytest.raises(StoreError, match=r"arrays\.npz"):
        oe.restore(path, "tree")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_nothing_in_a_file_is_run(saved, monkeypatch):
    path, _ = saved
    monkeypatch.chdir(path.parent)
    array = np.empty(6, object)
    array[:] = Bomb()
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    for data in (file.getvalue(), pickle.dumps(Bomb()), b"\x93NUMPY\x01\x00\xff\xff"):
        with zipfile.ZipFile(path / "arrays.npz", "w") as archive:
            archive.writestr("arr_0.npy", data)
        with pytest.raises(StoreError, match=r"arrays\.npz"):
            oe.restore(path, "tree")
    assert not Path("exploded").exists()


def test_what_is_packed_is_not_unpacked(saved):
    path, _ = saved
    with zipfile.ZipFile(path / "arrays.npz") as archive:
        data = archive.read("arr_0.npy")
    with zipfile.ZipFile(path / "arrays.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", data)
    with pytest.raises(StoreError, match=r"arrays\.npz"):
        oe.restore(path, "tree")


def test_a_later_version_says_who_wrote_it(saved):
    path, _ = saved
    data = json.loads((path / "tree.json").read_text())
    for version, error in [(2, ValueError), (None, ValueError)]:
        changed = {**data, "version": version, "writer": "9.9"}
        (path / "tree.json").write_text(json.dumps(changed))
        with pytest.raises(error, match=rf"version {version}, written by .* 9\.9"):
            oe.restore(path)
    for text in ("[" * 10**5, "[]", "{}", '{"format": "mine"}'):
        (path / "tree.json").write_text(text)
        with pytest.raises(StoreError, match=r"tree\.json: damaged"):
            oe.restore(path)


def test_paths_of_all_kinds(tmp_path):
    for path in (
        str(tmp_path / "ein Örtchen 🙂"),
        tmp_path / "b",
        os.fsencode(tmp_path) + b"/\xff\xfe",
    ):
        oe.save(path, x=1)
        assert oe.restore(path) == {"x": 1}
