"""What is exported is the same model to any other tool, or it is not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import glmtune
from glmtune import GlmtuneError, generate
from glmtune.compat import PLAIN_PEFT_LOSES_PREFIX
from glmtune.errors import RunFailure
from glmtune.exporting.export_check import TOLERANCE, Check, Difference, Distance, ask, compare
from glmtune.exporting.export_report import report
from glmtune.exporting.run import Exported, export
from glmtune.exporting.sample_prompts import QUESTIONS
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "lora": LoraConfig(**LORA),
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "dora": LoraConfig(**LORA, use_dora=True),
    "modules_to_save": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "ptuning_v2": PrefixTuningConfig(
        num_virtual_tokens=4,
        num_layers=4,
        num_attention_heads=2,
        token_dim=64,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
    ),
}


@pytest.fixture(scope="module")
def adapter(demo_model: str, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that makes an adapter of the embedded model, with weights that change its answers."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            torch.manual_seed(7)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model), ADAPTERS[name])
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.requires_grad:
                        weight += 0.1 * torch.randn_like(weight)
            folders[name] = tmp_path_factory.mktemp(name) / "checkpoint-5"
            model.save_pretrained(folders[name])
        return folders[name]

    return make


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """A file of two questions: fewer than are asked without it."""
    path = tmp_path_factory.mktemp("questions") / "prompts.jsonl"
    rows = [{"prompt": "你好"}, {"messages": [{"role": "user", "content": "Hello"}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def merged(adapter, prompts, tmp_path_factory) -> Exported:
    """The export of a LoRA checkpoint whose run has also taught to stop with token 5."""
    GenerationConfig(eos_token_id=[5]).save_pretrained(adapter("lora"))
    return export(adapter("lora"), tmp_path_factory.mktemp("exports") / "out", prompts=prompts)


def plain_answers(model: Any, tokenizer: Any) -> list[str]:
    """Return greedy answers, with nothing but transformers."""
    answers = []
    for question in QUESTIONS[:3]:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "modules_to_save"])
def test_a_merged_adapter_is_the_same_model_in_plain_transformers(
    name: str, adapter, demo_model, tmp_path, prompts
) -> None:
    exported = export(adapter(name), tmp_path / "out", prompts=prompts)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    answers = generate(str(adapter(name)), QUESTIONS[:3], do_sample=False, max_new_tokens=12)
    assert plain_answers(model, tokenizer) == answers
    assert answers != generate(demo_model, QUESTIONS[:3], do_sample=False, max_new_tokens=12)
    assert not list((tmp_path / "out").glob("adapter*"))
    assert "plain PEFT" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 0 < exported.check.distance.largest < 1e-3 < exported.adapter_effect.largest
    assert exported.check.differences == ()


def test_the_figures_of_the_check_are_told(merged: Exported) -> None:
    largest, rounding = merged.check.distance.largest, merged.check.rounding.largest
    assert merged.adapter_effect is not None
    assert report(merged) == [
        f"{merged.folder}: the LoRA adapter is merged into float32 weights, 1 file of 4.3 MB",
        "greedy answers: 2 of 2 are the same as before (2 rows of prompts.jsonl)",
        f"largest logit difference: {largest:.4g} (rounding the same weights at random: {rounding:.4g}; "
        f"the adapter itself: {merged.adapter_effect.largest:.4g})",
        f"it can be served with `glmtune serve {merged.folder}`, `vllm serve {merged.folder}` or "
        f"`transformers serve {merged.folder}`",
    ]


def test_all_stop_tokens_stand_in_the_generation_config(merged: Exported, demo_tokenizer) -> None:
    stops = demo_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    config = GenerationConfig.from_pretrained(merged.folder)
    assert config.eos_token_id == sorted({*stops, 5})
    assert config.pad_token_id == demo_tokenizer.pad_token_id


def test_the_tokenizer_parses_tool_calls(merged: Exported) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bath"}'}}
    parsed = tokenizer.parse_response('get_weather\n{"city": "Bath"}<|observation|>', prefix="<|user|>a<|assistant|>")
    assert parsed == {"role": "assistant", "tool_calls": [call]}


def test_whoever_may_read_the_folder_may_read_its_weights(merged: Exported) -> None:
    assert len({path.stat().st_mode for path in merged.folder.iterdir()}) == 1


def test_weights_are_sharded_into_files_of_the_size_asked_for(adapter, tmp_path, prompts) -> None:
    export(adapter("lora"), tmp_path / "out", max_shard_size="1MB", prompts=prompts)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 6
    assert all(path.stat().st_size < 1_100_000 for path in shards)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_another_dtype_can_be_asked_for(adapter, tmp_path, prompts) -> None:
    exported = export(adapter("lora"), tmp_path / "out", dtype="bfloat16", prompts=prompts)
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert exported.dtype == "bfloat16"


def test_weights_keep_the_dtype_of_the_base_models_files(adapter, demo_model, tmp_path, prompts) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(base)
    assert export(adapter("lora"), tmp_path / "out", base_model=str(base), prompts=prompts).dtype == "bfloat16"


def test_a_prefix_is_exported_as_the_adapter_that_it_is(adapter, demo_model, tmp_path, prompts) -> None:
    exported = export(adapter("ptuning_v2"), tmp_path / "out", prompts=prompts)
    out = tmp_path / "out"
    base = AutoModelForCausalLM.from_pretrained(demo_model)
    model = PeftModel.from_pretrained(base, str(out))
    tokenizer = AutoTokenizer.from_pretrained(out)
    answers = generate(str(adapter("ptuning_v2")), QUESTIONS[:3], do_sample=False, max_new_tokens=12)
    assert plain_answers(model, tokenizer) == answers
    assert answers != generate(demo_model, QUESTIONS[:3], do_sample=False, max_new_tokens=12)
    assert not (out / "model.safetensors").exists()
    assert exported.check.distance.largest == 0
    assert f"```\n\n{PLAIN_PEFT_LOSES_PREFIX}\n" in (out / "README.md").read_text(encoding="utf-8")
    told = report(exported)
    assert told[0] == (
        f"{out}: a P-Tuning v2 adapter, which cannot be merged, 1 file of 8.3 kB; "
        f"it needs its base model `{demo_model}`"
    )
    assert told[2] == "largest logit difference: 0"
    assert GenerationConfig.from_pretrained(out).eos_token_id is not None
    assert "PeftModel.from_pretrained" in (out / "README.md").read_text(encoding="utf-8")


def test_a_full_model_stays_what_it_is(demo_model: str, tmp_path, prompts) -> None:
    checkpoint = tmp_path / "checkpoint-7"
    shutil.copytree(demo_model, checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"pickled")
    exported = export(checkpoint, tmp_path / "out", prompts=prompts)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert report(exported)[1:3] == [
        "greedy answers: 2 of 2 are the same as before (2 rows of prompts.jsonl)",
        "largest logit difference: 0",
    ]


def test_an_empty_folder_is_taken_and_a_used_one_refused(tmp_path, prompts) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert isinstance(glmtune.export("demo", out, prompts=prompts), Exported)
    with pytest.raises(GlmtuneError) as refused:
        export("demo", out)
    assert str(refused.value) == f"`{out}` is not empty\nhint: choose another folder, or empty it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "nowhere/out"}, "folder `{here}/nowhere` does not exist\nhint: make it first"),
        ({"dtype": "bfloat"}, "`bfloat` is no dtype for weights (did you mean `bfloat16`?)\n"
         "hint: expected one of `bfloat16`, `float16`, `float32`"),
        ({"max_shard_size": "5 gigabytes"}, "`5 gigabytes` is no size of a file\nhint: write it as `500MB` or `5GB`"),
        ({"gguf": "q4_k_m"}, "the converter writes no GGUF of type `q4_k_m`; expected one of `auto`, `f32`, `f16`, "
         "`bf16`, `q8_0`\nhint: convert to `bf16`, then "
         "`llama-quantize MODEL-bf16.gguf MODEL-q4_k_m.gguf q4_k_m`"),
        ({"push_to": "me/model"}, "cannot push to `me/model`: `HF_HUB_OFFLINE` is set\n"
         "hint: unset it, or leave out `--push` and upload the folder later with `hf upload`"),
        ({"push_to": "not a name"}, "`not a name` is no name of a hub's repository\nhint: use `OWNER/NAME`"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(options, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GlmtuneError) as refused:
        export("demo", **{"out": "out"} | options)
    assert str(refused.value) == message.format(here=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_cannot_become_gguf(adapter, tmp_path) -> None:
    with pytest.raises(GlmtuneError, match="a P-Tuning v2 adapter cannot become a GGUF file"):
        export(adapter("ptuning_v2"), tmp_path / "out", gguf="auto")


def test_a_prefix_has_no_dtype_to_choose(adapter, tmp_path) -> None:
    with pytest.raises(GlmtuneError) as refused:
        export(adapter("ptuning_v2"), tmp_path / "out", dtype="bfloat16")
    assert str(refused.value) == (
        "`--dtype` has no meaning for a P-Tuning v2 adapter: its base model stays as it is\nhint: leave it out"
    )


def test_an_adapter_of_quantized_files_is_refused(adapter, demo_model, tmp_path) -> None:
    base = tmp_path / "base"
    shutil.copytree(demo_model, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(GlmtuneError) as refused:
        export(adapter("lora"), tmp_path / "out", base_model=str(base))
    assert "files are quantized (`fp8`), and merging would quantize them again" in str(refused.value)


def test_an_export_that_fails_leaves_nothing_behind(adapter, tmp_path, prompts) -> None:
    broken = tmp_path / "checkpoint-9"
    shutil.copytree(adapter("lora"), broken)
    weights = load_file(broken / "adapter_model.safetensors")
    weights[next(iter(weights))][0, 0] = float("nan")
    save_file(weights, broken / "adapter_model.safetensors")
    with pytest.raises(GlmtuneError):
        export(broken, tmp_path / "out", prompts=prompts)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_an_adapter_that_cannot_be_merged_rightly_is_not_exported(demo_model, tmp_path, prompts) -> None:
    """A last layer that is the embeddings, too: merging changes both, the adapter only one."""
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(demo_model)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        model.get_parameter("base_model.model.lm_head.lora_B.default.weight").normal_(0, 0.1)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RunFailure, match="the exported model is not the same model: its logits differ by up to"):
        export(tmp_path / "adapter", tmp_path / "out", prompts=prompts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_model_that_was_tampered_with_fails_the_check(adapter, tmp_path) -> None:
    source = find_model(adapter("lora"))
    loaded = load_model(source, dtype="auto")
    prompts = [loaded.tokenizer.encode(question) for question in QUESTIONS[:2]]
    answers = ask(loaded.model, prompts)
    merged = loaded.model.merge_and_unload(safe_merge=True)
    changed = [f"model.layers.{layer}." for layer in range(4)]
    assert compare(answers, merged, loaded.tokenizer, changed).is_faithful

    def tampered(weight: str, by: Callable[[torch.Tensor], Any]) -> bool:
        model = load_model(source, dtype="auto").model.merge_and_unload()
        with torch.no_grad():
            by(model.get_parameter(weight))
        return not compare(answers, model, loaded.tokenizer, changed).is_faithful

    assert tampered("model.layers.1.self_attn.q_proj.weight", lambda weight: weight.mul_(1.01))
    assert tampered("lm_head.weight", lambda weight: weight[answers[0].ids[0]].zero_())
    assert tampered("model.norm.weight", lambda weight: weight[0].fill_(float("nan")))
    # The adapter itself is lost: its base model alone is exported.
    base = AutoModelForCausalLM.from_pretrained(source.base)
    assert not compare(answers, base, loaded.tokenizer, changed).is_faithful


def test_a_lost_stop_token_fails_the_check(adapter, demo_tokenizer) -> None:
    loaded = load_model(find_model("demo"), dtype="auto")
    prompts = [demo_tokenizer.encode(question) for question in QUESTIONS[:2]]
    second = ask(loaded.model, prompts)[0].ids[1]
    loaded.model.generation_config.eos_token_id = [second]
    answers = ask(loaded.model, prompts)
    assert answers[0].ids[-1] == second
    loaded.model.generation_config.eos_token_id = [demo_tokenizer.pad_token_id]
    check = compare(answers, loaded.model, loaded.tokenizer, None)
    assert check.distance.largest == 0
    assert check.differences[0].before == "the end"
    assert not check.is_faithful


def test_a_model_that_computes_no_numbers_is_not_exported(demo_model, tmp_path, prompts) -> None:
    base = tmp_path / "base"
    shutil.copytree(demo_model, base)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] *= float("inf")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailure, match="the checkpoint itself computes numbers that are not finite"):
        export(base, tmp_path / "out", prompts=prompts)
    assert not (tmp_path / "out").exists()


def checked(typical: float = 1.0, gap: float | None = None) -> Check:
    """Return a check where rounding makes differences of 1, and of 2 at most."""
    differences = () if gap is None else (Difference(number=1, token=1, before="a", after="b", gap=gap),)
    return Check(
        num_prompts=1,
        distance=Distance(largest=9.0, typical=typical),
        rounding=Distance(largest=2.0, typical=1.0),
        differences=differences,
    )


def test_rounding_explains_four_times_its_own_differences_and_no_more() -> None:
    """Measured: right exports are at up to 2.5 times, and those that lost a small adapter at 3.5 and beyond."""
    assert TOLERANCE == 4.0
    assert checked(typical=4.0).is_faithful
    assert not checked(typical=4.01).is_faithful
    assert not checked(typical=float("nan")).is_faithful
    assert checked(gap=8.0).is_faithful
    assert not checked(gap=8.01).is_faithful
    assert not checked(gap=float("inf")).is_faithful


@pytest.mark.parametrize(("dtype", "num_bits"), [(torch.float32, 32), (torch.bfloat16, 8)], ids=str)
def test_a_change_by_more_than_rounding_is_not_taken_for_it(dtype: torch.dtype, num_bits: int, demo_model) -> None:
    """All weights are moved by up to half of the last bit, or of so many; float32 sums are rounded themselves."""
    loaded = load_model(find_model(demo_model), dtype=dtype)
    prompts = [loaded.tokenizer.encode(question) for question in QUESTIONS[:4]]
    answers = ask(loaded.model, prompts)

    def moved(times: float) -> bool:
        model = load_model(find_model(demo_model), dtype=dtype).model
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
                weight.copy_(weight.double() * (1 + times * torch.finfo(dtype).eps * noise))
        return compare(answers, model, loaded.tokenizer, None).is_faithful

    assert moved(1.0)
    assert not moved(num_bits)
