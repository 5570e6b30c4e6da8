"""Memory of one device in training: what weights, gradients and optimizer take under each way of sharding them.

N is the number of devices, P the number of all weights, T of the trained ones. Without DeepSpeed every device holds
everything: weights as they were loaded, gradients in the type of their weights, AdamW's two averages in that type, too.
With several devices DDP copies the gradients into buckets, which takes their size once more.

DeepSpeed's ZeRO (Rajbhandari et al. 2020, section 5; what follows is what DeepSpeed 0.19 allocates) keeps all weights
in the type that is computed in, and a float32 copy of the trained ones beside the optimizer's averages: 12 bytes for
each with AdamW. It divides by N

- stage 1: that copy and the averages;
- stage 2: the gradients, too, which are summed up over the devices in buckets of `reduce_bucket_size` numbers;
- stage 3: the weights, too. Those of the layers at work are gathered: up to `stage3_max_live_parameters`.

The step of the optimizer needs its share of the gradients in float32 on top (stage 3: for 1e9 numbers at a time).
Offloading moves copy, averages and gradients (and with `offload_param` a device's share of the weights) into the
machine's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .shapes import Weight
from .step_memory import Moment, StepMemory

SUBGROUP_SIZE = 10**9
"""Numbers that ZeRO-3's optimizer steps over at a time, where its file does not say."""
BUCKET_SIZE = 5 * 10**8
"""Numbers in a bucket of ZeRO's, where its file does not say."""
LIVE_SIZE = 10**9
"""Numbers that ZeRO-3 keeps gathered, where its file does not say."""

FEWEST_IN_8_BIT = 4096
"""Weights with fewer numbers keep averages in float32 in bitsandbytes, as embeddings do under transformers."""
BLOCK_8_BIT = 256
"""Numbers of an 8-bit average that share one float32 scale."""
SCALE_4_BIT = 1 / 64 + 4 / (64 * 256)
"""Bytes of scale for each 4-bit number: one for 64, itself quantized to 8 bits, 256 of them with a float32 scale."""

AVERAGES = {"sgd": 0, "lion": 1, "adagrad": 1, "rmsprop": 1, "adafactor": 0, "ademamix": 3, "adamw": 2, "adam": 2}
"""How many numbers an optimizer keeps for each trained one; Adafactor's rows and columns are counted apart."""

CUDA_CONTEXT_BYTES = 0.6e9
"""Of a process on a GPU: its kernels and cuBLAS's workspaces. Known from Hopper and Ampere, not measured here."""
NCCL_BYTES = 0.4e9
"""Of a process that talks to others on top of it, likewise."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How weights, gradients and optimizer are sharded."""

    stage: int = 0
    """Of ZeRO; 0 is without DeepSpeed: one device, or several with DDP."""
    num_devices: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    bucket_size: int = BUCKET_SIZE
    """Numbers in a bucket of gradients; two of them are filled in turn."""
    live_size: int = LIVE_SIZE
    """Numbers that stage 3 keeps gathered at most."""
    subgroup_size: int = SUBGROUP_SIZE

    @property
    def name(self) -> str:
        """Return it as the table shows it."""
        if self.stage == 0:
            return "none" if self.num_devices == 1 else "DDP"
        moved = {(True, False): " offload", (True, True): " offload all", (False, True): " offload weights"}
        return f"ZeRO-{self.stage}" + moved.get((self.offloads_optimizer, self.offloads_weights), "")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device at the peak of a step, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    runtime: float
    """What CUDA and the libraries take for themselves."""

    @property
    def total(self) -> float:
        """Return the sum."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Return the bytes by component."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def sharding_of(deepspeed: Mapping[str, Any] | None, num_devices: int, hidden_size: int) -> Sharding:
    """Return what the content of a DeepSpeed file asks for; None is for training without DeepSpeed."""
    if deepspeed is None:
        return Sharding(num_devices=num_devices)
    zero = deepspeed.get("zero_optimization") or {}

    def size(key: str, default: int, automatic: int) -> int:
        value = zero.get(key, default)
        return automatic if value == "auto" else int(value)

    def is_offloaded(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    return Sharding(
        stage=int(zero.get("stage", 0)),
        num_devices=num_devices,
        offloads_optimizer=is_offloaded("offload_optimizer"),
        offloads_weights=is_offloaded("offload_param"),
        # transformers puts this in the place of `auto`.
        bucket_size=size("reduce_bucket_size", BUCKET_SIZE, hidden_size**2),
        live_size=size("stage3_max_live_parameters", LIVE_SIZE, LIVE_SIZE),
        subgroup_size=size("sub_group_size", SUBGROUP_SIZE, SUBGROUP_SIZE),
    )


def weight_bytes(weights: Sequence[Weight], bits: int | None = None) -> float:
    """Return the size of the weights; `bits` (4 or 8) is that of bitsandbytes' frozen linear layers."""
    return sum(each.num_elements * _bytes_packed(each, bits) for each in weights)


def _bytes_packed(weight: Weight, bits: int | None) -> float:
    if bits is None or not weight.can_be_quantized:
        return weight.bytes_each
    if bits == 4:
        return 0.5 + SCALE_4_BIT
    return 1 + 4 / weight.shape[-1]  # a float32 scale for each row


def is_known_optimizer(optim: str) -> bool:
    """Whether the size of an optimizer's state is known by its name in `training_args.optim`."""
    return optim.removeprefix("paged_").startswith(tuple(AVERAGES))


def optimizer_bytes(weights: Sequence[Weight], optim: str, *, bytes_each: int | None = None) -> float:
    """Return the size of the optimizer's state.

    Args:
        weights: The model's; frozen ones have none.
        optim: As in `training_args.optim`; one that is not known counts as AdamW.
        bytes_each: Of a number in it; None is that of the weight.
    """
    trained = [each for each in weights if each.is_trained]
    return sum(_state_bytes(each, optim, bytes_each or each.bytes_each) for each in trained)


def _state_bytes(weight: Weight, optim: str, bytes_each: int) -> float:
    name = optim.removeprefix("paged_")
    if name == "adafactor":
        if len(weight.shape) < 2:
            return 4 * weight.num_elements
        return 4 * sum(weight.num_elements / length for length in weight.shape[-2:])
    averages = next((count for start, count in AVERAGES.items() if name.startswith(start)), AVERAGES["adamw"])
    if "4bit" in name:
        return weight.num_elements * averages * 0.5
    is_small = weight.num_elements < FEWEST_IN_8_BIT or weight.is_embedding
    if "8bit" in name and not is_small:
        return weight.num_elements * averages * (1 + 4 / BLOCK_8_BIT)
    return weight.num_elements * averages * (4 if "8bit" in name else bytes_each)


def device_memory(
    weights: Sequence[Weight],
    step: StepMemory,
    sharding: Sharding,
    *,
    optim: str = "adamw_torch_fused",
    bits: int | None = None,
    device: str,
) -> tuple[Memory, float]:
    """Return what one device holds at the peak of a step, and what it keeps in the machine's own memory (bytes).

    Args:
        weights: In the types that they are trained in: under DeepSpeed all in that of the computation.
        step: Of the same model.
        sharding: How all of it is sharded.
        optim: As in `training_args.optim`.
        bits: Of quantized weights.
        device: `cpu` or `cuda`.
    """
    resident = (_replicated if sharding.stage == 0 else _sharded)(weights, sharding, optim, bits)
    if "paged" in optim and device == "cuda":
        resident = replace(resident, optimizer=0, host=resident.host + resident.optimizer)
    runtime = 0.0
    if device == "cuda":
        runtime = CUDA_CONTEXT_BYTES + (NCCL_BYTES if sharding.num_devices > 1 else 0)
    unpacked = 2 * max((each.num_elements for each in weights if each.can_be_quantized), default=0) if bits == 4 else 0
    temporary = resident.step_gradients
    if optim == "adamw_torch" and device == "cuda":  # all weights at once, with one more number for each
        temporary += resident.all_gradients
    moments = [
        replace(step.start, activations=step.start.activations + unpacked),
        replace(step.end, activations=step.end.activations + unpacked),
        Moment(activations=temporary, gradients=resident.all_gradients),
    ]
    candidates = [
        Memory(
            weights=resident.weights,
            gradients=resident.buckets
            + (moment.gradients if resident.keeps_gradients_whole else resident.all_gradients),
            optimizer=resident.optimizer,
            activations=moment.activations,
            logits=moment.logits,
            runtime=runtime,
        )
        for moment in moments
    ]
    return max(candidates, key=lambda each: each.total), resident.host


@dataclass(frozen=True, kw_only=True)
class _Resident:
    """What stays in memory from step to step, in bytes."""

    weights: float
    all_gradients: float
    """Of all trained weights, as far as they stay on the device."""
    keeps_gradients_whole: bool
    """Whether gradients come to stay one after the other in the backward pass; else they have a place of their own."""
    buckets: float
    optimizer: float
    step_gradients: float = 0
    """Gradients in float32, for the time of the optimizer's step."""
    host: float = 0


def _replicated(weights: Sequence[Weight], sharding: Sharding, optim: str, bits: int | None) -> _Resident:
    gradients = sum(each.num_bytes for each in weights if each.is_trained)
    return _Resident(
        weights=weight_bytes(weights, bits),
        all_gradients=gradients,
        keeps_gradients_whole=True,
        buckets=gradients if sharding.num_devices > 1 else 0,
        optimizer=optimizer_bytes(weights, optim),
    )


def _sharded(weights: Sequence[Weight], sharding: Sharding, optim: str, bits: int | None) -> _Resident:
    n, stage = sharding.num_devices, sharding.stage
    trained = [each for each in weights if each.is_trained]
    num_trained = sum(each.num_elements for each in trained) / n  # a device's share
    size = max((each.bytes_each for each in trained), default=0)
    whole = weight_bytes(weights, bits)
    stored, gathered = whole, 0.0
    if stage == 3:
        stored = whole / n
        if n > 1 or sharding.offloads_weights:
            gathered = min(whole, sharding.live_size * size)
    gradients = size * (num_trained * n if stage == 1 else num_trained)
    copy_and_averages = 4 * num_trained + optimizer_bytes(weights, optim, bytes_each=4) / n
    in_float32 = 4 * (min(num_trained, sharding.subgroup_size) if stage == 3 else num_trained)
    moved = 4 * num_trained + copy_and_averages if sharding.offloads_optimizer else 0.0
    return _Resident(
        weights=gathered + (0 if sharding.offloads_weights else stored),
        all_gradients=0 if sharding.offloads_optimizer else gradients,
        keeps_gradients_whole=stage == 1 and not sharding.offloads_optimizer,
        buckets=(1 if stage == 3 else 2) * size * sharding.bucket_size,
        optimizer=0 if sharding.offloads_optimizer else copy_and_averages,
        step_gradients=0 if sharding.offloads_optimizer else in_float32,
        host=moved + (stored if sharding.offloads_weights else 0),
    )
