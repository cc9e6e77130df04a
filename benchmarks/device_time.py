"""What a GPU did and when, by JAX's profiler.

Programs are compared by the device's own clock: what the host does before and after a
kernel does not count.
"""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Event:
    """A kernel, a copy or a fill of memory on the device.

    Attributes:
        name: As the profiler has it.
        start: Nanoseconds.
        end: Nanoseconds.
    """

    name: str
    start: float
    end: float


def record(run: Callable[[], Any]) -> list[Event]:
    """What the devices do during a call, which waits for them, in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        events = [
            Event(event.name, event.start_ns, event.start_ns + event.duration_ns)
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if (line.name or "").startswith("Stream")
            for event in line.events
        ]
    return sorted(events, key=lambda event: event.start)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What lies between two marks.

    Attributes:
        events: In order of time; one or more.
    """

    events: tuple[Event, ...]

    @property
    def ms(self) -> float:
        """Milliseconds from the beginning of the first event to the end of the last."""
        return 1e-6 * (max(e.end for e in self.events) - self.events[0].start)

    def shares(self) -> dict[str, float]:
        """Milliseconds by kernel: from the end of what came before to its own.

        They add up to ``ms``, pauses between kernels included.
        """
        shares: dict[str, float] = collections.defaultdict(float)
        before = self.events[0].start
        for event in self.events:
            shares[short_name(event.name)] += 1e-6 * max(0.0, event.end - before)
            before = max(before, event.end)
        return dict(shares)


def short_name(name: str) -> str:
    """The name of a kernel without namespaces, arguments and what it is made for."""
    ours = re.search(r"\w+Kernel", name)
    return ours.group() if ours else name


def turns(events: Iterable[Event], mark: str) -> list[Turn]:
    """What follows each event that has ``mark`` in its name, until the next one."""
    found: list[list[Event]] = []
    for event in events:
        if mark in event.name:
            found.append([])
        elif found:
            found[-1].append(event)
    return [Turn(tuple(between)) for between in found if between]
