"""Clicks from a known logistic model, in Criteo's layout.

Nothing is stored: what a sample holds, the id behind a rank and the effect of an
id are all hashes, so a sample is a pure function of the seed and its position in
the stream. The true probability of every click is known, and with it the best AUC
that any model can reach.
"""

import dataclasses
import functools
import math

import numpy as np

NUM_DENSE = 13
NUM_TABLES = 26

# Odd constants that keep the uses of the hash apart.
_DRAW_SALT = 0x27D4EB2F165667C5
_RANK_SALT = 0x9E3779B97F4A7C15
_PHASE_SALT = 0xC2B2AE3D27D4EB4F
_EFFECT_SALT = 0x165667B19E3779F9


@dataclasses.dataclass(frozen=True)
class ClickModel:
    """A stream of clicks whose probabilities are known.

    Ids of a table follow a Zipf law over its ranks, and over the stream a share
    `drift` of the ranks is taken over by an id that was never seen before. The
    logit of a click is a sum: a bias, a weight per dense feature, and one effect
    per id, drawn once and for all by the hash of (table, id).

    Attributes:
        samples: Length of the stream. Later positions are held out: they look
            as the stream does at its end.
        seed: Draws the whole world; the same seed gives the same clicks.
        smallest: Ranks of the smallest table.
        largest: Ranks of the largest table; sizes in between are geometric.
        zipf: Exponent of the law; larger means that few ids take most clicks.
        drift: Expected number of takeovers of a rank over the stream.
        dense_scale: Standard deviation of the logit's dense part.
        id_scale: Standard deviation of the sum of the 26 effects.
        bias: Logit of an average sample.
    """

    samples: int = 1_500_000
    seed: int = 0
    smallest: int = 50
    largest: int = 1_000_000
    zipf: float = 1.45
    drift: float = 0.12
    dense_scale: float = 0.9
    id_scale: float = 2.0
    bias: float = -1.2

    def __post_init__(self) -> None:
        """Refuses worlds that cannot be drawn."""
        if self.samples < 1:
            raise ValueError(f"ClickModel(samples={self.samples}): must be positive")
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(
                f"ClickModel(smallest={self.smallest}, largest={self.largest}): "
                "expected 1 <= smallest <= largest"
            )
        if self.zipf <= 1.0:
            raise ValueError(f"ClickModel(zipf={self.zipf}): must be more than 1")

    @functools.cached_property
    def table_sizes(self) -> np.ndarray:
        """Ranks of each table, int64[26], in a shuffled order."""
        sizes = np.geomspace(self.smallest, self.largest, NUM_TABLES)
        return np.random.default_rng([self.seed, 1]).permutation(sizes).astype(np.int64)

    @functools.cached_property
    def dense_weights(self) -> np.ndarray:
        """Weight of each transformed dense feature, float64[13]."""
        weights = np.random.default_rng([self.seed, 2]).normal(size=NUM_DENSE)
        return weights * (self.dense_scale / np.linalg.norm(weights))

    def batch(self, start: int, size: int) -> dict[str, np.ndarray]:
        """Draws the samples at positions `start` to `start + size - 1`.

        Args:
            start: Position of the first sample; from `samples` on, held out.
                A sample is the same in whichever batch it comes.
            size: Number of samples.

        Returns:
            label f32[size], dense f32[size, 13] (raw counts), ids i64[size, 26],
            and what no model may see: probability f64[size], the true chance of
            a click, and dense_logit f64[size], the dense part of its logit.
        """
        positions = np.arange(start, start + size, dtype=np.uint64)[:, None]
        columns = np.arange(1 + NUM_DENSE + NUM_TABLES, dtype=np.uint64)
        words = _hash(positions, columns, _DRAW_SALT, self.seed)
        chance, counts, ranks = np.split(words, [1, 1 + NUM_DENSE], axis=1)
        dense = np.floor(np.exp(1.5 + _normal(counts)))
        dense_logit = self._dense_logit(dense)
        ids = self._ids(_uniform(ranks), positions / self.samples)
        logit = self.bias + dense_logit + self.id_effects(ids).sum(axis=1)
        probability = 1.0 / (1.0 + np.exp(-logit))
        return {
            "label": (_uniform(chance[:, 0]) < probability).astype(np.float32),
            "dense": dense.astype(np.float32),
            "ids": ids,
            "probability": probability,
            "dense_logit": dense_logit,
        }

    def id_effects(self, ids: np.ndarray) -> np.ndarray:
        """Effects of ids i64[n, 26] on the logit, f64[n, 26]."""
        tables = np.arange(NUM_TABLES, dtype=np.uint64)
        words = _hash(ids.astype(np.uint64), tables, _EFFECT_SALT, self.seed)
        return _normal(words) * (self.id_scale / math.sqrt(NUM_TABLES))

    def _dense_logit(self, dense: np.ndarray) -> np.ndarray:
        # Centred where the features lie; log(1 + x) has a spread of about one.
        return (np.log1p(dense) - 1.65) @ self.dense_weights

    def _ids(self, uniform: np.ndarray, progress: np.ndarray) -> np.ndarray:
        """Ids i64[n, 26], by Zipf rank and takeover.

        Args:
            uniform: Draws the ranks, f64[n, 26].
            progress: How far in the stream a sample is, f64[n, 1]; 1 at its end.
        """
        power = 1.0 - self.zipf
        sizes = self.table_sizes.astype(np.float64)
        span = np.power(sizes + 1.0, power) - 1.0
        ranks = np.power(1.0 + uniform * span, 1.0 / power).astype(np.uint64)
        tables = np.arange(NUM_TABLES, dtype=np.uint64)
        phase = _hash(ranks, tables, _PHASE_SALT, self.seed) / 2.0**64
        takeover = (phase + self.drift * progress).astype(np.uint64)
        words = _hash(ranks | takeover << np.uint64(40), tables, _RANK_SALT, self.seed)
        return (words >> np.uint64(32)).astype(np.int64)


def _uniform(words: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), f64, from hashes u64."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normal(words: np.ndarray) -> np.ndarray:
    """Numbers f64 of mean 0 and variance 1 from hashes u64.

    The sum of four uniform numbers is close enough to a normal one.
    """
    parts = words[..., None] >> np.array([0, 16, 32, 48], np.uint64)
    uniform = ((parts & np.uint64(0xFFFF)).astype(np.float64) + 0.5) / 65536.0
    return (uniform.sum(axis=-1) - 2.0) * math.sqrt(3.0)


def _hash(keys: np.ndarray, columns: np.ndarray, salt: int, seed: int) -> np.ndarray:
    """Mixes keys u64[n, 1 or m] with columns u64[m] to u64[n, m] (splitmix64)."""
    mask = 2**64 - 1
    offset = columns * np.uint64(0xD1B54A32D192ED03) + np.uint64(
        (salt + seed * 0x8CB92BA72F3D8DD7) & mask
    )
    words = (keys + offset) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
