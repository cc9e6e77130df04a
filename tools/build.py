"""Builds with CMake and Ninja directly, without making a wheel.

python tools/build.py                       the module, into oneemb_jax/
python tools/build.py --install             the package, into this environment
python tools/build.py --prefix DIR          the module and the package, into DIR
python tools/build.py --tests [NAME]        the C++ tests (or one), built and run
python tools/build.py --compile-commands    nothing; build/lint for clang-tidy
python tools/build.py --tests NAME --long    a test without a limit of time, that tells
python tools/build.py --fuzz RUNS           libFuzzer with sanitizers, where clang++ is
All but --install take --ffi-include DIR, for a machine without network, and
--sanitize address, undefined, "address;undefined" or thread. --cuda OFF leaves the
CUDA kernels out even where there is nvcc.

The interpreter that runs this is the one built for. It needs nanobind and
jaxlib; cmake and ninja come from its own folder or from PATH. Only --install
fetches what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The newest FFI API that a module may be built with, and a jaxlib that has it.
FFI_MINOR, FFI_JAXLIB = 3, "jaxlib==0.10.*"


def tool(name: str) -> str:
    """Path of an executable, the interpreter's own folder first."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(name, path=search)
    if found is None:
        sys.exit(f"build.py: {name} not found; pip install {name}")
    return found


def run(*command: object) -> None:
    """Runs a command, and ends this program with its status when it fails."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status != 0:
        sys.exit(status)


def ffi_include() -> Path:
    """Folder of FFI headers that are old enough; fetched when there are none."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is not None and spec.origin is not None:
        include = Path(spec.origin).parent / "include"
        text = (include / "xla/ffi/api/c_api.h").read_text()
        minor = re.search(r"#define XLA_FFI_API_MINOR (\d+)", text)
        if minor is not None and int(minor[1]) <= FFI_MINOR:
            return include
    folder = ROOT / "build" / "jaxlib-0.10"
    include = folder / "jaxlib" / "include"
    if not include.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        run(*pip, "--no-deps", "--target", folder, FFI_JAXLIB)
    return include


def configure(folder: Path, options: argparse.Namespace) -> None:
    """Configures one build folder."""
    lint = options.compile_commands
    module = options.tests is None
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "ONEEMB_BUILD_MODULE": "ON" if module else "OFF",
        "ONEEMB_BUILD_TESTS": "ON" if lint or not module else "OFF",
        "ONEEMB_INPLACE": "OFF" if lint or options.prefix else "ON",
        "ONEEMB_FUZZ": "ON" if options.fuzz else "OFF",
        "ONEEMB_SANITIZE": options.sanitize,
        "ONEEMB_TEST_SECONDS": "86400" if options.long else "600",
        "ONEEMB_WERROR": "ON",
        # clang-tidy does not read the flags of nvcc.
        "ONEEMB_CUDA": "OFF" if lint else options.cuda,
    }
    if module:
        settings["Python_EXECUTABLE"] = sys.executable
        settings["ONEEMB_FFI_INCLUDE_DIR"] = options.ffi_include or str(ffi_include())
    if options.fuzz:
        settings["CMAKE_CXX_COMPILER"] = tool("clang++")
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    run(tool("cmake"), "-S", ".", "-B", folder, "-G", "Ninja", *defines)


def install_with_pip(cuda: str) -> None:
    """Installs the package as pip does, but quick the second time.

    pip would build in a fresh environment each time, at a new path, and so
    compile everything anew.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build_needs = [r for r in project["build-system"]["requires"] if r != FFI_JAXLIB]
    needs = [*build_needs, *project["project"]["dependencies"], "cmake", "ninja"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    run(*pip, *needs)
    defines = {
        "ONEEMB_FFI_INCLUDE_DIR": ffi_include(),
        "ONEEMB_WERROR": "ON",
        "ONEEMB_CUDA": cuda,
    }
    words = [f"--config-settings=cmake.define.{k}={v}" for k, v in defines.items()]
    run(*pip, "--no-build-isolation", "--no-deps", *words, ROOT)


def install_package(prefix: Path) -> None:
    """Puts the package's own files beside the installed module."""
    shutil.copytree(
        ROOT / "oneemb_jax",
        prefix / "oneemb_jax",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        dirs_exist_ok=True,
    )


def build_folder(options: argparse.Namespace) -> Path:
    """Folder that one set of options has to itself, so builds stay incremental."""
    if options.compile_commands:
        return ROOT / "build" / "lint"
    if options.fuzz:
        return ROOT / "build" / "fuzz"
    python = sysconfig.get_config_var("SOABI")
    kind = "cpp" if options.tests else f"dev-{python}"
    suffix = "-" + options.sanitize.replace(";", "-") if options.sanitize else ""
    return ROOT / "build" / f"{kind}{suffix}"


def run_tests(folder: Path, options: argparse.Namespace) -> None:
    """Runs the C++ tests that were asked for."""
    pattern = ".*" if options.tests == "all" else rf"^{options.tests}(_v3|\.[0-9]+)?$"
    ctest = [tool("ctest"), "--test-dir", folder, "--parallel", options.jobs]
    output = "--verbose" if options.long else "--output-on-failure"
    run(*ctest, output, "--no-tests=error", "-R", pattern)


def run_fuzzer(folder: Path, runs: int) -> None:
    """Runs libFuzzer on what it found before, and beyond."""
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    # Up to some ten changes at once. What breaks something is kept in `folder`.
    words = ["-max_len=400", "-len_control=0", f"-artifact_prefix={folder}/"]
    words += [f"-runs={runs}", "-print_final_stats=1"]
    run(folder / "tests" / "cpp" / "libfuzzer", *words, corpus)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", nargs="?", const="all")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--fuzz", type=int, metavar="RUNS")
    parser.add_argument("--compile-commands", action="store_true")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--prefix", type=Path)
    parser.add_argument("--sanitize", default="")
    parser.add_argument("--cuda", default="AUTO", choices=["AUTO", "ON", "OFF"])
    parser.add_argument("--ffi-include", help="folder that holds xla/ffi/api")
    parser.add_argument("--jobs", default=str(os.cpu_count()))
    options = parser.parse_args()
    if options.fuzz:
        options.tests, options.sanitize = "libfuzzer", "address;undefined"
    return options


def main() -> None:
    """Builds, and runs what was built if it is a test."""
    options = parse()
    if options.install:
        install_with_pip(options.cuda)
        return
    if options.fuzz and shutil.which("clang++") is None:
        print("build.py: libFuzzer was LEFT OUT: there is no clang++ on PATH.")
        return
    folder = build_folder(options)
    configure(folder, options)
    if options.compile_commands:
        return
    build = [tool("cmake"), "--build", folder, "--parallel", options.jobs]
    run(*build, *(["--target", options.tests] if options.tests else []))
    if options.fuzz:
        run_fuzzer(folder, options.fuzz)
    elif options.tests:
        run_tests(folder, options)
    elif options.prefix is not None:
        install = [tool("cmake"), "--install", folder, "--prefix", options.prefix]
        run(*install, "--component", "python")
        install_package(options.prefix)


if __name__ == "__main__":
    main()
