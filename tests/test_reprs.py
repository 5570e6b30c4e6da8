"""What Python shows of the things that functions return: a line or two, with the figures that matter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import glmtune
from glmtune.chatformat.encoding import Encoder
from glmtune.data.reading.row import Reject
from glmtune.encoded.dataset import encode_file
from glmtune.evaluation.evaluate import Scores
from glmtune.generation.generate import as_loaded

CONFIG = {"data_config": {"train_file": "train.jsonl"}, "training_args": {"output_dir": "runs/a"}}


def test_a_configuration_is_told_by_method_rows_and_folder() -> None:
    lora = CONFIG | {"peft_config": {"peft_type": "LORA", "task_type": "CAUSAL_LM"}}
    assert repr(glmtune.load_config(CONFIG)) == "<RunConfig: sft on train.jsonl, into runs/a>"
    assert repr(glmtune.load_config(lora)) == "<RunConfig: lora on train.jsonl, into runs/a>"


def test_scores_are_told_by_their_metrics() -> None:
    left_out = (Reject(where="a.jsonl:1", reason="too long"),)
    assert repr(Scores(metrics={"loss": 1.23456, "bleu-4": 20.0}, left_out=left_out)) == (
        "<Scores: loss 1.235, bleu-4 20; 0 predictions, 1 left out>"
    )
    assert repr(Scores(metrics={"loss": 2.0})) == "<Scores: loss 2; 0 predictions>"


def test_checked_and_converted_rows_are_told_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"zzz": 1}\n', encoding="utf-8")
    assert repr(glmtune.check_data(path)["train"]) == "<Statistics: 1 usable rows, 1 rejected>"
    counted = repr(glmtune.check_data(path, "demo")["train"])
    assert re.fullmatch(r"<Statistics: 1 usable rows, 1 rejected; \d+ tokens, \d+ of them trained>", counted)
    converted = repr(glmtune.convert_data(path, tmp_path / "out.jsonl"))
    assert converted.startswith(f"<Converted: 1 conversations; 1 rows left out, the first at {path}:2: ")
    assert "\n" not in converted


def test_an_estimate_is_told_by_the_configured_total() -> None:
    told = repr(glmtune.estimate("demo", CONFIG, num_gpus=0))
    assert re.fullmatch(r"<Estimate: \d+\.\d\d GB on cpu as configured; \d+ other ways in `rows`>", told)
    assert " on each of 2 cuda devices as " in repr(glmtune.estimate("demo", CONFIG, num_gpus=2))


def test_a_model_and_rows_are_told_by_their_size(demo_model: str, demo_data: Path) -> None:
    loaded = as_loaded(demo_model)
    assert re.fullmatch(r"<LoadedModel: GlmForCausalLM, [\d,]+ parameters, torch\.\w+ on \w+>", repr(loaded))
    data = encode_file(demo_data / "dev.jsonl", Encoder(loaded.tokenizer, loaded.family))
    assert repr(data) == f"<EncodedData: {data.summary()}>"


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_first_configuration_is_told_by_what_was_chosen(method: str, demo_data: Path) -> None:
    first = glmtune.first_config(demo_data, "demo", method=method)
    head, *notes = repr(first).splitlines()
    assert re.fullmatch(
        rf"<FirstConfig: `{method}` for \d+ epochs with a learning rate of [\de.-]+, \d+ rows a step and GPU, at most "
        r"[\d,]+ tokens a row>",
        head,
    )
    assert notes == [f"note: {note}" for note in first.notes]
