"""Options: defaults, OneFlow's dicts, and messages that name the remedy."""

import copy
import dataclasses
import inspect
import pathlib
from typing import Any

import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax.options import (
    ColumnOptions,
    DeviceMemStoreOptions,
    TableOptions,
    as_table_options,
    check_row_width,
)

UNIFORM = oe.make_uniform_initializer(-1.0, 1.0)
ZERO = oe.make_constant_initializer(0.0)
UNIFORM_DICT = {"type": "uniform", "low": -1.0, "high": 1.0}


def test_parameters_are_the_seed_systems():
    signature = inspect.signature(oe.make_device_mem_store_options)
    assert [*signature.parameters] == [
        "persistent_path",
        "capacity",
        "size_factor",
        "storage_dim",
        "physical_block_size",
    ]
    options = oe.make_device_mem_store_options("/tmp/x", 10)
    assert options == DeviceMemStoreOptions(10, "/tmp/x", 1, -1, 4096)
    for make in (oe.make_table_options, oe.make_table):
        assert [*inspect.signature(make).parameters] == ["param"]
    assert [*inspect.signature(oe.make_column_options).parameters] == ["initializer"]


@pytest.mark.parametrize("make", [oe.make_table_options, oe.make_table])
def test_a_table_of_one_initializer(make):
    assert make(UNIFORM) == make(UNIFORM_DICT) == TableOptions(UNIFORM)
    assert make(UNIFORM).column_initializers(3, "t") == (UNIFORM,) * 3


@pytest.mark.parametrize("make", [oe.make_table_options, oe.make_table])
@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_table_of_columns(make, sequence):
    columns = sequence(
        [oe.make_column_options(UNIFORM_DICT), oe.make_column_options(ZERO)]
    )
    options = make(columns)
    assert options == TableOptions(
        columns=(ColumnOptions(UNIFORM), ColumnOptions(ZERO))
    )
    assert options.column_initializers(2, "t") == (UNIFORM, ZERO)
    with pytest.raises(ValueError, match=r"^t: options of 2 column\(s\).*has 3"):
        options.column_initializers(3, "t")


@pytest.mark.parametrize(
    "table",
    [
        {"initializer": UNIFORM_DICT},
        {"columns": [{"initializer": UNIFORM_DICT}, {"initializer": UNIFORM_DICT}]},
        {"columns": ({"initializer": UNIFORM_DICT}, {"initializer": UNIFORM})},
    ],
)
def test_dicts_of_oneflow_are_read_and_left_alone(table):
    before = copy.deepcopy(table)
    options = as_table_options(table, "t")
    assert options.column_initializers(2, "t") == (UNIFORM, UNIFORM)
    assert table == before
    assert as_table_options(options, "t") is options


@pytest.mark.parametrize(
    ("param", "error", "match"),
    [
        ([], ValueError, r"make_table_options\(param=\.\.\.\): the list .* empty"),
        (None, TypeError, r"None is no initializer; make one with"),
        ("uniform", TypeError, r"'uniform' is no initializer"),
        ([UNIFORM], TypeError, r"column uniform.* is not made by make_column_options"),
        ([{"type": "uniform"}], TypeError, r"is not made by make_column_options"),
        ({"type": "xavier"}, ValueError, r"type 'xavier'; use one of"),
    ],
)
def test_bad_tables(param, error, match):
    with pytest.raises(error, match=match):
        oe.make_table_options(param)


@pytest.mark.parametrize(
    "table",
    [UNIFORM, None, {}, {"initializer": UNIFORM, "columns": []}, [UNIFORM]],
)
def test_bad_entries_of_tables(table):
    with pytest.raises(TypeError, match=r"^here: .* is not made by make_table_options"):
        as_table_options(table, "here")


def test_bad_columns():
    number: Any = 0.5
    with pytest.raises(TypeError, match=r"make_column_options\(initializer=\.\.\.\)"):
        oe.make_column_options(number)


def test_options_are_frozen_values():
    options: Any = oe.make_device_mem_store_options(capacity=5)
    for five in (np.int64(5), 5.0):
        number: Any = five
        other = oe.make_device_mem_store_options(capacity=number)
        assert options == other
        assert hash(options) == hash(other)
        assert type(other.capacity) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.capacity = 6


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (None, None),
        ("/a", "/a"),
        (pathlib.Path("/a"), "/a"),
        (["/a", "/b"], ("/a", "/b")),
        (("/a",), ("/a",)),
    ],
)
def test_paths(path, kept):
    assert oe.make_device_mem_store_options(path, 1).persistent_path == kept


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, TypeError, r"capacity=None\): pass the number of rows"),
        ({"capacity": 0}, ValueError, r"capacity=0\).*1 or more"),
        ({"capacity": -5}, ValueError, r"capacity=-5\)"),
        ({"capacity": 0.5}, TypeError, r"capacity=0.5\): pass a whole number"),
        ({"capacity": True}, TypeError, r"capacity=True\): pass a whole number"),
        ({"capacity": "10"}, TypeError, r"capacity='10'\)"),
        ({"capacity": float("nan")}, TypeError, r"capacity=nan\)"),
        ({"capacity": 1, "size_factor": 0}, ValueError, r"size_factor=0\).*leave"),
        ({"capacity": 1, "size_factor": None}, TypeError, r"size_factor=None\)"),
        ({"capacity": 1, "storage_dim": 0}, ValueError, r"storage_dim=0\).*-1"),
        ({"capacity": 1, "storage_dim": -2}, ValueError, r"storage_dim=-2\)"),
        (
            {"capacity": 1, "physical_block_size": 1024},
            ValueError,
            r"physical_block_size=1024\): pass 512 or 4096",
        ),
        ({"capacity": 1, "persistent_path": 3}, TypeError, "path=.*3 is no path"),
        ({"capacity": 1, "persistent_path": ""}, ValueError, "path '' is empty"),
        ({"capacity": 1, "persistent_path": "a\0"}, ValueError, "has a NUL"),
        ({"capacity": 1, "persistent_path": "~/a"}, ValueError, "expanduser"),
        ({"capacity": 1, "persistent_path": []}, ValueError, r"persistent_path=\[\]"),
        ({"capacity": 1, "persistent_path": ["a", None]}, TypeError, "None is no"),
    ],
)
def test_bad_store_options(options, error, match):
    with pytest.raises(error, match=match) as caught:
        oe.make_device_mem_store_options(**options)
    assert str(caught.value).startswith("make_device_mem_store_options(")


# The optimizer, the size_factor that OneFlow documents for it, and storage_dim
# for embedding_dim 5.
WIDTHS = [
    (oe.sgd(0.1), 1, 5),
    (oe.sgd(0.1, momentum=0.9), 2, 10),
    (oe.adagrad(0.1), 2, 10),
    (oe.adam(), 3, 15),
    (oe.adamw(), 3, 15),
    (oe.ftrl(), 3, 15),
    (oe.lamb(), 3, 15),
    (oe.amsgrad(), 4, 20),
]
WITH_ROW_WORDS = [(oe.smart_decay_adam(), 18), (oe.rowwise_adagrad(0.1), 6)]


def width(optimizer, dim=5, **options):
    check_row_width(
        oe.make_device_mem_store_options(capacity=1, **options), dim, optimizer
    )


@pytest.mark.parametrize(("optimizer", "factor", "words"), WIDTHS, ids=repr)
def test_row_width(optimizer, factor, words):
    width(optimizer)
    width(optimizer, size_factor=factor)
    width(optimizer, storage_dim=words)
    width(optimizer, size_factor=factor, storage_dim=words)
    with pytest.raises(
        ValueError,
        match=rf"size_factor=7, but {optimizer.name} with embedding_dim=5 needs "
        rf"size_factor={factor}",
    ):
        width(optimizer, size_factor=7)
    with pytest.raises(ValueError, match=rf"needs storage_dim={words}; leave"):
        width(optimizer, storage_dim=words + 1)


@pytest.mark.parametrize(("optimizer", "words"), WITH_ROW_WORDS, ids=repr)
def test_row_width_with_words_of_a_row(optimizer, words):
    width(optimizer)
    width(optimizer, storage_dim=words)
    with pytest.raises(ValueError, match=rf"needs storage_dim={words}; leave"):
        width(optimizer, storage_dim=words - 1)
    with pytest.raises(ValueError, match=rf"size_factor=3.*pass storage_dim={words}"):
        width(optimizer, size_factor=3)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 16, 17, 128])
def test_width_of_smart_decay_adam_is_oneflows(dim):
    # Three floats a column, aligned to 8 bytes, and a step of 8 bytes.
    words = -(-12 * dim // 8) * 8 // 4 + 2
    width(oe.smart_decay_adam(), dim, storage_dim=words)
