"""Runs the Python tests against a module built with the address sanitizer.

python tools/pytest_asan.py [WORD...]       the words go to pytest

Left out are the tests marked slow and multiprocess: the sanitizer makes the
kernels several times slower and watches one process. Leaks are not reported,
since Python and XLA keep memory until the process ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = ROOT / "build" / "asan"
OPTIONS = "detect_leaks=0:allocator_may_return_null=1:strict_string_checks=1"


def library(name: str) -> str:
    """Path of a library that belongs to the compiler."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"pytest_asan.py: {compiler} has no {name}")
    return str(path)


def check_instrumented() -> None:
    """Makes sure that there is something to watch."""
    modules = list((PREFIX / "oneemb_jax").glob("_native*.so"))
    bare = [m.name for m in modules if b"__asan_init" not in m.read_bytes()]
    if not modules or bare:
        sys.exit(f"pytest_asan.py: not instrumented: {bare or PREFIX}")


def main() -> None:
    """Builds, then runs pytest with the sanitizer's library preloaded."""
    # CUDA would be built in vain: no test of it runs here.
    build = [sys.executable, "tools/build.py", "--sanitize", "address", "--cuda", "OFF"]
    subprocess.run([*build, "--prefix", PREFIX], cwd=ROOT, check=True)
    check_instrumented()
    # libstdc++ too: the sanitizer looks for its throw when it starts, and
    # Python itself does not link it.
    preload = [library("libasan.so"), library("libstdc++.so.6")]
    environment = dict(
        os.environ,
        LD_PRELOAD=":".join(preload),
        ASAN_OPTIONS=OPTIONS,
        PYTHONPATH=str(PREFIX),
    )
    pytest = [str(Path(sys.executable).parent / "pytest"), "tests"]
    chosen = ["-m", "not slow and not multiprocess", *sys.argv[1:]]
    done = subprocess.run([*pytest, *chosen], cwd=ROOT, env=environment, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
