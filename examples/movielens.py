"""Matrix factorisation of MovieLens ratings: users and movies as two tables.

    python examples/movielens.py ml-latest-small/ratings.csv

A row is a user's or a movie's factors and, in a column of its own, a bias. One
rating in five is held out at random. Part of the others says when to stop; then
the model is trained anew on all of them for as long. Printed beside its error is
that of the best model without factors: a mean, and a bias for each user and movie.
The ratings are at https://grouplens.org/datasets/movielens/.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

import oneemb_jax as oe

COLUMNS = ("userId", "movieId", "rating")
#: Strengths of the regularisation that the model without factors chooses from.
BIAS_STRENGTHS = (1.0, 2.0, 5.0, 10.0)
BIAS_SWEEPS = 20
#: With fewer ratings nothing is left to train on or to test.
FEWEST = 20


class Ratings(NamedTuple):
    """Who rated what, and how."""

    ids: np.ndarray  # i64[n, 2]: user, movie
    stars: np.ndarray  # f32[n]

    def take(self, index: np.ndarray) -> "Ratings":
        """The ratings at i64[m]."""
        return Ratings(self.ids[index], self.stars[index])


def read_ratings(path: Path) -> Ratings:
    """Reads a ratings.csv with a header line.

    Raises:
        ValueError: If columns are missing, a line has no numbers, or there are
            too few lines to hold any out.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline(1000).strip().split(",")
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(f"{path}: the first line has no {', '.join(missing)}")
        try:
            values = _load_columns(file, [header.index(name) for name in COLUMNS])
        except (ValueError, DeprecationWarning) as error:
            raise ValueError(f"{path}: {error}") from error
    if len(values) < FEWEST:
        raise ValueError(f"{path}: {len(values)} ratings, fewer than {FEWEST}")
    if not np.isfinite(values["rating"]).all():
        raise ValueError(f"{path}: there are ratings that are not finite")
    ids = np.stack([values["userId"], values["movieId"]], axis=1)
    return Ratings(ids, values["rating"])


def _load_columns(file: TextIO, columns: Sequence[int]) -> np.ndarray:
    """The lines of a CSV, with the fields `COLUMNS`; ids keep all their 64 bits."""
    dtype = np.dtype([*zip(COLUMNS, ("i8", "i8", "f4"), strict=True)])
    with warnings.catch_warnings():
        # An id with a decimal point is an error, a file without lines is none here.
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return np.loadtxt(
            file, dtype, comments=None, delimiter=",", usecols=columns, ndmin=1
        )


def bias_predictions(train: Ratings, test: Ratings, strength: float) -> np.ndarray:
    """Predicts f64[n] by the mean, a bias a user and a bias a movie.

    Args:
        train: Ratings to learn from.
        test: Whose ids to predict for; unseen ones have bias 0.
        strength: Ratings at the mean that each user and movie is given beforehand.
    """
    both = np.concatenate([train.ids, test.ids])
    keys = np.stack([np.unique(c, return_inverse=True)[1] for c in both.T], axis=1)
    known, asked = keys[: len(train.ids)], keys[len(train.ids) :]
    mean = train.stars.mean(dtype=np.float64)
    sizes = keys.max(axis=0) + 1
    bias = [np.zeros(size) for size in sizes]
    for _ in range(BIAS_SWEEPS):
        for this, other in ((1, 0), (0, 1)):
            rest = train.stars - mean - bias[other][known[:, other]]
            sums = np.bincount(known[:, this], rest, minlength=sizes[this])
            counts = np.bincount(known[:, this], minlength=sizes[this])
            bias[this] = sums / (counts + strength)
    return mean + bias[0][asked[:, 0]] + bias[1][asked[:, 1]]


def rmse(predictions: np.ndarray, train: Ratings, test: Ratings) -> float:
    """Error of predictions, cut to the stars that occur."""
    cut = np.clip(predictions, train.stars.min(), train.stars.max())
    return float(np.sqrt(np.mean((cut - test.stars) ** 2, dtype=np.float64)))


class Model:
    """The factorisation; `options` are those of the command line."""

    def __init__(self, options: argparse.Namespace, train: Ratings, seed: int) -> None:
        self._options = options
        self._train = train
        self._mean = float(train.stars.mean())
        self._random = np.random.default_rng([seed, 1])
        scale = options.initial_scale
        columns = [
            oe.make_column_options(oe.make_uniform_initializer(-scale, scale)),
            oe.make_column_options(oe.make_constant_initializer(0.0)),
        ]
        distinct = sum(len(np.unique(column)) for column in train.ids.T)
        self.emb = oe.MultiTableMultiColumnEmbedding(
            name="movielens",
            embedding_dim=[options.factors, 1],
            dtype=np.float32,
            key_type=np.int64,
            tables=[oe.make_table_options(columns)] * 2,  # users, movies
            store_options=oe.make_device_mem_store_options(capacity=distinct),
            optimizer=oe.adagrad(options.learning_rate),
            seed=seed,
        )
        self.table = self.emb.init()
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._read = jax.jit(self._predict)

    def train_epoch(self) -> None:
        """Goes once through the ratings, in a new order.

        The last ones, too few for a batch, are left out: others each time.
        """
        order = self._random.permutation(len(self._train.ids))
        size = min(self._options.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            batch = self._train.take(order[start : start + size])
            ids = oe.pack_ids(batch.ids)
            self.table = self._step(self.table, ids, batch.stars)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Stars f32[n] for i64[n, 2]; unseen users and movies have no bias."""
        return np.asarray(self._read(self.table, oe.pack_ids(ids)))

    def _forward(self, acts: jax.Array) -> jax.Array:
        factors, bias = self.emb.split(acts)  # f32[n, 2, factors], f32[n, 2, 1]
        dots = (factors[:, 0] * factors[:, 1]).sum(axis=1)
        return self._mean + bias.sum(axis=(1, 2)) + dots

    def _loss(self, acts: jax.Array, stars: jax.Array) -> jax.Array:
        factors, bias = self.emb.split(acts)
        penalty = self._options.l2 * jnp.sum(factors**2)
        penalty += self._options.l2_bias * jnp.sum(bias**2)
        errors = jnp.sum((self._forward(acts) - stars) ** 2)
        return (errors + penalty) / stars.size

    def _predict(self, table: oe.Table, ids: jax.Array) -> jax.Array:
        return self._forward(oe.lookup(table, ids)[0])

    def _train_step(
        self, table: oe.Table, ids: jax.Array, stars: jax.Array
    ) -> oe.Table:
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, jax.grad(self._loss)(acts, stars))


def choose_epochs(
    options: argparse.Namespace, train: Ratings, valid: Ratings, seed: int
) -> int:
    """Epochs after which the error on `valid` is least."""
    best, best_epoch = float("inf"), 0
    model = Model(options, train, seed)
    with model.emb:
        for epoch in range(1, options.epochs + 1):
            model.train_epoch()
            error = rmse(model.predict(valid.ids), train, valid)
            if error < best:
                best, best_epoch = error, epoch
            elif epoch - best_epoch >= options.patience:
                break
    return best_epoch


def run_seed(
    options: argparse.Namespace, ratings: Ratings, seed: int
) -> dict[str, Any]:
    """Splits, trains and tests both models."""
    start = time.monotonic()
    order = np.random.default_rng(seed).permutation(len(ratings.ids))
    train, test = map(ratings.take, np.split(order, [int(0.8 * len(order))]))
    index = np.arange(len(train.ids))  # in random order already
    part, valid = map(train.take, np.split(index, [int(0.9 * len(index))]))
    strength = min(
        BIAS_STRENGTHS,
        key=lambda s: rmse(bias_predictions(part, valid, s), part, valid),
    )
    epochs = choose_epochs(options, part, valid, seed)
    model = Model(options, train, seed)
    with model.emb:
        for _ in range(epochs):
            model.train_epoch()
        predictions = model.predict(test.ids)
        oe.check(model.table)
    return {
        "seed": seed,
        "epochs": epochs,
        "rows": oe.size(model.table),
        "bias_strength": strength,
        "bias_rmse": rmse(bias_predictions(train, test, strength), train, test),
        "rmse": rmse(predictions, train, test),
        "seconds": time.monotonic() - start,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all seeds, prints each, and returns the report."""
    ratings = read_ratings(options.path)
    runs = []
    for seed in range(options.seeds):
        runs.append(run_seed(options, ratings, seed))
        print(
            "seed {seed}: RMSE {rmse:.4f} after {epochs} epochs, biases alone "
            "{bias_rmse:.4f}".format(**runs[-1])
        )
    report = {
        "ratings": len(ratings.ids),
        "runs": runs,
        "rmse": float(np.mean([one["rmse"] for one in runs])),
        "bias_rmse": float(np.mean([one["bias_rmse"] for one in runs])),
    }
    report["gain"] = report["bias_rmse"] - report["rmse"]
    print(
        "mean:   RMSE {rmse:.4f}, biases alone {bias_rmse:.4f}, better by "
        "{gain:.4f}".format(**report)
    )
    return report


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, help="ratings.csv")
    add("--factors", type=int, default=16, help="(%(default)s)")
    add("--batch-size", type=int, default=1024, help="(%(default)s)")
    add("--learning-rate", type=float, default=0.05, help="(%(default)s)")
    add("--l2", type=float, default=0.1, help="on factors, a rating (%(default)s)")
    add("--l2-bias", type=float, default=0.005, help="on biases (%(default)s)")
    add("--initial-scale", type=float, default=0.03, help="of factors (%(default)s)")
    add("--epochs", type=int, default=80, help="at most (%(default)s)")
    add("--patience", type=int, default=5, help="epochs without gain (%(default)s)")
    add("--seeds", type=int, default=3, help="runs, each with its own split")
    add("--out", type=Path, help="file for a JSON report")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the program."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in ("factors", "batch_size", "epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    try:
        report = run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"movielens.py: {error}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
