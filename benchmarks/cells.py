"""What is measured: cells of the grid and the batches that each cell reads."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import numpy as np

PHASES = ("lookup", "update", "step")
DISTRIBUTIONS = ("uniform", "zipf")
# Optimizer state fields as wide as the embedding.
STATE_FIELDS = {"sgd": 0, "adagrad": 1, "adam": 2}
OPTIMIZERS = tuple(STATE_FIELDS)
IDS = (65_536, 425_984, 1_703_936)
DIMS = (16, 64, 128)
ZIPF_EXPONENT = 1.05

LEARNING_RATE = 0.05
# Small, so that every library's place for it gives the same step.
EPS = 1e-10
BETA1 = 0.9
BETA2 = 0.999
# Adagrad's. Not zero: a first step would divide by the gradient alone.
INITIAL_ACCUMULATOR = 0.1

_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: a table, a batch size, ids and an optimizer."""

    rows: int
    ids: int
    dim: int
    dist: str
    optimizer: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row with its optimizer state."""
        return 4 * self.dim * (1 + STATE_FIELDS[self.optimizer])

    @property
    def key(self) -> str:
        """The cell as `--cell` and the result file write it."""
        return f"{self.rows},{self.ids},{self.dim},{self.dist},{self.optimizer}"

    def bytes_moved(self, unique: float) -> dict[str, float]:
        """Bytes that each phase has to move at least.

        Args:
            unique: Different ids in a batch.

        Returns:
            Bytes read and written by phase: each id's row copied out; each
            gradient read once, and each different row read and written once.
        """
        activations = 4.0 * self.ids * self.dim
        update = activations + 2 * unique * self.row_bytes
        return {
            "lookup": 2 * activations,
            "update": update,
            "step": 2 * activations + update,
        }


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a cell; call k takes batch k modulo their number."""

    ids: tuple[np.ndarray, ...]  # each i64[n], in [0, rows)
    grads: np.ndarray  # f32[n, dim], the same for every batch
    unique: tuple[np.ndarray, ...]  # each i32[u], ascending

    def pick(self, k: int) -> int:
        """The batch that call `k` takes."""
        return k % len(self.ids)


def grid(
    rows: int,
    ids: Iterable[int],
    dims: Iterable[int],
    dists: Iterable[str],
    optimizers: Iterable[str],
) -> list[Cell]:
    """All cells, small batches first."""
    return [
        Cell(rows, n, dim, dist, optimizer)
        for n, dim, dist, optimizer in itertools.product(ids, dims, dists, optimizers)
    ]


def parse(text: str, rows: int) -> Cell:
    """Reads a cell written as `ids,dim,dist,optimizer`.

    Args:
        text: For example `65536,64,zipf,sgd`; rows may stand before it.
        rows: Rows of the table when the text does not give them.

    Returns:
        The cell.

    Raises:
        ValueError: When the text does not name a cell.
    """
    words = text.split(",")
    if len(words) == 4:
        words.insert(0, str(rows))
    expected = "[rows,]ids,dim,uniform|zipf,sgd|adagrad|adam"
    if (
        len(words) != 5
        or not all(word.isdecimal() and int(word) > 0 for word in words[:3])
        or words[3] not in DISTRIBUTIONS
        or words[4] not in OPTIMIZERS
    ):
        raise ValueError(f"--cell {text}: expected {expected}")
    return Cell(int(words[0]), int(words[1]), int(words[2]), words[3], words[4])


@functools.lru_cache(maxsize=1)
def _zipf(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative probabilities by rank, and the row that has each rank.

    The popular rows are scattered over the table, as hashed ids are.
    """
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(weights)
    ranks = np.random.default_rng(7).permutation(rows)
    return cumulative / cumulative[-1], ranks


def draw_ids(
    rows: int, n: int, dist: str, rng: np.random.Generator
) -> np.ndarray:  # i64[n]
    """Draws a batch of ids in [0, rows)."""
    if dist == "uniform":
        return rng.integers(0, rows, n)
    cumulative, ranks = _zipf(rows)
    return ranks[np.searchsorted(cumulative, rng.random(n))]


def aligned(n: int, dim: int) -> np.ndarray:
    """An f32[n, dim] that every framework can use without copying it."""
    raw = np.empty(4 * n * dim + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + 4 * n * dim].view(np.float32).reshape(n, dim)


def make_batches(cell: Cell, count: int | None = None) -> Batches:
    """Draws the batches of a cell; the same ones for the same cell.

    Args:
        cell: The cell.
        count: Number of batches; by default enough that a batch has left the
            caches before it comes again.

    Returns:
        The batches.
    """
    if count is None:
        count = 8 if cell.ids <= 100_000 else 4 if cell.ids <= 500_000 else 3
    rng = np.random.default_rng(cell.ids)
    ids = tuple(
        np.ascontiguousarray(draw_ids(cell.rows, cell.ids, cell.dist, rng))
        for _ in range(count)
    )
    grads = aligned(cell.ids, cell.dim)
    # A repeated stretch of an odd length: quick to make, and no two rows of a
    # batch that are close together have the same gradient.
    period = rng.uniform(0.1, 1, 999_983).astype(np.float32)
    period *= rng.choice(np.array([-1, 1], np.float32), period.size)
    flat = grads.reshape(-1)
    for start in range(0, flat.size, period.size):
        stretch = flat[start : start + period.size]
        stretch[:] = period[: stretch.size]
    unique = tuple(np.unique(batch).astype(np.int32) for batch in ids)
    return Batches(ids, grads, unique)
