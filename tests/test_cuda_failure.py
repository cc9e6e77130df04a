"""A GPU that fails under a cached table."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

FAILING_DEVICE = """
import ctypes, os, pathlib, sys
import jax
from helpers import make_cached
from test_cuda_tiers import pack, step

PTX = b'''
.version 7.0
.target sm_80
.address_size 64
.visible .entry fail() { trap; }
'''

def cuda(name, *arguments):
    assert getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments) == 0, name

with jax.default_device(jax.devices("gpu")[0]):
    table = make_cached(pathlib.Path(sys.argv[1]), 64, 4)
    table, acts, *_ = step(table, pack(range(32)), pack(range(32, 64)))
    acts.block_until_ready()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda("cuCtxSetCurrent", context)
    cuda("cuModuleLoadData", ctypes.byref(module), PTX)
    cuda("cuModuleGetFunction", ctypes.byref(function), module, b"fail")
    cuda("cuLaunchKernel", function, *([1] * 6), 0, None, None, None)
    try:
        for _ in range(3):
            table, acts, *_ = step(table, pack(range(32, 64)), pack(range(32)))
            acts.block_until_ready()
        print("went on")
    except Exception as error:
        print("raised", type(error).__name__, flush=True)
    os._exit(0)
"""


def test_a_device_that_fails_ends_the_step(tmp_path):
    """Nobody waits for a stream that comes nowhere any more."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING_DEVICE, str(tmp_path)],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.startswith("raised"), done.stdout + done.stderr[-2000:]
