"""kill -9 of a training run at random instants: it ends in the same bits.

``make torture`` does it 200 times, by ONEEMB_TRAINING_KILLS.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiers_training

KILLS = int(os.environ.get("ONEEMB_TRAINING_KILLS", "5"))
STEPS = 90


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The digest of a run that nobody killed, without tiers."""
    return tiers_training.run(tmp_path_factory.mktemp("whole"), "device_mem", STEPS)


def start(folder, kind):
    return subprocess.Popen(
        [sys.executable, tiers_training.__file__, str(folder), kind, str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
    )


def run_and_kill(folder, kind, lines):
    """Runs until so many steps are done, or to the end; the last line."""
    with start(folder, kind) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last, lines = line.strip(), lines - 1
            if lines == 0:
                process.kill()
        process.wait()
    killed = process.returncode == -9
    assert killed or process.returncode == 0
    return killed, last


def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, expected: str):
    chance = random.Random(KILLS)
    kinds = ["ssd", "host_mem"]
    kills = 0
    folder = tmp_path / "0"
    while kills < KILLS:
        # The same run may go on with its rows elsewhere.
        killed, last = run_and_kill(folder, chance.choice(kinds), chance.randint(1, 30))
        kills += killed
        if not killed:
            assert last == expected
            shutil.rmtree(folder)
    assert run_and_kill(folder, "ssd", 0) == (False, expected)
