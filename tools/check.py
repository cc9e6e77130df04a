"""Runs every static check of the project; what CI runs, in one command.

python tools/check.py [NAME...]     all checks, or the named ones
python tools/check.py --fast        without the slow ones: types, clang-tidy
python tools/check.py --fix         lets the formatters and ruff repair first

A tool that is missing is a failure, never a skip. The versions are pinned by
the extra `lint` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layering

ROOT = Path(__file__).resolve().parent.parent


def call(tool: str, *words: object) -> bool:
    """Runs a tool of this interpreter's environment; prints what it prints."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = shutil.which(tool, path=search)
    if path is None:
        print(f"{tool} is not installed; pip install 'oneemb-jax[lint]'")
        return False
    command = [path, *(str(word) for word in words)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        print(done.stdout.strip())
    return done.returncode == 0


def check_ruff(fix: bool) -> bool:
    """Lints Python."""
    return call("ruff", "check", "--quiet", *(["--fix"] if fix else []), ".")


def check_format(fix: bool) -> bool:
    """Compares Python and notebooks with ruff's formatting."""
    return call("ruff", "format", "--quiet", *([] if fix else ["--diff"]), ".")


def check_clang_format(fix: bool) -> bool:
    """Compares C++ and CUDA with .clang-format."""
    files = layering.cpp_files(ROOT)
    mode = ["-i"] if fix else ["--dry-run", "-Werror"]
    return not files or call("clang-format", *mode, *files)


def check_layering(fix: bool) -> bool:
    """Checks the arrows between files, and their sizes."""
    del fix
    return call(sys.executable, "tools/layering.py")


def check_types(fix: bool) -> bool:
    """Checks Python types."""
    del fix
    return call("basedpyright", "--level", "error", "--pythonpath", sys.executable)


def own_commands() -> Iterator[dict[str, str]]:
    """One compile command for each C++ source of ours."""
    database = ROOT / "build" / "lint" / "compile_commands.json"
    ours = {str(path) for path in layering.cpp_files(ROOT)}
    for entry in json.loads(database.read_text()):
        # The kernels are in four targets; once is enough.
        if entry["file"] in ours:
            ours.remove(entry["file"])
            yield entry
    # Headers are seen through the sources that include them. cuda/ is left to nvcc,
    # whose warnings are errors: this build is without CUDA, as most machines are.
    cuda = f"{ROOT / 'cuda'}{os.sep}"
    left = [p for p in ours if p.endswith(".cc") and not p.startswith(cuda)]
    if left:
        raise FileNotFoundError(f"no compile command for {left}")


def check_clang_tidy(fix: bool) -> bool:
    """Runs clang-tidy on every C++ source, as many at a time as there are CPUs."""
    del fix
    if not call(sys.executable, "tools/build.py", "--compile-commands"):
        return False
    folder = ROOT / "build" / "tidy"
    folder.mkdir(exist_ok=True)
    commands = list(own_commands())
    (folder / "compile_commands.json").write_text(json.dumps(commands))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = (entry["file"] for entry in commands)
        done = pool.map(lambda f: call("clang-tidy", "-quiet", "-p", folder, f), files)
        return all(list(done))


Check = Callable[[bool], bool]
FAST: dict[str, Check] = {
    "ruff": check_ruff,
    "format": check_format,
    "clang-format": check_clang_format,
    "layering": check_layering,
}
SLOW: dict[str, Check] = {"types": check_types, "clang-tidy": check_clang_tidy}
CHECKS = FAST | SLOW


def timed(name: str, fix: bool) -> bool:
    """Runs one check, and says how it went and how long it took."""
    start = time.monotonic()
    ok = CHECKS[name](fix)
    took = time.monotonic() - start
    print(f"{'ok  ' if ok else 'FAIL'} {name} ({took:.0f} s)", flush=True)
    return ok


def main() -> None:
    """Runs the chosen checks; the status is 1 when any of them fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--fix", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(CHECKS)
    if unknown:
        parser.error(f"unknown checks {sorted(unknown)}; known: {', '.join(CHECKS)}")
    chosen = options.names or list(FAST if options.fast else CHECKS)
    # Two at a time, since the slow ones leave a processor idle at times; one where
    # they repair, so that each sees what the one before has left.
    with ThreadPoolExecutor(1 if options.fix else 2) as pool:
        passed = list(pool.map(lambda name: timed(name, options.fix), chosen))
    failed = [name for name, ok in zip(chosen, passed, strict=True) if not ok]
    if failed:
        sys.exit(f"check.py: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
