"""Every method of the installed PEFT that is not refused: its loss, its checkpoint, and a run of it that is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import json_lines
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from glmtune import evaluate, resume, train
from glmtune.config.sections import NOT_TRAINED
from glmtune.family import IGNORE_INDEX
from glmtune.kernels.loss import LabelledLoss
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model

pytestmark = [pytest.mark.slow, pytest.mark.long]

NEEDED: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"target_modules": "self_attn", "adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "TRAINABLE_TOKENS": {"token_indices": list(range(20, 300)), "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 64},
    "WAVEFT": {"n_frequency": 10},
}
"""What a method cannot do without, on the demo's model."""
OF_OTHER_MODELS = ("ADAPTION_PROMPT",)
DRAWN = ("PVERA",)
"""Methods whose layers draw numbers in training, so that a loss is never the same twice."""
METHODS = sorted(
    {each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING} - NOT_TRAINED.keys() - set(OF_OTHER_MODELS)
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_by_pefts_loss_saves_what_it_has_trained_and_is_resumed(
    method: str, demo_data: Path, write_config
) -> None:
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[method].__dataclass_fields__
    targets = {"target_modules": ["q_proj", "v_proj"]} if "target_modules" in fields else {}
    run = train(
        demo_data,
        "demo",
        write_config(
            top={"peft_config": {"peft_type": method} | targets | NEEDED.get(method, {})},
            max_steps=4, save_steps=2, eval_steps=4, learning_rate=1e-2, generation_config={"max_new_tokens": 2},
        ),
    )  # fmt: skip
    before = json_lines(run / "metrics.jsonl")
    if method not in DRAWN:
        check_loss(run)

    [at_end] = [line["eval_loss"] for line in before if "eval_loss" in line]
    scores = evaluate(run, demo_data / "dev.jsonl", max_new_tokens=2)
    assert scores.metrics["loss"] == pytest.approx(at_end, rel=1e-5)

    shutil.rmtree(run / "checkpoint-4")
    resume(run)
    assert [line["loss"] for line in json_lines(run / "metrics.jsonl") if "loss" in line] == [
        line["loss"] for line in before if "loss" in line
    ]


def check_loss(run: Path) -> None:
    """Compare the loss of the trained model with the one that PEFT itself returns for labels."""
    model: Any = load_model(find_model(str(run))).model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids = torch.randint(10, 900, (2, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = IGNORE_INDEX
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss * (labels[:, 1:] != IGNORE_INDEX).sum()
        loss = LabelledLoss(model).summed(model, inputs, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
