"""Memory estimates: values counted by hand, the count of activations against its formula, real steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GlmConfig

from glmtune.errors import GlmtuneError
from glmtune.family import family_of
from glmtune.memory.device_memory import Sharding, device_memory, optimizer_bytes, sharding_of, weight_bytes
from glmtune.memory.shapes import Weight, shape_model, weights_of
from glmtune.memory.step_memory import Batch, Moment, StepMemory, step_memory

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8}
FROZEN = Weight((1000, 1000), 2, is_trained=False, can_be_quantized=True)
TRAINED = Weight((100, 100), 4, is_trained=True)
HALF = Weight((100, 100), 2, is_trained=True)
STEP = StepMemory(
    start=Moment(activations=7000, logits=500, gradients=0), end=Moment(activations=3000, gradients=40000)
)
BUCKETS = {"bucket_size": 10, "live_size": 100_000}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "pad_token_id": 0,
}


def memory(weights: list[Weight], sharding: Sharding, **options):
    return device_memory(weights, STEP, sharding, **{"device": "cpu", **options})


def batch(**changes) -> Batch:
    shape = {"num_rows": 2, "length_tokens": 48, "num_labelled": 94, "is_packed": False, "has_mask": False}
    return Batch(**shape | changes)


def small_step(peft_config=None, *, layers: int = 5, dtype=torch.float32, **options):
    config = GlmConfig(**SMALL | {"num_hidden_layers": layers})
    model = shape_model(config, family_of("glm"), dtype=dtype, peft_config=peft_config)
    given = {"autocast": None, "has_gradients": False, "device": "cpu"} | options
    return step_memory(model, given.pop("batch", batch()), **given)


def test_without_deepspeed_a_device_holds_everything() -> None:
    found, host = memory([FROZEN, TRAINED], Sharding())
    assert found.weights == 1_000_000 * 2 + 10_000 * 4
    assert found.gradients == 10_000 * 4
    assert found.optimizer == 10_000 * 8
    assert (found.activations, found.logits, found.runtime, host) == (3000, 0, 0, 0)


def test_the_peak_is_at_the_loss_where_activations_outweigh_gradients() -> None:
    step = StepMemory(start=Moment(activations=90_000, logits=500), end=STEP.end)
    found, _ = device_memory([FROZEN, TRAINED], step, Sharding(), device="cpu")
    assert (found.activations, found.logits, found.gradients) == (90_000, 500, 0)


def test_ddp_copies_the_gradients_into_buckets() -> None:
    assert memory([TRAINED], Sharding(num_devices=2))[0].gradients == 2 * 40_000


def test_zero_1_divides_float32_copy_and_averages() -> None:
    found, host = memory([FROZEN, HALF], Sharding(stage=1, num_devices=4, **BUCKETS))
    assert found.weights == 1_010_000 * 2
    assert found.optimizer == 10_000 * 12 / 4
    assert host == 0


def test_zero_2_divides_the_gradients_too() -> None:
    found, _ = memory([FROZEN, HALF], Sharding(stage=2, num_devices=4, **BUCKETS))
    assert found.gradients == 10_000 * 2 / 4 + 2 * 10 * 2
    # The step's share of the gradients in float32 is 10,000 bytes, more than the activations.
    assert found.activations == 10_000 * 4 / 4


def test_zero_3_divides_the_weights_and_gathers_those_at_work() -> None:
    found, _ = memory([FROZEN, HALF], Sharding(stage=3, num_devices=4, **BUCKETS))
    assert found.weights == 1_010_000 * 2 / 4 + 100_000 * 2
    assert found.gradients == 10_000 * 2 / 4 + 10 * 2
    assert found.optimizer == 10_000 * 12 / 4


def test_offloading_moves_optimizer_gradients_and_weights_into_ram() -> None:
    sharding = Sharding(stage=3, num_devices=4, offloads_optimizer=True, offloads_weights=True, **BUCKETS)
    found, host = memory([FROZEN, HALF], sharding)
    assert found.weights == 100_000 * 2
    assert found.optimizer == 0
    assert found.gradients == 10 * 2
    assert host == 10_000 * (12 + 4) / 4 + 1_010_000 * 2 / 4


def test_quantized_weights_keep_their_scales() -> None:
    assert weight_bytes([FROZEN, TRAINED], 4) == pytest.approx(1_000_000 * (0.5 + 1 / 64 + 4 / 16384) + 40_000)
    assert weight_bytes([FROZEN, TRAINED], 8) == pytest.approx(1_000_000 + 1000 * 4 + 40_000)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch_fused", 80_000),
        ("adamw_torch", 80_000),
        ("sgd", 0),
        ("lion_32bit", 40_000),
        ("adagrad", 40_000),
        ("adafactor", 4 * (100 + 100)),
        ("adamw_bnb_8bit", 2 * 10_000 * (1 + 4 / 256)),
        ("paged_adamw_8bit", 2 * 10_000 * (1 + 4 / 256)),
        ("galore_adamw", 80_000),
    ],
)
def test_state_of_each_optimizer(optim: str, expected: float) -> None:
    assert optimizer_bytes([FROZEN, TRAINED], optim) == expected


def test_embeddings_and_small_weights_keep_float32_averages_in_8_bit() -> None:
    embedding = Weight((100, 100), 4, is_trained=True, is_embedding=True)
    small = Weight((64,), 4, is_trained=True)
    assert optimizer_bytes([embedding, small], "adamw_bnb_8bit") == 10_064 * 8


def test_paged_averages_lie_in_ram_on_a_gpu() -> None:
    found, host = memory([TRAINED], Sharding(), optim="paged_adamw_32bit", device="cuda")
    assert (found.optimizer, host) == (0, 80_000)


def test_sharding_is_read_from_deepspeeds_file() -> None:
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": "auto", "sub_group_size": 1e6}
    assert sharding_of({"zero_optimization": zero}, 8, 64) == Sharding(
        stage=3, num_devices=8, offloads_weights=True, bucket_size=64 * 64, subgroup_size=1_000_000
    )
    assert sharding_of(None, 8, 64).name == "DDP"


def test_glm_4_9b_has_its_9_4_billion_parameters(glm_tokenizer) -> None:
    config = AutoConfig.from_pretrained(glm_tokenizer.name_or_path)
    model = shape_model(config, family_of("glm"), dtype=torch.bfloat16, peft_config=None)
    weights = weights_of(model)
    # Two embeddings, 40 layers (queries, keys and values with biases, output, MLP, two norms), the last norm.
    layer = 4096 * 4608 + 4608 + 4096 * 4096 + 3 * 4096 * 13696 + 2 * 4096
    assert sum(each.num_elements for each in weights) == 2 * 151552 * 4096 + 40 * layer + 4096 == 9_399_951_360
    assert weight_bytes(weights) == 2 * 9_399_951_360


def test_lora_on_every_linear_layer_of_glm_4_9b(glm_tokenizer) -> None:
    config = AutoConfig.from_pretrained(glm_tokenizer.name_or_path)
    model = shape_model(config, family_of("glm"), dtype=torch.bfloat16, peft_config=LORA)
    trained = [each for each in weights_of(model) if each.is_trained]
    sizes = [(4096, 4096), (4096, 256), (4096, 256), (4096, 4096), (4096, 27392), (13696, 4096)]
    assert sum(each.num_elements for each in trained) == 40 * 8 * sum(a + b for a, b in sizes) == 23_797_760
    assert {each.bytes_each for each in trained} == {4}


@pytest.mark.parametrize(
    ("fuses", "shards", "of_norms", "of_mlp"),
    [(False, False, 6, 4), (True, False, 4, 2), (True, True, 6, 3)],
    ids=["", "fused", "fused under ZeRO-3"],
)
def test_a_layer_keeps_what_the_formula_counts(fuses: bool, shards: bool, of_norms: int, of_mlp: int) -> None:
    way = {"fuses_layers": fuses, "shards_weights": shards}
    four, five = (small_step(layers=layers, **way)[False].start for layers in (4, 5))
    h, a, i, heads, tokens = 64, 64, 160, 4, 96
    # Beside the formula: the factor of each norm, and of attention the sum of its exponentials.
    expected = tokens * (of_norms * h + 4 * a + of_mlp * i + 2 + heads) * 4
    # And the cosines and sines of the positions, for half of the head size.
    positions = 48 * 2 * 8 * 4
    assert five.activations - four.activations == expected + positions


def test_all_layers_counted_equals_three_layers_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few = small_step(LORA)
    monkeypatch.setattr("glmtune.memory.step_memory.NUM_LAYERS_COUNTED", (4, 5))
    assert small_step(LORA) == few


def test_checkpointing_keeps_less_and_the_more_so_the_more_layers() -> None:
    found = small_step(LORA)
    assert found[True].start.activations < 0.5 * found[False].start.activations


def test_more_tokens_need_more_and_longer_ones_with_a_mask_more_than_that() -> None:
    small = small_step()[False].start.activations
    double = small_step(batch=batch(num_rows=4))[False].start.activations
    assert 1.9 * small < double < 2.1 * small
    masked = small_step(batch=batch(has_mask=True))[False].start.activations
    assert masked >= small + 2 * 2 * 48 * 48 * 4


def test_packed_rows_need_no_mask() -> None:
    packed, masked = (small_step(batch=batch(**given))[False] for given in ({"is_packed": True}, {"has_mask": True}))
    assert packed.start.activations < masked.start.activations


def test_gradients_of_an_earlier_micro_batch_are_there_at_the_loss() -> None:
    found = small_step(has_gradients=True)[False]
    config = GlmConfig(**SMALL)
    weights = weights_of(shape_model(config, family_of("glm"), dtype=torch.float32, peft_config=None))
    assert found.start.gradients == pytest.approx(weight_bytes(weights), rel=0.01)


def test_fewer_labels_need_fewer_logits() -> None:
    assert small_step(batch=batch(num_labelled=10))[False].start.logits < small_step()[False].start.logits


def test_dropout_keeps_less_on_a_gpu() -> None:
    lora = LORA | {"lora_dropout": 0.1}
    on_cpu, on_gpu = (small_step(lora, device=device)[False].start for device in ("cpu", "cuda"))
    assert on_gpu.activations < on_cpu.activations


def test_experts_are_counted() -> None:
    from transformers import Glm4MoeConfig

    config = Glm4MoeConfig(
        **SMALL, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1
    )
    model = shape_model(config, family_of("glm4_moe"), dtype=torch.bfloat16, peft_config=LORA)
    found = step_memory(model, batch(), autocast=torch.bfloat16, has_gradients=False, device="cpu")
    assert found[False].start.activations > found[True].start.activations > 0


def test_a_model_that_transformers_cannot_build_is_an_error() -> None:
    from transformers import ViTConfig

    with pytest.raises(GlmtuneError, match="transformers cannot build the model: Unrecognized configuration class"):
        shape_model(ViTConfig(), family_of("vit"), dtype=torch.float32, peft_config=None)


@pytest.mark.slow
@pytest.mark.long
def test_the_estimate_of_the_demo_is_within_15_percent_of_real_steps() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "estimate_accuracy.py"
    command = [sys.executable, str(script), "--dry", "--shapes", "demo", "--methods", "lora", "sft"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True, env=os.environ)
    ratios = [float(line.split("|")[-2]) for line in done.stdout.splitlines() if line.startswith("| demo")]
    assert len(ratios) == 4
    assert all(0.85 < ratio < 1.15 for ratio in ratios), ratios
