"""BLEU and ROUGE: worked examples, equality with the original's `compute_metrics`, hard texts, the worker."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jieba
import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

from glmtune.evaluation import metrics
from glmtune.evaluation.metrics import METRIC_NAMES, Scorer, score_texts

TESTS = Path(__file__).parents[1]
ADVERTISE_DEV = TESTS.parent.parent / "shared" / "data" / "AdvertiseGen" / "dev.jsonl"
NOTHING = dict.fromkeys(METRIC_NAMES, 0.0)


def original_compute_metrics(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """The scoring loop of THUDM/GLM-4 `finetune_demo/finetune.py` (081f0fb), without its token ids and its means."""
    metrics_dct: dict[str, list[float]] = {"rouge-1": [], "rouge-2": [], "rouge-l": [], "bleu-4": []}
    for prediction, reference in zip(predictions, references):
        pred_tokens = list(jieba.cut(prediction.strip()))
        label_tokens = list(jieba.cut(reference.strip()))
        rouge = Rouge()
        scores = rouge.get_scores(" ".join(pred_tokens), " ".join(label_tokens))
        for k, v in scores[0].items():
            metrics_dct[k].append(round(v["f"] * 100, 4))
        metrics_dct["bleu-4"].append(
            sentence_bleu([label_tokens], pred_tokens, smoothing_function=SmoothingFunction().method3)
        )
    return metrics_dct


def assert_equals_original(predictions: list[str], references: list[str]) -> None:
    expected = original_compute_metrics(predictions, references)
    scores = score_texts(predictions, references)
    for name in ("rouge-1", "rouge-2", "rouge-l"):
        assert [row[name] for row in scores.per_text] == expected[name]
        assert scores.as_metrics()[name] == np.mean(expected[name])
    assert [row["bleu-4"] for row in scores.per_text] == [bleu * 100 for bleu in expected["bleu-4"]]
    assert scores.bleu_4 == pytest.approx(np.mean(expected["bleu-4"]) * 100, rel=1e-12)  # only the order of x100


@pytest.fixture
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few texts start a worker, as many would."""
    monkeypatch.setattr(metrics, "MIN_TEXTS_PER_WORKER", 1)


# Worked examples. jieba cuts 我爱北京天安门 into 我 / 爱 / 北京 / 天安门.


def test_one_wrong_word_of_four_scores_as_worked_out_by_hand():
    scores = score_texts(["我爱上海天安门"], ["我爱北京天安门"])
    # Common n-grams: 3 of 4 words, 1 of 3 pairs (我爱), 0 of 2 triples, 0 of 1 quadruples. Method 3 puts 1 / (2^k n)
    # in the place of the k-th zero over n: 1/(2*2) and 1/(4*1). Equal lengths: no brevity penalty.
    assert scores.bleu_4 == pytest.approx(100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4))  # 35.355
    assert scores.rouge_1 == 75.0  # precision 3/4, recall 3/4
    assert scores.rouge_2 == 33.3333  # 1/3, 1/3
    assert scores.rouge_l == 75.0  # 我 爱 天安门: 3 of 4, 3 of 4


def test_a_short_prediction_pays_the_brevity_penalty_as_worked_out_by_hand():
    scores = score_texts(["我爱北京"], ["我爱北京天安门"])
    # 3 of 3 words, 2 of 2 pairs, 1 of 1 triples; no quadruple, taken as 0 of 1: 1/2. Penalty exp(1 - 4/3).
    assert scores.bleu_4 == pytest.approx(100 * math.exp(1 - 4 / 3) * (1 / 2) ** (1 / 4))  # 60.253
    assert scores.rouge_1 == 85.7143  # precision 1, recall 3/4: 2 * 3/4 / (7/4) = 6/7
    assert scores.rouge_2 == 80.0  # precision 1, recall 2/3: 2 * 2/3 / (5/3) = 4/5
    assert scores.rouge_l == 85.7143


def test_rouge_1_counts_distinct_words_and_rouge_l_counts_all():
    scores = score_texts(["北京北京上海"], ["北京"])
    assert scores.rouge_1 == 66.6667  # 1 of the 2 distinct words, 1 of 1: 2 * 1/2 / (3/2) = 2/3
    assert scores.rouge_2 == 0.0  # one word has no pair
    assert scores.rouge_l == 50.0  # 1 of 3 words, 1 of 1: 2 * 1/3 / (4/3) = 1/2


def test_an_equal_text_scores_100():
    assert score_texts(["我爱北京天安门"], ["我爱北京天安门"]).as_metrics() == dict.fromkeys(METRIC_NAMES, 100.0)


def test_means_are_taken_over_texts():
    first, second = "我爱上海天安门", "我爱北京"
    both = score_texts([first, second], ["我爱北京天安门"] * 2)
    assert both.rouge_2 == pytest.approx((33.3333 + 80.0) / 2)
    assert both.per_text == [score_texts([text], ["我爱北京天安门"]).as_metrics() for text in (first, second)]


# The original


@pytest.mark.skipif(
    not ADVERTISE_DEV.is_file(), reason="shared/data/AdvertiseGen/dev.jsonl is not beside the repository"
)
def test_advertisements_score_as_in_the_original():
    with ADVERTISE_DEV.open(encoding="utf-8") as lines:
        answers = [json.loads(line)["messages"][-1]["content"] for line in itertools.islice(lines, 51)]
    # Half the own answer and half the next row's: every kind of overlap, as a half-trained model gives.
    predictions = [own[: len(own) // 2] + other for own, other in itertools.pairwise(answers)]
    assert_equals_original(predictions, answers[:50])


def test_odd_texts_score_as_in_the_original():
    texts = [
        "。",
        "？！",
        "a",
        "  好 的 ",
        "好。\n 好",
        "好。 \n\n 好！”他说……",
        "\u200b",
        "1\r\n2\u3000三",
        "......x",
        "get_weather\n{}",
    ]
    pairs = [(left, right) for left in texts for right in texts]
    assert_equals_original([left for left, _ in pairs], [right for _, right in pairs])


def test_figures_equal_the_golden_file():
    golden = json.loads((TESTS / "golden" / "metrics.json").read_text(encoding="utf-8"))
    scores = score_texts(
        [text["prediction"] for text in golden["texts"]], [text["reference"] for text in golden["texts"]]
    )
    for row, text in zip(scores.per_text, golden["texts"]):
        assert row == pytest.approx(text["scores"], abs=1e-9)
    assert scores.as_metrics() == pytest.approx(golden["means"], abs=1e-9)


# Texts that crash the original, or its memory


@pytest.mark.parametrize("empty", ["", " ", "\n\u3000\t"])
def test_an_empty_text_on_either_side_scores_0(empty):
    scores = score_texts([empty, "好", empty, "好"], ["好", empty, empty, "好"])
    assert scores.per_text[:3] == [NOTHING] * 3
    assert scores.rouge_1 == 25.0


def test_no_texts_score_0_without_rows():
    scores = score_texts([], [])
    assert scores.as_metrics() == NOTHING
    assert scores.per_text == []


def test_texts_of_unequal_number_are_refused():
    with pytest.raises(AssertionError, match="2 predictions, 1 references"):
        score_texts(["a", "b"], ["a"])


def test_a_text_of_20000_characters_is_scored():
    text = "".join(f"第{number}件外套很漂亮，" for number in range(2_000))[:20_000]
    scores = score_texts([text], [text[10_000:]])
    assert 40 < scores.rouge_l < 80  # half the words, all of the reference: 2 * 1/2 / (3/2) = 2/3


# The worker


def test_a_worker_gives_exactly_the_scores_of_this_process(small_work: None):
    predictions = [f"第{number}件外套" * (number % 3) for number in range(7)] + ["lone surrogate \ud800", '"\n\\']
    references = [f"第{number}件白色外套。" for number in range(9)]
    pairs = dict(enumerate(zip(predictions, references)))
    with warnings.catch_warnings(), Scorer(len(pairs)) as scorer:
        warnings.simplefilter("error")
        scorer.add({place: pairs[place] for place in (8, 3, 5)})
        scorer.add({})
        scorer.add({place: pair for place, pair in pairs.items() if place not in (8, 3, 5)})
        rows = scorer.scores()
    assert [rows[place] for place in range(9)] == score_texts(predictions, references).per_text


def test_few_texts_start_no_worker(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    with Scorer(99) as scorer:
        scorer.add({0: ("好", "好")})
        assert scorer.scores()[0]["rouge-1"] == 100.0


def test_a_failing_worker_is_reported_and_the_texts_scored_all_the_same(small_work: None, monkeypatch, tmp_path):
    broken_python = tmp_path / "python"
    broken_python.write_text("#!/bin/sh\necho 'no memory left' >&2\nexit 3\n")
    broken_python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken_python))
    with Scorer(2) as scorer:
        for place, text in enumerate(["好", "好的"]):
            scorer.add({place: (text, "好")})
        with pytest.warns(RuntimeWarning) as caught:
            rows = scorer.scores()
    assert [str(warning.message) for warning in caught] == [
        "the scoring worker failed (no memory left); scoring in this process"
    ]
    assert list(rows.values()) == score_texts(["好", "好的"], ["好", "好"]).per_text


def test_a_worker_ends_with_its_scorer_before_it_has_answered(small_work: None):
    with Scorer(2) as scorer:
        scorer.add({0: ("好", "好")})
        worker = scorer._worker
    assert worker.returncode is not None


INTERRUPTED_SCRIPT = """
import os, signal, warnings
import jieba, rouge_chinese  # whose texts Python warns of where it compiles them for the first time
warnings.simplefilter("error")
from glmtune.evaluation import metrics
metrics.MIN_TEXTS_PER_WORKER = 1
with metrics.Scorer(2) as scorer:
    scorer.add({0: ("好", "好")})
    scorer.scores()  # the worker is there, and has answered
    signal.signal(signal.SIGINT, lambda *_: None)  # as training does, which ends after the step
    os.killpg(os.getpgrp(), signal.SIGINT)
    scorer.add({1: ("好", "好")})
    print(scorer.scores()[1]["rouge-1"], scorer._worker.poll())
"""


def test_ctrl_c_is_not_meant_for_a_worker():
    """A terminal sends it to every process of the group in front."""
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SCRIPT], cwd=TESTS.parent, env=child_environment(), capture_output=True,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert (finished.stdout, finished.stderr) == ("100.0 None\n", "")


UNGUARDED_SCRIPT = """
print("the script runs")
from glmtune.evaluation import metrics
metrics.MIN_TEXTS_PER_WORKER = 1
with metrics.Scorer(1) as scorer:
    scorer.add({0: ("好", "好")})
    print(scorer.scores()[0]["rouge-1"])
"""


@pytest.mark.parametrize(
    "from_stdin", [pytest.param(True, marks=pytest.mark.slow), False], ids=["from stdin", "without a main guard"]
)
def test_workers_do_not_run_the_users_script_again(from_stdin, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED_SCRIPT, encoding="utf-8")
    command = [sys.executable, "-" if from_stdin else str(script)]
    finished = subprocess.run(
        command, input=UNGUARDED_SCRIPT, cwd=TESTS.parent, env=child_environment(), capture_output=True, text=True
    )
    assert (finished.stdout, finished.stderr) == ("the script runs\n100.0\n", "")


def test_a_worker_imports_no_torch_and_says_nothing():
    code = "import sys; from glmtune.evaluation.metrics import score_texts; score_texts(['好'], ['好'])"
    code += "; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, env=child_environment(), capture_output=True, text=True
    )
    assert (finished.stdout, finished.stderr) == ("[]\n", "")


def child_environment() -> dict[str, str]:
    """This environment, in which a child finds this repository and writes UTF-8."""
    return {**os.environ, "PYTHONPATH": str(TESTS.parent), "PYTHONUTF8": "1"}
