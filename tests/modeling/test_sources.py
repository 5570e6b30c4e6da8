"""Every way to name a model, and every way to name one wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def adapter(folder: Path, base: Path) -> Path:
    touch(folder, "adapter_model.safetensors")
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return touch(tmp_path / "base", "config.json", "tokenizer.json", "model.safetensors")


def message_of(name: str | Path, **options: object) -> str:
    with pytest.raises(GlmtuneError) as caught:
        find_model(name, **options)
    return str(caught.value)


def test_a_model_folder_is_its_own_base(base: Path) -> None:
    source = find_model(base)
    assert (source.base, source.adapter) == (str(base), None)


def test_demo_is_built_when_asked_for(demo_model: str) -> None:
    assert find_model("demo").base == demo_model


@pytest.mark.parametrize("name", ["runs/错-lora", "out/客服模型", "a b/c", "a/b:c", "-a/b"])
def test_a_name_that_no_hub_can_have_is_a_folder_that_is_not_there(name: str) -> None:
    assert message_of(name).startswith(f"model `{name}` does not exist")


def test_a_hub_name_is_left_to_the_hub() -> None:
    assert find_model("zai-org/glm-4-9b-chat-hf").base == "zai-org/glm-4-9b-chat-hf"


def test_an_adapter_brings_its_base(base: Path, tmp_path: Path) -> None:
    source = find_model(adapter(tmp_path / "a", base))
    assert (source.base, source.adapter) == (str(base), tmp_path / "a")


def test_a_moved_base_is_named_with_the_way_out(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", tmp_path / "gone")
    assert message_of(folder) == (
        f"the adapter's base model `{tmp_path / 'gone'}` is no longer there\n"
        f"  --> {folder / 'adapter_config.json'}\n"
        "hint: add `--base-model FOLDER` to say where it is now"
    )
    assert find_model(folder, base_model=str(base)).base == str(base)


def test_a_run_folder_means_its_last_complete_checkpoint(base: Path, tmp_path: Path) -> None:
    run = touch(tmp_path / "run", "run.yaml")
    for step in (9, 10):
        touch(adapter(run / f"checkpoint-{step}", base), "manifest.json")
    adapter(run / "checkpoint-11", base)  # no manifest: not complete
    assert find_model(run).adapter == run / "checkpoint-10"


def test_a_run_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    run = touch(tmp_path / "run", "run.yaml")
    assert message_of(run) == f"the run `{run}` has no complete checkpoint\nhint: train it further, or start anew"


def test_a_missing_folder_is_an_error() -> None:
    assert message_of("./nothing/here") == (
        "model `./nothing/here` does not exist\n"
        "hint: give a model folder, a checkpoint, a hub name such as `zai-org/glm-4-9b-chat-hf`, or `demo`"
    )


def test_a_folder_that_is_no_model_lists_what_it_holds(tmp_path: Path) -> None:
    folder = touch(tmp_path / "x", "notes.txt")
    assert message_of(folder) == (
        f"`{folder}` is neither a model nor a checkpoint: it has no `config.json`\nhint: it holds `notes.txt`"
    )


def test_a_model_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = touch(tmp_path / "x", "config.json", "model.safetensors")
    assert message_of(folder) == (
        f"the model `{folder}` has no tokenizer\nhint: copy `tokenizer.json` and its siblings there"
    )


def test_a_model_without_weights_is_an_error_unless_only_its_tokenizer_is_wanted(tmp_path: Path) -> None:
    folder = touch(tmp_path / "x", "config.json", "tokenizer.json")
    assert message_of(folder) == (
        f"the model `{folder}` has no safetensors weights\nhint: download the `*.safetensors` files of the model"
    )
    assert find_model(folder, needs_weights=False).base == str(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(name: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "x", "config.json", "tokenizer.json", name)
    assert message_of(folder) == (
        f"the model `{folder}` has no safetensors weights\n"
        "hint: its weights are pickled, which could run code: convert them with transformers' `save_pretrained`"
    )


def test_an_adapter_without_safetensors_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert message_of(folder) == (f"`{folder}` has an adapter's configuration but no `adapter_model.safetensors`")


def test_a_full_model_takes_no_base_model(base: Path) -> None:
    assert message_of(base, base_model="demo") == (
        f"`{base}` is a full model, so `--base-model` has no meaning for it\nhint: leave it out"
    )


@pytest.mark.parametrize("start", ["here", "beside"])
def test_a_relative_base_is_looked_for_here_and_beside_the_adapter(
    start: str, base: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path if start == "here" else tmp_path / "empty")
    folder = adapter(tmp_path / "runs" / "a", Path("base" if start == "here" else "../../base"))
    assert find_model(folder).base == str(base)


@pytest.mark.parametrize("recorded", ["../gone", "gone", "models/chat/base", "./base"])
def test_a_relative_base_that_is_nowhere_is_named_with_the_way_out(recorded: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", Path("x"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": recorded}), encoding="utf-8")
    assert message_of(folder) == (
        f"the adapter's base model `{recorded}` is neither here nor beside the adapter\n"
        f"  --> {folder / 'adapter_config.json'}\n"
        "hint: add `--base-model FOLDER` to say where it is now"
    )


@pytest.mark.parametrize("content", ["", "[]", "{", '{"base_model_name_or_path": 5}'])
def test_a_damaged_adapter_configuration_is_an_error(content: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", Path("x"))
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    assert "hint: " in message_of(folder)
