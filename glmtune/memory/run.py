"""`glmtune estimate`: the memory that a run will need, before anything is loaded.

The configuration says what is trained, in which types and on how many tokens at once; `memory/device_memory.py` knows
what weights, gradients and optimizer take, and `memory/step_memory.py` counts the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.utils import logging

from glmtune.config.run_config import AnyConfig, RunConfig, as_config
from glmtune.console import notice, quiet_libraries
from glmtune.errors import GlmtuneError, require
from glmtune.family import family_of
from glmtune.files.user_paths import expand
from glmtune.kernels.arithmetic import Arithmetic, choose, seconds_here, shapes_of
from glmtune.kernels.packing import reason_against_packing
from glmtune.modeling.config_loading import load_model_config
from glmtune.modeling.finding.model_source import ModelSource, find_model
from glmtune.tested_versions import note_untested_versions
from glmtune.training.setup.arguments import DTYPES, checkpointing_is_on, compiling_is_on, load_dtype

from .device_memory import Memory, Sharding, device_memory, is_known_optimizer, sharding_of
from .shapes import Weight, shape_model, weights_of
from .step_memory import Batch, StepMemory, step_memory

OTHER_METHODS: dict[str, dict[str, Any] | None] = {
    "lora": {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 128},
    "sft": None,
}
"""`peft_config` of the methods that the configuration does not ask for: as in `configs/`."""

SHARDINGS = (
    Sharding(stage=0),
    Sharding(stage=1),
    Sharding(stage=2),
    Sharding(stage=2, offloads_optimizer=True),
    Sharding(stage=3),
    Sharding(stage=3, offloads_optimizer=True, offloads_weights=True),
)
QUANTIZATION_BITS = {"4bit": 4, "8bit": 8}


@dataclass(frozen=True, kw_only=True)
class EstimateRow:
    """One way to train, and what it takes of each device."""

    method: str
    sharding: str
    gradient_checkpointing: bool
    is_configured: bool
    """Whether it is what the configuration asks for."""
    memory: Memory
    host: float
    """Bytes that all devices together keep in the machine's own memory, or on its disk."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The memory of a run in every way that it could be trained."""

    device: str
    """`cuda` or `cpu`."""
    num_devices: int
    num_parameters: int
    """Of the base model."""
    batch: Batch
    """Of the method that the configuration asks for."""
    rows: tuple[EstimateRow, ...]
    notices: tuple[str, ...]
    """Lines for the user: what could not be taken into account."""

    def __repr__(self) -> str:
        """Return what the configured run takes of a device, and how many other ways there are."""
        gigabytes = self.configured.memory.total / 1e9
        device = self.device if self.num_devices == 1 else f"each of {self.num_devices} {self.device} devices"
        others = len(self.rows) - 1
        return f"<Estimate: {gigabytes:.2f} GB on {device} as configured; {others} other ways in `rows`>"

    def to_pandas(self) -> Any:
        """Return every way to train as a row of a data frame of pandas; memory in bytes, of each device."""
        return require("pandas").DataFrame(
            {
                "method": row.method,
                "sharding": row.sharding,
                "gradient_checkpointing": row.gradient_checkpointing,
                "is_configured": row.is_configured,
                **row.memory.parts(),
                "total": row.memory.total,
                "host": row.host,
            }
            for row in self.rows
        )

    @property
    def configured(self) -> EstimateRow:
        """Return what the configuration asks for."""
        return next(row for row in self.rows if row.is_configured)


@quiet_libraries()
def estimate(
    model: str,
    config: AnyConfig,
    *,
    overrides: Sequence[str] = (),
    num_gpus: int | None = None,
    labelled: float = 1.0,
    only_configured: bool = False,
) -> Estimate:
    """Return the memory that training needs on each device, as configured and in every other way.

    Args:
        model: A model folder or hub name, of which only the configuration is read; a checkpoint, or `demo`.
        config: A YAML file, the keys and values of one as a mapping, or a configuration loaded before.
        overrides: `key=value` strings on top of the file.
        num_gpus: GPUs to plan for, which need not be here; 0 is for the CPU, None for what this machine has.
        labelled: Share of the tokens that have a label; 1 is the worst case.
        only_configured: Leave other methods out than the one that the configuration asks for; on a single device
            other ways to shard, too.
    """
    if not 0 < labelled <= 1:
        raise GlmtuneError(f"the share of labelled tokens is {labelled}; expected a number above 0, at most 1")
    note_untested_versions()
    config = as_config(config, overrides)
    if num_gpus is None:
        num_gpus = torch.cuda.device_count()
    device, num_devices = ("cuda", num_gpus) if num_gpus else ("cpu", 1)
    plan = _Plan(model, config, device=device, labelled=labelled)
    methods = [config.method] if only_configured else list(plan.methods)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it says of the model is for those who run it
    try:
        shards = num_devices > 1 or not only_configured
        rows = [row for method in methods for row in plan.rows(method, num_devices, shards=shards)]
    finally:
        logging.set_verbosity(verbosity)
    return Estimate(
        device=device,
        num_devices=num_devices,
        num_parameters=plan.num_parameters,
        batch=plan.batch(),
        rows=tuple(rows),
        notices=(*config.notices, *_not_counted(config)),
    )


class _Plan:
    """Counts the shapes of one model under each method and type, each once."""

    def __init__(self, model: str, config: RunConfig, *, device: str, labelled: float) -> None:
        model = expand(model)
        has_config = (Path(model) / "config.json").is_file()
        source = ModelSource(base=model) if has_config else find_model(model, needs_weights=False)
        self.model_config = load_model_config(source, trust_remote_code=config.trust_remote_code)
        self.config = config
        self.device = device
        self.labelled = labelled
        # Other attention that needs no mask is like `sdpa` in what it keeps.
        self.is_eager = config.attn_implementation == "eager"
        self.is_packed = config.packing and reason_against_packing(self.model_config) is None and not self.is_eager
        self.methods = {config.method: config.peft_config} | {
            method: peft_config for method, peft_config in OTHER_METHODS.items() if method != config.method
        }
        self.compute_dtype = _compute_dtype(config, device)
        self.num_parameters = 0
        self._counted: dict[Any, tuple[list[Weight], dict[bool, StepMemory]]] = {}

    def rows(self, method: str, num_devices: int, *, shards: bool) -> list[EstimateRow]:
        """Return every way to train with a method, the configured one among them; it alone, unless one `shards`."""
        arguments = self.config.training_args
        content = self.config.deepspeed
        asked = sharding_of(content, num_devices, self.model_config.get_text_config().hidden_size)
        others = self._shardings(asked) if shards else []
        shardings = [asked if asked.name == each.name else each for each in others]
        if asked not in shardings:
            shardings.append(asked)
        is_configured = method == self.config.method
        checkpointing = checkpointing_is_on(arguments)
        found = []
        for sharding in shardings:
            weights, steps = self._count(method, sharding.stage)
            for is_on, step in steps.items():
                memory, host = device_memory(
                    weights,
                    step,
                    sharding,
                    optim=str(arguments.get("optim", "adamw_torch_fused")),
                    bits=quantization_bits(self.config) if method != "sft" else None,
                    device=self.device,
                )
                found.append(
                    EstimateRow(
                        method=method,
                        sharding=sharding.name,
                        gradient_checkpointing=is_on,
                        is_configured=is_configured and sharding == asked and is_on == checkpointing,
                        memory=memory,
                        host=host * num_devices,
                    )
                )
        return found

    def batch(self) -> Batch:
        """Return the largest micro-batch: every row is as long as it may be."""
        config = self.config
        num_rows = config.training_args.get("per_device_train_batch_size", 8)
        length = config.max_input_length + config.max_output_length
        if config.tokens_per_batch is not None:
            num_rows = math.ceil(config.tokens_per_batch / length)
        return Batch(
            num_rows=num_rows,
            length_tokens=length,
            num_labelled=max(1, round(self.labelled * num_rows * (length - 1))),
            is_packed=self.is_packed,
            has_mask=num_rows > 1,
        )

    def _shardings(self, asked: Sharding) -> list[Sharding]:
        size = self.model_config.get_text_config().hidden_size
        return [
            replace(each, num_devices=asked.num_devices, bucket_size=size**2 if each.stage else each.bucket_size)
            for each in SHARDINGS
        ]

    def _count(self, method: str, zero_stage: int) -> tuple[list[Weight], dict[bool, StepMemory]]:
        """Return weights and step, in the types that DeepSpeed trains in or those without it."""
        config = replace(self.config, peft_config=self.methods[method])
        half = self.compute_dtype
        is_sharded = zero_stage > 0
        settings: Any = SimpleNamespace(
            bf16=half is torch.bfloat16, fp16=half is torch.float16, deepspeed=is_sharded or None
        )
        dtype = load_dtype(config, settings)
        accumulates = config.training_args.get("gradient_accumulation_steps", 1) > 1 and not is_sharded
        everything = (half or torch.float32) if is_sharded else None
        autocast = None if is_sharded else half
        key = (method, everything or dtype, autocast, accumulates, zero_stage == 3)
        if key not in self._counted:
            arithmetic = self._arithmetic(everything or dtype, is_head_trained=config.peft_config is None)
            model = shape_model(
                self.model_config,
                family_of(self.model_config.model_type),
                dtype=dtype,
                peft_config=config.peft_config,
                is_eager=self.is_eager,
                trust_remote_code=config.trust_remote_code,
                freezes_vision=config.freezeV,
                attention_dtype=arithmetic.attention,
            )
            if everything is not None:
                model = model.to(everything)
            weights = weights_of(model)
            if config.peft_config is None:
                self.num_parameters = sum(each.num_elements for each in weights)
            steps = step_memory(
                model,
                self.batch(),
                autocast=autocast,
                has_gradients=accumulates,
                device=self.device,
                fuses_layers=config.fused_layers and not compiling_is_on(config.training_args),
                shards_weights=zero_stage == 3,
                loss_dtype=arithmetic.loss,
                has_wide_layers=half is not None and self.device == "cpu" and arithmetic.layers is torch.float32,
            )
            self._counted[key] = weights, steps
        return self._counted[key]

    def _arithmetic(self, dtype: torch.dtype, *, is_head_trained: bool) -> Arithmetic:
        """Return what a run multiplies in: what a GPU is made for, or what this CPU does faster."""
        half = self.compute_dtype
        if half is None or self.device != "cpu":
            return Arithmetic(attention=half or torch.float32)
        shapes = shapes_of(
            self.model_config,
            row_tokens=self.batch().length_tokens,
            head_dtype=dtype,
            is_head_trained=is_head_trained,
        )
        return choose(seconds_here(shapes, notice))


def quantization_bits(config: RunConfig) -> int | None:
    """Return the bits of a packed weight, or None where weights are not quantized."""
    return QUANTIZATION_BITS.get(str(config.quantization))


def _compute_dtype(config: RunConfig, device: str) -> torch.dtype | None:
    """Return the half type that the run computes in, or None; as `arguments.training_arguments` decides."""
    arguments = config.training_args
    is_open = arguments.get("bf16") is None and not arguments.get("fp16") and config.model_dtype == "auto"
    if arguments.get("bf16") or (is_open and device == "cuda"):
        return DTYPES["bfloat16"]
    return DTYPES["float16"] if arguments.get("fp16") and device == "cuda" else None


def _not_counted(config: RunConfig) -> list[str]:
    """Return what of the configuration the estimate does not know."""
    arguments = config.training_args
    told = []
    if arguments.get("fsdp"):
        told.append("`fsdp` is not counted: it divides weights, gradients and optimizer like ZeRO-3")
    optim = str(arguments.get("optim", "adamw"))
    if not is_known_optimizer(optim):
        told.append(f"`optim: {optim}` is counted like AdamW")
    return told
