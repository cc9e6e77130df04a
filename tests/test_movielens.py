"""The MovieLens example: what it reads, how it splits, stops and compares."""

import argparse
import json

import movielens
import numpy as np
import pytest

pytestmark = pytest.mark.any_promotion

QUICK = ("--factors", "4", "--batch-size", "64", "--seeds", "2", "--epochs", "60")


def make_ratings(users=60, movies=80, share=0.6, noise=0.2):
    """Ratings with biases, and tastes that biases cannot tell."""
    random = np.random.default_rng(0)
    bias = random.normal(size=users)[:, None] * 0.3 + random.normal(size=movies) * 0.3
    tastes = random.choice([-1.0, 1.0], (2, users, 1))
    kinds = random.choice([-1.0, 1.0], (2, 1, movies))
    stars = 3.0 + bias + (tastes * kinds).sum(axis=0) / 2
    stars += noise * random.normal(size=stars.shape)
    where = np.argwhere(random.random(stars.shape) < share)
    stars = np.clip(np.round(2 * stars[tuple(where.T)]) / 2, 0.5, 5.0)
    ids = where * 2**40 + 7  # beyond 32 bits, and far from 0
    return movielens.Ratings(ids, stars.astype(np.float32))


def write_csv(path, ratings):
    lines = ["userId,movieId,rating,timestamp"]
    for (user, movie), stars in zip(ratings.ids, ratings.stars, strict=True):
        lines.append(f"{user},{movie},{stars},964982703")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_factors_beat_biases(tmp_path, capsys):
    ratings = make_ratings()
    path = write_csv(tmp_path / "ratings.csv", ratings)
    out = tmp_path / "out" / "report.json"
    report = movielens.main([str(path), *QUICK, "--out", str(out)])
    assert json.loads(out.read_text()) == report
    assert report["ratings"] == len(ratings.ids)
    assert report["gain"] == pytest.approx(report["bias_rmse"] - report["rmse"])
    assert report["gain"] > 0.1
    assert report["bias_rmse"] > 0.7 * np.sqrt(0.5)  # the tastes
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    for line, run in zip(printed, [*report["runs"], report], strict=True):
        assert f"RMSE {run['rmse']:.4f}" in line
        assert f"biases alone {run['bias_rmse']:.4f}" in line
    mean = np.mean([run["rmse"] for run in report["runs"]])
    assert report["rmse"] == pytest.approx(mean)
    assert report["runs"][0]["rows"] == 60 + 80


def test_the_same_seed_gives_the_same_numbers():
    options = movielens.make_parser().parse_args(["x", *QUICK, "--epochs", "2"])
    ratings = make_ratings()
    one, two = (movielens.run_seed(options, ratings, 1) for _ in range(2))
    other = movielens.run_seed(options, ratings, 2)
    assert one["rmse"] == two["rmse"] != other["rmse"]


def test_the_splits(monkeypatch):
    seen = []
    monkeypatch.setattr(
        movielens,
        "choose_epochs",
        lambda options, part, valid, seed: seen.append((part, valid)) or 1,
    )
    biases = movielens.bias_predictions

    def spy(train, test, strength):
        seen.append((train, test))
        return biases(train, test, strength)

    monkeypatch.setattr(movielens, "bias_predictions", spy)
    ratings = make_ratings()
    options = movielens.make_parser().parse_args(["x", *QUICK])
    movielens.run_seed(options, ratings, 0)
    *choices, stop, (train, test) = seen
    keys = [{tuple(row) for row in part.ids.tolist()} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert keys[0] | keys[1] == {tuple(row) for row in ratings.ids.tolist()}
    assert len(test.ids) == pytest.approx(0.2 * len(ratings.ids), abs=1)
    # At random: users of the test are those of the training.
    assert set(test.ids[:, 0]) <= set(train.ids[:, 0])
    assert [len(choices), len(stop)] == [4, 2]
    for part, valid in [*choices, stop]:
        known = [{tuple(row) for row in p.ids.tolist()} for p in (part, valid)]
        assert not known[0] & known[1]
        assert known[0] | known[1] == keys[0]


@pytest.mark.parametrize(
    ("errors", "patience", "epochs", "most"),
    [
        ([5, 4, 3, 3.5, 3.4, 1, 0], 2, 3, 5),
        ([5, 4, 3, 3.5, 3.4, 1, 0], 3, 7, 7),
        ([5, 5, 5, 5], 2, 1, 3),
        ([4, 3], 5, 2, 2),
    ],
)
def test_early_stop(monkeypatch, errors, patience, epochs, most):
    trained = []

    class Fake:
        """Its error is the one that the list has for the epoch."""

        def __init__(self, options, train, seed):
            self.emb = movielens.warnings.catch_warnings()  # something to enter

        def train_epoch(self):
            trained.append(1)

        def predict(self, ids):
            return errors[len(trained) - 1]

    monkeypatch.setattr(movielens, "Model", Fake)
    monkeypatch.setattr(movielens, "rmse", lambda predictions, train, test: predictions)
    options = argparse.Namespace(epochs=len(errors), patience=patience)
    ratings = make_ratings()
    assert movielens.choose_epochs(options, ratings, ratings, 0) == epochs
    assert len(trained) == most


def test_biases_are_those_of_least_squares():
    ratings = make_ratings(users=9, movies=7)
    strength, mean = 2.0, ratings.stars.mean(dtype=np.float64)
    users, movies = (np.unique(c, return_inverse=True)[1] for c in ratings.ids.T)
    design = np.concatenate([np.eye(9)[users], np.eye(7)[movies]], axis=1)
    solved = np.linalg.solve(
        design.T @ design + strength * np.eye(16), design.T @ (ratings.stars - mean)
    )
    found = movielens.bias_predictions(ratings, ratings, strength)
    np.testing.assert_allclose(found, mean + design @ solved, atol=1e-3)
    nobody = movielens.Ratings(np.array([[1, 2]]), np.zeros(1, np.float32))
    alone = movielens.bias_predictions(ratings, nobody, strength)
    np.testing.assert_allclose(alone, [mean])


def test_ids_keep_all_their_bits(tmp_path):
    path = tmp_path / "ratings.csv"
    body = "".join(f"3.5,{2**63 - 1 - i},{2**53 + i}\n" for i in range(20))
    path.write_text("\ufeffrating,movieId,userId\n" + body, encoding="utf-8")
    ratings = movielens.read_ratings(path)
    assert ratings.ids[:, 0].tolist() == [2**53 + i for i in range(20)]
    assert ratings.ids[:, 1].tolist() == [2**63 - 1 - i for i in range(20)]
    assert ratings.stars.tolist() == [3.5] * 20


HEADER = "userId,movieId,rating\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "the first line has no userId, movieId, rating"),
        ("movieId,title,genres\n", "the first line has no userId, rating"),
        ("\x00\xff" * 3000, "the first line has no userId"),
        (HEADER, "0 ratings, fewer than 20"),
        (HEADER + "1,2,3\n" * 19, "19 ratings, fewer than 20"),
        (HEADER + "1,2,x\n" * 30, "could not convert string 'x'"),
        (HEADER + "1.5,2,3\n" * 30, "could not convert|via a float"),
        (HEADER + "1,2,3\n1,2\n", "invalid column index"),
        (HEADER + "1,2,nan\n" * 30, "not finite"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "ratings.csv"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(SystemExit, match=message) as stop:
        movielens.main([str(path)])
    assert str(stop.value).startswith("movielens.py: ")


@pytest.mark.parametrize("name", ["--factors", "--batch-size", "--epochs", "--seeds"])
def test_wrong_numbers(capsys, name):
    with pytest.raises(SystemExit):
        movielens.main(["x", name, "0"])
    assert f"{name} must be 1 or more" in capsys.readouterr().err
