"""What the build promises: one version, old FFI headers, three dependencies."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import oneemb_jax

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def check_ffi_headers(include: Path) -> subprocess.CompletedProcess[str]:
    """Runs CMake's check of a folder of headers."""
    local = Path(sys.executable).parent / "cmake"
    cmake = str(local) if local.exists() else shutil.which("cmake")
    assert cmake is not None, "cmake is not installed"
    script = ROOT / "cmake" / "ffi_headers.cmake"
    command = [cmake, f"-DONEEMB_FFI_INCLUDE_DIR={include}", "-P", str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fake_headers(root: Path, major: int, minor: int) -> Path:
    header = root / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        f"#define XLA_FFI_API_MAJOR {major}\n#define XLA_FFI_API_MINOR {minor}\n"
    )
    return root


@pytest.mark.parametrize(("major", "minor"), [(0, 1), (0, 3)])
def test_old_ffi_headers_are_taken(tmp_path: Path, major: int, minor: int):
    done = check_ffi_headers(fake_headers(tmp_path, major, minor))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("major", "minor"), [(0, 4), (0, 12), (1, 0)])
def test_newer_ffi_headers_are_refused(tmp_path: Path, major: int, minor: int):
    done = check_ffi_headers(fake_headers(tmp_path, major, minor))
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"XLA FFI API {major}.{minor}, newer than 0.3" in message
    assert "jaxlib==0.10.*" in message


def test_missing_ffi_headers_are_refused(tmp_path: Path):
    done = check_ffi_headers(tmp_path)
    assert done.returncode != 0
    assert "No XLA FFI headers" in done.stderr


def test_ffi_headers_are_pinned_alike():
    pin = next(r for r in PROJECT["build-system"]["requires"] if "jaxlib" in r)
    assert f'"{pin}"' in (ROOT / "tools" / "build.py").read_text()


def test_version_lives_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", oneemb_jax.__version__)
    assert PROJECT["project"]["dynamic"] == ["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{oneemb_jax.__version__}]" in changelog


def test_import_needs_only_the_declared_dependencies():
    declared = {re.split(r"[<>=]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert declared == {"jax", "jaxlib", "numpy"}
    program = (
        "import sys, oneemb_jax\n"
        "optional = {'optax', 'flax', 'equinox', 'matplotlib', 'tqdm', 'sklearn',"
        " 'polars', 'pandas', 'orbax', 'torch', 'grain'}\n"
        "sys.exit(str(optional & set(sys.modules)) if optional & set(sys.modules)"
        " else 0)\n"
    )
    package_root = Path(oneemb_jax.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=package_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
