"""What the host does to a cached table's Store while a step trains on it."""

import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import oneemb_jax as oe
from oneemb_jax import cache
from test_tiers_snapshot import STEPS, batches, contents, embedding, host, ssd, step
from test_tiers_snapshot import train as train_steps


class Flight:
    """A compiled loop of training steps that goes on until it is told to land."""

    def __init__(self, table: oe.Table) -> None:
        self._begun, self._over = threading.Event(), threading.Event()
        self._steps = 0
        self._thread = threading.Thread(target=self._fly, args=(table,))
        self._thread.start()
        assert self._begun.wait(60)

    def _goes_on(self) -> np.ndarray:
        self._steps += 1
        if self._steps == 3:
            self._begun.set()
        return np.array(not self._over.is_set())

    def _fly(self, table: oe.Table) -> None:
        every = jnp.asarray(batches())

        def goes_on(carry):
            del carry
            return io_callback(self._goes_on, jax.ShapeDtypeStruct((), bool))

        def body(carry):
            table, t = carry
            return step(table, every[t % STEPS], every[(t + 1) % STEPS]), t + 1

        def loop(table):
            return jax.lax.while_loop(goes_on, body, (table, 0))[0]

        self._table = jax.block_until_ready(jax.jit(loop)(table))

    def land(self) -> oe.Table:
        """Ends the loop; the table that came out of it."""
        self._over.set()
        self._thread.join()
        return self._table


@pytest.fixture(autouse=True)
def closed():
    yield
    cache._close_all()


@pytest.mark.parametrize("options", [ssd, host])
def test_a_snapshot_is_loaded_beside_a_step(tmp_path, options):
    """Not a row of the step that was under way gets in."""
    with embedding(options(tmp_path)) as emb:
        table = train_steps(emb.init(), 0, 30)
        emb.save_snapshot(table, "half")
        half = contents(table)
        whole = contents(train_steps(table, 30, STEPS))
        flight = Flight(emb.load_snapshot("half"))
        table = emb.load_snapshot("half")
        assert contents(table) == half
        old = flight.land()
        assert contents(table) == half
        with pytest.raises(oe.TableError, match="belongs to a Store that is gone"):
            oe.check(old)
        assert contents(train_steps(table, 30, STEPS)) == whole


def test_init_beside_a_step(tmp_path):
    with embedding(ssd(tmp_path)) as emb:
        flight = Flight(emb.init())
        table = emb.init()
        old = flight.land()
        assert oe.size(table) == 0
        with pytest.raises(oe.TableError, match="belongs to a Store that is gone"):
            oe.check(old)
        oe.check(train_steps(table, 0, 5))


def test_close_beside_a_step(tmp_path):
    """The folder is free at once, although the step goes on."""
    emb = embedding(ssd(tmp_path))
    flight = Flight(emb.init())
    emb.close()
    with embedding(ssd(tmp_path), "next") as other:
        oe.check(train_steps(other.init(), 0, 5))
        old = flight.land()
        with pytest.raises(oe.TableError, match="is closed"):
            oe.size(old)


FORK = """
import os, sys
import numpy as np
from test_tiers_snapshot import contents, embedding, ssd, train
import oneemb_jax as oe
with embedding(ssd(sys.argv[1])) as emb:
    table = train(emb.init(), 0, 30)
    child = os.fork()
    if child == 0:
        emb.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    oe.check(train(table, 30, 40))
"""


def test_a_forked_child_closes_nothing_of_its_parents(tmp_path):
    """Nor does it wait for threads that it does not have."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path)],
        check=True,
        timeout=120,
        cwd=Path(__file__).parent,
    )
