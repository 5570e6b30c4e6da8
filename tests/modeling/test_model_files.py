"""Model folders as downloads, copies and other tools leave them behind: one clear error each, never a traceback."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from json_changes import changed
from safetensors.torch import load_file, save_file

from glmtune import train
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9969999999\n"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NAME = "model.layers.0.self_attn.q_proj.weight"
Damage = Callable[[Path], Any]


@pytest.fixture
def model(demo_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


def sharded(folder: Path) -> None:
    """Shard the weights into two files and an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    places = {name: SHARDS[number >= len(names) // 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        save_file({name: weights[name] for name in names if places[name] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}), encoding="utf-8")


def file(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def halved(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def weight(make: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {NAME: make(weights[NAME])}, folder / "model.safetensors", {"format": "pt"})

    return change


def both(first: Damage, second: Damage) -> Damage:
    return lambda folder: (first(folder), second(folder))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a pointer": (file("model.safetensors", POINTER), "`model.safetensors` is a pointer of git-lfs"),
    "cut off": (halved("model.safetensors"), "`model.safetensors` is damaged: it has"),
    "longer": (lambda folder: (folder / "model.safetensors").open("ab").write(b"x"), "`model.safetensors` is damaged"),
    "empty": (file("model.safetensors", ""), "`model.safetensors` is empty"),
    "a page": (file("model.safetensors", "<html>404</html>" * 9), "`model.safetensors` is no safetensors file"),
    "three bytes": (file("model.safetensors", "abc"), "`model.safetensors` is no safetensors file"),
    "no header": (file("model.safetensors", b"\x02" + b"\0" * 7 + b"[]"), "`model.safetensors` is no safetensors file"),
    "no entry": (file("model.safetensors", b"\x09" + b"\0" * 7 + b'{"a": 12}'), "`model.safetensors` is no"),
    "a shape": (weight(lambda _: torch.zeros(3, 3)), f"weight `{NAME}` has the shape (3, 3) in the model's files, and "
                "by their `config.json` (128, 128)"),
    "a type": (weight(lambda w: w.to(torch.uint8)), f"weight `{NAME}` is of type `U8`, and `config.json` does not say"),
    "a shard missing": (both(sharded, lambda folder: (folder / SHARDS[1]).unlink()),
                        f"1 of the model's 2 files of weights are missing, `{SHARDS[1]}` among them"),
    "a shard that is a pointer": (both(sharded, file(SHARDS[1], POINTER)), f"`{SHARDS[1]}` is a pointer of git-lfs"),
    "a shard cut off": (both(sharded, halved(SHARDS[0])), f"`{SHARDS[0]}` is damaged: it has"),
    "no index": (both(sharded, lambda folder: (folder / INDEX).unlink()), "the model's weights are in several files"),
    "an empty index": (both(sharded, file(INDEX, "")), f"`{INDEX}` is empty"),
    "an index of a list": (both(sharded, file(INDEX, "[]")), f"`{INDEX}` holds no JSON object"),
    "an index of nothing": (both(sharded, file(INDEX, "{}")), f"`{INDEX}` says of no weight where it is"),
    "an index of numbers": (both(sharded, file(INDEX, '{"weight_map": {"a": 5}}')), f"`{INDEX}` says of no weight"),
    "more layers": (changed("config.json", num_hidden_layers=5), "the model's files lack 11 weights"),
    "a wider model": (changed("config.json", hidden_size=256), "weight `lm_head.weight` has the shape (1110, 128)"),
    "an end token as text": (changed("config.json", eos_token_id="<|endoftext|>"),
                             '`eos_token_id` is "<|endoftext|>"; expected the number of a token'),
    "end tokens as text": (changed("generation_config.json", eos_token_id=["<|endoftext|>"]), "`eos_token_id` is "),
    "a padding token as text": (changed("generation_config.json", pad_token_id="0"), '`pad_token_id` is "0"; expected'),
    "no layers": (changed("config.json", num_hidden_layers=-1), "`num_hidden_layers` is -1; expected a whole number"),
    "a width as text": (changed("config.json", hidden_size="128"), '`hidden_size` is "128"; expected a whole number'),
    "a context as text": (changed("config.json", max_position_embeddings="8192"), "cannot load the tokenizer of `"),
    "no such activation": (changed("config.json", hidden_act="nope"), "cannot load the model of `{model}`: KeyError"),
    "no such type": (changed("config.json", dtype="float99"), "cannot load the "),
    "positions of a list": (changed("config.json", rope_parameters=[1]), "cannot load the "),
    "quantized by a word": (changed("config.json", quantization_config="4bit"), "`quantization_config` is no object"),
    "an unknown model": (changed("config.json", model_type="glm99"), "cannot load the configuration of `{model}`: The"),
    "an empty configuration": (file("config.json", ""), "`config.json` is empty"),
    "a configuration of a list": (file("config.json", "[]"), "`config.json` holds no JSON object"),
    "a configuration in GBK": (file("config.json", '{"a": "你"}'.encode("gbk")), "`config.json` is not UTF-8: "),
    "a marked configuration": (file("config.json", b'\xef\xbb\xbf{"a": 1}'), "`config.json` is not JSON: Unexp"),
    "a configuration cut off": (halved("config.json"), "`config.json` is not JSON: "),
    "a pointer to the tokenizer": (file("tokenizer.json", POINTER), "`tokenizer.json` is a pointer of git-lfs"),
    "an empty tokenizer": (file("tokenizer.json", ""), "`tokenizer.json` is empty"),
    "a tokenizer of nothing": (file("tokenizer.json", "{}"), "cannot load the tokenizer of `{model}`: "),
    "a tokenizer cut off": (halved("tokenizer.json"), "cannot load the tokenizer of `{model}`: "),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the tokenizer of `{model}`: "),
    "tokenizer settings of a list": (file("tokenizer_config.json", "[]"), "`tokenizer_config.json` holds no JSON"),
    "generation settings of a list": (file("generation_config.json", "[]"), "`generation_config.json` holds no JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_one_clear_error(damage: Damage, message: str, model: Path) -> None:
    damage(model)
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(model))
    assert caught.value.what.startswith(message.format(model=model))
    assert caught.value.exit_code == 2
    assert str(model) in str(caught.value)


QUANTIZED = {
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "awq": ("gptqmodel", "gptqmodel"),
    "gptq": ("optimum", "optimum"),
    "auto-round": ("auto_round", "auto-round"),
    "vptq": ("vptq", "vptq"),
    "torchao": ("torchao", "torchao"),
    "bitsandbytes": ("bitsandbytes", "glmtune[quant]"),
}
"""Methods: the module that reads their weights, and what to install."""


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_package_that_quantized_weights_need_is_named_with_a_way_out(method: str, model: Path) -> None:
    module, package = QUANTIZED[method]
    if importlib.util.find_spec(module):
        pytest.skip(f"`{module}` is installed")
    settings = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": method == "bitsandbytes"}
    changed("config.json", quantization_config=settings)(model)
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(model))
    assert caught.value.what.startswith(
        f"the model's weights are quantized by the method `{method}`, and cannot be read"
    )
    assert caught.value.where == str(model / "config.json")
    assert re.fullmatch(
        rf"run `pip install '?{re.escape(package)}[^' ]*'?` and try again, or take the model's unquantized weights",
        str(caught.value.fix),
    )


@pytest.mark.parametrize("method", ["foo", "AWQ", "modelopt", 5, ["awq"]])
def test_weights_quantized_by_an_unknown_method_are_not_taken_for_ordinary_ones(method: object, model: Path) -> None:
    changed("config.json", quantization_config={"quant_method": method, "bits": 4})(model)
    told = f"the model's weights are quantized by the method `{method}`, which transformers does not know"
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(model))
    assert caught.value.what == told
    assert caught.value.where == str(model / "config.json")
    assert "unquantized weights" in str(caught.value.fix)
    assert "pip install -U transformers" in str(caught.value.fix)


def test_weights_that_are_quantized_without_saying_how_are_refused(model: Path) -> None:
    changed("config.json", quantization_config={})(model)
    with pytest.raises(GlmtuneError, match=r"has no `quant_method` that says how"):
        load_model(find_model(model))


@pytest.mark.parametrize("settings", [{"quant_method": "foo"}, {"quant_method": "awq", "bits": 4, "group_size": 128}])
def test_quantized_weights_that_cannot_be_read_are_told_before_the_rows_are_read(
    settings: dict[str, object], model: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("gptqmodel"):
        pytest.skip("`gptqmodel` is installed")
    changed("config.json", quantization_config=settings)(model)
    with pytest.raises(GlmtuneError, match=r"^the model's weights are quantized by the method"):
        train_on_no_rows(model, tmp_path)


def test_weights_in_several_files_are_loaded(model: Path, demo_model: str) -> None:
    sharded(model)
    weights = load_model(find_model(model)).model.state_dict()
    for name, expected in load_model(find_model(demo_model)).model.state_dict().items():
        assert torch.equal(weights[name], expected)


def test_damaged_weights_are_told_before_the_rows_are_read(model: Path, tmp_path: Path) -> None:
    halved("model.safetensors")(model)
    with pytest.raises(GlmtuneError, match=r"`model\.safetensors` is damaged"):
        train_on_no_rows(model, tmp_path)


def train_on_no_rows(model: Path, folder: Path) -> None:
    """Train on a file whose only line is no row: an error of it says that it was read."""
    (folder / "train.jsonl").write_text("no row", encoding="utf-8")
    (folder / "c.yaml").write_text(
        "data_config: {train_file: train.jsonl}\nmax_input_length: 64\nmax_output_length: 64\n"
        f"training_args: {{output_dir: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    train(folder, str(model), folder / "c.yaml")
