"""The benchmark runs from end to end, and judges what it measured."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def run(*words):
    command = [sys.executable, str(FOLDER / "cpu.py"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300
    )


def record(peer_ms, optimizer="sgd"):
    """One cell in which ours takes 10 ms, the kernel 8 and the limit 7."""
    roles = {"ours": 10.0, "peer": peer_ms, "native": 8.0, "limit": 7.0}
    phases = ("lookup", "update", "step")
    cell = {"rows": 9, "ids": 8, "dim": 64, "dist": "zipf", "optimizer": optimizer}
    return {
        "cell": cell,
        "unique ids": 4,
        "bytes": dict.fromkeys(phases, 1e6),
        "noise": [0.0, 0.0, 0.0],
        "systems": {
            f"the {role}": {"role": role, "ms": {p: [ms] * 3 for p in phases}}
            for role, ms in roles.items()
        },
    }


def test_a_tiny_cell_is_measured(tmp_path):
    out = tmp_path / "run.json"
    done = run(
        *("--rows", 3000, "--cell", "512,16,zipf,adagrad", "--budget", 0.1),
        *("--systems", "oneemb", "plain", "limit", "--scaling", "no", "--json", out),
    )
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(out.read_text())["cells"]
    ours = measured["systems"]["oneemb_jax"]["ms"]
    assert all(len(ours[phase]) >= 3 for phase in ("lookup", "update", "step"))
    assert all(ms > 0 for times in ours.values() for ms in times)


def test_goals_and_tables(tmp_path):
    page, run_file = tmp_path / "page.md", tmp_path / "run.json"
    report = (FOLDER / "report.py").read_text()
    marks = [line for line in report.splitlines() if "<!-- benchmark" in line]
    page.write_text("head\n" + "\nold\n".join(m.split('"')[1] for m in marks))
    cells = [record(14.0), record(60.0, "adam")]
    run_file.write_text(
        json.dumps({"machine": {"a": "b"}, "left out": {}, "cells": cells})
    )
    done = run("--report", run_file, "--markdown", page)
    assert done.returncode == 0, done.stderr
    judged = [line for line in done.stdout.splitlines() if line[:4] in ("PASS", "FAIL")]
    assert [line.split()[0] for line in judged] == [
        "FAIL",  # the least of 1.4 and 6
        "FAIL",  # SGD: 1.4 < 3
        "PASS",  # Adam: 6
        "PASS",  # 10 / 8 of the kernel's time
        "PASS",  # 7 / 10 of the limit's speed
    ]
    assert "old" not in page.read_text()
    assert "| 8 | 64 | zipf | adam |" in page.read_text()


@pytest.mark.parametrize(("wrong", "found"), [(0.0, False), (1e-3, True)])
def test_a_wrong_system_is_found(monkeypatch, wrong, found):
    monkeypatch.syspath_prepend(str(FOLDER))
    correctness = importlib.import_module("correctness")

    class Fake:
        """SGD in NumPy, off by `wrong` in one place."""

        dense = False

        def __init__(self, cell, batches):
            self.batches = batches
            self.rows = np.zeros((cell.rows, cell.dim), np.float32)

        def prepare(self, k):
            pass

        def step(self, k):
            np.subtract.at(
                self.rows, self.batches.ids[k], np.float32(0.05) * self.batches.grads
            )
            self.rows[self.batches.ids[k][0], 3] += wrong

        update = step

        def activations(self, k):
            return self.rows[self.batches.ids[k]]

        def weights(self):
            return self.rows.copy()

        def close(self):
            pass

    assert (correctness.check("fake", Fake, 16, "sgd") is not None) is found


@pytest.mark.parametrize("changed", ["xla_ffi/core/hash.h", "oneemb_jax/table.py"])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_older_build_is_not_measured(tmp_path, monkeypatch, changed, in_place):
    monkeypatch.syspath_prepend(str(FOLDER))
    machine = importlib.import_module("machine")
    package = tmp_path / ("oneemb_jax" if in_place else "site-packages/oneemb_jax")
    library = package / "_native.cpython-311-x86_64-linux-gnu.so"
    source = tmp_path / changed
    for file in (source, library):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    os.utime(source, (1000, 1000))
    assert machine.old_build(package, tmp_path) == ""
    os.utime(library, (500, 500))
    read_as_it_is = in_place and changed.endswith(".py")
    assert (machine.old_build(package, tmp_path) == "") == read_as_it_is
