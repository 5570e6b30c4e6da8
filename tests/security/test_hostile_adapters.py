"""A stranger's adapter is two plain files, or one clear line: it names no other files, and holds nothing up."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from hostile_models import (
    Damage,
    entry,
    header,
    header_length,
    index_to,
    one_number,
    removed,
    weights,
    written,
)
from json_changes import changed
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glmtune.errors import GlmtuneError
from glmtune.generation.generate import generate
from glmtune.modeling.adapting import name_patterns
from glmtune.modeling.adapting.name_patterns import check_patterns, patterns_of
from glmtune.modeling.finding.model_source import find_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA_WEIGHT = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NAN, INF = float("nan"), float("inf")
DEEP = '{"a": ' * 5_000 + "1" + "}" * 5_000
ENDLESS = "(a|_|.)*" * 12 + "!"

KINDS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.fixture(scope="session")
def honest(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of each kind."""
    room = tmp_path_factory.mktemp("adapters")
    for kind, settings in KINDS.items():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model), settings)
        model.save_pretrained(room / kind)
        changed(CONFIG, base_model_name_or_path=demo_model)(room / kind)
    return room


@pytest.fixture
def adapter(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest / "lora", tmp_path / "adapter"))


def refused(adapter: Path) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        generate(str(adapter), ["你好"], max_new_tokens=2)
    assert "\n" not in caught.value.what
    return caught.value


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no weights": (removed(WEIGHTS), "`{adapter}` has an adapter's configuration but no `adapter_model.safetensors`"),
    "pickled weights alone": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "`{adapter}` has an adapter's config",
    ),
    "empty weights": (written(WEIGHTS, ""), f"`{WEIGHTS}` is empty"),
    "a pickle under the name": (lambda folder: torch.save({}, folder / WEIGHTS), f"`{WEIGHTS}` is no safetensors file"),
    "a header of 2^64 bytes": (header_length(2**64 - 1), f"`{WEIGHTS}` is no safetensors file"),
    "a header of a list": (header(lambda found: []), f"`{WEIGHTS}` is no safetensors file"),
    "a weight of another size": (entry(shape=[5, 5]), f"`{WEIGHTS}` is damaged: weight `"),
    "a weight of another type": (entry(dtype="F64"), f"`{WEIGHTS}` is damaged: weight `"),
    "a number that is none": (weights(lora_B__weight=one_number(NAN)), "weight `"),
    "an infinite number": (weights(lora_A__weight=one_number(INF)), "weight `"),
    "another shape": (weights(lora_A__weight=lambda w: w[:2].clone()), "the adapter does not fit the base model: "),
    "settings of a list": (written(CONFIG, "[]"), f"`{CONFIG}` holds no JSON object"),
    "settings too deep": (written(CONFIG, DEEP), f"`{CONFIG}` is not JSON: nested too deeply"),
    "no kind": (changed(CONFIG, peft_type=None), "the adapter's settings do not say of what kind it is"),
    "an unknown kind": (changed(CONFIG, peft_type="EVIL"), "the adapter is of the kind `EVIL`, which PEFT does not kn"),
    "a kind of a list": (changed(CONFIG, peft_type=["LORA"]), "the adapter is of the kind `['LORA']`"),
    "another kind": (changed(CONFIG, peft_type="PREFIX_TUNING"), ""),
    "a module by its name": (
        changed(CONFIG, megatron_config={"a": 1}, megatron_core="evil.module"), "the adapter's settings have `megatron",
    ),
    "a tokenizer of elsewhere": (
        changed(CONFIG, tokenizer_kwargs={"trust_remote_code": True}), "the adapter's settings have `tokenizer_kwargs`",
    ),
    "another file": (
        changed(CONFIG, prompt_tuning_init_state_dict_path="x.bin"), "the adapter's settings have `prompt_tuning_init_",
    ),
    "other adapters": (
        changed(CONFIG, peft_type="XLORA", adapters={"a": "evil/x"}), "the adapter's settings have `adapters`, which h",
    ),
    "a rank of 10^12": (changed(CONFIG, r=10**12), "the adapter's settings have `r: 1000000000000`; expected at most"),
    "a rank of text": (changed(CONFIG, r="x"), ""),
    "a rank of 0": (changed(CONFIG, r=0), ""),
    "a rank below 0": (changed(CONFIG, r=-4), ""),
    "a scale that is none": (changed(CONFIG, lora_alpha=NAN), "the adapter's settings have `lora_alpha: NaN`; expecte"),
    "10^6 layers": (changed(CONFIG, layer_replication=[[0, 10**6]]), "the adapter's settings repeat more than 2,000 l"),
    "no layers": (changed(CONFIG, target_modules=[]), ""),
    "layers that are not there": (changed(CONFIG, target_modules=["nope"]), "the adapter does not fit the base model:"),
    "layers of a number": (changed(CONFIG, target_modules=5), ""),
    "layers of keys": (changed(CONFIG, target_modules={"a": 1}), ""),
    "a pattern that is none": (changed(CONFIG, target_modules="(q_proj"), "`(q_proj` is no pattern: missing )"),
    "a pattern of 10^5 characters": (changed(CONFIG, target_modules="(q)" * 40_000), "a pattern of 120,000 characters"),
    "ranks by no pattern": (changed(CONFIG, rank_pattern={"(": 4}), "`(.*\\.)?(()$` is no pattern: missing )"),
    "an endless pattern": (changed(CONFIG, target_modules=ENDLESS), "the pattern `(a|_|.)*"),
    "endless ranks": (changed(CONFIG, rank_pattern={ENDLESS: 4}), "the pattern `(.*\\.)?((a|_|.)*"),
    "an endless exclusion": (changed(CONFIG, exclude_modules=ENDLESS), "the pattern `(a|_|.)*"),
    "no base": (changed(CONFIG, base_model_name_or_path=None), "the adapter `{adapter}` does not name its base model"),
    "a base of a list": (changed(CONFIG, base_model_name_or_path=[1]), "the adapter `{adapter}` does not name its bas"),
    "itself as its base": (changed(CONFIG, base_model_name_or_path="."), "the adapter names `.` as its base model, wh"),
    "itself by its path": (
        lambda folder: changed(CONFIG, base_model_name_or_path=str(folder))(folder),
        "the adapter names `{adapter}` as its base model, which is an adapter or a run itself",
    ),
    "itself from above": (
        lambda folder: changed(CONFIG, base_model_name_or_path=f"../{folder.name}")(folder),
        "the adapter names `../adapter` as its base model, which is an adapter or a run itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_hostile_adapter_is_one_clear_line_in_bounded_time(
    damage: Damage, message: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    monkeypatch.chdir(adapter)
    damage(adapter)
    started = time.monotonic()
    error = refused(adapter)
    assert error.what.startswith(message.format(adapter=adapter))
    assert str(adapter) in str(error)
    assert time.monotonic() - started < 5


PREFIXES: dict[str, tuple[Damage, str]] = {
    "10^12 tokens": (changed(CONFIG, num_virtual_tokens=10**12), "the adapter's settings have `num_virtual_tokens: 10"),
    "a width of 10^12": (changed(CONFIG, token_dim=10**12), "the adapter's settings have `token_dim: 1000000000000`; "),
    "10^6 layers": (changed(CONFIG, num_layers=10**6), "the adapter's settings have `num_layers: 1000000`; expected a"),
    "other parts": (changed(CONFIG, num_transformer_submodules=0), "the adapter does not fit the base model: "),
    "parts of a fraction": (changed(CONFIG, num_transformer_submodules=2.5), ""),
    "tokens of text": (changed(CONFIG, num_virtual_tokens="4"), ""),
    "tokens below 0": (changed(CONFIG, num_virtual_tokens=-1), ""),
    "a number that is none": (weights(prompt_embeddings=one_number(NAN)), "weight `prompt_embeddings` holds numbers t"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), PREFIXES.values(), ids=PREFIXES)
def test_a_hostile_prefix_is_one_clear_line(damage: Damage, message: str, honest: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(honest / "prefix", tmp_path / "adapter"))
    damage(adapter)
    assert refused(adapter).what.startswith(message.format(adapter=adapter))


def test_two_adapters_that_name_each_other_are_told(honest: Path, tmp_path: Path) -> None:
    for name, other in ("a", "b"), ("b", "a"):
        shutil.copytree(honest / "lora", tmp_path / name)
        changed(CONFIG, base_model_name_or_path=f"../{other}")(tmp_path / name)
    with pytest.raises(GlmtuneError, match="which is an adapter or a run itself"):
        find_model(tmp_path / "a")


def test_a_base_of_pickles_by_index_is_refused_under_an_adapter(adapter: Path, demo_model: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(demo_model, tmp_path / "base"))
    index_to("w.bin")(base)
    changed(CONFIG, base_model_name_or_path=str(base))(adapter)
    assert refused(adapter).what.startswith("`model.safetensors.index.json` names `w.bin`")


def test_honest_patterns_are_looked_for(adapter: Path) -> None:
    changed(CONFIG, target_modules=r".*\.(q_proj|v_proj)", rank_pattern={r"layers\.0\..*": 4})(adapter)
    assert isinstance(generate(str(adapter), ["你好"], max_new_tokens=2)[0], str)
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    assert patterns_of(settings) == [r".*\.(q_proj|v_proj)", r"(.*\.)?(layers\.0\..*)$"]


def test_names_alone_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(name_patterns.subprocess, "run", lambda command, **_: started.append(command))
    for value in ("all-linear", ["q_proj", "v_proj"], None):
        check_patterns(patterns_of({"target_modules": value, "rank_pattern": {"q_proj": 8}}), ["a"], "here")
    assert started == []
    check_patterns(patterns_of({"target_modules": "q_proj|v_proj"}), ["a"], "here")
    assert len(started) == 1


@pytest.mark.parametrize("kept", [0, 1])
def test_an_adapter_that_would_change_nothing_or_half_is_refused(kept: int, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    names = sorted(tensors)
    save_file({("" if name in names[:kept] else "evil.") + name: tensors[name] for name in names}, adapter / WEIGHTS)
    assert refused(adapter).what == (
        "the adapter's file lacks weights that its settings describe; without them it would change nothing"
    )
