"""The notebook runs from top to bottom, and is kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "dlrm.ipynb"

#: By the cell they follow: what the text says of it.
CHECKS = {
    "cell-19": """
stats = oe.stats(ssd_table)
assert stats["rows"] == oe.size(table) == rows[-1]
assert 0.09 < stats["capacity"] / stats["rows"] < 0.11
assert stats["prefetched"] > 0 and stats["victims"] > 0
assert stats["unstaged"] == stats["stale"] == 0
assert len(seconds) == len(ssd_seconds) == len(hit_rate) == STEPS
assert hit_rate[0] == 0 and 0.5 < hit_rate[-1] < 1
assert ssd_losses == losses
""",
    "cell-23": """
assert 0.5 < again.auc == reached.auc < best.auc
for batch in (batches[0], batches[-1]):
    loaded, trained = (oe.get_rows(t, batch["ids"]) for t in (state.table, table))
    assert loaded.found.all()
    np.testing.assert_array_equal(loaded.embedding, trained.embedding)
    np.testing.assert_array_equal(loaded.state["sum"], trained.state["sum"])
""",
}


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_outputs_are_cleared():
    assert code_cells()
    assert all(not cell["outputs"] for cell in code_cells())
    assert all(cell["execution_count"] is None for cell in code_cells())


@pytest.mark.slow
def test_runs_and_does_what_it_says(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    for name, checks in CHECKS.items():
        cells[name]["source"] += ["\n", *checks.splitlines(keepends=True)]
    copy = tmp_path / NOTEBOOK.name
    copy.write_text(json.dumps(notebook))
    # Its own process: the kernel's client leaves sockets and warnings behind.
    command = [sys.executable, "-m", "pytest", "--nbmake", "-W", "default"]
    paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(copy)],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
