"""Frozen weights in 4 and 8 bits: what is refused, and runs that train, resume and answer without bitsandbytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glmtune import GlmtuneError, load_config, resume, train
from glmtune.evaluation.evaluate import quiet_evaluation
from glmtune.family import family_of
from glmtune.kernels.fused_layers import FusedLayers
from glmtune.modeling.adapting.adapters import adapt
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_base_model
from glmtune.training.setup.machine import check_machine

REPOSITORY = Path(__file__).parents[2]
ADAPTERS = {
    "lora": {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4},
}


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(GlmtuneError) as caught:
        check()
    return str(caught.value)


def test_quantized_weights_are_refused_where_every_weight_is_trained(write_config) -> None:
    path = write_config("sft", top={"quantization": "4bit"})
    assert refusal(lambda: load_config(path)).splitlines()[:1] + refusal(lambda: load_config(path)).splitlines()[
        2:
    ] == [
        "`quantization`: quantized weights cannot be trained, and `peft_config: null` trains every weight",
        "hint: add a `peft_config` (LoRA, P-Tuning v2), or leave `quantization` out",
    ]


def test_a_number_of_bits_that_there_is_not_is_refused(write_config) -> None:
    assert refusal(lambda: load_config(write_config(top={"quantization": "3bit"}))).startswith(
        "`quantization`: expected one of `4bit`, `8bit`"
    )


def test_quantized_weights_are_refused_under_zero_3(write_config, tmp_path: Path) -> None:
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    config = load_config(write_config(top={"quantization": "4bit"}, deepspeed=str(tmp_path / "ds.json")))
    assert refusal(lambda: check_machine(config)) == (
        "ZeRO-3 shards every weight over the GPUs, and a weight that bitsandbytes has quantized cannot be sharded\n"
        "  --> quantization: 4bit\n"
        "hint: take `configs/ds_zero2.json`, where each GPU holds the quantized weights"
    )


def test_quantized_weights_are_refused_under_fsdp(write_config) -> None:
    config = load_config(write_config(top={"quantization": "8bit"}, fsdp=True))
    assert refusal(lambda: check_machine(config)) == (
        "FSDP does not shard weights that bitsandbytes has quantized: each GPU would hold all of them all the same\n"
        "  --> quantization: 8bit\n"
        "hint: leave `training_args.fsdp` out, or take `configs/ds_zero2.json`"
    )


WITHOUT = "import sys\nsys.modules['bitsandbytes'] = None\nimport importlib.util as u\nfind = u.find_spec\n"
WITHOUT += "u.find_spec = lambda name, *a: None if name == 'bitsandbytes' else find(name, *a)\n"
"""Code that hides bitsandbytes from a program of its own."""


def without_bitsandbytes(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a verb as where bitsandbytes was never installed."""
    code = f"{WITHOUT}sys.argv = ['glmtune', *{arguments!r}]\nfrom glmtune.cli.app import main\nmain()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_a_missing_bitsandbytes_is_told_before_any_row_is_encoded(demo_data: Path, write_config) -> None:
    config = write_config(top={"quantization": "4bit"})
    done = without_bitsandbytes(["train", str(demo_data), "demo", str(config)])
    assert done.returncode == 2
    assert done.stderr == (
        "error: `bitsandbytes` is not installed, which quantizes the weights\n"
        "  --> quantization: 4bit\n"
        "hint: run `pip install 'glmtune[quant]'` and try again, or leave `quantization` out\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_a_run_on_quantized_weights_resumes_exactly_and_answers_without_bitsandbytes(
    method: str, quantization: str, demo_data: Path, write_config, read_losses, read_weights, capsys
) -> None:
    """With an evaluation before the steps that are compared: bitsandbytes may lay weights out anew for it."""
    pytest.importorskip("bitsandbytes")
    top = {"quantization": quantization}
    run = train(demo_data, "demo", write_config(method, top=top, max_steps=4, save_steps=2, eval_steps=2))
    kind = {"4bit": "4bit nf4", "8bit": "8bit"}[quantization]
    assert f"weights {kind} and float32 (trained float32)" in capsys.readouterr().err
    losses, weights = read_losses(run), read_weights(run / "checkpoint-4")
    assert losses[4] < losses[1]

    shutil.rmtree(run / "checkpoint-4")
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    resume(run)
    assert read_losses(run) == {step: loss for step, loss in losses.items() if step > 2}
    resumed = read_weights(run / "checkpoint-4")
    assert all(resumed[name].equal(tensor) for name, tensor in weights.items())

    done = without_bitsandbytes(["infer", str(run / "checkpoint-4"), "--prompt", "类型#裙"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_gradients_pass_quantized_weights_under_checkpointing_after_an_evaluation(
    method: str, quantization: str, demo_model: str
) -> None:
    pytest.importorskip("bitsandbytes")

    def gradients(*, checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        base = load_base_model(
            find_model(demo_model), dtype=torch.float32, quantization=quantization, device=torch.device("cpu")
        )
        model = adapt(base, ADAPTERS[method], family_of("glm"), gradient_checkpointing=checkpointing, notify=print)
        ids = torch.arange(40).reshape(2, 20)
        with torch.no_grad():
            model.eval()(input_ids=ids)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [weight.grad for weight in model.parameters() if weight.requires_grad]

    plain, checkpointed = gradients(checkpointing=False), gradients(checkpointing=True)
    assert sum(gradient.abs().sum().item() for gradient in checkpointed) > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_fused_layers_have_the_same_gradients_over_quantized_weights(quantization: str, demo_model: str) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    base = load_base_model(
        find_model(demo_model), dtype=torch.float32, quantization=quantization, device=torch.device("cpu")
    )
    settings = ADAPTERS["lora"] | {"target_modules": ["q_proj", "o_proj", "gate_up_proj", "down_proj"]}
    model = adapt(base, settings, family_of("glm"), gradient_checkpointing=False, notify=print).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    fused = FusedLayers(model, recomputes=False)
    with quiet_evaluation(model):
        assert fused.drop_what_differs(torch.device("cpu")) == []
    assert fused.names == ["norms", "MLPs", "LoRA"]
    ids = torch.arange(40).reshape(2, 20)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    expected = gradients()
    with fused.in_use():
        found = gradients()
    # In 8 bits what goes into a layer is quantized, too: a last digit more or less moves it to the next step.
    tolerance = 1e-5 if quantization == "4bit" else 0.02
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def test_the_error_of_four_bits_is_small_and_the_last_layer_is_left_alone(demo_model: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    exact = load_base_model(find_model(demo_model), dtype=torch.float32)
    quantized = load_base_model(find_model(demo_model), quantization="4bit", **options)
    assert torch.equal(quantized.lm_head.weight, exact.lm_head.weight)
    weight = quantized.model.layers[0].mlp.down_proj.weight
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested
    whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    expected = exact.model.layers[0].mlp.down_proj.weight
    # NF4's mean distance to normal numbers is about a tenth of their deviation.
    assert ((whole - expected).abs().mean() / expected.std()).item() == pytest.approx(0.073, abs=0.01)
