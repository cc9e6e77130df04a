"""The arrows between files, and proof that the checker sees a wrong one."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_layering() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "layering", ROOT / "tools" / "layering.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layering = load_layering()


def plant(root: Path, place: str, text: str) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def test_python_imports_point_down():
    assert layering.python_violations(ROOT) == []


def test_includes_follow_the_arrows():
    assert layering.cpp_violations(ROOT) == []


def test_files_and_functions_are_short():
    assert layering.size_violations(ROOT) == []


def test_exceptions_have_reasons():
    assert layering.stale_exceptions(ROOT) == []


def test_the_project_is_seen():
    assert len(layering.python_files(ROOT)) > 10
    assert len(layering.cpp_files(ROOT)) > 10


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("ids.py", "from oneemb_jax.table import Table"),
        ("ids.py", "from oneemb_jax import optimizers"),
        ("table.py", "def f():\n    import oneemb_jax.embedding"),
        ("options.py", "import oneemb_jax"),
        ("table.py", "import optax"),
        ("unheard_of.py", ""),
    ],
)
def test_wrong_import_is_found(tmp_path: Path, place: str, text: str):
    root = plant(tmp_path, f"oneemb_jax/{place}", text)
    assert len(layering.python_violations(root)) == 1


def test_right_imports_pass(tmp_path: Path):
    text = "import jax.numpy\nimport os\nfrom oneemb_jax import ids, _native_v3\n"
    assert layering.python_violations(plant(tmp_path, "oneemb_jax/_ffi.py", text)) == []


@pytest.mark.parametrize(
    ("place", "include"),
    [
        ("xla_ffi/core/hash.h", '"cpu/lookup.h"'),
        ("xla_ffi/core/hash.h", "<vector>"),
        ("xla_ffi/cpu/lookup.cc", '"xla/ffi/api/ffi.h"'),
        ("xla_ffi/cpu/lookup.cc", "<xla/ffi/api/ffi.h>"),
        ("xla_ffi/cpu/lookup.cc", '"cpu/handlers.h"'),
        ("xla_ffi/cpu/lookup.cc", '"store/store.h"'),
        ("xla_ffi/cpu/lookup_ffi.cc", "<nanobind/nanobind.h>"),
        ("xla_ffi/store/store.cc", '"cpu/lookup.h"'),
        ("cuda/lookup.h", '"cpu/lookup.h"'),
        ("cuda/lookup_ffi.cc", '"cuda/lookup.cu"'),
        ("tests/cpp/hash_test.cc", "<nanobind/nanobind.h>"),
    ],
)
def test_wrong_include_is_found(tmp_path: Path, place: str, include: str):
    root = plant(tmp_path, place, f"#pragma once\n#include {include}\n")
    assert len(layering.cpp_violations(root)) == 1


def test_right_includes_pass(tmp_path: Path):
    lines = '#include "cpu/lookup.h"\n#include "xla/ffi/api/ffi.h"\n#include <vector>\n'
    plant(tmp_path, "xla_ffi/cpu/lookup_ffi.cc", lines + '#include "store/store.h"\n')
    plant(tmp_path, "xla_ffi/module.cc", lines + "#include <nanobind/nanobind.h>\n")
    assert layering.cpp_violations(tmp_path) == []


def test_header_without_guard_is_found(tmp_path: Path):
    root = plant(tmp_path, "xla_ffi/core/hash.h", "")
    assert len(layering.cpp_violations(root)) == 1


def test_long_file_is_found(tmp_path: Path):
    plant(tmp_path, "oneemb_jax/ids.py", "x = 1\n" * 400)
    assert layering.size_violations(tmp_path) == []
    plant(tmp_path, "oneemb_jax/ids.py", "x = 1\n" * 401)
    assert len(layering.size_violations(tmp_path)) == 1


def test_long_function_is_found(tmp_path: Path):
    head = 'def f():\n    """Two\n    lines.\n    """\n    # why\n\n'
    plant(tmp_path, "tools/x.py", head + "    f()\n" * 39)
    assert layering.size_violations(tmp_path) == []
    plant(tmp_path, "tools/x.py", head + "    f()\n" * 40)
    assert len(layering.size_violations(tmp_path)) == 1


def test_exception_for_a_lost_file_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layering, "LONG", {"tools/nowhere.py": "long", "Makefile": ""})
    assert len(layering.stale_exceptions(ROOT)) == 2
