"""Memory of a long run: it stays where it is."""

from pathlib import Path

import pytest

import oneemb_jax as oe
import tiers_training
from oneemb_jax.cache import close_cached


def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.slow
# Until a segment is full, the SSD's store has the keys of all its slots at hand:
# 640 bytes for each batch that was written.
@pytest.mark.parametrize(("kind", "growth"), [("host_mem", 0), ("ssd", 640)])
def test_ten_thousand_steps_leave_no_memory_behind(tmp_path, kind, growth):
    every = [tiers_training.batch(t) for t in range(100)]
    with tiers_training.embedding(tiers_training.options(kind, tmp_path)) as emb:
        table = emb.init()
        sizes = []
        for t in range(10_000):
            later = every[(t + 1) % 100]
            table = tiers_training.step(table, every[t % 100], later)
            if t % 1000 == 999:
                oe.check(table)
                sizes.append(resident_bytes())
        assert oe.stats(table)["victims"] > 10_000
    close_cached("killed")
    # A leak of the rows of a batch would be 2,000 bytes a step.
    assert (sizes[-1] - sizes[1]) / 8000 < growth + 300
