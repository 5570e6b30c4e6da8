"""A model that is no GLM: Qwen's architecture with a ChatML template trains, resumes and answers all the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from glmtune import evaluate, generate, train

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def qwen(demo_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_a_chatml_model_trains_with_checkpointing_and_answers(
    method: str, qwen: Path, write_config, read_losses, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    line = '{"messages": [{"role": "user", "content": "类型#裙"}, {"role": "assistant", "content": "这是一条裙。"}]}\n'
    for name in ("train", "dev"):
        (rows / f"{name}.jsonl").write_text(line * 8, encoding="utf-8")
    run = train(rows, str(qwen), write_config(method, max_steps=6, save_steps=6, eval_steps=6, learning_rate=5e-3,
                                              gradient_checkpointing=True))  # fmt: skip
    losses = read_losses(run)
    assert losses[6] < losses[1]
    scores = evaluate(str(run), rows / "dev.jsonl", limit=1, max_new_tokens=3)
    assert scores.predictions[0].prompt.endswith("<|im_start|>assistant\n")
    assert scores.predictions[0].reference == "这是一条裙。"
    assert len(generate(str(run), ["类型#裙"], max_new_tokens=3)) == 1
