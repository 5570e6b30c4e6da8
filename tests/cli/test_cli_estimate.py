"""`glmtune estimate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import command_line, in_own_process

from glmtune.errors import GlmtuneError
from glmtune.files.shipped import shipped_folder
from glmtune.memory.run import estimate

CONFIG = {
    "data_config": {"train_file": "train.jsonl"},
    "max_input_length": 64,
    "max_output_length": 64,
    "training_args": {"per_device_train_batch_size": 2},
    "peft_config": {"peft_type": "LORA", "r": 2},
}
WAYS = ["none", "ZeRO-1", "ZeRO-2", "ZeRO-2 offload", "ZeRO-3", "ZeRO-3 offload all"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return path


def test_estimate_prints_a_table_with_the_configured_way_marked(config: Path, demo_model: str) -> None:
    unknown = ["--set", "training_args.optim=galore_adamw"]
    done = command_line("estimate", "demo", config, "--gpus", "0", *unknown, cwd=config.parent)
    assert done.returncode == 0, done.stderr
    heading, titles, _, *rows, advice = done.stdout.splitlines()
    assert heading == ("1,072,768 parameters, 2 x 128 tokens end to end at a time; MB on the CPU at the peak of a step")
    assert titles.split() == [
        "method", "sharding", "checkpointing", "weights", "gradients", "optimizer", "activations", "logits", "total",
        "in", "RAM",
    ]  # fmt: skip
    assert len(rows) == 3 * len(WAYS) * 2
    assert [row.split()[1:4] for row in rows if row.startswith("*")] == [["lora", "none", "no"]]
    assert advice.startswith("* as configured: ")
    assert "`optim: galore_adamw` is counted like AdamW" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_estimate_as_json_adds_up(config: Path, demo_model: str) -> None:
    done = command_line("estimate", "demo", config, "--gpus", "4", "--json", cwd=config.parent)
    found = json.loads(done.stdout)
    assert (found["device"], found["num_devices"], found["num_parameters"]) == ("cuda", 4, 1_072_768)
    assert set(found["rows"][0]) == {
        "method", "sharding", "gradient_checkpointing", "configured", "bytes", "bytes_in_ram",
    }  # fmt: skip
    assert {row["sharding"] for row in found["rows"]} == {"DDP", *WAYS[1:]}
    for row in found["rows"]:
        sizes = dict(row["bytes"])
        assert sizes.pop("total") == sum(sizes.values())


@pytest.mark.slow
@pytest.mark.long
def test_a_deepspeed_file_marks_its_own_stage(config: Path, demo_model: str) -> None:
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "offload_optimizer": {"device": "cpu"}}
    (config.parent / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    overrides = ["training_args.deepspeed=" + str(config.parent / "zero.json")]
    found = estimate("demo", config, overrides=overrides, num_gpus=2)
    assert found.configured.sharding == "ZeRO-3 offload"
    assert found.configured.host > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_folder_with_nothing_but_a_configuration_is_enough(config: Path, demo_model: str) -> None:
    folder = config.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((Path(demo_model) / "config.json").read_bytes())
    assert estimate(str(folder), config, num_gpus=0).num_parameters == 1_072_768


@pytest.mark.slow
@pytest.mark.long
def test_gradient_accumulation_keeps_gradients_beside_activations(config: Path, demo_model: str) -> None:
    options = {"num_gpus": 0, "overrides": ["peft_config=null"]}
    alone = estimate("demo", config, **options).configured.memory
    options["overrides"].append("training_args.gradient_accumulation_steps=2")
    assert estimate("demo", config, **options).configured.memory.total > alone.total


def test_a_hub_name_without_a_network_is_a_clear_error(config: Path) -> None:
    with pytest.raises(GlmtuneError, match="cannot load the configuration of `nobody/nothing`: "):
        estimate("nobody/nothing", config, num_gpus=1)


def test_a_share_of_labels_out_of_range_is_an_error(config: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        estimate("demo", config, num_gpus=1, labelled=1.5)
    assert str(caught.value) == "the share of labelled tokens is 1.5; expected a number above 0, at most 1"


def test_the_memory_of_a_prefix_is_counted_in_a_process_of_its_own(tmp_path: Path, program: Path) -> None:
    """Embeddings that stand in two places could not be given shapes twice, but where other tests had run before."""
    done = in_own_process("estimate", "demo", shipped_folder() / "ptuning_v2.yaml", cwd=tmp_path, program=program)
    assert done.returncode == 0, done.stderr
    assert "* as configured" in done.stdout
