"""Which file may use which, and how long files and functions may get.

The architecture is a set of arrows: Python modules import downwards, handlers
see XLA and kernels do not, core/ knows nothing at all. This states the arrows
and finds what goes against them; each finder returns sentences, none when all
is well.

python tools/layering.py        prints the findings; status 1 when there are any
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "oneemb_jax"

# Low to high. A module imports only from rows above its own.
LAYERS = (
    ("_version", "_config", "_compat"),
    ("_native", "_cuda"),
    ("durable", "memory", "paths"),
    ("batches", "ids", "initializers", "optimizer", "oneflow_format"),
    ("replaced",),
    ("batch_ids", "optimizers", "oneflow_reader", "oneflow_writer", "oneflow_rows"),
    ("options", "oneflow_verify"),
    ("cached_options",),
    ("_ffi", "spec", "embedding_args"),
    ("table", "store"),
    ("cache",),
    ("comparison", "counters", "lookup", "manifest", "trees"),
    ("sparse_grad", "tiers", "watch", "snapshot_files", "saved_files"),
    ("update",),
    ("grad", "host", "items", "exchange", "persistent_table"),
    ("snapshot",),
    ("snapshot_methods",),
    ("embedding", "scheduler"),
    ("oneflow_tables", "saving", "templates"),
    ("oneflow", "checkpoint", "restoring"),
    ("formats",),
    ("formats_oneflow", "formats_snapshot"),
    ("formats_save",),
    ("cli",),
    ("__init__",),
    ("__main__",),
)
# Third-party packages that the library itself may import, and where.
RUNTIME = {"jax", "jaxlib", "numpy"}
EXTRAS = {"checkpoint": {"orbax"}, "cli": {"tqdm"}}

# Quoted includes that a folder of C++ may have, by first path component.
INCLUDES = {
    "xla_ffi/core": {"core"},
    "xla_ffi/cpu": {"core", "cpu"},
    "xla_ffi/ffi": {"core", "ffi"},
    "xla_ffi/store": {"core", "store"},
    "xla_ffi/tier": {"core", "cpu", "store", "tier"},
    "cuda": {"core", "cuda", "store", "tier"},
    "tests/cpp": {"core", "cpu", "store", "tier"},
}
MODULE_INCLUDES = {
    "core", "cpu", "store", "tier", "cuda", "store_arrays.h", "store_module.h"
}  # fmt: skip
# The sources that know Python.
MODULE_FILES = {
    f"xla_ffi/{name}"
    for name in (
        "module.cc",
        "snapshot_module.cc",
        "store_arrays.cc",
        "store_arrays.h",
        "store_module.cc",
        "store_module.h",
    )
}
# The side of a folder that knows XLA, besides every *_ffi.cc and *_ffi.h.
FFI_HEADERS = {"ffi_util", "handlers"}
# Standard headers that core/ does without: no heap, no I/O, no threads, and no
# libm, whose last bit differs between machines.
NOT_IN_CORE = {
    "functional", "iostream", "fstream", "sstream", "string", "vector", "map",
    "unordered_map", "memory", "mutex", "thread", "atomic", "cstdlib", "cstdio",
}  # fmt: skip

MAX_LINES = {"tests": 600, ".py": 400, ".cc": 500, ".h": 500, ".cu": 500, ".cuh": 500}
MAX_FUNCTION_LINES = 40
# File, or file:function, and the reason why it may be longer.
LONG: dict[str, str] = {}


def python_files(root: Path) -> list[Path]:
    """Python sources of the project, tests and tools included."""
    folders = (PACKAGE, "tests", "tools", "examples", "benchmarks")
    return sorted(p for f in folders for p in (root / f).rglob("*.py"))


def cpp_files(root: Path) -> list[Path]:
    """C++ and CUDA sources of the project, tests included."""
    folders = ("xla_ffi", "cuda", "tests/cpp")
    suffixes = {".cc", ".h", ".cu", ".cuh"}
    found = (p for f in folders for p in (root / f).rglob("*"))
    return sorted(p for p in found if p.suffix in suffixes)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # `from oneemb_jax import table` imports the module oneemb_jax.table.
            if node.module == PACKAGE:
                yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def python_violations(root: Path) -> list[str]:
    """Imports of the package that go up or sideways, or outside."""
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    found = []
    for path in sorted((root / PACKAGE).glob("*.py")):
        here = path.stem
        if here not in level:
            found.append(f"{path.name}: in no row of LAYERS (tools/layering.py)")
            continue
        tree = ast.parse(path.read_text())
        for name in imported_modules(tree):
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                other = rest.partition(".")[0]
                if other.removesuffix("_v3") in level:
                    other = other.removesuffix("_v3")
                if level.get(other, len(LAYERS)) >= level[here]:
                    found.append(f"{path.name}: imports {name}, not below it")
            elif first not in sys.stdlib_module_names | RUNTIME | EXTRAS.get(
                here, set()
            ):
                found.append(f"{path.name}: imports {name}, no dependency of ours")
    return found


def knows_xla(place: str) -> bool:
    """Whether a file belongs to the handlers, not to the kernels."""
    stem = Path(place).stem
    return stem.endswith("_ffi") or stem in FFI_HEADERS


def include_problem(place: str, folder: str, quoted: str, angled: str) -> str | None:
    """What is wrong with one #include, or None."""
    handler = knows_xla(place)
    module = place in MODULE_FILES
    target = quoted or angled
    first = target.partition("/")[0]
    if target.endswith((".cu", ".cc")):
        return f"includes the source {target}"
    if first == "nanobind":
        return None if module else f"includes {target}; only the module's own files may"
    if first == "xla":
        return None if handler or module else f"includes {target}; only *_ffi may"
    if angled:
        bad = folder == "xla_ffi/core" and angled in NOT_IN_CORE
        return f"includes <{angled}>, too much for core/" if bad else None
    allowed = MODULE_INCLUDES if module else INCLUDES.get(folder, set())
    if handler:
        # Handlers join kernels to the store, and share their decoding.
        allowed = allowed | {"store", "ffi"}
    beside = folder == "tests/cpp" and target.endswith(".h") and "/" not in target
    if first not in allowed and not beside:
        return f'includes "{target}", against the arrows'
    if knows_xla(target) and not (handler or module):
        return f'includes "{target}"; only *_ffi may'
    return None


def cpp_violations(root: Path) -> list[str]:
    """Includes that go against the arrows, and headers without a guard."""
    found = []
    for path in cpp_files(root):
        place = path.relative_to(root).as_posix()
        text = path.read_text()
        if path.suffix in {".h", ".cuh"} and "#pragma once" not in text:
            found.append(f"{place}: no #pragma once")
        for quoted, angled in re.findall(
            r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', text, re.MULTILINE
        ):
            folder = path.parent.relative_to(root).as_posix()
            problem = include_problem(place, folder, quoted, angled)
            if problem is not None:
                found.append(f"{place}: {problem}")
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> int:
    """Lines of a function that are code: no docstring, comment or blank line."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 1
    lines = text.splitlines()[body[0].lineno - 1 : function.end_lineno]
    code = [line for line in lines if line.strip() and line.strip()[0] != "#"]
    return len(code) + 1


def size_violations(root: Path) -> list[str]:
    """Files and Python functions that are too long, LONG left out."""
    found = []
    for path in python_files(root) + cpp_files(root):
        place = path.relative_to(root).as_posix()
        text = path.read_text()
        test = place.startswith("tests/")
        most = MAX_LINES["tests" if test else path.suffix]
        lines = text.count("\n")
        if lines > most and place not in LONG:
            found.append(f"{place}: {lines} lines, more than {most}")
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            size, name = code_lines(node, text), f"{place}:{node.name}"
            if size > MAX_FUNCTION_LINES and name not in LONG:
                found.append(f"{name}: {size} lines, more than {MAX_FUNCTION_LINES}")
    return found


def stale_exceptions(root: Path) -> list[str]:
    """Entries of LONG that have no reason, or name a file that is gone."""
    found = [f"LONG: {name} has no reason" for name, why in LONG.items() if not why]
    gone = [name for name in LONG if not (root / name.partition(":")[0]).exists()]
    return found + [f"LONG: {name} is gone" for name in gone]


def main() -> None:
    """Prints every finding."""
    finders = (python_violations, cpp_violations, size_violations, stale_exceptions)
    found = [line for finder in finders for line in finder(ROOT)]
    print("\n".join(found) or "layering: nothing found")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
