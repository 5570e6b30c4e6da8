"""BLEU-4 and ROUGE of generated texts over jieba words, equal to the original GLM-4 demo's `compute_metrics`.

The figures are those of `finetune_demo/finetune.py` (THUDM/GLM-4, 081f0fb) on a 0..100 scale, where that one gives
BLEU on 0..1. Texts on which it crashes score 0: an empty or whitespace-only prediction, reference, or both.

Run as a module (`python -m glmtune.evaluation.metrics`), this file is its own worker: a line of JSON pairs in, a line
of JSON rows out, until there are no more lines.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import jieba
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese.rouge import Rouge
from rouge_chinese.rouge_score import f_r_p_rouge_n, rouge_n

from glmtune.files.cache_files import lent_folder
from glmtune.processes.own_path import path_for_children

# Start-up chatter. CRITICAL and not WARNING: on a shared machine jieba cannot replace another user's cache file in
# the temp folder and prints a traceback for it, though nothing is lost: reading the dictionary takes 0.6 s either way.
jieba.setLogLevel(logging.CRITICAL)

METRIC_NAMES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")

MIN_TEXTS_PER_WORKER = 100
"""Fewer are scored in this process at the end: 100 AdvertiseGen rows take 0.13 s, a worker 1.0 s to start (0.65 s of it
jieba's dictionary) and 120 MB."""

MIN_WORDS = 300_000
"""Of jieba's dictionary: 349,046 lines, and the beginnings of its words."""

Pair = tuple[str, str]
Row = dict[str, float]


@dataclass(frozen=True)
class TextScores:
    """Means over all texts, 0..100, and the scores of each text in the order given; no texts give 0.0 and no rows."""

    bleu_4: float
    rouge_1: float
    rouge_2: float
    rouge_l: float
    per_text: list[Row]

    def as_metrics(self) -> Row:
        """Return the means under the names that logs and `metric_for_best_model` use."""
        return dict(zip(METRIC_NAMES, (self.bleu_4, self.rouge_1, self.rouge_2, self.rouge_l)))


def score_texts(predictions: Sequence[str], references: Sequence[str]) -> TextScores:
    """Score each prediction, special tokens already removed, against the reference at its place."""
    assert len(predictions) == len(references), f"{len(predictions)} predictions, {len(references)} references"
    rows = [_score_pair(*pair) for pair in zip(predictions, references)]
    bleu_4, rouge_1, rouge_2, rouge_l = means(rows).values()
    return TextScores(bleu_4, rouge_1, rouge_2, rouge_l, per_text=rows)


def means(rows: Sequence[Row]) -> Row:
    """Return the mean of each score under the name that logs and `metric_for_best_model` use."""
    return {name: float(np.mean([row[name] for row in rows])) if rows else 0.0 for name in METRIC_NAMES}


class Scorer:
    """Scores texts while others are still being written: in a process of its own where there are enough of them.

    A thread would not do: what it takes from the interpreter, it takes from the loop that keeps the GPU at work.
    """

    def __init__(self, num_texts: int) -> None:
        self._parts: list[tuple[dict[int, Pair], Future[list[Row]] | None]] = []
        self._worker = _start_worker() if num_texts >= MIN_TEXTS_PER_WORKER else None
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.kill()
        self._thread.shutdown(cancel_futures=True)
        if self._worker is not None:
            self._worker.communicate()

    def add(self, pairs: dict[int, Pair]) -> None:
        """Take predictions, each with its reference, by their places in the data."""
        future = self._thread.submit(_ask, self._worker, list(pairs.values())) if self._worker else None
        self._parts.append((pairs, future))

    def scores(self) -> dict[int, Row]:
        """Return the scores of all texts by their places; where the worker failed, warn and score them here."""
        rows: dict[int, Row] = {}
        for pairs, future in self._parts:
            try:
                scored = future.result() if future else None
            except (OSError, ValueError) as error:
                self._warn(error)
                scored = None
            rows |= zip(pairs, scored or [_score_pair(*pair) for pair in pairs.values()])
        return rows

    def _warn(self, error: Exception) -> None:
        """Say once that the worker failed."""
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        worker.kill()
        told = worker.communicate()[1].strip()
        reason = told.splitlines()[-1] if told else str(error)
        warnings.warn(f"the scoring worker failed ({reason}); scoring in this process", RuntimeWarning, stacklevel=3)


def _score_pair(prediction: str, reference: str) -> Row:
    """Return the four scores of one text; the rounding of ROUGE, and of ROUGE alone, is the original's."""
    prediction_words, reference_words = _words(prediction), _words(reference)
    if not prediction_words or not reference_words:
        return dict.fromkeys(METRIC_NAMES, 0.0)  # where rouge_chinese raises "Hypothesis is empty."
    bleu = sentence_bleu([reference_words], prediction_words, smoothing_function=SmoothingFunction().method3)
    f_scores = _rouge_f(" ".join(prediction_words), " ".join(reference_words))
    return {"bleu-4": float(bleu) * 100, **{name: round(f * 100, 4) for name, f in f_scores.items()}}


def _words(text: str) -> list[str]:
    _prepare_jieba()
    return list(jieba.cut(text.strip()))


@cache
def _prepare_jieba() -> None:
    """Read jieba's dictionary, through a cache of this user's own.

    By default jieba takes `jieba.cache` of the folder for temporary files, whoever wrote it: other words, other scores.
    """
    folder = lent_folder("jieba")
    jieba.dt.tmp_dir = str(folder)
    jieba.initialize()
    if not _is_dictionary(jieba.dt.FREQ, jieba.dt.total):
        for kept in folder.iterdir():
            kept.unlink()
        jieba.dt.initialized = False
        jieba.initialize()


def _is_dictionary(words: object, total: object) -> bool:
    """Whether what came from the cache can be jieba's words: as many as its dictionary has lines, at the least."""
    return isinstance(words, dict) and isinstance(total, int) and len(words) > MIN_WORDS


def _rouge_f(prediction: str, reference: str) -> Row:
    """Return what `Rouge().get_scores` does, with a longest common subsequence that needs no table.

    The library keeps every cell of that table in a dict: for two texts of 3,000 characters 3.6 s and 490 MB, here
    0.03 s; for 20,000 characters some 20 GB, here 0.2 s. Its ROUGE-1 and ROUGE-2 count distinct n-grams.
    """
    cut_sentences = Rouge().cut_sent
    # As in `Rouge._get_scores`: a sentence of nothing but spaces stays, and counts as one empty word.
    predicted, wanted = ([" ".join(s.split()) for s in cut_sentences(text) if s] for text in (prediction, reference))
    predicted_words = [word for sentence in predicted for word in sentence.split(" ")]
    wanted_words = [word for sentence in wanted for word in sentence.split(" ")]
    common = _lcs_length(predicted_words, wanted_words)
    return {
        "rouge-1": rouge_n(predicted, wanted, 1)["f"],
        "rouge-2": rouge_n(predicted, wanted, 2)["f"],
        "rouge-l": f_r_p_rouge_n(len(predicted_words), len(wanted_words), common)["f"],
    }


def _lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i of `row` is 0 where the table's
    row grows at column i, so each word of `right` costs four operations on one long integer.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    full = row = (1 << len(left)) - 1
    for word in right:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(left) - row.bit_count()


def _start_worker() -> subprocess.Popen[str]:
    """Start a fresh Python that imports this module alone, in a session of its own: Ctrl-C is not meant for it.

    No `multiprocessing`: fork after CUDA or torch threads is unsafe, and spawn runs the user's script again in every
    worker. A script without `if __name__ == "__main__"` would start its training anew there, and one read from stdin
    fails ("No such file or directory: <stdin>"). A plain child process works from these and from notebooks.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "glmtune.evaluation.metrics"],
        env={**os.environ, **path_for_children()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        creationflags=vars(subprocess).get("CREATE_NEW_PROCESS_GROUP", 0),  # what Windows has instead of sessions
    )


def _ask(worker: subprocess.Popen[str], pairs: list[Pair]) -> list[Row]:
    """Return the worker's scores; OSError or ValueError where it does not answer."""
    assert worker.stdin is not None, "its input is a pipe"
    assert worker.stdout is not None, "its output, too"
    worker.stdin.write(json.dumps(pairs) + "\n")
    worker.stdin.flush()
    scores: list[Row] = json.loads(worker.stdout.readline())
    return scores


def _work() -> None:
    """Answer lines until there are no more: also where the process that asks has died."""
    _prepare_jieba()  # while the first answers are being written
    for line in sys.stdin:
        print(json.dumps([_score_pair(*pair) for pair in json.loads(line)]), flush=True)


if __name__ == "__main__":
    _work()
