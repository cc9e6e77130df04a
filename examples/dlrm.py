"""Trains a DLRM on Criteo's click logs, or on synthetic clicks, on one device.

    python examples/dlrm.py --synthetic           clicks whose best AUC is known
    python examples/dlrm.py train.txt             Criteo's log, plain or gzip
    python examples/dlrm.py day_0 --test day_1    two logs, or folders of logs

The 26 embedding tables start empty and grow as ids appear: in device memory, or
with --store cached_ssd on SSD, where device memory is a cache of --cache-mb. A
report and curves go to --out. Ctrl-C ends the training, not the report.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np
    import optax
    from dlrm_clicks import ClickModel
    from dlrm_data import NUM_DENSE, NUM_TABLES, Batch, CriteoReader
    from dlrm_model import init_params
    from dlrm_options import parse
    from dlrm_report import Metrics, share_of_margin, write_json, write_plot
    from dlrm_train import State, Trainer

    import oneemb_jax as oe
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}; the examples need: pip install "oneemb-jax[examples]"'
    ) from error


class Source(NamedTuple):
    """Where samples come from.

    Attributes:
        train: Makes the batches of an epoch.
        held_out: Makes the batches of an evaluation.
        samples: Samples of an epoch, where that is known.
        known: By name, loss and AUC of predictors that the data is known to allow.
        read: What the readers of files met, by what they read for.
    """

    train: Callable[[], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]]
    samples: int | None
    known: dict[str, dict[str, float]]
    read: Callable[[], dict[str, dict[str, Any]]]


def synthetic_source(options: argparse.Namespace) -> Source:
    """Clicks from a known model; held out is what follows the stream."""
    model = ClickModel(options.samples or ClickModel.samples, options.seed)
    size = options.batch_size

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for first in range(start, stop, size):
            yield model.batch(first, min(size, stop - first))

    held = list(batches(model.samples, model.samples + options.eval_samples))
    best, dense_only = Metrics(), Metrics()
    for batch in held:
        odds = batch["probability"] / (1.0 - batch["probability"])
        best.add(batch["label"], np.log(odds))
        dense_only.add(batch["label"], model.bias + batch["dense_logit"])
    known = {
        "best possible": {"auc": best.auc, "loss": best.loss},
        "best from dense features": {"auc": dense_only.auc},
    }
    return Source(
        train=lambda: batches(0, model.samples),
        held_out=lambda: iter(held),
        samples=model.samples,
        known=known,
        read=dict,
    )


def file_source(options: argparse.Namespace) -> Source:
    """Criteo's logs; without --test, every n-th line is held out."""
    reader = CriteoReader(options.path, options.batch_size)
    tester = CriteoReader(options.test or options.path, options.batch_size)
    every = options.holdout_every
    keep_train = None if options.test else (lambda n: n % every != every - 1)
    keep_test = None if options.test else (lambda n: n % every == every - 1)

    def train() -> Iterator[Batch]:
        return _at_most(reader.batches(keep_train), options.samples)

    def held_out() -> Iterator[Batch]:
        return _at_most(tester.batches(keep_test), options.eval_samples or None)

    def read() -> dict[str, dict[str, Any]]:
        readers = {"train": reader, "test": tester if options.test else None}
        return {name: vars(r.report) for name, r in readers.items() if r}

    if next(held_out(), None) is None:
        raise ValueError(
            f"{options.test or options.path}: no line to evaluate on; "
            f"{tester.report.lines:,} were read, "
            f"{tester.report.bad_lines:,} of them bad"
        )
    if options.eval_samples:
        # Read once: to hold out one line of ten, all ten have to be read.
        held = list(held_out())
        return Source(train, lambda: iter(held), options.samples, {}, read)
    return Source(train, held_out, options.samples, {}, read)


def _at_most(batches: Iterator[Batch], samples: int | None) -> Iterator[Batch]:
    """The first `samples` samples; None for all of them."""
    done = 0
    for batch in batches:
        if samples is None or done + len(batch["label"]) < samples:
            done += len(batch["label"])
            yield batch
        else:
            yield {key: array[: samples - done] for key, array in batch.items()}
            return


def make_embedding(options: argparse.Namespace) -> oe.MultiTableEmbedding:
    """26 tables that share memory; ids are the logs' own, 0 to 2**32."""
    scale = options.initial_scale
    table = oe.make_table_options(oe.make_uniform_initializer(-scale, scale))
    return oe.MultiTableEmbedding(
        name="dlrm",
        embedding_dim=options.embedding_dim,
        dtype=np.float32,
        key_type=np.int64,
        tables=[table] * NUM_TABLES,
        store_options=make_store_options(options),
        optimizer=make_optimizer(options),
        seed=options.seed,
    )


def make_store_options(options: argparse.Namespace) -> Any:
    """Where rows are. Nothing else of the program depends on it."""
    if options.store == "device_mem":
        return oe.make_device_mem_store_options(capacity=options.capacity)
    make = {
        "cached_host_mem": oe.make_cached_host_mem_store_options,
        "cached_ssd": oe.make_cached_ssd_store_options,
    }[options.store]
    return make(options.cache_mb, options.persistent_path)


def make_optimizer(options: argparse.Namespace) -> oe.Optimizer:
    """The tables' optimizer; that of the MLPs is always Adam."""
    make = getattr(oe, options.optimizer)
    try:
        return make(options.learning_rate, **dict(options.optimizer_option))
    except TypeError as error:  # no such option
        raise ValueError(f"--optimizer-option: {error}") from error


def make_trainer(
    options: argparse.Namespace, table: oe.Table, source: Source
) -> Trainer:
    """The MLPs, their optimizer and the loop around the step."""
    params = init_params(
        jax.random.key(options.seed),
        NUM_DENSE,
        NUM_TABLES,
        options.embedding_dim,
        options.bottom,
        options.top,
    )
    tx = optax.adam(options.dense_learning_rate)
    state = State(params, tx.init(params), table)
    return Trainer(state, tx, source.held_out, options.eval_every)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains as told; returns the report."""
    source = (synthetic_source if options.synthetic else file_source)(options)
    for name, line in source.known.items():
        print(f"AUC {line['auc']:.4f}  {name}, by the model the clicks come from")
    with make_embedding(options) as emb:
        trainer = make_trainer(options, emb.init(), source)
        interrupted = False
        for _ in range(options.epochs):
            interrupted = trainer.train(source.train(), source.samples)
            if interrupted:
                break
        if not trainer.samples:
            raise ValueError(f"{options.path}: no line to train on")
        test = trainer.evaluate()
        oe.check(trainer.state.table)
        stats = oe.stats(trainer.state.table)
    return _report(options, source, trainer, test, stats, interrupted)


def _report(
    options: argparse.Namespace,
    source: Source,
    trainer: Trainer,
    test: Metrics,
    stats: dict[str, Any],
    interrupted: bool,
) -> dict[str, Any]:
    report = {
        "options": {key: _plain(value) for key, value in vars(options).items()},
        "versions": {"oneemb_jax": oe.__version__, "jax": jax.__version__},
        "interrupted": interrupted,
        "samples": trainer.samples,
        "steps": trainer.steps,
        "seconds": trainer.seconds,
        "samples_per_second": trainer.samples / trainer.seconds,
        "test": {"samples": test.samples, "loss": test.loss, "auc": test.auc},
        "known": source.known,
        "data": source.read(),
        "table": stats,
        "growth": trainer.growth,
        "evaluations": trainer.evaluations,
        "history": trainer.history,
    }
    if source.known:
        best = source.known["best possible"]["auc"]
        dense = source.known["best from dense features"]["auc"]
        report["share_of_margin"] = share_of_margin(test.auc, best)
        report["dense_share_of_margin"] = share_of_margin(dense, best)
    return report


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def print_summary(report: dict[str, Any]) -> None:
    """Prints what a person wants to know of a run."""
    test, table = report["test"], report["table"]
    if report["interrupted"]:
        print("interrupted; this is how far it came:")
    room = f"of {table['capacity']:,}, grown {len(report['growth'])} times"
    if "cache_hit_rate" in table:
        room = (
            f"below a cache of {table['capacity']:,}, which had "
            f"{table['cache_hit_rate']:.0%} of what batches wanted; "
            f"{table['prefetched']:,} rows were read ahead"
        )
    print(
        f"{report['samples']:,} samples in {report['seconds']:.1f} s "
        f"({report['samples_per_second']:,.0f} a second); table: {table['rows']:,} "
        f"rows {room}"
    )
    print(
        f"held out: AUC {test['auc']:.4f}, loss {test['loss']:.4f}, "
        f"on {test['samples']:,} samples"
    )
    for name, line in report["known"].items():
        print(f"{name}: AUC {line['auc']:.4f}")
    if "share_of_margin" in report:
        print(
            f"(AUC - 0.5) / (best - 0.5): {report['share_of_margin']:.3f} reached, "
            f"{report['dense_share_of_margin']:.3f} from dense features at best"
        )
    for name, data in report["data"].items():
        print(f"{name}: {data['lines']:,} lines read, {data['bad_lines']:,} bad")
        for file in data["skipped_files"]:
            print(f"skipped, has no labels: {file}")
        for file in data["broken_files"]:
            print(f"damaged, read up to there: {file}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the program: trains, prints, and writes report.json and curves.png."""
    options = parse(__doc__ or "", arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # fails now, not at the end
        report = run(options)
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        sys.exit(f"dlrm.py: {error}")
    except KeyboardInterrupt:
        sys.exit("dlrm.py: interrupted outside of the training; no report")
    print_summary(report)
    write_json(report, options.out / "report.json")
    write_plot(report, options.out / "curves.png")
    print(f"report and curves: {options.out}")
    return report


if __name__ == "__main__":
    main()
