"""What a process sets: threads, instruction set, x64, and what import refuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_table
from oneemb_jax import _config, _ffi

PACKAGE_ROOT = Path(oe.__file__).parent.parent

TRAIN = """
import hashlib, jax, jax.numpy as jnp, numpy as np
import oneemb_jax as oe
digest = hashlib.sha1()
for optimizer in (oe.sgd(0.1, 0.9), oe.adam(0.05), oe.ftrl(0.1, lr_power=-0.7)):
    with oe.MultiTableEmbedding(
        "bits", 19, "float32", "int64", optimizer=optimizer,
        default_initializer=oe.make_normal_initializer(),
        store_options=oe.make_device_mem_store_options(capacity=15_000),
    ) as emb:
        table = emb.init()

    @jax.jit
    def step(table, ids, grads):
        acts, ctx = oe.lookup(table, ids)
        norm = oe.global_norm(ctx, grads)
        return oe.update(table, ctx, grads, grad_scale=1 / norm), acts, norm, ctx

    rng = np.random.default_rng(0)
    for _ in range(2):
        ids = oe.pack_ids(rng.zipf(1.3, 20_000) % 16_000)
        grads = rng.standard_normal((20_000, 19)).astype(np.float32)
        table, acts, norm, ctx = step(table, ids, grads)
        for array in (acts, norm, *jax.tree.leaves(ctx)):
            digest.update(np.asarray(array))
    digest.update(np.asarray(table.rows[: oe.size(table)]))
    digest.update(np.asarray(table.index))
    digest.update(np.asarray(table.counters))
print(digest.hexdigest())
"""

WIDE = """
import jax, jax.numpy as jnp, numpy as np, optax
import oneemb_jax as oe
assert jax.config.jax_enable_x64
with oe.MultiTableEmbedding(
    "wide", 2, "float32", "int64",
    optimizer=oe.sgd(optax.piecewise_constant_schedule(1.0, {1: 0.5})),
    default_initializer=oe.make_constant_initializer(0.0),
    store_options=oe.make_device_mem_store_options(capacity=8),
) as emb:
    table = emb.init()
ids = np.array([2**40 + 1, -1, 2**40 + 1])

@jax.jit
def step(w, table, ids):
    def loss(w, table):
        return w * oe.lookup(table, ids)[0].sum()
    _, (g, sparse) = oe.value_and_grad(loss, (0, 1))(w, table)
    norm = oe.global_norm(sparse)
    table = oe.update(table, sparse, grad_scale=np.float64(0.5), apply=norm < 99)
    return table, g, norm

for _ in range(2):
    table, g, norm = step(np.float64(2.0), table, ids)
np.testing.assert_allclose(norm, np.sqrt(2 * 4.0**2 + 2 * 2.0**2), rtol=1e-6)
rows = oe.get_rows(table, [2**40 + 1, -1]).embedding
np.testing.assert_array_equal(rows, [[-3.0, -3.0], [-1.5, -1.5]])
acts, ctx = oe.lookup(table, jnp.array([5, 2**33]))
assert oe.unpack_ids(ctx.ids).tolist() == [5, 2**33]
table = oe.update(table, ctx, acts, learning_rate=0.1)
oe.check(table)
assert oe.size(table) == 4
print("ok")
"""


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_same_bits_in_every_process():
    """Through jit: with 1, 2 and 8 threads, and without AVX2."""
    one = run(TRAIN, ONEEMB_NUM_THREADS="1")
    assert len(one) == 40
    assert run(TRAIN, ONEEMB_NUM_THREADS="2") == one
    assert run(TRAIN, ONEEMB_NUM_THREADS="8") == one
    assert run(TRAIN, ONEEMB_ISA="baseline") == one


def test_with_x64():
    assert run(WIDE, JAX_ENABLE_X64="1") == "ok"


@pytest.mark.parametrize("threads", ["-1", "2.5", "many", ""])
def test_a_number_of_threads_that_is_none(monkeypatch, threads):
    monkeypatch.setenv("ONEEMB_NUM_THREADS", threads)
    with pytest.raises(ValueError, match=r"ONEEMB_NUM_THREADS=.*whole number"):
        _config.num_threads()


@pytest.mark.parametrize("isa", ["avx512", "V3", ""])
def test_an_instruction_set_that_is_none(monkeypatch, isa):
    monkeypatch.setenv("ONEEMB_ISA", isa)
    with pytest.raises(ValueError, match=r"ONEEMB_ISA=.*auto, baseline or v3"):
        _config.instruction_set()


def test_settings(monkeypatch):
    monkeypatch.setenv("ONEEMB_NUM_THREADS", "3")
    monkeypatch.setenv("ONEEMB_ISA", "baseline")
    assert (_config.num_threads(), _config.instruction_set()) == (3, "baseline")
    monkeypatch.delenv("ONEEMB_NUM_THREADS")
    monkeypatch.delenv("ONEEMB_ISA")
    assert (_config.num_threads(), _config.instruction_set()) == (0, "auto")


def test_sources_without_a_compiled_module_say_so(tmp_path):
    sources = shutil.ignore_patterns("*.so")
    shutil.copytree(Path(oe.__file__).parent, tmp_path / "oneemb_jax", ignore=sources)
    done = subprocess.run(
        [sys.executable, "-c", "import oneemb_jax"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{tmp_path / 'oneemb_jax'} has no module compiled" in last
    assert "run Python in another folder" in last


def test_an_old_jaxlib_is_refused_before_anything_is_registered(monkeypatch, tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 1\n")
    registered = []
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        jax.ffi, "register_ffi_target", lambda *args, **kwargs: registered.append(args)
    )
    with pytest.raises(ImportError, match=r"jaxlib has 0\.1.*Nothing was registered"):
        _ffi._register(_ffi.native)
    assert registered == []
    header.write_text("no version here")
    with pytest.raises(ImportError, match="cannot read the FFI version"):
        _ffi._register(_ffi.native)
    assert registered == []


@pytest.mark.parametrize(
    "rates",
    [
        [0.1, 0.2, 0.3],  # plain floats are weakly typed
        [np.float32(0.1), np.float32(0.2)],
        [jnp.float32(0.1), np.float32(0.2), jnp.float32(0.3)],
        [1, 2],
    ],
)
def test_rates_of_any_type_do_not_retrace(rates):
    seen = []

    @jax.jit
    def step(table, rate):
        seen.append(rate)
        acts, ctx = oe.lookup(table, np.array([1, 2]))
        return oe.update(table, ctx, jnp.ones_like(acts), learning_rate=rate)

    table = make_table(2)
    before = oe.get_rows(table, [1]).embedding
    for rate in rates:
        table = step(table, rate)
    moved = before - oe.get_rows(table, [1]).embedding
    np.testing.assert_allclose(moved, sum(map(float, rates)), rtol=1e-5)
    assert len(seen) == 1
