"""Every public name is documented: a docstring, an example that runs, a page."""

import inspect
import re
from pathlib import Path

import pytest

import oneemb_jax

API_PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"


def test_all_is_the_public_surface():
    public = {
        name
        for name, value in vars(oneemb_jax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(oneemb_jax.__all__)
    assert len(oneemb_jax.__all__) == len(set(oneemb_jax.__all__))


@pytest.mark.parametrize("name", oneemb_jax.__all__)
def test_docstring_has_an_example(name: str):
    doc = inspect.getdoc(getattr(oneemb_jax, name)) or ""
    assert doc, f"{name} has no docstring"
    assert ">>> " in doc, f"the docstring of {name} has no example"


@pytest.mark.parametrize("name", oneemb_jax.__all__)
def test_public_methods_have_docstrings(name: str):
    value = getattr(oneemb_jax, name)
    if not inspect.isclass(value):
        return
    bare = [
        method
        for method, member in vars(value).items()
        if not method.startswith("_")
        and callable(member)
        and not inspect.getdoc(member)
    ]
    assert bare == []


@pytest.mark.parametrize("name", oneemb_jax.__all__)
def test_name_is_on_the_api_page(name: str):
    page = API_PAGE.read_text()
    assert re.search(rf"\b{re.escape(name)}\b", page), f"docs/api.md lacks {name}"
