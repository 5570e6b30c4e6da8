"""`glmtune.config.run_config`: what loads, what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import GenerationConfig, Seq2SeqTrainingArguments

from glmtune.config.old_keys import CHECKPOINTING, RENAMED, RETIRED
from glmtune.config.run_config import RunConfig, config_from_mapping, load_config
from glmtune.config.sections import NOT_TRAINED, TRAINING_DEFAULTS
from glmtune.config.yaml_source import dump_yaml, read_source
from glmtune.errors import GlmtuneError

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "data_config:\n  train_file: train.jsonl\n  val_file: dev.jsonl\n"
FIELDS = {each.name: each for each in fields(Seq2SeqTrainingArguments) if each.init}
CHECKPOINTING_KEY = next(key for key in ("activation_checkpointing", "gradient_checkpointing") if key in FIELDS)

GLM4_LORA = """\
data_config:
  train_file: train.jsonl
  val_file: dev.jsonl
  test_file: dev.jsonl
  num_proc: 1

combine: True
freezeV: True
max_input_length: 512
max_output_length: 512
swanlab: "local"

training_args:
  # see `transformers.Seq2SeqTrainingArguments`
  output_dir: ./output
  max_steps: 3000
  # needed to be fit for the dataset
  learning_rate: 5e-4
  # settings for data loading
  per_device_train_batch_size: 1
  dataloader_num_workers: 16
  remove_unused_columns: false
  # settings for saving checkpoints
  save_strategy: steps
  save_steps: 500
  # settings for logging
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  # settings for evaluation
  per_device_eval_batch_size: 4
  eval_strategy: steps
  eval_steps: 500
  # settings for optimizer
  # adam_epsilon: 1e-6
  # uncomment the following line to detect nan or inf values
  # debug: underflow_overflow
  predict_with_generate: true
  # see `transformers.GenerationConfig`
  generation_config:
    max_new_tokens: 512
  # set your absolute deepspeed path here
  # deepspeed: configs/ds_zero_3.json
peft_config:
  peft_type: LORA
  task_type: CAUSAL_LM
  r: 8
  lora_alpha: 32
  lora_dropout: 0.1
  target_modules: ["query_key_value"]
"""
LORA_SECTION = GLM4_LORA[GLM4_LORA.index("peft_config:") :]
GLM4_PTUNING = GLM4_LORA.replace(
    LORA_SECTION,
    "peft_config:\n  peft_type: PREFIX_TUNING\n  task_type: CAUSAL_LM\n  num_virtual_tokens: 512\n"
    "  num_attention_heads: 2\n  token_dim: 256\n",
)
GLM4_SFT = GLM4_LORA.replace(LORA_SECTION, "").replace("  # deepspeed:", "  deepspeed:")
CHATGLM3_PTUNING = (
    GLM4_LORA.replace(LORA_SECTION, "  use_cpu: false\npeft_config:\n  peft_type: PREFIX_TUNING\n")
    .replace("eval_strategy", "evaluation_strategy")
    .replace('combine: True\nfreezeV: True\nmax_input_length: 512\nmax_output_length: 512\nswanlab: "local"\n', "")
    + "  task_type: CAUSAL_LM\n  num_virtual_tokens: 128\n"
)


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> RunConfig:
    """Load `text` as `run.yaml` of the working directory."""
    Path("run.yaml").write_text(text, encoding="utf-8")
    return load_config("run.yaml", overrides)


def with_training(*lines: str) -> str:
    """Return the minimal configuration with these lines in `training_args`, the first of them on line 5."""
    return MINIMAL + "training_args:\n" + "".join(f"  {line}\n" for line in lines)


def error_of(text: str, *overrides: str) -> str:
    """Return the whole message that loading `text` ends with."""
    with pytest.raises(GlmtuneError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- YAML ---


@pytest.mark.parametrize("written", ["5e-4", "1e-6", "2E-5", "1.5e3", "+1e3", "5.e-1", ".5e-1", "0.0005"])
def test_5e_minus_4_is_a_number(written: str) -> None:
    rate = load(with_training(f"learning_rate: {written}")).training_args["learning_rate"]
    assert type(rate) is float
    assert rate == float(written)


@pytest.mark.parametrize("written", ["'5e-4'", '"1e3"', "5e-4x", "e5", "5e", "2024-01-01", "1.2.3"])
def test_text_stays_text(written: str) -> None:
    assert load(with_training(f"run_name: {written}")).training_args["run_name"] == written.strip("'\"")


def test_an_on_off_word_is_still_a_switch() -> None:
    assert load(MINIMAL + "combine: yes\nfreezeV: off\n").combine is True


def test_a_bare_no_is_the_word_where_a_word_is_wanted() -> None:
    config = load(with_training("eval_strategy: no", "save_strategy: no"))
    assert (config.training_args["eval_strategy"], config.training_args["save_strategy"]) == ("no", "no")


def test_a_whole_number_written_with_an_exponent_is_one() -> None:
    steps = load(with_training("max_steps: 3e3")).training_args["max_steps"]
    assert type(steps) is int
    assert steps == 3000


def test_a_key_that_stands_twice_is_refused() -> None:
    assert error_of(with_training("max_steps: 1", "seed: 1", "max_steps: 2")) == (
        "`training_args.max_steps`: stands twice; the first one is on line 5\n"
        "  --> run.yaml:7\n"
        "hint: remove one of the two"
    )


def test_an_anchor_can_be_used_twice_and_changed_once() -> None:
    text = with_training("fsdp_config: &same {xla: false}", "lr_scheduler_kwargs: *same")
    config = load(text, "training_args.fsdp_config.xla=true")
    assert config.training_args["fsdp_config"] == {"xla": True}
    assert config.training_args["lr_scheduler_kwargs"] == {"xla": False}


def test_a_merge_key_brings_its_keys() -> None:
    text = MINIMAL + "training_args:\n  <<: {seed: 7, max_steps: 3}\n  seed: 8\n"
    config = load(text)
    assert (config.training_args["seed"], config.training_args["max_steps"]) == (8, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the configuration is empty\n  --> run.yaml\nhint: start from a copy of `configs/lora.yaml`"),
        ("# nothing\n", "the configuration is empty\n  --> run.yaml\nhint: start from a copy of `configs/lora.yaml`"),
        (
            "- a\n- b\n",
            "expected keys and values, found a list\n  --> run.yaml:1\nhint: start from a copy of `configs/lora.yaml`",
        ),
        (
            "lora\n",
            "expected keys and values, found the text `lora`\n"
            "  --> run.yaml:1\n"
            "hint: start from a copy of `configs/lora.yaml`",
        ),
        (
            "a: 1\nb:\n\tc: 2\n",
            "broken YAML: while scanning for the next token, found character '\\t' that cannot start any token\n"
            "  --> run.yaml:3\n"
            "hint: check the indentation (spaces, no tabs), the colons and the quotes up to this line",
        ),
        (
            "a: [1, 2\nb: 3\n",
            "broken YAML: while parsing a flow sequence, expected ',' or ']', but got ':'\n"
            "  --> run.yaml:2\n"
            "hint: check the indentation (spaces, no tabs), the colons and the quotes up to this line",
        ),
        (
            "a: !!python/object:os.system {}\n",
            "broken YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'\n"
            "  --> run.yaml:1\n"
            "hint: check the indentation (spaces, no tabs), the colons and the quotes up to this line",
        ),
        (
            "a: &a\n  b: *a\n",
            "broken YAML: an alias contains itself\n"
            "  --> run.yaml:1\n"
            "hint: check the indentation (spaces, no tabs), the colons and the quotes up to this line",
        ),
        ("a: !!int x\n", "broken YAML: invalid literal for int() with base 10: 'x'\n  --> run.yaml:1"),
    ],
)
def test_a_file_that_is_no_configuration_is_an_error_without_traceback(text: str, message: str) -> None:
    assert error_of(text) == message


def test_a_file_that_is_missing_names_the_nearest_one() -> None:
    Path("lora.yaml").write_text(MINIMAL)
    with pytest.raises(GlmtuneError) as caught:
        load_config("lorra.yaml")
    assert str(caught.value) == ("there is no configuration `lorra.yaml` (did you mean `lora.yaml`?)\n  --> lorra.yaml")


def test_a_folder_and_a_file_that_is_no_text_cannot_be_read() -> None:
    with pytest.raises(GlmtuneError, match=r"^cannot read `\.`: .*Is a directory"):
        load_config(".")
    Path("run.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(GlmtuneError, match=r"^the file is not UTF-8\n  --> run\.yaml:1\nhint: save it as UTF-8"):
        load_config("run.yaml")


@pytest.mark.parametrize("value", ["5e-4", "1e3", ".5E1", "2024-01-01", "no", "null", "0.1", "中文", 5e-4, 1e-5, None])
def test_what_is_written_reads_back_equal(value: object) -> None:
    Path("saved.yaml").write_text(dump_yaml({"key": value}), encoding="utf-8")
    assert read_source("saved.yaml").values == {"key": value}


# --- unknown keys and wrong types ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            with_training("learning_rat: 1e-4"),
            "`training_args.learning_rat`: unknown key (did you mean `learning_rate`?)\n  --> run.yaml:5",
        ),
        (
            MINIMAL + "max_input_len: 5\n",
            "`max_input_len`: unknown key (did you mean `max_input_length`?)\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "  trainfile: a\n",
            "`data_config.trainfile`: unknown key (did you mean `train_file`?)\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "learning_rate: 1e-4\n",
            "`learning_rate`: unknown key here (it belongs in `training_args`)\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "generation_config: {}\n",
            "`generation_config`: unknown key here (it belongs in `training_args`)\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "  combine: true\n",
            "`data_config.combine`: unknown key here (it belongs at the top, without indentation)\n  --> run.yaml:4",
        ),
        (
            with_training("train_file: x"),
            "`training_args.train_file`: unknown key here (it belongs in `data_config`)\n  --> run.yaml:5",
        ),
        (
            with_training("generation_config:", "  max_new_token: 5"),
            "`training_args.generation_config.max_new_token`: unknown key (did you mean `max_new_tokens`?)\n"
            "  --> run.yaml:6",
        ),
        (
            MINIMAL + "peft_config: {peft_type: LORA, lora_alfa: 5}\n",
            "`peft_config.lora_alfa`: unknown key (did you mean `lora_alpha`?)\n  --> run.yaml:4",
        ),
        (MINIMAL + "zzz: 1\n", "`zzz`: unknown key\n  --> run.yaml:4"),
        (MINIMAL + "1: 1\n", "`1`: unknown key\n  --> run.yaml:4"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_or_its_section(text: str, message: str) -> None:
    assert error_of(text) == message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("max_steps: abc", "max_steps`: expected a whole number, found the text `abc`"),
        ("max_steps: '5'", "max_steps`: expected a whole number, found the text `5`"),
        ("max_steps: 0.5", "max_steps`: expected a whole number, found `0.5`"),
        ("max_steps: true", "max_steps`: expected a whole number, found `true`"),
        ("max_steps: null", "max_steps`: expected a whole number, found `null`"),
        ("learning_rate: true", "learning_rate`: expected a number, found `true`"),
        ("learning_rate: [1]", "learning_rate`: expected a number, found a list"),
        ("bf16: 1", "bf16`: expected true or false, found `1`"),
        ("bf16: auto", "bf16`: expected true or false, found the text `auto`"),
        ("run_name: 5", "run_name`: expected text, found `5`"),
        ("label_names: labels", "label_names`: expected a list, found the text `labels`"),
        ("label_names: [1]", "label_names`: expected a list with text in every place, found a list"),
        ("deepspeed: 3", "deepspeed`: expected keys and values or text, found `3`"),
        ("report_to: {a: 1}", "report_to`: expected a list or text, found keys and values"),
        (
            "eval_strategy: step",
            "eval_strategy`: expected one of `no`, `steps`, `epoch` (did you mean `steps`?), found the text `step`",
        ),
        (
            "log_level: loud",
            "log_level`: expected one of `detail`, `debug`, `info`, `warning`, `error`, `critical`, `passive`, "
            "found the text `loud`",
        ),
        (
            "train_sampling_strategy: groups",
            "train_sampling_strategy`: expected one of `random`, `sequential`, `group_by_length`, `batch_rebalance`, "
            "found the text `groups`",
        ),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_expected_and_found(line: str, complaint: str) -> None:
    if (
        "batch_rebalance" in complaint
        and "batch_rebalance" not in FIELDS["train_sampling_strategy"].metadata["choices"]
    ):
        complaint = complaint.replace(", `batch_rebalance`", "")
    assert error_of(with_training(line)) == f"`training_args.{complaint}\n  --> run.yaml:5"


def test_a_long_list_of_choices_is_cut_and_keeps_the_nearest() -> None:
    message = error_of(with_training("optim: adamw_torch_fuse"))
    assert message.startswith("`training_args.optim`: expected one of `adamw_torch`, `adamw_torch_fused`, ")
    assert message.endswith(
        " more (did you mean `adamw_torch_fused`?), found the text `adamw_torch_fuse`\n  --> run.yaml:5"
    )


@pytest.mark.parametrize(
    "line",
    [
        "learning_rate: 1",
        "max_grad_norm: 0",
        "warmup_steps: 0.03",
        "warmup_steps: 100",
        "run_name: null",
        "report_to: tensorboard",
        "report_to: [tensorboard, wandb]",
        "report_to: none",
        "report_to: [some-tracker-of-mine]",
        "lr_scheduler_type: cosine",
        "lr_scheduler_kwargs: {num_cycles: 2}",
        "debug: underflow_overflow",
        "debug: [underflow_overflow]",
        "optim_target_modules: [attn]",
        "include_num_input_tokens_seen: true",
        "deepspeed: {zero_optimization: {stage: 2}}",
        "fsdp: full_shard",
        "use_cpu: false",
        "logging_steps: 0.1",
    ],
)
def test_every_form_that_transformers_documents_passes(line: str) -> None:
    key, _, value = line.partition(": ")
    assert load(with_training(line)).training_args[key] == yaml.safe_load(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL + "max_input_length: '5'\n",
            "`max_input_length`: expected a whole number, found the text `5`\n  --> run.yaml:4",
        ),
        (MINIMAL + "combine: 1\n", "`combine`: expected true or false, found `1`\n  --> run.yaml:4"),
        (
            MINIMAL + "swanlab: clowd\n",
            "`swanlab`: expected one of `local`, `cloud`, `disabled` (did you mean `cloud`?), found the text `clowd`\n"
            "  --> run.yaml:4",
        ),
        (
            MINIMAL + "truncation: left\n",
            "`truncation`: expected one of `right`, `drop`, `drop_turns`, `error`, found the text `left`\n"
            "  --> run.yaml:4",
        ),
        (
            MINIMAL + "model_dtype: bf16\n",
            "`model_dtype`: expected one of `auto`, `float32`, `bfloat16`, `float16` (did you mean `bfloat16`?), "
            "found the text `bf16`\n"
            "  --> run.yaml:4",
        ),
        (
            MINIMAL + "training_args: 5\n",
            "`training_args`: expected keys and values below it, found `5`\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "peft_config: {peft_type: LORA, layers_pattern: h}\n",
            "`peft_config`: PEFT refuses these settings: When `layers_pattern` is specified, `layers_to_transform` "
            "must also be specified\n  --> run.yaml:4",
        ),
        (
            MINIMAL + "peft_config: {peft_type: PREFIX_TUNING}\n",
            "`peft_config.num_virtual_tokens`: expected how many tokens are trained, such as 128; found `null`\n"
            "  --> run.yaml:4",
        ),
        (
            MINIMAL + "peft_config: LORA\n",
            "`peft_config`: expected keys and values below it, found the text `LORA`\n  --> run.yaml:4",
        ),
        (
            "data_config: train.jsonl\n",
            "`data_config`: expected keys and values below it, found the text `train.jsonl`\n  --> run.yaml:1",
        ),
        (
            with_training("generation_config: gpt2"),
            "`training_args.generation_config`: expected keys and values below it, found the text `gpt2`\n"
            "  --> run.yaml:5",
        ),
        (
            with_training("generation_config: {max_new_tokens: '512'}"),
            "`training_args.generation_config.max_new_tokens`: expected a whole number, found the text `512`\n"
            "  --> run.yaml:5",
        ),
        (
            with_training("generation_config: {max_new_tokens: 0}"),
            "`training_args.generation_config.max_new_tokens`: expected 1 or more, found `0`\n  --> run.yaml:5",
        ),
    ],
)
def test_our_own_keys_and_sections_are_checked_alike(text: str, message: str) -> None:
    assert error_of(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "combine: true\n",
            "is missing\n  --> run.yaml\nhint: name the training rows, such as `train_file: train.jsonl`",
        ),
        (
            "data_config:\n",
            "is missing\n  --> run.yaml:1\nhint: name the training rows, such as `train_file: train.jsonl`",
        ),
        (
            "data_config: {}\n",
            "is missing\n  --> run.yaml:1\nhint: name the training rows, such as `train_file: train.jsonl`",
        ),
        ("data_config:\n  train_file: null\n", "expected a list or text, found `null`\n  --> run.yaml:2"),
    ],
)
def test_the_training_rows_must_be_named(text: str, message: str) -> None:
    assert error_of(text) == f"`data_config.train_file`: {message}"


def test_all_problems_of_a_file_come_at_once_in_the_order_of_the_file() -> None:
    text = with_training("learning_rate: fast", "max_step: 5", "fp16: true") + "combine: 1\n"
    assert error_of(text, "peft_config.r=4", "max_output_length=0") == (
        "6 problems in `run.yaml`\n"
        "run.yaml:5: training_args.learning_rate: expected a number, found the text `fast`\n"
        "run.yaml:6: training_args.max_step: unknown key (did you mean `max_steps`?)\n"
        "run.yaml:7: training_args.fp16: GLM's loss turns to 0 or NaN in fp16; "
        "use bf16, or set `force_fp16: true` to go on all the same\n"
        "run.yaml:8: combine: expected true or false, found `1`\n"
        "--set peft_config.r=4: peft_config.peft_type: expected a method of PEFT such as `LORA` or `PREFIX_TUNING`; "
        "it is missing; write `peft_config: null` to train every weight\n"
        "--set max_output_length=0: max_output_length: expected 1 or more, found `0`"
    )


# --- overrides ---


def test_an_override_is_read_like_the_file() -> None:
    config = load(
        GLM4_LORA,
        "training_args.learning_rate=1e-4",
        "training_args.generation_config.num_beams=2",
        "training_args.lr_scheduler_kwargs.num_cycles=3",
        "training_args.report_to=[tensorboard]",
        "peft_config=null",
        "swanlab=",
    )
    assert config.training_args["learning_rate"] == 1e-4
    assert config.generation_config == {"max_new_tokens": 512, "num_beams": 2}
    assert config.training_args["lr_scheduler_kwargs"] == {"num_cycles": 3}
    assert config.training_args["report_to"] == ["tensorboard"]
    assert (config.method, config.swanlab) == ("sft", None)


def test_the_last_override_of_a_key_counts() -> None:
    assert load(MINIMAL, "max_input_length=5", "max_input_length=6").max_input_length == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training_args.learning_rat=1",
            "`training_args.learning_rat`: unknown key (did you mean `learning_rate`?)\n"
            "  --> --set training_args.learning_rat=1",
        ),
        (
            "training_args.max_steps=x",
            "`training_args.max_steps`: expected a whole number, found the text `x`\n"
            "  --> --set training_args.max_steps=x",
        ),
        (
            "peft_config={peft_type: LORA, rr: 4}",
            "`peft_config.rr`: unknown key (did you mean `r`?)\n  --> --set peft_config={peft_type: LORA, rr: 4}",
        ),
        (
            "max_input_length",
            "`max_input_length`: expected `key=value`\n"
            "  --> --set max_input_length\n"
            "hint: write it like `--set training_args.learning_rate=1e-4`",
        ),
        (
            ".a=1",
            "`.a`: expected `key=value`\n"
            "  --> --set .a=1\n"
            "hint: write it like `--set training_args.learning_rate=1e-4`",
        ),
        (
            "max_input_length.a=1",
            "`max_input_length.a`: `max_input_length` is a value, not a section\n  --> --set max_input_length.a=1",
        ),
        (
            "training_args.run_name=[",
            "`training_args.run_name`: broken YAML: while parsing a flow node, expected the node content, but found "
            "'<stream end>'\n"
            "  --> --set training_args.run_name=[\n"
            "hint: put quotes around the value",
        ),
        (
            "training_args={seed: 1, seed: 2}",
            "`training_args.seed`: stands twice; the first one is on line 1\n"
            "  --> --set training_args={seed: 1, seed: 2}\n"
            "hint: remove one of the two",
        ),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(override: str, message: str) -> None:
    assert error_of(MINIMAL + "max_input_length: 5\n", override) == message


# --- configurations of the original demos ---


def test_a_lora_file_of_the_glm_4_demo_loads_as_it_is() -> None:
    config = load(GLM4_LORA)
    assert (config.method, config.combine, config.freezeV, config.swanlab) == ("lora", True, True, "local")
    assert (config.data_config.train_file, config.data_config.test_file) == ("train.jsonl", "dev.jsonl")
    assert config.training_args["learning_rate"] == 0.0005
    assert config.training_args["log_level"] == "info"
    assert config.generation_config == {"max_new_tokens": 512}
    assert "generation_config" not in config.training_args
    assert config.peft_config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["query_key_value"],
    }
    assert config.notices == ()


def test_a_p_tuning_file_of_the_glm_4_demo_loads_as_it_is() -> None:
    config = load(GLM4_PTUNING)
    assert config.method == "ptuning_v2"
    assert config.peft_config is not None
    assert (config.peft_config["num_attention_heads"], config.peft_config["token_dim"]) == (2, 256)


def test_an_sft_file_of_the_glm_4_demo_loads_as_it_is() -> None:
    Path("configs").mkdir()
    Path("configs/ds_zero_3.json").write_text('{"zero_optimization": {"stage": 3}}')
    Path("configs/sft.yaml").write_text(GLM4_SFT)
    config = load_config("configs/sft.yaml")
    assert (config.method, config.peft_config) == ("sft", None)
    assert config.training_args["deepspeed"] == str(Path("configs/ds_zero_3.json").absolute())


def test_a_file_of_the_chatglm3_demo_loads_as_it_is() -> None:
    config = load(CHATGLM3_PTUNING)
    assert config.method == "ptuning_v2"
    assert config.training_args["eval_strategy"] == "steps"
    assert "evaluation_strategy" not in config.training_args
    assert config.notices == (
        "run.yaml:27: `training_args.evaluation_strategy` is called `eval_strategy` now and was taken for it",
    )


# --- old keys ---

OLD_VALUES = {
    "evaluation_strategy": ("epoch", "epoch"),
    "no_cuda": ("true", True),
    "per_gpu_train_batch_size": ("2", 2),
    "per_gpu_eval_batch_size": ("2", 2),
    "warmup_ratio": ("0.03", 0.03),
    "group_by_length": ("true", "group_by_length"),
    "adafactor": ("true", "adafactor"),
    "torchdynamo": ("eager", "eager"),
    "include_inputs_for_metrics": ("true", ["inputs"]),
    "push_to_hub_token": ("hf_secret", "hf_secret"),
    "push_to_hub_model_id": ("me/it", "me/it"),
    "dispatch_batches": ("false", False),
    "split_batches": ("false", False),
    "fsdp_min_num_params": ("5", 5),
    "fsdp_transformer_layer_cls_to_wrap": ("GlmDecoderLayer", "GlmDecoderLayer"),
}


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_taken_with_a_notice(old: str) -> None:
    written, taken = OLD_VALUES[old]
    config = load(with_training(f"{old}: {written}"))
    section, _, name = f".{RENAMED[old].new}".rpartition(".")
    arguments = config.training_args[section.strip(".")] if section else config.training_args
    assert arguments[name] == taken
    new = RENAMED[old].new
    assert config.notices[0] == f"run.yaml:5: `training_args.{old}` is called `{new}` now and was taken for it"
    # What a key under its new name does not do is said, too.
    assert all(f"`training_args.{new}`" in line for line in config.notices[1:])


@pytest.mark.parametrize("old", RETIRED)
def test_a_retired_key_is_left_out_with_a_notice(old: str) -> None:
    config = load(with_training(f"{old}: true"))
    assert old not in config.training_args
    assert config.notices == (f"run.yaml:5: `training_args.{old}` no longer does anything: {RETIRED[old]}",)


def test_no_old_key_is_a_key_of_the_installed_transformers() -> None:
    assert not (RENAMED.keys() | RETIRED.keys()) & FIELDS.keys()
    assert {renamed.new.partition(".")[0] for renamed in RENAMED.values()} <= FIELDS.keys()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["evaluation_strategy: steps", "eval_strategy: steps"],
            "`training_args.evaluation_strategy`: is another name of `eval_strategy`, which is given too (run.yaml:6)\n"
            "  --> run.yaml:5\n"
            "hint: keep `eval_strategy` alone",
        ),
        (
            ["warmup_ratio: 1.0"],
            "`training_args.warmup_ratio`: expected a share of all steps, from 0 to below 1, found `1.0`\n"
            "  --> run.yaml:5",
        ),
        (
            ["warmup_ratio: some"],
            "`training_args.warmup_ratio`: expected a number, found the text `some`\n  --> run.yaml:5",
        ),
        (
            ["group_by_length: 1"],
            "`training_args.group_by_length`: expected true or false, found `1`\n  --> run.yaml:5",
        ),
        (
            ["evaluation_strategy: step"],
            "`training_args.eval_strategy`: expected one of `no`, `steps`, `epoch` (did you mean `steps`?), "
            "found the text `step`\n"
            "  --> run.yaml:5",
        ),
    ],
)
def test_an_old_key_that_cannot_be_taken_is_an_error(lines: list[str], message: str) -> None:
    assert error_of(with_training(*lines)) == message


def test_an_old_key_that_is_null_says_nothing() -> None:
    config = load(with_training("per_gpu_train_batch_size: null", "per_device_train_batch_size: 2"))
    assert config.training_args["per_device_train_batch_size"] == 2
    assert config.notices == (
        "run.yaml:5: `training_args.per_gpu_train_batch_size` is called `per_device_train_batch_size` now; "
        "its `null` was left out",
    )


def test_an_override_wins_under_either_name() -> None:
    old, new = with_training("evaluation_strategy: steps"), with_training("eval_strategy: steps")
    assert load(old, "training_args.eval_strategy=no").training_args["eval_strategy"] == "no"
    config = load(new, "training_args.evaluation_strategy=epoch")
    assert config.training_args["eval_strategy"] == "epoch"
    assert config_from_mapping(config.source, where="output/run.yaml").training_args == config.training_args


@pytest.mark.parametrize("key", [*CHECKPOINTING.keys(), *CHECKPOINTING.values()])
def test_both_names_of_checkpointing_are_taken_without_complaint(key: str) -> None:
    value, text = ({"use_reentrant": False}, "{use_reentrant: false}") if "kwargs" in key else (True, "true")
    config = load(with_training(f"{key}: {text}", *([f"{CHECKPOINTING_KEY}: true"] if "kwargs" in key else [])))
    installed = CHECKPOINTING_KEY + ("_kwargs" if "kwargs" in key else "")
    assert config.training_args[installed] == value
    assert config.notices == ()
    arguments = Seq2SeqTrainingArguments(**{**config.training_args, "use_cpu": True})
    assert getattr(arguments, key.replace("activation", "gradient")) == value


# --- DeepSpeed files ---


def test_a_deepspeed_file_is_found_here_then_beside_the_configuration() -> None:
    Path("inner/deeper").mkdir(parents=True)
    Path("inner/run.yaml").write_text(with_training("deepspeed: deeper/ds.json"))
    for place in ("inner/ds.json", "inner/deeper/ds.json", "deeper/ds.json"):  # each goes before those before it
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text("{}")
        config = load_config("inner/run.yaml")
        assert config.training_args["deepspeed"] == str(Path(place).absolute())


def test_a_saved_run_finds_its_deepspeed_file_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ds.json").write_text("{}")
    saved = load(with_training("deepspeed: ds.json")).source
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = config_from_mapping(saved, where="output/run.yaml")
    assert again.training_args["deepspeed"] == str(tmp_path / "ds.json")


def test_a_missing_deepspeed_file_names_the_places_and_the_nearest(tmp_path: Path) -> None:
    Path("inner").mkdir()
    Path("inner/ds_zero3.json").write_text("{}")
    Path("inner/run.yaml").write_text(with_training("deepspeed: configs/ds_zero_3.json"))
    with pytest.raises(GlmtuneError) as caught:
        load_config("inner/run.yaml")
    assert str(caught.value) == (
        "`training_args.deepspeed`: there is no file `configs/ds_zero_3.json` (did you mean `ds_zero3.json`?); "
        f"looked for `{tmp_path}/configs/ds_zero_3.json`, `{tmp_path}/inner/configs/ds_zero_3.json`, "
        f"`{tmp_path}/inner/ds_zero_3.json`\n"
        "  --> inner/run.yaml:5"
    )


@pytest.mark.parametrize(
    ("content", "line", "complaint"),
    [
        ('{\n  "a": 1,\n}\n', 3, "broken JSON: "),
        ("[1]", 1, "expected an object, found a list"),
    ],
)
def test_a_broken_deepspeed_file_names_its_line(content: str, line: int, complaint: str, tmp_path: Path) -> None:
    Path("ds.json").write_text(content)
    message = error_of(with_training("deepspeed: ds.json")).splitlines()
    assert message[0].startswith(f"`training_args.deepspeed`: {complaint}")
    # Python 3.13 points at the comma, older ones at the brace that follows it.
    assert message[1] in (f"  --> {tmp_path}/ds.json:{line}", f"  --> {tmp_path}/ds.json:{line - 1}")


def test_a_deepspeed_file_in_the_place_of_its_name_needs_no_quotes() -> None:
    assert error_of(with_training("deepspeed: '{}'")) == (
        "`training_args.deepspeed`: expected the name of a file or keys and values, found JSON in quotes\n"
        "  --> run.yaml:5\n"
        "hint: take the quotes away"
    )


# --- PEFT ---


def test_a_method_of_peft_is_found_in_any_case() -> None:
    config = load(MINIMAL + "peft_config: {peft_type: lora, r: 4}\n")
    assert config.peft_config == {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4}


def test_other_methods_of_peft_go_by_their_own_name() -> None:
    assert load(MINIMAL + "peft_config: {peft_type: IA3}\n").method == "ia3"


def test_an_unknown_method_of_peft_names_the_nearest() -> None:
    assert error_of(MINIMAL + "peft_config:\n  peft_type: LORRA\n") == (
        "`peft_config.peft_type`: expected a method of PEFT such as `LORA` or `PREFIX_TUNING`; "
        "found the text `LORRA` (did you mean `LORA`?)\n"
        "  --> run.yaml:5"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("r: 8.5", "r`: expected a whole number, found `8.5`"),
        ("target_modules: 5", "target_modules`: expected a list or text, found `5`"),
        ("bias: some", "bias`: expected one of `none`, `all`, `lora_only`, found the text `some`"),
        ("task_type: LM", "task_type`: expected one of "),
    ],
)
def test_values_of_peft_are_checked(line: str, complaint: str) -> None:
    text = MINIMAL + f"peft_config:\n  peft_type: LORA\n  {line}\n"
    assert error_of(text).startswith(f"`peft_config.{complaint}")
    assert error_of(text).endswith("\n  --> run.yaml:6")


@pytest.mark.parametrize(
    "line",
    [
        "target_modules: all-linear",
        "init_lora_weights: pissa_niter_4",
        "init_lora_weights: false",
        "bias: none",
        "rank_pattern: {model.layers.0.self_attn.q_proj: 4}",
        "modules_to_save: [lm_head]",
        "use_dora: true",
        "layers_to_transform: [0, 1]",
        "loftq_config: {}",
    ],
)
def test_every_form_that_peft_documents_passes(line: str) -> None:
    config = load(MINIMAL + f"peft_config:\n  peft_type: LORA\n  {line}\n")
    assert config.peft_config == {"peft_type": "LORA", "task_type": "CAUSAL_LM", **yaml.safe_load(line)}


@pytest.mark.parametrize("method", sorted(NOT_TRAINED.keys() & {each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING}))
def test_a_method_that_wants_more_of_a_training_loop_is_refused(method: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        load(MINIMAL + f"peft_config:\n  peft_type: {method}\n  unknown: 1\n")
    why, instead = NOT_TRAINED[method]
    told = str(caught.value)
    assert f"run.yaml:5: peft_config.peft_type: `{method}` cannot be trained here: {why}" in told
    assert instead in told


# --- rules over several keys ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "max_input_length: 0\n", "`max_input_length`: expected 1 or more, found `0`\n  --> run.yaml:4"),
        (MINIMAL + "max_output_length: -1\n", "`max_output_length`: expected 1 or more, found `-1`\n  --> run.yaml:4"),
        (MINIMAL + "  num_proc: 0\n", "`data_config.num_proc`: expected 1 or more, found `0`\n  --> run.yaml:4"),
        (
            with_training("gradient_accumulation_steps: 0"),
            "`training_args.gradient_accumulation_steps`: expected 1 or more, found `0`\n  --> run.yaml:5",
        ),
        (
            "data_config:\n  train_file: a\ntraining_args:\n  eval_strategy: steps\n",
            "`training_args.eval_strategy`: `steps` needs `data_config.val_file`, which is not given\n"
            "  --> run.yaml:4\n"
            "hint: name a file to evaluate on, set `data_config.val_size: 0.05`, or set `eval_strategy: no`",
        ),
        (
            with_training("load_best_model_at_end: true", "eval_strategy: epoch"),
            "`training_args.load_best_model_at_end`: needs a checkpoint at each evaluation; found eval_strategy "
            "`epoch`, save_strategy `steps`\n"
            "  --> run.yaml:5\n"
            "hint: set both to `steps` or both to `epoch`",
        ),
        (
            with_training("load_best_model_at_end: true"),
            "`training_args.load_best_model_at_end`: needs a checkpoint at each evaluation; found eval_strategy `no`, "
            "save_strategy `steps`\n"
            "  --> run.yaml:5\n"
            "hint: set both to `steps` or both to `epoch`",
        ),
        (
            with_training("load_best_model_at_end: true", "eval_strategy: steps", "eval_steps: 3", "save_steps: 10"),
            "`training_args.load_best_model_at_end`: needs `save_steps` to be a multiple of `eval_steps`; "
            "found `10` and `3`\n"
            "  --> run.yaml:5",
        ),
        (
            with_training("load_best_model_at_end: true", "eval_strategy: steps", "eval_steps: 0.1", "save_steps: 10"),
            "`training_args.load_best_model_at_end`: needs `save_steps` to be a multiple of `eval_steps`; "
            "found `10` and `0.1`\n"
            "  --> run.yaml:5",
        ),
        (
            with_training(
                "load_best_model_at_end: true", "eval_strategy: steps", "eval_steps: 1e-8", "save_steps: 0.1"
            ),
            "`training_args.load_best_model_at_end`: needs `save_steps` to be a multiple of `eval_steps`; "
            "found `0.1` and `1e-08`\n"
            "  --> run.yaml:5",
        ),
        (
            with_training("metric_for_best_model: eval_bleu"),
            "`training_args.metric_for_best_model`: expected one of `loss`, `bleu-4`, `rouge-1`, `rouge-2`, "
            "`rouge-l`, `tool-name-accuracy`, `tool-call-accuracy`, found `eval_bleu` (did you mean `bleu-4`?)\n"
            "  --> run.yaml:5",
        ),
        (
            with_training("metric_for_best_model: rouge-l", "predict_with_generate: false"),
            "`training_args.metric_for_best_model`: `rouge-l` is measured on generated text, which "
            "`predict_with_generate: false` rules out\n"
            "  --> run.yaml:5\n"
            "hint: set `predict_with_generate: true`",
        ),
        (
            with_training("save_strategy: best"),
            "`training_args.save_strategy`: `best` needs evaluations and a `metric_for_best_model`\n  --> run.yaml:5",
        ),
        (
            with_training("fp16: true"),
            "`training_args.fp16`: GLM's loss turns to 0 or NaN in fp16\n"
            "  --> run.yaml:5\n"
            "hint: use bf16, or set `force_fp16: true` to go on all the same",
        ),
        (
            MINIMAL + "model_dtype: float16\n",
            "`model_dtype`: GLM's loss turns to 0 or NaN in fp16\n"
            "  --> run.yaml:4\n"
            "hint: use bf16, or set `force_fp16: true` to go on all the same",
        ),
        (
            with_training("fp16: true", "bf16: true") + "force_fp16: true\n",
            "`training_args.fp16`: `fp16` and `bf16` exclude each other\n  --> run.yaml:5",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    assert error_of(text) == message


@pytest.mark.parametrize("line", ["eval_strategy: steps", "metric_for_best_model: rouge-l"])
def test_a_misspelt_key_is_not_complained_of_as_missing_too(line: str) -> None:
    text = f"data_config:\n  train_file: a\n  val_files: b\ntraining_args:\n  {line}\n"
    assert error_of(text) == "`data_config.val_files`: unknown key (did you mean `val_file`?)\n  --> run.yaml:3"
    text = "data_config:\n  train_files: a\n"
    assert error_of(text) == "`data_config.train_files`: unknown key (did you mean `train_file`?)\n  --> run.yaml:2"


@pytest.mark.parametrize(
    "text",
    [
        with_training("load_best_model_at_end: true", "eval_strategy: epoch", "save_strategy: epoch"),
        with_training("load_best_model_at_end: true", "eval_strategy: steps", "eval_steps: 50", "save_steps: 100"),
        with_training("load_best_model_at_end: true", "eval_strategy: steps", "eval_steps: 0.1", "save_steps: 0.2"),
        with_training("load_best_model_at_end: true", "eval_strategy: steps", "save_strategy: best"),
        with_training("metric_for_best_model: eval_bleu-4"),
        with_training("metric_for_best_model: loss", "predict_with_generate: false"),
        with_training("fp16: true") + "force_fp16: true\nmodel_dtype: float16\n",
        "data_config:\n  train_file: a\n",
    ],
)
def test_values_that_go_together_pass(text: str) -> None:
    arguments = load(text).training_args
    said = yaml.safe_load(text).get("training_args", {})
    assert {key: arguments[key] for key in said} == said
    Seq2SeqTrainingArguments(**{**arguments, "fp16": False, "use_cpu": True})  # transformers agrees


# --- defaults, what is kept, what is not ---


@pytest.mark.parametrize("key", TRAINING_DEFAULTS)
def test_our_defaults_differ_from_those_of_transformers_and_give_way(key: str) -> None:
    default = FIELDS[key].default
    assert default is MISSING or TRAINING_DEFAULTS[key] != default
    assert load(MINIMAL).training_args[key] == TRAINING_DEFAULTS[key]
    others = {"output_dir": "x", "remove_unused_columns": True, "report_to": "all", "logging_nan_inf_filter": True}
    other = others.get(key, 7)
    assert load(with_training(f"{key}: {json.dumps(other)}")).training_args[key] == other


def test_answers_are_generated_where_there_are_rows_to_evaluate() -> None:
    assert load(MINIMAL).training_args["predict_with_generate"] is True
    assert load("data_config: {train_file: a}\n").training_args["predict_with_generate"] is False


def test_the_source_holds_what_was_said_and_loads_again() -> None:
    config = load(GLM4_LORA, "training_args.learning_rate=1e-5", "training_args.run_name='5e-4'")
    saved = yaml.safe_load(dump_yaml(config.source))
    assert saved["training_args"]["learning_rate"] == 1e-5
    assert "report_to" not in saved["training_args"]
    again = config_from_mapping(saved, where="output/run.yaml")
    assert again == config


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token"])
def test_the_source_holds_no_token_of_a_hub(key: str) -> None:
    for config in (load(with_training(f"{key}: hf_secret")), load(MINIMAL, f"training_args.{key}=hf_secret")):
        assert config.training_args["hub_token"] == "hf_secret"
        assert "hf_secret" not in dump_yaml(config.source)
        assert "hf_secret" not in " ".join(config.notices)


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token"])
def test_no_message_shows_a_token_of_a_hub(key: str) -> None:
    told = error_of(MINIMAL, f"training_args.{key}=[12345]")
    assert "12345" not in told
    assert told.endswith(f"expected text, found something else\n  --> --set training_args.{key}=***")


@pytest.mark.parametrize("size", [0, 0.3, 3, 3.0])
def test_a_share_or_a_number_of_rows_may_be_held_back(size: float) -> None:
    config = load("data_config: {train_file: train.jsonl}\n", f"data_config.val_size={size}")
    assert config.data_config.val_size == size


@pytest.mark.parametrize("size", [1.5, -0.1, -3])
def test_what_is_neither_a_share_nor_a_number_of_rows_is_refused(size: float) -> None:
    told = error_of("data_config: {train_file: train.jsonl}\n", f"data_config.val_size={size}")
    assert "`data_config.val_size`" in told


def test_a_batch_may_be_as_long_as_the_longest_row_and_no_shorter() -> None:
    lengths = ("max_input_length=100", "max_output_length=28", "training_args.per_device_train_batch_size=1")
    assert load(MINIMAL, *lengths, "tokens_per_batch=128").tokens_per_batch == 128
    assert error_of(MINIMAL, *lengths, "tokens_per_batch=127").startswith(
        "`tokens_per_batch`: `127` is less than the longest row may have, 128 tokens"
    )


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_config(path).data_config.train_file


def test_a_saved_source_with_a_mistake_names_its_place() -> None:
    with pytest.raises(GlmtuneError) as caught:
        config_from_mapping({"data_config": {"train_file": "a"}, "zzz": 1}, where="output/run.yaml")
    assert str(caught.value) == "`zzz`: unknown key\n  --> output/run.yaml"


def test_reading_a_configuration_does_not_import_torch_before_it_must() -> None:
    script = "import sys, glmtune.config.run_config; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- the files in configs/ ---


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_a_shipped_configuration_loads_and_both_libraries_take_it(method: str) -> None:
    from peft import get_peft_config

    config = load_config(CONFIGS / f"{method}.yaml")
    assert (config.method, config.notices) == (method, ())
    assert (config.data_config.train_file, config.data_config.val_file) == ("train.jsonl", "dev.jsonl")
    Seq2SeqTrainingArguments(**{**config.training_args, "use_cpu": True})
    GenerationConfig(**config.generation_config)
    if config.peft_config is not None:
        get_peft_config(dict(config.peft_config))


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_a_shipped_configuration_opens_with_its_launch_command_and_memory(method: str) -> None:
    head = (CONFIGS / f"{method}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    assert f"\n#   glmtune train data/demo demo configs/{method}.yaml\n" in head
    assert "# Memory for GLM-4-9B" in head


@pytest.mark.parametrize(
    "name", ["ds_zero2.json", "ds_zero2_offload.json", "ds_zero3.json", "ds_zero3_offload.json", "ds_zero3_nvme.json"]
)
def test_the_launch_line_finds_a_shipped_deepspeed_file(name: str) -> None:
    config = load_config(CONFIGS / "sft.yaml", [f"training_args.deepspeed={name}"])
    assert config.training_args["deepspeed"] == str(CONFIGS / name)
    content = json.loads((CONFIGS / name).read_text())
    assert content["zero_optimization"]["stage"] == int(name.removeprefix("ds_zero")[0])
    assert "optimizer" not in content  # the one of `training_args` also runs without a GPU


@pytest.mark.parametrize(
    ("plain", "offloaded", "parts", "device"),
    [
        ("ds_zero2", "ds_zero2_offload", ["offload_optimizer"], "cpu"),
        ("ds_zero3", "ds_zero3_offload", ["offload_optimizer", "offload_param"], "cpu"),
        ("ds_zero3", "ds_zero3_nvme", ["offload_optimizer", "offload_param"], "nvme"),
    ],
)
def test_an_offload_file_differs_by_its_offload_alone(
    plain: str, offloaded: str, parts: list[str], device: str
) -> None:
    expected, content = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in (plain, offloaded))
    removed = {part: content["zero_optimization"].pop(part)["device"] for part in parts}
    assert removed == dict.fromkeys(parts, device)
    assert content == expected


def test_there_are_eight_shipped_files() -> None:
    assert sorted(path.name for path in CONFIGS.iterdir()) == [
        "ds_zero2.json",
        "ds_zero2_offload.json",
        "ds_zero3.json",
        "ds_zero3_nvme.json",
        "ds_zero3_offload.json",
        "lora.yaml",
        "ptuning_v2.yaml",
        "sft.yaml",
    ]


@pytest.mark.parametrize(
    ("line", "base", "fix"),
    [
        ("max_steps: 0100", 8, 'write `"0100"` for the text, or `100` for the number'),
        ("max_steps: 1:30", 60, 'write `"1:30"` for the text'),
        ("learning_rate: 1:30.5", 60, 'write `"1:30.5"` for the text'),
    ],
)
def test_numbers_that_yaml_reads_to_another_base_are_refused(line: str, base: int, fix: str) -> None:
    value = line.partition(": ")[2]
    with pytest.raises(GlmtuneError) as caught:
        load(MINIMAL + f"training_args:\n  {line}\n")
    assert caught.value.what == f"`{value}`: YAML reads it as a number to the base of {base}"
    assert (caught.value.where, caught.value.fix) == ("run.yaml:5", fix)
