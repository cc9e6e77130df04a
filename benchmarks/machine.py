"""The machine a run was made on, and how much others used it meanwhile."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
import time

_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "torch", "fbgemm-gpu-cpu")
_TICKS = os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The first `name : value` line of a /proc file."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _first_line(*command: str) -> str:
    """The first line that a command prints; empty when it cannot run."""
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder
        )
    except OSError:
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    commit = _first_line("git", "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "-uno")
    return f"{commit} with local changes" if commit and changed else commit


def pin(threads: int) -> None:
    """Keeps this process, and every pool it starts later, on some processors.

    Call it before a library that makes a thread pool is imported.

    Args:
        threads: Number of processors, taken from those that are allowed.
    """
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])


def keep_freed_memory() -> None:
    """Lets malloc keep freed memory, for every system of this process alike."""
    import oneemb_jax

    oneemb_jax.keep_freed_memory()


def old_build(package: pathlib.Path, checkout: pathlib.Path) -> str:
    """Says so if a package was built before its sources changed; else nothing.

    What is installed beside a checkout is easily taken for it: then a change is
    measured that is not there.
    """
    built = min(file.stat().st_mtime for file in package.glob("_native*.so"))
    sources = [*(checkout / "xla_ffi").glob("**/*.[ch]*")]
    if package != checkout / "oneemb_jax":
        sources += (checkout / "oneemb_jax").glob("*.py")
    for source in sources:
        if source.stat().st_mtime > built:
            return (
                f"{package} was built before {source} changed. Install it again, or"
                f" build it in place and set PYTHONPATH={checkout}."
            )
    return ""


def _check_build() -> None:
    import oneemb_jax

    package = pathlib.Path(oneemb_jax.__file__).resolve().parent
    checkout = pathlib.Path(__file__).resolve().parents[1]
    if complaint := old_build(package, checkout):
        sys.exit(complaint)


def card() -> dict[str, str]:
    """What a reader needs to know to compare numbers.

    Ends the program where it would measure an older build than this checkout's.
    """
    _check_build()
    cpu = _read("/proc/cpuinfo")
    memory = _field(_read("/proc/meminfo"), "MemTotal").split()
    cache = "/sys/devices/system/cpu/cpu0/cache/index3/size"
    versions = {package: _version(package) for package in _PACKAGES}
    answer = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _field(cpu, "model name") or platform.processor(),
        "processors used": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "L3 cache": _read(cache),
        "memory": f"{int(memory[0]) / 2**20:.0f} GiB" if memory else "",
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "virtual machine": "yes" if "hypervisor" in cpu.split() else "no",
        "kernel": platform.release(),
        "C library": " ".join(platform.libc_ver()),
        "compiler": _first_line("g++", "--version"),
        "python": platform.python_version(),
        "oneemb_jax": _version("oneemb-jax") or "from the source tree",
        "commit": _commit(),
        "load at start": f"{os.getloadavg()[0]:.2f}",
        "command": shlex.join(["python", *sys.argv]),
    }
    answer.update({name: version for name, version in versions.items() if version})
    return {name: value for name, value in answer.items() if value}


def _jiffies() -> tuple[float, float]:
    """Seconds that our processors were busy, and that were stolen from them."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = steal = 0
    for line in _read("/proc/stat").splitlines():
        name, *fields = line.split()
        if name in ours and len(fields) >= 8:
            user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            steal += stolen
    return busy / _TICKS, steal / _TICKS


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def page_faults() -> int:
    """Pages that this process has touched for the first time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Guard:
    """Measures what other processes and the host took since it was made."""

    # The kernel counts in ticks of 10 ms, so two of them prove nothing.
    _TOLERANCE = 0.02

    def __init__(self) -> None:
        self._start = time.perf_counter(), *_jiffies(), _own_seconds()

    def share(self) -> float:
        """The part of our processors that others had, from 0 to about 1."""
        wall, busy, steal, own = self._start
        now_busy, now_steal = _jiffies()
        others = (now_busy - busy) - (_own_seconds() - own) + (now_steal - steal)
        elapsed = (time.perf_counter() - wall) * len(os.sched_getaffinity(0))
        return max(0.0, others - self._TOLERANCE) / elapsed
