"""BLEU-4 and ROUGE of generated texts over jieba words, equal to the original GLM-4 demo's `compute_metrics`.

The figures are those of `finetune_demo/finetune.py` (THUDM/GLM-4, 081f0fb) on a 0..100 scale, where that one gives
BLEU on 0..1. Texts on which it crashes score 0: an empty or whitespace-only prediction, reference, or both.

Run as a module (`python -m glmtune.evaluation.metrics`), this file is its own worker: JSON pairs in, JSON rows out.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jieba
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese.rouge import Rouge
from rouge_chinese.rouge_score import f_r_p_rouge_n, rouge_n

# Start-up chatter. CRITICAL and not WARNING: on a shared machine jieba cannot replace another user's cache file in
# the temp folder and prints a traceback for it, though nothing is lost: reading the dictionary takes 0.6 s either way.
jieba.setLogLevel(logging.CRITICAL)

METRIC_NAMES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")

# A worker takes 1.0 s to start (0.65 s of it jieba's dictionary) and 120 MB, and one process scores 170,000 characters
# a second (780 AdvertiseGen rows). Two workers draw level at 470,000 characters; at 950,000 they need 4.1 s, not 5.4.
MIN_CHARACTERS_PER_WORKER = 400_000

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


def score_texts(predictions: Sequence[str], references: Sequence[str], *, num_proc: int | None = None) -> TextScores:
    """Score each prediction against the reference at its place; the result does not depend on `num_proc`.

    Args:
        predictions: Generated texts, special tokens already removed.
        references: As many texts.
        num_proc: Most worker processes to use; None is one per processor core, 1 scores in this process. Fewer start
            where the texts are too few to repay a worker's start-up.
    """
    assert len(predictions) == len(references), f"{len(predictions)} predictions, {len(references)} references"
    pairs = list(zip(predictions, references))
    num_characters = sum(len(prediction) + len(reference) for prediction, reference in pairs)
    num_workers = min(num_proc or os.cpu_count() or 1, num_characters // MIN_CHARACTERS_PER_WORKER, len(pairs))
    rows = _score_in_workers(pairs, num_workers) if num_workers > 1 else [_score_pair(*pair) for pair in pairs]
    means = [float(np.mean([row[name] for row in rows])) if rows else 0.0 for name in METRIC_NAMES]
    bleu_4, rouge_1, rouge_2, rouge_l = means
    return TextScores(bleu_4, rouge_1, rouge_2, rouge_l, per_text=rows)


def _score_pair(prediction: str, reference: str) -> Row:
    """Return the four scores of one text; the rounding of ROUGE, and of ROUGE alone, is the original's."""
    prediction_words, reference_words = _words(prediction), _words(reference)
    if not prediction_words or not reference_words:
        return dict.fromkeys(METRIC_NAMES, 0.0)  # where rouge_chinese raises "Hypothesis is empty."
    bleu = sentence_bleu([reference_words], prediction_words, smoothing_function=SmoothingFunction().method3)
    f_scores = _rouge_f(" ".join(prediction_words), " ".join(reference_words))
    return {"bleu-4": float(bleu) * 100, **{name: round(f * 100, 4) for name, f in f_scores.items()}}


def _words(text: str) -> list[str]:
    return list(jieba.cut(text.strip()))


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


def _score_in_workers(pairs: list[Pair], num_workers: int) -> list[Row]:
    """Deal the pairs out to `num_workers` processes; where one fails, warn and score all of them in this process."""
    rows: list[Row] = [{}] * len(pairs)
    shares = [pairs[worker::num_workers] for worker in range(num_workers)]  # dealt like cards: long texts spread
    try:
        with ThreadPoolExecutor(num_workers) as threads:
            for worker, scored in enumerate(threads.map(_run_worker, shares)):
                rows[worker::num_workers] = scored
    except (OSError, subprocess.CalledProcessError) as error:
        told = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        reason = told.splitlines()[-1] if told else str(error)
        warnings.warn(f"scoring workers failed ({reason}); scoring in this process", RuntimeWarning, stacklevel=3)
        return [_score_pair(*pair) for pair in pairs]
    return rows


def _run_worker(pairs: list[Pair]) -> list[Row]:
    """Score `pairs` in a fresh Python that imports this module alone.

    No `multiprocessing`: fork after CUDA or torch threads is unsafe, and spawn runs the user's script again in every
    worker. A script without `if __name__ == "__main__"` would start its training anew there, and one read from stdin
    fails ("No such file or directory: <stdin>"). A plain child process works from these and from notebooks.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "glmtune.evaluation.metrics"]
    finished = subprocess.run(
        command, input=json.dumps(pairs), env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(finished.stdout)


if __name__ == "__main__":
    json.dump([_score_pair(*pair) for pair in json.load(sys.stdin)], sys.stdout)
