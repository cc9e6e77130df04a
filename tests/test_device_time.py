"""What the benchmark on a GPU makes of a profile."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def device_time(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("device_time")


def test_turns_lie_between_marks(device_time):
    us = 1000.0
    events = [
        device_time.Event(name, start * us, end * us)
        for name, start, end in [
            ("before the first mark", 0, 5),
            ("loop_xor_fusion", 5, 9),
            ("void ns::LookupKernel<ns::Float32, 4>(ns::Args)", 10, 30),
            ("void ns::FillKernel<1>(ns::Args)", 28, 33),
            ("MemcpyD2D", 35, 36),
            ("loop_xor_fusion", 40, 44),
            ("loop_xor_fusion", 50, 54),
            ("void ns::LookupKernel<ns::Float32, 4>(ns::Args)", 55, 65),
        ]
    ]
    first, second = device_time.turns(events, "xor")
    assert first.ms == pytest.approx(0.026)
    assert second.ms == pytest.approx(0.010)
    shares = first.shares()
    assert shares == pytest.approx(
        {"LookupKernel": 0.020, "FillKernel": 0.003, "MemcpyD2D": 0.003}
    )
    assert sum(shares.values()) == pytest.approx(first.ms)


def test_a_profile_without_a_gpu_has_no_events(device_time):
    assert device_time.record(lambda: None) == []
