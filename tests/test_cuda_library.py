"""What can be known of the CUDA library without a GPU."""

import re

import jax
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_table
from oneemb_jax import _cuda

library = _cuda.load()
built = pytest.mark.skipif(library is None, reason="built without CUDA")


def test_a_package_without_the_library(tmp_path):
    assert _cuda.load(tmp_path / "liboneemb_cuda.so") is None


def test_a_library_that_does_not_load(tmp_path):
    path = tmp_path / "liboneemb_cuda.so"
    path.write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match="cannot load its CUDA library"):
        assert _cuda.load(path) is None


@built
def test_it_has_every_handler():
    assert library is not None
    for symbol in _cuda.HANDLERS.values():
        assert getattr(library, symbol)
    assert library.OneembCudaApiMinor() <= 3


def workspace(table, ids):
    """The bytes that an update with these ids asks for."""

    def step(table, ids):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts)

    lowered = jax.jit(step).trace(table, ids).lower(lowering_platforms=("cuda",))
    (call,) = re.findall(r".*@oneemb_update.*", lowered.as_text())
    (size,) = re.findall(r"tensor<(\d+)xui8>", call.split(") -> (")[-1])
    return int(size)


@built
def test_a_call_on_a_gpu_has_a_workspace():
    table = make_table(4)
    small = workspace(table, oe.pack_ids(np.arange(10)))
    large = workspace(table, oe.pack_ids(np.arange(100_000)))
    # Codes, new keys, two arrays of entries, cells and partial sums.
    assert 4_000_000 < large < 12_000_000
    assert small < 50_000


@built
def test_a_call_on_a_cpu_has_none():
    table, ids = make_table(4), oe.pack_ids(np.arange(10))
    lowered = jax.jit(oe.lookup).trace(table, ids)
    text = lowered.lower(lowering_platforms=("cpu",)).as_text()
    assert "oneemb_lookup" in text
    assert "ui8" not in text


@built
def test_every_leaf_that_is_written_is_written_in_place():
    table, ids = make_table(4), oe.pack_ids(np.arange(10))

    def step(table, ids):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts)

    lowered = jax.jit(step, donate_argnums=0).trace(table, ids)
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    (call,) = re.findall(r".*@oneemb_update.*", text)
    assert call.count("output_operand_alias<") == 7
