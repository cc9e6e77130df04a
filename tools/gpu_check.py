"""Everything that a GPU is needed for, in one command and one report.

python tools/gpu_check.py [--no-build] [--ffi-include DIR] [--report FILE]

Builds the library into the source tree, CUDA kernels included, runs the tests of
CUDA and those of cached tables, which use the GPU too, and the benchmarks. A few
minutes, and no network where the folder of XLA FFI headers of jaxlib 0.10 is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [
    "test_cuda.py",
    "test_cuda_tiers.py",
    "test_cuda_failure.py",
    "test_cached.py",
    "test_cached_embedding.py",
    "test_tiers.py",
]
TESTS += ["test_tiers_in_flight.py", "test_tiers_snapshot.py"]


def run(title: str, command: list[str], report: list[str], folder: Path = ROOT) -> bool:
    """Runs one step; its output goes to the terminal and into the report."""
    print(f"== {title}", flush=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    state = "ok" if done.returncode == 0 else f"status {done.returncode}"
    seconds = time.monotonic() - start
    print(done.stdout, flush=True)
    report += [f"## {title}: {state}, {seconds:.0f} s", "", done.stdout, ""]
    return done.returncode == 0


def main() -> None:
    """Parses the command line and runs the steps; the report is always written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-build", action="store_true", help="what is there is used")
    parser.add_argument("--ffi-include", help="folder that holds xla/ffi/api")
    parser.add_argument("--report", type=Path, default=ROOT / "build/gpu_report.md")
    parser.add_argument("--seconds", default="120", help="for the benchmark")
    options = parser.parse_args()
    report = ["# GPU check", ""]
    build = [sys.executable, "tools/build.py"]
    if options.ffi_include:
        build += ["--ffi-include", options.ffi_include]
    tests = [sys.executable, "-m", "pytest", "-q", *TESTS]
    # Warnings of a newer jax are not what is looked for here.
    tests += ["-o", "filterwarnings=", "-o", "minversion=7", "-o", "pythonpath="]
    if importlib.util.find_spec("xdist") is not None:
        tests += ["-n", "8"]
    bench = [sys.executable, "benchmarks/gpu.py", "--quick"]
    bench += ["--seconds", options.seconds]
    done = options.no_build or run("build", build, report)
    done = done and run("tests", tests, report, ROOT / "tests")
    done = done and run("benchmark", bench, report)
    tiers = [sys.executable, "benchmarks/gpu_tiers.py", "--steps", "24"]
    done = done and run("cached tables", tiers, report)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text("\n".join(report))
    print(f"report: {options.report}")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
