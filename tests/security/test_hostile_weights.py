"""A stranger's model or adapter is weights of plain safetensors files, or one clear line; it never answers nonsense."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_models import (
    INDEX,
    POINTER,
    WEIGHT,
    WEIGHTS,
    Damage,
    entry,
    explicit_pickle,
    header,
    header_length,
    index_to,
    one_number,
    removed,
    weights,
    written,
)
from json_changes import changed
from transformers import AutoModelForCausalLM

from glmtune import estimate
from glmtune.cli.app import main
from glmtune.errors import GlmtuneError
from glmtune.generation.generate import generate
from glmtune.modeling.config_loading import load_tokenizer
from glmtune.modeling.finding.model_source import find_model

NAN, INF = float("nan"), float("inf")
DEEP = '{"a": ' * 5_000 + "1" + "}" * 5_000
LESS_DEEP = '{"a": ' * 100 + "1" + "}" * 100


@pytest.fixture
def model(demo_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


def refused(model: Path) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        generate(str(model), ["你好"], max_new_tokens=2)
    assert "\n" not in caught.value.what
    assert str(model) in str(caught.value)
    return caught.value


FILES: dict[str, tuple[Damage, str]] = {
    "an index of pickles": (index_to("w.bin"), f"`{INDEX}` names `w.bin`; expected names of `*.safetensors` files"),
    "an index that leads up": (index_to("../outside.safetensors"), f"`{INDEX}` names `../outside.safetensors`"),
    "an index that leads down": (index_to("sub/w.safetensors", keeps=False), f"`{INDEX}` names `sub/w.safetensors`"),
    "an index from the root": (index_to("/etc/w.safetensors", keeps=False), f"`{INDEX}` names `/etc/w.safetensors`"),
    "an index of a hidden file": (index_to(".safetensors", keeps=False), f"`{INDEX}` names `.safetensors`; expected n"),
    "an index with an ending behind": (index_to("w.safetensors.bin"), f"`{INDEX}` names `w.safetensors.bin`"),
    "an index with a line's end": (index_to("w.safetensors\t"), f"`{INDEX}` names `w.safetensors"),
    "an index of Windows": (index_to("..\\w.safetensors"), f"`{INDEX}` names `..\\w.safetensors`"),
    "an index of lists": (index_to(["w.safetensors"]), f"`{INDEX}` says of no weight where it is"),
    "an index of nothing": (index_to(None), f"`{INDEX}` says of no weight where it is"),
    "an index of no file": (index_to("w.safetensors", keeps=False), "1 of the model's 1 files of weights are missing"),
    "a pickle by its name": (explicit_pickle("adapter_model.bin"), "`transformers_weights` is \"adapter_model.bin\"; "),
    "another pickle": (explicit_pickle("pytorch_model.bin"), "`transformers_weights` is \"pytorch_model.bin\"; "),
    "weights above": (explicit_pickle("../w.safetensors"), "`transformers_weights` is \"../w.safetensors\"; expected"),
    "weights of a number": (changed("config.json", transformers_weights=5), "`transformers_weights` is 5; expected"),
    "weights of an index": (
        changed("config.json", transformers_weights="x.safetensors.index.json"), "`transformers_weights` is \"x.safet",
    ),
    "a pickle under the name": (lambda folder: torch.save({}, folder / WEIGHTS), f"`{WEIGHTS}` is no safetensors file"),
    "a pointer": (written(WEIGHTS, POINTER), f"`{WEIGHTS}` is a pointer of git-lfs, not the file itself"),
    "no weights": (removed(WEIGHTS), "the model `{model}` has no safetensors weights"),
    "no header": (header_length(0), f"`{WEIGHTS}` is no safetensors file"),
    "a header of 2^64 bytes": (header_length(2**64 - 1), f"`{WEIGHTS}` is no safetensors file"),
    "a header of 99 MB": (header_length(99_000_000), f"`{WEIGHTS}` is damaged: it has "),
    "a header that is cut": (header_length(100), f"`{WEIGHTS}` is no safetensors file"),
    "a header of a list": (header(lambda found: [found]), f"`{WEIGHTS}` is no safetensors file"),
    "a header of text": (header(lambda found: "x"), f"`{WEIGHTS}` is no safetensors file"),
    "metadata of a list": (header(lambda found: found | {"__metadata__": [1]}), f"`{WEIGHTS}` is no safetensors file"),
    "metadata of numbers": (header(lambda found: found | {"__metadata__": {"a": 1}}), f"`{WEIGHTS}` is no safetensors"),
    "no type": (entry(dtype=None), f"weight `{WEIGHT}` is of type `None`, and"),
    "an unknown type": (entry(dtype="F99"), f"weight `{WEIGHT}` is of type `F99`"),
    "a type of twice the size": (entry(dtype="F64"), f"`{WEIGHTS}` is damaged: weight `{WEIGHT}` of the shape "),
    "whole numbers": (weights(q_proj__weight=lambda w: w.to(torch.int8)), f"weight `{WEIGHT}` is of type `I8`"),
    "a shape of text": (entry(shape="x"), f"`{WEIGHTS}` is no safetensors file"),
    "a shape below 0": (entry(shape=[-1, -16384]), f"`{WEIGHTS}` is no safetensors file"),
    "a shape of 10^24": (entry(shape=[10**12, 10**12]), f"`{WEIGHTS}` is damaged: weight `{WEIGHT}` of the shape "),
    "a shape of true": (entry(shape=[True, True]), f"`{WEIGHTS}` is no safetensors file"),
    "a place of text": (entry(data_offsets="ab"), f"`{WEIGHTS}` is no safetensors file"),
    "three places": (entry(data_offsets=[0, 1, 2]), f"`{WEIGHTS}` is no safetensors file"),
    "a place beyond the file": (entry(data_offsets=[0, 10**15]), f"`{WEIGHTS}` is damaged: "),
    "a place backwards": (entry(data_offsets=[65536, 0]), f"`{WEIGHTS}` is damaged: weight `{WEIGHT}` of the shape "),
    "weights on one another": (entry(data_offsets=[0, 65536]), f"`{WEIGHTS}` is damaged: its weights do not lie end "),
    "a weight of none": (entry(shape=[0, 128], data_offsets=[0, 0]), f"`{WEIGHTS}` is damaged: "),
    "another shape": (weights(q_proj__weight=lambda w: w[:4].clone()), f"weight `{WEIGHT}` has the shape (4, 128) in "),
    "a number for a matrix": (weights(q_proj__weight=lambda w: torch.ones(1)), f"weight `{WEIGHT}` has the shape (1,)"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES)
def test_a_damaged_file_of_weights_is_one_clear_line(damage: Damage, message: str, model: Path) -> None:
    damage(model)
    error = refused(model)
    assert error.what.startswith(message.format(model=model))
    assert error.exit_code == 2


NO_NUMBERS: dict[str, Damage] = {
    "one that is none": weights(layers__0__mlp__down_proj__weight=one_number(NAN)),
    "an infinite one": weights(layers__0__mlp__down_proj__weight=one_number(INF)),
    "an infinite one below 0": weights(layers__1__mlp__down_proj__weight=one_number(-INF)),
    "all of them": weights(weight=lambda w: torch.full_like(w, NAN)),
    "the last norm": weights(model__norm__weight=lambda w: torch.full_like(w, NAN)),
    "the output layer": weights(lm_head__weight=one_number(NAN)),
    "an infinite output layer": weights(lm_head__weight=lambda w: torch.full_like(w, INF)),
}


@pytest.mark.parametrize("damage", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_weights_that_are_no_numbers_do_not_answer(damage: Damage, model: Path) -> None:
    damage(model)
    error = refused(model)
    assert error.what.startswith("the model computes no numbers: its weight `")
    assert error.where == str(model / WEIGHTS)
    assert error.exit_code == 1


def test_numbers_beyond_all_numbers_do_not_answer(model: Path) -> None:
    weights(lm_head__weight=lambda w: w * 1e38, model__norm__weight=lambda w: w * 1e38)(model)
    assert refused(model).what == "the model computes no numbers: what it computes goes beyond all numbers"


@pytest.mark.parametrize("arguments", [["infer", "{model}", "--prompt", "a"], ["infer", "{model}", "--prompt", "a",
                                       "--stream"], ["eval", "{model}", "{rows}"], ["export", "{model}", "{out}"]],
                         ids=["infer", "infer --stream", "eval", "export"])  # fmt: skip
def test_the_command_line_fails_in_one_line_and_not_with_exit_code_0(
    arguments: list[str], model: Path, demo_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    NO_NUMBERS["the last norm"](model)
    places = {"model": model, "rows": demo_data / "dev.jsonl", "out": tmp_path / "out"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["glmtune", *(argument.format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr()
    said = (
        "the checkpoint itself computes numbers that are not finite"
        if arguments[0] == "export"
        else "the model computes no numbers: its weight `model.norm.weight` is not finite"
    )
    assert f"error: {said}\n  --> {model}" in told.err
    assert "Traceback" not in told.err
    assert "!" not in told.out


CONFIGS: dict[str, tuple[Damage, str]] = {
    "10^6 layers": (changed("config.json", num_hidden_layers=10**6), "`config.json` has `num_hidden_layers: 1,000,000"),
    "10^12 ids": (changed("config.json", vocab_size=10**12), "`config.json` has `vocab_size: 1,000,000,000,000`; no m"),
    "10^30 ids": (changed("config.json", vocab_size=10**30), "`config.json` has `vocab_size: 10^30 and more`; no mode"),
    "a width of 10^9": (changed("config.json", hidden_size=10**9), "`config.json` has `hidden_size: 1,000,000,000`; n"),
    "10^9 heads": (changed("config.json", num_attention_heads=10**9), "`config.json` has `num_attention_heads: 1,000"),
    "a head of 10^9": (changed("config.json", head_dim=10**9), "`config.json` has `head_dim: 1,000,000,000`; no model"),
    "an inner width of 10^9": (changed("config.json", intermediate_size=10**9), "`config.json` has `intermediate_size"),
    "a context of 10^12": (changed("config.json", max_position_embeddings=10**12), "`config.json` has `max_position_e"),
    "10^9 labels": (changed("config.json", num_labels=10**9), "`config.json` has `num_labels: 1,000,000,000`; no mode"),
    "a window of 10^30": (changed("config.json", sliding_window=10**30), "`config.json` has `sliding_window: 10^30 an"),
    "10^5 experts": (changed("config.json", num_local_experts=10**5), "`config.json` has `num_local_experts: 100,000`"),
    "layers of a part": (changed("config.json", text_config={"num_hidden_layers": 10**6}), "`config.json` has `num_hi"),
    "10^17 weights": (
        changed("config.json", hidden_size=10**7, vocab_size=10**8, num_hidden_layers=2_000),
        "`config.json` describes a model of about ",
    ),
    "a layer of text": (changed("config.json", num_hidden_layers="x"), '`num_hidden_layers` is "x"; expected a whole'),
    "half a layer": (changed("config.json", num_hidden_layers=1.5), "`num_hidden_layers` is 1.5; expected a whole num"),
    "a NaN": (changed("config.json", rms_norm_eps=NAN), "`config.json` has a `rms_norm_eps` that is not a number"),
    "a deep one": (written("config.json", DEEP), "`config.json` is not JSON: nested too deeply"),
    "a less deep one": (written("config.json", LESS_DEEP), "`config.json` is nested more than 50 levels deep"),
    "an end token of 10^30": (changed("config.json", eos_token_id=10**30), "`config.json` has `eos_token_id: 10^30 an"),
    "layers of another kind": (changed("config.json", layer_types=["x", "y"]), "cannot load the "),
    "a window of text": (changed("config.json", sliding_window="x"), "the model cannot answer as its files ask it to:"),
    "a decoder of two parts": (changed("config.json", is_encoder_decoder=True), "the model cannot answer as its files"),
    "rope of a list": (changed("config.json", rope_parameters=[1]), "cannot load the "),
    "a deep generation_config": (written("generation_config.json", DEEP), "`generation_config.json` is not JSON: nest"),
    "10^12 tokens": (
        changed("generation_config.json", max_new_tokens=10**12), "`generation_config.json` has a wrong `max_new_token",
    ),
    "0 tokens": (changed("generation_config.json", max_new_tokens=0), "`generation_config.json` has a wrong `max_new_"),
    "10^9 beams": (changed("generation_config.json", num_beams=10**9), "`generation_config.json` has a wrong `num_bea"),
    "beams of text": (changed("generation_config.json", num_beams="x"), "`generation_config.json` has a wrong `num_be"),
    "a temperature that is none": (
        changed("generation_config.json", temperature=NAN), "`generation_config.json` has a wrong `temperature`: expec",
    ),
    "an infinite penalty": (
        changed("generation_config.json", repetition_penalty=INF), "`generation_config.json` has a wrong `repetition_",
    ),
    "n-grams of 10^12": (
        changed("generation_config.json", encoder_no_repeat_ngram_size=10**12), "`generation_config.json` has a wrong ",
    ),
    "strings that end an answer": (
        changed("generation_config.json", stop_strings=["x"]), "the model cannot answer as its files ask it to: ",
    ),
    "a bias of text": (changed("generation_config.json", sequence_bias="x"), "the model cannot answer as its files"),
    "words of numbers": (changed("generation_config.json", bad_words_ids=[1]), "the model cannot answer as its files "),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), CONFIGS.values(), ids=CONFIGS)
def test_an_absurd_configuration_is_one_clear_line_at_once(damage: Damage, message: str, model: Path) -> None:
    damage(model)
    started = time.monotonic()
    assert refused(model).what.startswith(message)
    assert time.monotonic() - started < 5


TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "a regex that is none": (
        changed("tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                                                 "invert": False}), "cannot load the tokenizer of `",
    ),
    "a list": (written("tokenizer.json", "[]"), "cannot load the tokenizer of `"),
    "a number": (written("tokenizer.json", "5"), "cannot load the tokenizer of `"),
    "no JSON": (written("tokenizer.json", "{"), "cannot load the tokenizer of `"),
    "other bytes": (written("tokenizer.json", b"\xff\xfe"), "cannot load the tokenizer of `"),
    "a deep one": (written("tokenizer.json", DEEP), "cannot load the tokenizer of `"),
    "no model": (changed("tokenizer.json", model=None), "cannot load the tokenizer of `"),
    "a model of another kind": (changed("tokenizer.json", model={"type": "Unigram"}), "cannot load the tokenizer of `"),
    "a vocabulary of text": (
        changed("tokenizer.json", model={"type": "BPE", "vocab": "x", "merges": []}), "cannot load the tokenizer of `",
    ),
    "a version of none": (changed("tokenizer.json", version=""), "cannot load the tokenizer of `"),
    "padding of a number": (changed("tokenizer.json", padding=2.5), "cannot load the tokenizer of `"),
    "a normalizer of text": (changed("tokenizer.json", normalizer="x"), "cannot load the tokenizer of `"),
    "added tokens of text": (changed("tokenizer.json", added_tokens=["x"]), "cannot load the tokenizer of `"),
    "a start that is nowhere": (
        changed("tokenizer.json", post_processor={
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "nowhere", "type_id": 0}}],
            "pair": [], "special_tokens": {}}), "",
    ),
    "a length of text": (changed("tokenizer_config.json", model_max_length="x"), "the tokenizer of `"),
    "a length of a list": (changed("tokenizer_config.json", model_max_length=[1]), "the tokenizer of `"),
    "an unknown token of nothing": (changed("tokenizer_config.json", unk_token=""), "the tokenizer of `"),
    "a class of a number": (changed("tokenizer_config.json", tokenizer_class=5), "cannot load the tokenizer of `"),
    "an end token of a list": (changed("tokenizer_config.json", eos_token=[1]), "cannot load the tokenizer of `"),
    "settings too deep": (written("tokenizer_config.json", DEEP), "`tokenizer_config.json` is not JSON: nested too d"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer_is_one_clear_line(damage: Damage, message: str, model: Path) -> None:
    damage(model)
    with pytest.raises(GlmtuneError) as caught:
        load_tokenizer(find_model(model))
    assert caught.value.what.startswith(message)
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": 10**6}, {"vocab_size": 10**12}, {"hidden_size": 10**9},
               {"num_hidden_layers": -1}, {"max_position_embeddings": 10**12}, {"num_attention_heads": 0}],
)  # fmt: skip
def test_the_memory_of_an_absurd_model_is_not_counted(values: dict[str, Any], model: Path, tmp_path: Path) -> None:
    changed("config.json", **values)(model)
    config = tmp_path / "c.yaml"
    config.write_text(
        "data_config: {train_file: a}\ntraining_args: {output_dir: x}\npeft_config: null\n", encoding="utf-8"
    )
    started = time.monotonic()
    with pytest.raises(GlmtuneError, match=r"`config\.json` has `|expected a whole number above 0"):
        estimate(str(model), config, num_gpus=1)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "values",
    [{"max_position_embeddings": 10_485_760}, {"rope_scaling": None}, {"tie_word_embeddings": False}],
)
def test_what_real_models_say_is_let_through(values: dict[str, Any], model: Path) -> None:
    changed("config.json", **values)(model)
    changed("generation_config.json", temperature=0.0, top_p=1.0, max_length=20)(model)
    assert AutoModelForCausalLM.from_pretrained(model) is not None
    assert isinstance(generate(str(model), ["你好"], max_new_tokens=2)[0], str)
