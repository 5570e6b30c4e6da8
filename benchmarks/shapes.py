"""Model folders to measure with: GLM-4's vocabulary and layout at other sizes, random weights, the real tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2] / "shared"
"""Where GLM-4's tokenizer and published rows lie unless the command line says otherwise."""

SEED = 1234


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What differs from GLM-4-9B; the vocabulary of 151,552 and two key-value heads do not."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int


SHAPES = {
    "small": Shape(hidden_size=128, intermediate_size=428, num_hidden_layers=2, num_attention_heads=4, head_dim=32),
    "medium": Shape(hidden_size=512, intermediate_size=1712, num_hidden_layers=8, num_attention_heads=8, head_dim=64),
    "9b": Shape(hidden_size=4096, intermediate_size=13696, num_hidden_layers=40, num_attention_heads=32, head_dim=128),
}


def describe(name: str) -> str:
    """Return the shape in words."""
    shape = SHAPES[name]
    return f"hidden {shape.hidden_size}, {shape.num_hidden_layers} layers, vocabulary 151,552"


def config_values(shape: Shape) -> dict[str, Any]:
    """Return a `config.json` that transformers 4 and 5 read alike."""
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": 151552,
        **vars(shape),
        "num_key_value_heads": 2,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 5000000.0,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
    }


def write_model(name: str, folder: Path, tokenizer: Path) -> Path:
    """Write a model of a shape into the folder, with the tokenizer of another; returns the folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import GlmConfig, GlmForCausalLM

    folder.mkdir(parents=True)
    values = config_values(SHAPES[name])
    (folder / "config.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = GlmForCausalLM(GlmConfig.from_pretrained(folder)).to(torch.bfloat16)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(tokenizer, folder)
    return folder


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy a tokenizer; its settings are written so that transformers 4 reads them, too."""
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, folder / file)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
