"""The command line over snapshots of our own and folders of save."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax import oneflow
from oneemb_jax.cli import main
from oneemb_jax.memory import human_bytes
from oneemb_jax.store import Store
from snapshots import OPTIMIZERS, UNIFORM, contents, embedding, train

F32 = np.float32


@pytest.fixture
def run(capsys: Any) -> Any:
    def call(*words: Any) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def folder(tmp_path):
    with embedding(tmp_path / "t") as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "three")
        yield tmp_path / "t", table


def segment_of(snapshot: Path) -> Path:
    (segment,) = snapshot.glob("*.seg")
    segment.chmod(0o644)
    return segment


def test_inspect_finds_snapshots_from_any_of_their_folders(folder, run):
    path, table = folder
    rows = oe.size(table)
    size = human_bytes(48 * rows)
    for place in (path, path / "0-1", path / "0-1" / "snap" / "three"):
        status, out, err = run("inspect", place)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"oneemb_jax snapshots: {place}"
        assert re.fullmatch(r"  stored    \S+ KiB, files that .* once", lines[1])
        assert lines[2:] == [
            f"  snapshot  three: {rows} rows, {size}, step 3",
            "  table     'saved', 1 table(s), dim 4, keys int64",
            f"  optimizer {oe.adam(0.1)}",
            "  row       embedding 4, m 4, v 4: 48 B",
        ]


def test_inspect_what_is_no_table_or_damaged(folder, run):
    path, _ = folder
    with oe.make_persistent_table_writer(path, "rows", "int64", F32, 3) as writer:
        writer.write(np.array([1]), np.ones((1, 3), F32))
    shutil.copytree(path / "0-1/snap/three", path / "0-1/snap/bad")
    (path / "0-1/snap/bad/MANIFEST").unlink()
    with Store(path / "0-1", 8) as store:
        store.save_snapshot("mine", b"words")
    status, out, _ = run("inspect", path)
    assert status == 0
    assert "snapshot  rows: 1 rows, 12 B\n  written   rows of 3 float32, int64 k" in out
    assert "snapshot  bad: unreadable: " in out
    assert "snapshot  mine: 0 rows, 0 B; " in out
    assert "of no table" in out


def test_inspect_counts_shared_files_once(tmp_path, run):
    with Store(tmp_path / "0-1", 64) as store:
        store.put(np.arange(10000), np.zeros((10000, 16), np.uint32))
        store.save_snapshot("a")
        _, once, _ = run("inspect", tmp_path)
        store.save_snapshot("b")
        _, twice, _ = run("inspect", tmp_path)
    sizes = [float(re.findall(r"stored +([0-9.]+)", x)[0]) for x in (once, twice)]
    assert sizes[0] <= sizes[1] < 1.1 * sizes[0]


def test_several_ranks(tmp_path, run):
    paths = [tmp_path / f"{i}-2" for i in range(2)]
    with oe.make_persistent_table_writer(paths, "a", "uint32", F32, 2) as writer:
        writer.write(np.arange(50, dtype=np.uint32), np.ones((50, 2), F32))
    for place in ([tmp_path], paths, [path / "snap" / "a" for path in paths]):
        assert "a: 50 rows, 400 B, 2 ranks" in run("inspect", *place)[1]
        assert run("verify", *place, "--quiet") == (0, "a: nothing found\n", "")
    segment = segment_of(paths[1] / "snap" / "a")
    data = bytearray(segment.read_bytes())
    data[4096 + 30] ^= 1
    segment.write_bytes(data)
    status, out, _ = run("verify", tmp_path)
    assert (status, out.count("\n")) == (1, 1)
    assert f"a: {segment}" in out


def test_verify(folder, run):
    path, table = folder
    status, out, err = run("verify", path)
    assert (status, out) == (0, "three: nothing found\n")
    rows = oe.size(table)
    assert err == f"three: 100%, {rows} of {rows} rows\n"
    segment = segment_of(path / "0-1/snap/three")
    whole = segment.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + b"\1" + whole[5001:], b""):
        segment.write_bytes(damaged)
        status, out, _ = run("verify", path, "--quiet")
        assert (status, out.count("\n")) == (1, 1)
        assert segment.name in out
    assert run("verify", path, "--snapshot", "nine")[0] == 2
    empty = path.parent / "empty"
    Store(empty / "0-1", 8).close()
    assert run("verify", empty)[0] == 2
    assert run("inspect", empty)[0] == 0


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad", "smart_decay_adam"])
def test_convert_to_npz(tmp_path, run, optimizer):
    tables = [oe.make_table_options(UNIFORM)] * 2
    chosen = OPTIMIZERS[optimizer]
    with embedding(tmp_path / "t", optimizer=chosen, tables=tables) as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "three")
    out = tmp_path / "out.npz"
    status, text, err = run("convert", tmp_path / "t", "--to", "npz", "--output", out)
    assert status == 0, err
    assert text.startswith(f"{out}: {oe.size(table)} rows, ")
    with np.load(out) as arrays:
        keys, of, values = (arrays[name] for name in ("keys", "tables", "values"))
    assert (keys.dtype, of.dtype, values.dtype) == (np.int64, np.uint16, F32)
    rows = oe.get_rows(table, keys, of.astype(np.int32))
    assert rows.found.all()
    fields = [x.reshape(len(keys), -1) for x in rows.state.values()]
    wanted = np.concatenate([rows.embedding, *(x.view(F32) for x in fields)], axis=1)
    assert values.tobytes() == wanted.tobytes()
    more = ("--embedding-only", "--key-type", "uint64", "--quiet")
    small = tmp_path / "small.npz"
    run("convert", tmp_path / "t", "--to", "npz", "--output", small, *more)
    with np.load(small) as arrays:
        assert arrays["keys"].dtype == np.uint64
        assert arrays["values"].tobytes() == rows.embedding.tobytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "ftrl", "smart_decay_adam"])
def test_convert_to_oneflow_and_back(tmp_path, run, optimizer):
    chosen = OPTIMIZERS[optimizer]
    with embedding(tmp_path / "t", optimizer=chosen) as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "three")
        words = ("convert", tmp_path / "t", "--to", "oneflow", "--ranks", 2)
        status, _, err = run(*words, "--output", tmp_path / "of")
        assert status == 0, err
        back = oneflow.import_snapshot(emb, tmp_path / "of", "three", step=3)
        assert contents(back) == contents(table)


def test_what_cannot_be_converted(tmp_path, run):
    tables = [oe.make_table_options(UNIFORM)] * 2
    lamb = {"optimizer": oe.lamb(0.1), "tables": tables}
    with embedding(tmp_path / "t", **lamb) as emb:
        emb.save_snapshot(train(emb.init(), 0, 3), "three")
    with oe.make_persistent_table_writer(tmp_path / "w", "rows", "int64", F32, 3):
        pass
    before = sorted(tmp_path.rglob("*"))
    to_oneflow = ("--to", "oneflow", "--output", tmp_path / "of")
    to_npz = ("--to", "npz", "--output", tmp_path / "x.npz")
    for words, message in [
        ((tmp_path / "t", *to_oneflow), "OneFlow has no lamb"),
        ((tmp_path / "t", *to_oneflow, "--embedding-only"), "written twice"),
        ((tmp_path / "t", *to_npz, "--key-type", "int32"), "the keys are int64"),
        ((tmp_path / "w", *to_npz, "--embedding-only"), "without a table"),
    ]:
        status, out, err = run("convert", *words, "--quiet")
        assert (status, out) == (2, "")
        assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_is_not_converted(folder, run):
    path, _ = folder
    segment = segment_of(path / "0-1/snap/three")
    data = bytearray(segment.read_bytes())
    data[4096 + 30] ^= 1
    segment.write_bytes(data)
    before = sorted(path.parent.rglob("*"))
    for to in ("npz", "oneflow"):
        words = ("--to", to, "--output", path.parent / "out", "--quiet")
        status, _, err = run("convert", path, *words)
        assert status == 2
        assert "is damaged" in err
    assert sorted(path.parent.rglob("*")) == before


def test_folders_of_save(folder, tmp_path, run):
    _, table = folder
    rows = oe.size(table)
    saved = tmp_path / "s"
    oe.save(saved, table=table, params={"w": np.ones(300), "n": 3}, more=[table, None])
    status, out, _ = run("inspect", saved)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"folder of oneemb_jax.save: {saved}"
    assert lines[1] == "  item      params: 1 arrays, 2.3 KiB, 1 values"
    assert [line for line in lines if "snapshot" in line] == [
        f"  snapshot  {name}: {rows} rows, {human_bytes(48 * rows)}, step 3"
        for name in ("table", "more[0]")
    ]
    wanted = ["arrays.npz", "table", "more[0]"]
    status, out, _ = run("verify", saved)
    assert (status, out) == (0, "".join(f"{x}: nothing found\n" for x in wanted))
    words = ("convert", saved, "--to", "npz", "--output", tmp_path / "x.npz")
    assert run(*words)[0] == 2  # which one?
    assert run(*words, "--snapshot", "more[0]")[0] == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert len(arrays["keys"]) == rows
    for name in ("arrays.npz", "table-0/MANIFEST", "table-1/LIVE"):
        whole = (saved / name).read_bytes()
        (saved / name).chmod(0o644)
        (saved / name).write_bytes(whole[:700] + b"\x7f" + whole[701:])
        status, out, _ = run("verify", saved, "--quiet")
        assert status == 1
        assert out.count("nothing found") == 2
        (saved / name).write_bytes(whole)
    (saved / "tree.json").write_text("{}")
    for command in ("inspect", "verify"):
        status, _, err = run(command, saved)
        assert status == 2
        assert "tree.json: damaged" in err


def test_a_save_without_tables_can_be_verified(tmp_path, run):
    oe.save(tmp_path / "s", x=np.ones(3))
    assert run("verify", tmp_path / "s")[:2] == (0, "arrays.npz: nothing found\n")
