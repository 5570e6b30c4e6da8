"""An exported checkpoint of a run carries the run's facts, and nothing of the machine that it ran on."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from json_lines import json_lines

from glmtune import train
from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import config_from_mapping
from glmtune.exporting.run import Exported, export
from glmtune.exporting.sample_prompts import sample_prompts
from glmtune.family import GLM

CONFIG = {
    "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
    "max_input_length": 128,
    "max_output_length": 64,
    "training_args": {
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "predict_with_generate": False,
    },
    "peft_config": {"peft_type": "LORA", "r": 2},
}


@pytest.fixture(scope="module")
def run(demo_data: Path, tmp_path_factory) -> Path:
    """A run of four steps, evaluated at the second and the fourth."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = CONFIG | {"training_args": CONFIG["training_args"] | {"output_dir": str(folder)}}
    return train(demo_data, "demo", config_from_mapping(config, where="test"))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory) -> Exported:
    return export(run, tmp_path_factory.mktemp("exports") / "adverts")


@pytest.fixture(scope="module")
def card(exported: Exported) -> str:
    return (exported.folder / "README.md").read_text(encoding="utf-8")


def test_rows_that_the_run_was_evaluated_on_are_asked(exported: Exported) -> None:
    assert exported.prompts == "6 rows of dev.jsonl"
    assert exported.check.num_prompts == 6


def test_the_card_says_what_the_model_is(card: str) -> None:
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["glmtune"]}
    assert "# adverts\n\nThis is `demo` with a LoRA adapter merged into its weights (float32).\n" in card


def test_the_card_names_the_data_by_its_hash(card: str, demo_data: Path) -> None:
    for split, name in (("train", "train.jsonl"), ("val", "dev.jsonl")):
        digest = hashlib.sha256((demo_data / name).read_bytes()).hexdigest()
        assert f"| {split} | {name} | 1 | {digest} |" in card


def test_the_card_tells_how_the_model_was_trained(card: str) -> None:
    for line in (
        "| step | 4 |",
        "| learning_rate | 0.05 |",
        "| max_steps | 4 |",
        "| per_device_train_batch_size | 2 |",
        "| seed | 42 |",
        "| max_input_length | 128 |",
        '| peft_config | {"peft_type": "LORA", "r": 2} |',
    ):
        assert line in card
    assert "num_train_epochs" not in card
    packages = card.split("### Packages")[1]
    assert re.search(r"- glmtune 0\.1\.0\n- torch \d.*\n- transformers 5\.", packages)


def test_the_card_shows_the_last_evaluation_and_the_best(run: Path, card: str) -> None:
    lines = json_lines(run / "metrics.jsonl")
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert set(losses) == {2, 4}
    assert f"| 4 | loss {losses[4]:.4g}" in card
    if losses[2] < losses[4]:
        assert f"| 2 (lowest loss) | loss {losses[2]:.4g}" in card


def test_the_card_of_an_earlier_checkpoint_knows_no_later_evaluation(run: Path, tmp_path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "你好"}\n', encoding="utf-8")
    export(run / "checkpoint-2", tmp_path / "out", prompts=prompts)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| step | 2 |" in card
    assert "| 2 | loss " in card
    assert "| 4 | loss " not in card


def test_the_card_holds_the_figures_of_the_check(exported: Exported, card: str) -> None:
    assert "- greedy answers that are the same before and after: 6 of 6\n" in card
    assert f"- largest difference of a logit: {exported.check.distance.largest:.4g}\n" in card


def test_no_file_of_an_export_names_a_path_of_the_machine(exported: Exported, run: Path, demo_model: str) -> None:
    for path in exported.folder.iterdir():
        if path.suffix in (".json", ".md", ".jinja") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert str(run) not in text
            assert str(Path(demo_model).parent) not in text
            assert not re.search(r"(?<![\w<:/])/(?:tmp|home|root|work)/", text), path


@pytest.mark.slow
def test_an_adapter_of_a_run_with_quantized_weights_is_merged_into_the_unquantized_ones(demo_data, tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    arguments = CONFIG["training_args"] | {"output_dir": str(tmp_path / "run"), "eval_strategy": "no"}
    config = CONFIG | {"quantization": "4bit", "training_args": arguments}
    run = train(demo_data, "demo", config_from_mapping(config, where="test"))
    exported = export(run, tmp_path / "out")
    told = "note: the run trained beside weights in 4bit; the adapter is merged into the unquantized ones\n"
    assert told in capsys.readouterr().err
    assert exported.dtype == "float32"
    assert exported.check.is_faithful
    assert "| quantization | 4bit |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_of_a_long_file_the_first_prompts_are_asked(tmp_path, demo_tokenizer) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(40)), encoding="utf-8")
    ids, where = sample_prompts(path, {}, Encoder(demo_tokenizer, GLM, use_skeletons=False))
    assert len(ids) == 32
    assert where == "32 of 40 rows of many.jsonl"


def test_questions_that_stand_here_are_asked_where_the_data_has_gone(run: Path, tmp_path, demo_tokenizer) -> None:
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    encoder = Encoder(demo_tokenizer, GLM, use_skeletons=False)
    assert sample_prompts(None, record, encoder)[1] == "6 rows of dev.jsonl"
    for entry in (entry for entries in record["data"].values() for entry in entries):
        entry["path"] = str(tmp_path / "gone" / Path(entry["path"]).name)
    assert sample_prompts(None, record, encoder)[1] == "8 general questions"
