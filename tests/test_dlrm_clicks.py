"""The click model: what it promises of its ids, its chances and its stream."""

import dlrm_clicks
import dlrm_report
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

ClickModel = dlrm_clicks.ClickModel
TABLES = dlrm_clicks.NUM_TABLES


def pairs(ids):
    """Pairs of table and id."""
    return {(t, i) for t in range(TABLES) for i in ids[:, t].tolist()}


def test_a_batch_has_criteos_layout():
    batch = ClickModel().batch(10, 500)
    assert batch["label"].dtype == batch["dense"].dtype == np.float32
    assert batch["ids"].dtype == np.int64
    assert batch["ids"].shape == (500, TABLES)
    assert batch["dense"].shape == (500, dlrm_clicks.NUM_DENSE)
    assert set(np.unique(batch["label"])) == {0.0, 1.0}
    assert (batch["dense"] >= 0).all()
    assert (batch["dense"] == np.floor(batch["dense"])).all()
    assert (batch["ids"] >= 0).all()
    assert (batch["ids"] < 2**32).all()


def test_a_sample_depends_on_seed_and_position_alone():
    model = ClickModel(samples=1000, seed=5)
    whole = model.batch(100, 900)
    parts = [model.batch(start, 300) for start in (700, 100, 400)]
    again = ClickModel(samples=1000, seed=5).batch(100, 900)
    other = ClickModel(samples=1000, seed=6).batch(100, 900)
    for key, array in whole.items():
        joined = np.concatenate([parts[i][key] for i in (1, 2, 0)])
        np.testing.assert_array_equal(array, joined)
        np.testing.assert_array_equal(array, again[key])
        assert (array != other[key]).any()


def test_samples_are_independent():
    batch = ClickModel(drift=0.0).batch(0, 50_000)
    columns = np.concatenate(
        [np.log1p(batch["dense"]), np.log1p(batch["ids"]), batch["label"][:, None]],
        axis=1,
    )
    sideways = np.corrcoef(columns[:, :-1].T) - np.eye(columns.shape[1] - 1)
    assert np.abs(sideways).max() < 0.025  # of 741 numbers with a spread of 0.0045
    onwards = [np.corrcoef(c[1:], c[:-1])[0, 1] for c in columns.T]
    assert np.abs(onwards).max() < 0.02


def test_the_logit_is_the_sum_of_its_parts():
    model = ClickModel(samples=1000)
    batch = model.batch(0, 1000)
    dense = (np.log1p(batch["dense"].astype(float)) - 1.65) @ model.dense_weights
    effects = np.zeros(1000)
    for i, row in enumerate(batch["ids"]):
        effects[i] = sum(
            model.id_effects(np.full((1, TABLES), x))[0, t] for t, x in enumerate(row)
        )
    chance = 1 / (1 + np.exp(-(model.bias + dense + effects)))
    np.testing.assert_allclose(batch["probability"], chance, rtol=1e-9)
    np.testing.assert_allclose(batch["dense_logit"], dense, rtol=1e-6, atol=1e-9)


def test_clicks_come_with_their_probability():
    batch = ClickModel(samples=200_000).batch(0, 200_000)
    edges = np.linspace(0, 1, 11)
    bins = np.digitize(batch["probability"], edges[1:-1])
    for i in range(10):
        chance, label = batch["probability"][bins == i], batch["label"][bins == i]
        spread = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
        assert abs(label.mean() - chance.mean()) < 4 * spread


def test_the_best_auc_by_brute_force():
    # Over all pairs of chances: which of the two was clicked, if one was.
    chance = ClickModel().batch(0, 4000)["probability"]
    won = chance[:, None] * (1 - chance[None, :])
    right = (chance[:, None] > chance[None, :]) + 0.5 * (
        chance[:, None] == chance[None, :]
    )
    np.fill_diagonal(won, 0.0)
    expected = (won * right).sum() / won.sum()
    batch = ClickModel().batch(4000, 100_000)
    found = roc_auc_score(batch["label"], batch["probability"])
    assert found == pytest.approx(expected, abs=0.01)
    # No other order is better: neither one part alone, nor a blend.
    odds = np.log(batch["probability"] / (1 - batch["probability"]))
    for other in (batch["dense_logit"], odds - 0.5 * batch["dense_logit"]):
        assert roc_auc_score(batch["label"], other) < found - 0.001


@pytest.mark.parametrize("seed", range(3))
def test_dense_features_alone_are_not_enough(seed):
    batch = ClickModel(seed=seed).batch(1_500_000, 50_000)
    best = roc_auc_score(batch["label"], batch["probability"])
    dense = roc_auc_score(batch["label"], batch["dense_logit"])
    assert dlrm_report.share_of_margin(dense, best) <= 0.5
    assert best > 0.8


def test_popularity_follows_zipf():
    model = ClickModel(smallest=1000, largest=1000, drift=0.0)
    ids = model.batch(0, 100_000)["ids"]
    power = 1 - model.zipf
    ranks = np.arange(1, 1002, dtype=float) ** power
    shares = (ranks[:-1] - ranks[1:]) / (ranks[0] - ranks[-1])
    counts = np.sort(np.unique(ids[:, 0], return_counts=True)[1])[::-1]
    np.testing.assert_allclose(counts[:5] / len(ids), shares[:5], rtol=0.05)
    assert len(counts) <= 1000


def test_table_sizes_are_honoured():
    model = ClickModel(smallest=3, largest=200, drift=0.0)
    assert sorted(model.table_sizes)[0] == 3
    assert sorted(model.table_sizes)[-1] in (199, 200)
    ids = model.batch(0, 50_000)["ids"]
    found = np.array([len(np.unique(column)) for column in ids.T])
    assert (found <= model.table_sizes).all()
    small = model.table_sizes < 50
    assert (found[small] == model.table_sizes[small]).all()


def test_drift_brings_ids_that_are_new():
    world = {"samples": 60_000, "smallest": 40, "largest": 40}
    still, moving = ClickModel(drift=0.0, **world), ClickModel(drift=0.3, **world)
    first = pairs(still.batch(0, 30_000)["ids"])
    assert pairs(still.batch(60_000, 30_000)["ids"]) <= first
    start = pairs(moving.batch(0, 100)["ids"])
    end = pairs(moving.batch(60_000, 30_000)["ids"])
    assert start <= first  # at the beginning nothing has moved, but for 1 in 2000
    new = len(end - first)
    # 26 * 40 ranks, each taken over with a chance of 0.3 before the end, and of
    # 0.15 during what follows.
    assert new == pytest.approx(26 * 40 * 0.45, abs=90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"smallest": 9, "largest": 8}, "smallest=9, largest=8"),
        ({"smallest": 0}, "smallest=0"),
        ({"zipf": 1.0}, "zipf=1.0"),
    ],
)
def test_impossible_worlds(options, message):
    with pytest.raises(ValueError, match=message):
        ClickModel(**options)
