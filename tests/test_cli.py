"""The command line, run as a person runs it."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import oneemb_jax
from oneemb_jax.cli import main
from oneflow_files import live_rows, read_slowly, write_table

# Where the package under test is: a command finds it there, not in the source.
ROOT = Path(oneemb_jax.__file__).parent.parent
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def run(*words, program=("-m", "oneemb_jax")):
    command = [sys.executable, *program, *(str(word) for word in words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=ENVIRONMENT,
    )


def draw_puts():
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63, 60)
    rows = rng.standard_normal((90, 48)).astype(np.float32)
    return [(keys, rows[:60]), (keys[::2], rows[60:])]


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "table", draw_puts(), num_ranks=2)
    return tmp_path / "table"


INDEX = "snapshots/final/index-000000000000"


def test_inspect(table):
    done = run("inspect", table)
    assert (done.returncode, done.stderr) == (0, "")
    stored = sum(p.stat().st_size for p in table.glob("*-2/[kv]*s/*")) / 1024
    assert done.stdout == (
        f"OneFlow table: {table}\n"
        "  ranks     2\n"
        "  keys      int64 or uint64\n"
        "  rows      48 float32, 192 B\n"
        "  blocks    512 B, 2 rows in each\n"
        f"  stored    {stored:.1f} KiB, rows that no snapshot needs included\n"
        "  snapshot  final: 60 rows, 11.2 KiB\n"
    )


def test_inspect_ranks_and_what_cannot_be_read(table):
    (table / "1-2" / INDEX).unlink()
    done = run("inspect", table / "0-2", table / "1-2")
    assert done.returncode == 0
    assert "snapshot  final: unreadable: " in done.stdout
    assert INDEX in done.stdout


def test_verify_says_that_all_is_well(table):
    done = run("verify", table)
    assert (done.returncode, done.stdout) == (0, "final: nothing found\n")
    assert "final: 100%, 60 of 60 rows\n" in done.stderr
    done = run("verify", table, "--quiet", "--snapshot", "final")
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_finds_damage(table):
    path = table / "1-2" / INDEX
    path.write_bytes(path.read_bytes()[:-3])
    done = run("verify", table, "--quiet")
    assert done.returncode == 1
    assert done.stdout.startswith("final: ")
    assert f"{INDEX}: " in done.stdout
    assert done.stdout.count("\n") == 1
    assert "nothing found" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["explode"],
        ["inspect"],
        ["inspect", "{tmp}/nowhere"],
        ["inspect", "{tmp}"],
        ["verify", "{tmp}/file"],
        ["verify", "{table}/0-2"],
        ["verify", "{table}", "--snapshot", "end"],
        ["convert", "{table}", "--to", "npz"],
        ["convert", "{table}", "--to", "csv", "--output", "{tmp}/x"],
        ["convert", "{table}", "--to", "npz", "--output", "{tmp}/file"],
        ["convert", "{table}", "--to", "npz", "--output", "{tmp}/no/x.npz"],
        ["convert", "{table}", "--to", "npz", "--output", "{tmp}/x", "--ranks", "2"],
        ["convert", "{table}", "--to", "oneflow", "--output", "{table}"],
        ["convert", "{table}", "--to", "oneflow", "--output", "{tmp}/x", "--ranks=0"],
        ["convert", "{table}", "--to=npz", "--output={tmp}/x", "--key-type=int32"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_done(table, tmp_path, words, capsys):
    (tmp_path / "file").write_text("no table")
    before = sorted(tmp_path.rglob("*"))
    filled = [word.format(tmp=tmp_path, table=table) for word in words]
    # Here, not in a process of its own: to start one takes longer than it does.
    try:
        status = main(filled)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    out, err = capsys.readouterr()
    assert (out, err[:1]) in [("", "o"), ("", "u")]
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_to_npz(table, tmp_path):
    done = run("convert", table, "--to", "npz", "--output", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.npz'}: 60 rows, 11.2 KiB\n"
    with np.load(tmp_path / "out.npz") as arrays:
        keys, values = arrays["keys"], arrays["values"]
    assert keys.dtype == np.int64
    assert (values.dtype, values.shape) == (np.float32, (60, 48))
    assert live_rows([(keys, values)]) == live_rows(draw_puts())
    unsigned = ("--key-type", "uint64", "--quiet")
    run("convert", table, "--to", "npz", "--output", tmp_path / "u.npz", *unsigned)
    with np.load(tmp_path / "u.npz") as arrays:
        np.testing.assert_array_equal(arrays["keys"], keys.view(np.uint64))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npz", "table", "u.npz"]


def test_convert_an_empty_snapshot(tmp_path):
    rows = np.empty((0, 4), np.float32)
    write_table(tmp_path / "table", [(np.empty(0, np.int32), rows)])
    out = tmp_path / "out.npz"
    done = run("convert", tmp_path / "table", "--to", "npz", "--output", out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert (arrays["keys"].dtype, arrays["keys"].shape) == (np.int32, (0,))
        assert arrays["values"].shape == (0, 4)


def test_convert_to_another_number_of_ranks(table, tmp_path):
    out = tmp_path / "out"
    options = ("--ranks", 5, "--block-size", 4096)
    done = run("convert", table, "--to", "oneflow", "--output", out, *options)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == [f"{i}-5" for i in range(5)]
    assert (out / "0-5" / "PHYSICAL_BLOCK_SIZE").read_text() == "4096\n"
    assert sorted(read_slowly(out)) == sorted(read_slowly(table))


def test_damage_is_not_converted(table, tmp_path):
    path = table / "1-2" / "values" / "value-000000000000"
    path.write_bytes(path.read_bytes()[:-512])
    for to in ("npz", "oneflow"):
        done = run("convert", table, "--to", to, "--output", tmp_path / "out")
        assert done.returncode == 2
        assert "the file is truncated" in done.stderr
    assert list(tmp_path.iterdir()) == [table]


def test_several_snapshots(table, tmp_path):
    write_table(tmp_path / "other", draw_puts()[:1], num_ranks=2, name="first")
    for rank in ("0-2", "1-2"):
        folder = tmp_path / "other" / rank / "snapshots" / "first"
        folder.rename(table / rank / "snapshots" / "first")
    done = run("verify", table, "--quiet")
    assert done.returncode == 0
    assert done.stdout == "final: nothing found\nfirst: nothing found\n"
    command = ("convert", table, "--to", "npz", "--output", tmp_path / "out.npz")
    done = run(*command)
    assert done.returncode == 2
    assert "has 2 snapshots (final, first); choose one" in done.stderr
    assert run(*command, "--snapshot", "first").returncode == 0


def on_a_terminal(*words, program=("-m", "oneemb_jax")):
    """What a program writes to a terminal on standard error."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    command = [sys.executable, *program, *(str(word) for word in words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, cwd=ROOT, env=ENVIRONMENT
    ) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not data:
                break
            seen += data
        os.close(master)
        assert process.wait() == 0
    return seen.decode()


WITHOUT_TQDM = (
    "-c",
    "import sys; sys.modules['tqdm'] = None\n"
    "from oneemb_jax.cli import main; sys.exit(main())",
)


def test_a_bar_on_a_terminal(table):
    assert "| 60.0/60.0 [" in on_a_terminal("verify", table)
    assert "final: 100%, 60 of 60" in on_a_terminal(
        "verify", table, program=WITHOUT_TQDM
    )
    assert on_a_terminal("verify", table, "--quiet") == ""


def test_help_and_version():
    done = run("--help")
    assert done.returncode == 0
    assert "exit status: 0 if all is well" in done.stdout
    assert run("--version").stdout == f"{oneemb_jax.__version__}\n"
