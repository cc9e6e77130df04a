"""The notebook runs from top to bottom, and is kept without outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "dlrm.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_outputs_are_cleared():
    assert code_cells()
    assert all(not cell["outputs"] for cell in code_cells())
    assert all(cell["execution_count"] is None for cell in code_cells())


@pytest.mark.slow
def test_runs():
    # Its own process: the kernel's client leaves sockets and warnings behind.
    command = [sys.executable, "-m", "pytest", "--nbmake", "-W", "default"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(NOTEBOOK)],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
