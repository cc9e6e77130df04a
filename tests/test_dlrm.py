"""The DLRM example: its model, its metrics, its loop and its command line."""

import gzip
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import dlrm
import dlrm_clicks
import dlrm_model
import dlrm_options
import dlrm_report
import dlrm_train
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

import oneemb_jax as oe

pytestmark = pytest.mark.any_promotion


def parse(*words):
    return dlrm_options.parse("", ["--synthetic", *words])


ROOT = Path(__file__).resolve().parent.parent
#: What `make demo` runs.
DEMO = re.findall(r"^demo := (.*)", (ROOT / "Makefile").read_text(), re.M)[0].split()
SMALL = ("--embedding-dim", "4", "--bottom", "8", "--top", "8", "--eval-every", "7")


def test_forward_is_the_papers_formula():
    random = np.random.default_rng(0)
    params = dlrm_model.init_params(jax.random.key(1), 3, 4, 5, [7, 6], [8])
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape), params)
    acts = random.normal(size=(9, 4, 5)).astype(np.float32)
    dense = random.integers(-2, 50, size=(9, 3)).astype(np.float32)

    def mlp(layers, x, last):
        for i, layer in enumerate(layers):
            x = x @ np.asarray(layer["weight"]) + np.asarray(layer["bias"])
            x = np.maximum(x, 0) if last or i + 1 < len(layers) else x
        return x

    expected = []
    for i in range(9):
        vector = mlp(params["bottom"], np.log1p(np.maximum(dense[i], 0)), True)
        points = [vector, *acts[i]]
        dots = [points[a] @ points[b] for a in range(5) for b in range(a)]
        expected.append(mlp(params["top"], np.concatenate([vector, dots]), False)[0])
    activations, features = jnp.asarray(acts), jnp.asarray(dense)
    logits = dlrm_model.forward(params, activations, features)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)

    label = (random.random(9) < 0.5).astype(np.float32)
    batch = {"dense": features, "label": jnp.asarray(label)}
    loss, same = dlrm_model.loss_and_logits(params, activations, batch)
    np.testing.assert_array_equal(same, logits)
    chance = 1 / (1 + np.exp(-np.array(expected)))
    assert float(loss) == pytest.approx(log_loss(label, chance), rel=1e-4)


def test_the_loss_of_large_logits():
    batch = {"dense": jnp.zeros((2, 1)), "label": jnp.array([0.0, 1.0])}
    params = dlrm_model.init_params(jax.random.key(0), 1, 1, 1, [], [])
    params["top"][-1]["bias"] += 1000.0
    loss, _ = dlrm_model.loss_and_logits(params, jnp.zeros((2, 1, 1)), batch)
    assert float(loss) == pytest.approx(500.0)


@given(
    seed=st.integers(0, 2**32),
    samples=st.integers(2, 3000),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    places=st.integers(0, 8),
)
def test_metrics_are_scikit_learns(seed, samples, scale, places):
    random = np.random.default_rng(seed)
    logits = np.round(scale * random.normal(size=samples), places)
    chance = 1 / (1 + np.exp(-logits))
    labels = (random.random(samples) < chance).astype(np.float32)
    labels[:2] = 0, 1
    metrics = dlrm_report.Metrics()
    for part in np.array_split(np.arange(samples), 3):
        metrics.add(labels[part], logits[part])
    assert metrics.samples == samples
    assert metrics.loss == pytest.approx(log_loss(labels, chance), rel=1e-6)
    bins = np.floor(logits * 256)  # 8192 bins from -16 to 16
    assert metrics.auc == pytest.approx(roc_auc_score(labels, bins), abs=1e-12)
    # At worst, all pairs that share a bin are in the wrong order.
    clicks, rest = bins[labels == 1], bins[labels == 0]
    alike = (clicks[:, None] == rest[None, :]).mean()
    assert abs(metrics.auc - roc_auc_score(labels, logits)) <= alike / 2 + 1e-12


def test_the_auc_is_close_where_there_are_many_samples():
    batch = dlrm_clicks.ClickModel().batch(0, 100_000)
    logits = np.log(batch["probability"] / (1 - batch["probability"]))
    metrics = dlrm_report.Metrics()
    metrics.add(batch["label"], logits)
    exact = roc_auc_score(batch["label"], logits)
    assert metrics.auc == pytest.approx(exact, abs=5e-6)


def test_metrics_at_the_edges():
    metrics = dlrm_report.Metrics()
    assert math.isnan(metrics.loss)
    assert math.isnan(metrics.auc)
    metrics.add(np.ones(3), np.array([1e4, -1e4, 0.0]))
    assert math.isnan(metrics.auc)
    assert metrics.loss == pytest.approx((1e4 + math.log(2)) / 3)
    metrics.add(np.zeros(1), np.array([-2e4]))
    # Beyond the last bin all are alike.
    assert metrics.auc == pytest.approx((1 + 0.5 + 1) / 3)
    metrics.add(np.zeros(1), np.array([np.nan]))
    assert math.isnan(metrics.loss)


def make_trainer(capacity, batches, evaluate_every=0):
    emb = oe.MultiTableEmbedding(
        "growing",
        4,
        "float32",
        "int64",
        tables=[oe.make_table_options(oe.make_uniform_initializer(-0.1, 0.1))] * 26,
        store_options=oe.make_device_mem_store_options(capacity=capacity),
        optimizer=oe.adagrad(0.1),
    )
    params = dlrm_model.init_params(jax.random.key(0), 13, 26, 4, [8], [8])
    tx = optax.adam(1e-2)
    with emb:
        state = dlrm_train.State(params, tx.init(params), emb.init())
    return dlrm_train.Trainer(state, tx, lambda: iter(batches), evaluate_every)


def distinct(batches):
    return {
        (t, i) for batch in batches for row in batch["ids"] for t, i in enumerate(row)
    }


def test_growth_comes_before_overflow_and_changes_nothing():
    model = dlrm_clicks.ClickModel(samples=480)
    batches = [model.batch(start, 24) for start in range(0, 480, 24)]
    growing, roomy = make_trainer(16, batches), make_trainer(1 << 14, batches)
    for trainer in (growing, roomy):
        assert not trainer.train(iter(batches), 480)
    table = growing.state.table
    oe.check(table)
    stats = oe.stats(table)
    assert stats["overflows"] == 0
    assert stats["rows"] == len(distinct(batches))
    assert len(growing.growth) >= 3
    assert not roomy.growth
    for growth in growing.growth:
        assert growth["rows"] < growth["capacity"]
    assert growing.growth[-1]["capacity"] == table.capacity < 4 * stats["rows"]
    # Room changes where rows are, not what they hold.
    losses = [[point["loss"] for point in t.history] for t in (growing, roomy)]
    assert losses[0] == losses[1]
    for one, other in zip(
        jax.tree.leaves(growing.state.params),
        jax.tree.leaves(roomy.state.params),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert growing.evaluate().auc == roomy.evaluate().auc
    assert oe.size(growing.state.table) == stats["rows"]


@given(
    ids=st.lists(
        st.lists(st.sampled_from([0, 1, 2**32 - 1, 2**32]), min_size=3, max_size=3),
        min_size=1,
        max_size=9,
    )
)
def test_distinct_pairs_are_counted(ids):
    expected = distinct([{"ids": ids}])
    assert dlrm_train._count_distinct(np.array(ids)) == len(expected)


def run(tmp_path, *words):
    out = tmp_path / "out"
    report = dlrm.main([*map(str, words), *SMALL, "--out", str(out)])
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    return report, json.loads((out / "report.json").read_text())


def write_log(path, batches, bad_every=10**9):
    """Clicks as a Criteo log; a bad line follows every `bad_every`-th."""
    lines, bad = [], 0
    for batch in batches:
        for label, dense, ids in zip(
            batch["label"], batch["dense"], batch["ids"], strict=True
        ):
            fields = [f"{int(label)}", *(f"{int(x)}" for x in dense)]
            lines.append("\t".join([*fields, *(f"{x:08x}" for x in ids)]))
            if len(lines) % bad_every == 0:
                lines.append("no sample")
                bad += 1
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return bad


@pytest.mark.slow
def test_a_log_of_synthetic_clicks_trains_like_the_clicks(tmp_path):
    model = dlrm_clicks.ClickModel(samples=6000)
    bad = write_log(tmp_path / "train.gz", [model.batch(0, 6000)], bad_every=100)
    write_log(tmp_path / "test", [model.batch(6000, 2000)])
    same = ("--batch-size", 256, "--capacity", 4096)
    made, _ = run(
        tmp_path, "--synthetic", "--samples", 6000, "--eval-samples", 2000, *same
    )
    read, saved = run(
        tmp_path, tmp_path / "train.gz", "--test", tmp_path / "test", *same
    )
    assert bad == 60
    assert read["data"]["train"]["lines"] == 6060
    assert read["data"]["train"]["bad_lines"] == bad
    assert read["data"]["test"]["lines"] == 2000
    for key in ("history", "evaluations", "growth", "table", "test", "steps"):
        assert read[key] == made[key], key
    assert made["growth"]
    assert made["samples"] == saved["samples"] == 6000
    assert made["table"]["rows"] == len(distinct([model.batch(0, 6000)]))
    assert len(made["evaluations"]) == 24 // 7 + 1
    known = made["known"]["best possible"]["auc"]
    share = (made["test"]["auc"] - 0.5) / (known - 0.5)
    assert made["share_of_margin"] == pytest.approx(share)
    assert 0.5 < made["test"]["auc"] < known
    assert saved == json.loads(json.dumps(read))


def test_held_out_lines_are_not_trained_on(tmp_path, capsys):
    model = dlrm_clicks.ClickModel(samples=500)
    batch = model.batch(0, 500)
    write_log(tmp_path / "log", [batch])
    report, _ = run(tmp_path, tmp_path / "log", "--holdout-every", 5, "--epochs", 2)
    assert report["samples"] == 800
    assert report["test"]["samples"] == 100
    kept = np.arange(500) % 5 != 4
    assert report["table"]["rows"] == len(distinct([{"ids": batch["ids"][kept]}]))
    assert "500 lines read, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize("name", dlrm_options.OPTIMIZERS)
def test_optimizers_by_name(name):
    made = dlrm.make_optimizer(parse("--optimizer", name, "--learning-rate", "0.25"))
    assert made == getattr(oe, name)(0.25)


def test_options_of_optimizers():
    words = ("-O", "momentum=0.9", "-O", "nesterov=true", "--learning-rate", "1")
    made = dlrm.make_optimizer(parse("--optimizer", "sgd", *words))
    assert made == oe.sgd(1.0, momentum=0.9, nesterov=True)


@pytest.fixture
def ctrl_c():
    """Ctrl-C does what it does in a program; a worker of pytest ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch, calls):
    """Ctrl-C while those batches are made; twice for one that is named twice."""
    batch, count = dlrm_clicks.ClickModel.batch, [0]

    def interrupted(self, start, size):
        count[0] += 1
        for _ in range(calls.count(count[0])):
            signal.raise_signal(signal.SIGINT)
        return batch(self, start, size)

    monkeypatch.setattr(dlrm_clicks.ClickModel, "batch", interrupted)


WORDS = ("--synthetic", "--samples", 4096, "--eval-samples", 256, "--batch-size", 256)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_training_but_not_the_report(tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, [6])
    report, saved = run(tmp_path, *WORDS)
    assert report["interrupted"]
    assert 0 < report["samples"] < 4096
    assert saved["test"]["samples"] == 256
    assert "interrupted" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_the_program(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, [6, 6])
    with pytest.raises(SystemExit, match="no report"):
        run(tmp_path, *WORDS)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either a path or --synthetic"),
        (["x", "--synthetic"], "give either a path or --synthetic"),
        (["--synthetic", "--test", "x"], "--test goes with a path"),
        (["--synthetic", "--eval-samples", "0"], "--eval-samples of 1 or more"),
        (["x", "--batch-size", "0"], "'0': give a whole number, 1 or more"),
        (["x", "--epochs", "two"], "'two': give a whole number, 1 or more"),
        (["x", "--holdout-every", "1"], "'1': give a whole number, 2 or more"),
        (["x", "--learning-rate", "nan"], "'nan': give a number, 0 or more"),
        (["x", "--learning-rate", "-1"], "'-1': give a number, 0 or more"),
        (["x", "--bottom", "64,x"], "'x': give a whole number, 1 or more"),
        (["x", "--optimizer", "nadam"], "invalid choice: 'nadam'"),
        (["x", "-O", "momentum"], "give NAME=VALUE"),
        (["x", "-O", "nesterov=True"], "the value a number, true or false"),
    ],
)
def test_wrong_words(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        dlrm.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "no such file or folder"),
        (b"", [], "no line to evaluate on; 0 were read"),
        (
            b"\x00\xff\n" * 70,
            [],
            "no line to evaluate on; 70 were read, 70 of them bad",
        ),
        (b"1\t2\n" * 20, ["-O", "foo=1"], "unexpected keyword argument 'foo'"),
        (b"1\t2\n" * 20, ["--out", "{log}"], "File exists"),
        (b"bad\n" * 20, ["--test", "{good}"], "no line to train on"),
        (b"1\t2\n" * 20, ["--test", "{empty}"], "no line to evaluate on"),
    ],
    ids=["missing", "empty", "noise", "option", "out", "train", "test"],
)
def test_wrong_files(tmp_path, monkeypatch, content, words, message):
    monkeypatch.chdir(tmp_path)
    names = {name: str(tmp_path / name) for name in ("log", "good", "empty")}
    (tmp_path / "good").write_bytes(b"1\t2\n0\t3\n")
    (tmp_path / "empty").write_bytes(b"")
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    with pytest.raises(SystemExit, match=message) as stop:
        dlrm.main([names["log"], *(word.format(**names) for word in words)])
    assert str(stop.value).startswith("dlrm.py: ")


def test_a_tiny_log_is_enough(tmp_path):
    (tmp_path / "log").write_bytes(b"1\t2\n0\t3\n" * 5)
    report, saved = run(tmp_path, tmp_path / "log")
    assert report["samples"] == 9
    assert report["test"]["samples"] == 1
    assert saved["test"]["auc"] is None  # one label: there is no AUC


@pytest.mark.parametrize("store", ["cached_ssd", "cached_host_mem"])
def test_where_rows_are_changes_nothing(tmp_path, store):
    words = ["--synthetic", "--samples", 600, "--batch-size", 32]
    words += ["--eval-samples", 100]
    plain, _ = run(tmp_path, *words)
    cached, _ = run(tmp_path, *words, "--store", store, "--cache-mb", 0.06)
    for key in ("test", "evaluations", "samples"):
        assert cached[key] == plain[key]
    losses = [[point["loss"] for point in r["history"]] for r in (plain, cached)]
    assert losses[0] == losses[1]
    assert cached["table"]["rows"] == plain["table"]["rows"]
    assert cached["table"]["victims"] > 0
    assert cached["table"]["prefetched"] > 0
    assert not cached["growth"]


def test_a_cache_without_room_for_a_batch(tmp_path):
    words = ["--store", "cached_ssd", "--cache-mb", "0.01"]
    with pytest.raises(SystemExit, match=r"cache_budget_mb=.* would do"):
        run(tmp_path, "--synthetic", "--samples", 600, *words)


@pytest.mark.slow
def test_the_demo_finds_what_can_be_known(tmp_path):
    done = subprocess.run(
        [sys.executable, str(dlrm.__file__), *DEMO, "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["share_of_margin"] >= 0.95
    assert report["dense_share_of_margin"] <= 0.5
    table = report["table"]
    assert 0.09 < table["capacity"] / table["rows"] < 0.11
    assert table["unstaged"] == table["stale"] == 0
