"""What README and docs/ show is run as printed, and what they point to exists."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("oneemb_jax", "xla_ffi", "cuda", "tests", "examples", "benchmarks", "tools")
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def python_blocks(text: str) -> list[str]:
    """Blocks of plain Python; those that are doctests run as such."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if ">>> " not in block]


@pytest.mark.any_promotion
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_run_in_order(page: Path, capsys):
    names: dict[str, Any] = {}
    try:
        for number, block in enumerate(python_blocks(page.read_text())):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    finally:
        for value in list(names.values()):
            if hasattr(value, "close") and hasattr(value, "spec"):
                value.close()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    gone = [link for link in links if not (page.parent / link).exists()]
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_exist(page: Path):
    files = [str(file) for folder in FOLDERS for file in (ROOT / folder).rglob("*.*")]
    names = re.findall(r"`([\w/]+\.(?:py|cc|cu|cuh|h))`", page.read_text())
    gone = [name for name in names if not any(f.endswith(f"/{name}") for f in files)]
    assert gone == []


def test_the_readme_example_trains():
    (block,) = python_blocks((ROOT / "README.md").read_text())[:1]
    names: dict[str, Any] = {}
    exec(block, names)
    table = names["table"]
    assert "5 rows of 100000" in block
    assert "rows      5 of 100000" in repr(table)
    names["emb"].close()
