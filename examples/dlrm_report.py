"""What a run was like: the AUC as it goes, a JSON report and a PNG of curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

#: Logits fall into bins of 0.004: of 100,000 synthetic clicks the AUC is off by
#: less than five in a million.
_BINS = 8192
_LARGEST_LOGIT = 16.0


class Metrics:
    """Mean loss and AUC over any number of samples, as they come.

    Two histograms of logits, of clicks and of the rest, stand for all samples:
    a log of a billion lines needs no more memory than one batch. scikit-learn's
    roc_auc_score wants every score at once. A click and a non-click in the same
    bin count as half a pair in the right order.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS), np.int64)
        self._loss = 0.0

    def add(self, labels: np.ndarray, logits: np.ndarray) -> None:
        """Adds samples: labels 0 or 1, [n], and logits [n]."""
        logits = np.asarray(logits, np.float64)
        scaled = (logits / _LARGEST_LOGIT + 1.0) * (_BINS / 2)
        bins = np.clip(np.nan_to_num(scaled), 0, _BINS - 1).astype(np.int64)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[labels == label], minlength=_BINS)
        with np.errstate(invalid="ignore"):  # NaN logits make the loss NaN
            losses = np.logaddexp(0.0, logits) - labels * logits
        self._loss += float(losses.sum())

    @property
    def samples(self) -> int:
        """Samples added."""
        return int(self._counts.sum())

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy; NaN of nothing."""
        return self._loss / self.samples if self.samples else float("nan")

    @property
    def auc(self) -> float:
        """Area under the ROC curve; NaN while only one label has been seen."""
        negatives, positives = self._counts
        pairs = float(negatives.sum()) * float(positives.sum())
        if pairs == 0:
            return float("nan")
        below = np.cumsum(negatives) - 0.5 * negatives
        return float((positives * below).sum() / pairs)


def share_of_margin(auc: float, best: float) -> float:
    """How much of what there is to know a model knows: 0 by chance, 1 at `best`."""
    return (auc - 0.5) / (best - 0.5)


def write_json(report: dict[str, Any], path: Path) -> None:
    """Writes a report; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(report), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Draws loss, AUC and rows over the samples seen.

    Args:
        report: What `dlrm.run` returns.
        path: A file whose ending names the format, such as .png.
    """
    figure = draw(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw(report: dict[str, Any]) -> Figure:
    """Returns the curves of a report as a figure."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, auc, rows = figure.subplots(1, 3)
    history, tests = report["history"], report["evaluations"]
    for axes, key in ((loss, "loss"), (auc, "auc")):
        axes.plot(*_curve(history, key), label="training, before each update")
        axes.plot(*_curve(tests, key), "o-", label="held out")
        axes.set_title(key.upper() if key == "auc" else "loss (cross-entropy)")
    for name, line in (report.get("known") or {}).items():
        auc.axhline(line["auc"], color="grey", linestyle=":")
        auc.annotate(name, (0, line["auc"]), fontsize=8, va="bottom")
    rows.plot(*_curve(history, "rows"), label="rows")
    rows.step(*_curve(history, "capacity"), where="post", label="capacity")
    rows.set_title("embedding table")
    for axes in (loss, auc, rows):
        axes.set_xlabel("samples")
        axes.legend(fontsize=8)
    return figure


def _curve(points: list[dict[str, Any]], key: str) -> tuple[list[Any], list[Any]]:
    return [point["samples"] for point in points], [point[key] for point in points]
