"""Version differences: each is still needed, and both of its sides do the same."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PeftModelForCausalLM, PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Seq2SeqTrainingArguments

import glmtune
from glmtune.compat import (
    CACHE,
    CHECKPOINTING,
    FORCE_GQA,
    PEFT_CACHE,
    PLAIN_PEFT_LOSES_PREFIX,
    RENAMED_CACHE,
    RENAMED_CHECKPOINTING,
    TRANSFORMERS,
    key_heads_shared,
    shared_heads,
)

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PROMPT = {"input_ids": torch.arange(20, 32)[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}


def lowest_allowed(package: str) -> tuple[int, ...]:
    found = re.search(rf'"{package}>=([\d.]+)', PYPROJECT.read_text(encoding="utf-8"))
    assert found is not None
    return tuple(map(int, found[1].split(".")[:2]))


def prompt_model(demo_model: str, settings: PrefixTuningConfig | PromptEncoderConfig) -> PeftModel:
    torch.manual_seed(3)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32), settings).eval()


def test_versions_are_asked_for_in_one_place() -> None:
    package = Path(glmtune.__file__).parent
    asking = re.compile(r"(transformers|peft|accelerate|torch|datasets)\.__version__\s*[<>=]|[vV]ersion\(.*\) *[<>]")
    found = [path.name for path in sorted(package.rglob("*.py")) if asking.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_there_are_two_names_of_the_cache_among_the_allowed_versions() -> None:
    """Fails where `CACHE` can go: write `cache` in its place then."""
    assert lowest_allowed("transformers") < RENAMED_CACHE


def test_transformers_knows_the_variable_that_lets_key_heads_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    assert (FORCE_GQA in inspect.getsource(sdpa_attention)) == (TRANSFORMERS >= (5, 23))
    monkeypatch.delenv(FORCE_GQA, raising=False)
    with key_heads_shared("cpu"):
        assert os.environ[FORCE_GQA] == "1"
    with key_heads_shared("cuda"):
        assert FORCE_GQA not in os.environ
    monkeypatch.setenv(FORCE_GQA, "0")  # the user's own word
    with key_heads_shared("cpu"):
        assert os.environ[FORCE_GQA] == "0"
    assert os.environ[FORCE_GQA] == "0"


PLAIN_PEFT = """
import sys, torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
prompt = torch.arange(20, 32)[None]
options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
base = model.generate(input_ids=prompt, **options).logits[0]
prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8, num_layers=2, num_attention_heads=SHARED,
                            token_dim=DIM, num_transformer_submodules=1)
answer = get_peft_model(model, prefix).eval().generate(input_ids=prompt, **options).logits[0]
print(torch.allclose(base, answer, atol=1e-3))  # with the prefix they are far apart
"""


def test_plain_peft_loses_a_prefix_with_the_versions_that_an_exports_card_names(demo_model: str) -> None:
    """Fails where a newer PEFT hands it on: the sentence of the card and of the README can be bounded then."""
    config = AutoConfig.from_pretrained(demo_model)
    shared = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    code = PLAIN_PEFT.replace("SHARED", str(shared)).replace("DIM", str(shared * size))
    code = code.replace("num_layers=2", f"num_layers={config.num_hidden_layers}")
    done = subprocess.run([sys.executable, "-c", code, demo_model], capture_output=True, text=True, check=True)
    assert done.stdout == f"{TRANSFORMERS >= RENAMED_CACHE}\n"
    assert ".".join(map(str, RENAMED_CACHE)) in PLAIN_PEFT_LOSES_PREFIX


def test_there_are_two_names_of_checkpointing_among_the_allowed_versions() -> None:
    """Fails where the old names can go: all versions then know the new ones."""
    known = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert set(CHECKPOINTING) <= known
    assert (set(CHECKPOINTING.values()) <= known) == (TRANSFORMERS >= RENAMED_CHECKPOINTING)
    assert lowest_allowed("transformers") < RENAMED_CHECKPOINTING


def test_attention_may_have_no_shared_heads_among_the_allowed_versions() -> None:
    """Fails where `shared_heads` can go."""
    assert lowest_allowed("torch") < (2, 13)
    assert shared_heads(varlen_attn) == {"enable_gqa": True}
    assert shared_heads(lambda query, key, value: query) == {}


def test_models_take_the_cache_under_the_name_of_their_version(demo_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**PROMPT, **{CACHE: cache})
    assert cache.get_seq_length() == 12
    assert (CACHE == "cache") == (TRANSFORMERS >= (5, 24))


@pytest.mark.skipif(CACHE == PEFT_CACHE, reason="transformers and PEFT have one name for the cache")
def test_peft_alone_does_not_find_the_cache(demo_model: str) -> None:
    """Fails where PEFT does: `let_peft_find_the_cache` can go then, as soon as that is the lowest version allowed."""
    model = prompt_model(demo_model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    theirs = PeftModelForCausalLM.prepare_inputs_for_generation.__wrapped__
    inputs = theirs(model, **PROMPT, **{CACHE: DynamicCache(config=model.config)})
    assert inputs[CACHE].get_seq_length() == 0
    assert inputs[PEFT_CACHE].get_seq_length() == 5


@pytest.mark.parametrize(
    "settings",
    [PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
     PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16)],
    ids=["prefix", "prompt"],
)  # fmt: skip
def test_generate_writes_what_a_forward_over_all_predicts(
    demo_model: str, settings: PrefixTuningConfig | PromptEncoderConfig
) -> None:
    model = prompt_model(demo_model, settings)
    written = model.generate(**PROMPT, max_new_tokens=6, do_sample=False, eos_token_id=[])
    with torch.no_grad():
        logits = model(input_ids=written, attention_mask=torch.ones_like(written)).logits
    assert written[0, 12:].tolist() == logits.argmax(-1)[0, -7:-1].tolist()


def test_the_base_model_prepares_its_inputs_as_before_once_a_prefix_has_generated(demo_model: str) -> None:
    model = prompt_model(demo_model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    model.generate(**PROMPT, max_new_tokens=2, do_sample=False)
    base = model.get_base_model()
    assert CACHE in base.prepare_inputs_for_generation(**PROMPT, **{CACHE: DynamicCache(config=base.config)})
