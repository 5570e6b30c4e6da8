"""One model with random weights and one way to train it, through a list of cases; the cases come from `gpu_glm4_9b.py`.

python benchmarks/gpu_case.py CASES.json

Each case trains a few steps and prints a line of JSON: seconds, tokens, peak memory, or why it failed. The model is
built on the device itself: nothing is read from disk or from a network.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from shapes import SHAPES, config_values
from torch import nn
from transformers import AutoModelForCausalLM, GlmConfig, Trainer, TrainerCallback, TrainingArguments
from work import memory

from glmtune.chatformat.replies import ReplyLayout
from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.console import notice, quiet_libraries
from glmtune.demo.model import build_tokenizer
from glmtune.encoded.dataset import EncodedData
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.family import GLM, IGNORE_INDEX
from glmtune.kernels.packing import attention_for
from glmtune.modeling.adapting.adapters import adapt
from glmtune.modeling.finding.model_source import ModelSource
from glmtune.training.building import build_trainer
from glmtune.training.folder.run_folder import RunRequest
from glmtune.training.methods.sft import SFT
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.preparation import Prepared

MARK = "benchmark-case "
OUT_OF_MEMORY = "out of memory"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "target_modules": TARGETS}
PEFT_CONFIGS: dict[str, dict[str, Any] | None] = {
    "lora": LORA,
    "qlora": LORA,
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 128},
    "sft": None,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TINY_VOCABULARY = 4096  # more than the demo tokenizer has, whose padding token is used


@quiet_libraries()
def main() -> None:
    """Run the cases of a file, one after the other."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(plan["method"], plan["trainer"], device, is_tiny=plan["is_tiny"])
    for case in plan["cases"]:
        # Recomputing activations costs time: only where memory runs out without.
        for recomputes in (False, True):
            found = attempt(model, plan, case | {"recomputes": recomputes}, device)
            if found.get("problem") != OUT_OF_MEMORY:
                break
        print(MARK + json.dumps(found), flush=True)


def attempt(model: Any, plan: dict[str, Any], case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the case with what was measured, or with the problem that it ran into."""
    try:
        return case | run_case(model, plan, case, device)
    except (torch.OutOfMemoryError, RunFailure):
        return case | {"problem": OUT_OF_MEMORY}
    except (GlmtuneError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return case | {"problem": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def glm_config(*, is_tiny: bool) -> GlmConfig:
    """Return the configuration of GLM-4-9B, or of a model that a CPU trains in no time."""
    values = config_values(SHAPES["9b"])
    if is_tiny:
        values |= TINY | {"vocab_size": TINY_VOCABULARY, "eos_token_id": [1, 2, 3], "pad_token_id": 0}
    for key in ("architectures", "model_type", "dtype", "torch_dtype"):
        del values[key]
    rope = {"rope_type": "default"} | {key: values.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
    return GlmConfig(**values, rope_parameters=rope)


def build_model(method: str, trainer: str, device: torch.device, *, is_tiny: bool) -> Any:
    """Return a model on the device, weights in bfloat16 (4 bits for QLoRA), with what the method trains."""
    attention = attention_for(None, is_packed=True) if trainer == "glmtune" else "sdpa"
    with device:
        torch.manual_seed(1234)
        model = AutoModelForCausalLM.from_config(
            glm_config(is_tiny=is_tiny), dtype=torch.bfloat16, attn_implementation=attention
        )
    model.config.use_cache = False
    if method == "qlora":
        quantize(model, device)
    if trainer == "glmtune":
        # With checkpointing P-Tuning v2 needs layers that keep its prefix; they compute the same without.
        return adapt(model, PEFT_CONFIGS[method], GLM, gradient_checkpointing=True, notify=notice)
    settings = dict(PEFT_CONFIGS[method] or {})
    kind = settings.pop("peft_type", None)
    if kind is None:
        return model
    classes = {"LORA": LoraConfig, "PREFIX_TUNING": PrefixTuningConfig}
    return get_peft_model(model, classes[kind](**settings))


def quantize(model: nn.Module, device: torch.device) -> None:
    """Replace every linear layer but the output layer by bitsandbytes' of 4 bits."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or name.endswith("lm_head"):
            continue
        has_bias = layer.bias is not None
        with torch.device("meta"):
            small = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, has_bias, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
        small.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4").to(device)
        small.support_avx512bf16_for_cpu = False  # a layout that bitsandbytes cannot train with
        if has_bias:
            small.bias = layer.bias
        model.set_submodule(name, small)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # how PEFT knows


def run_case(model: Any, plan: dict[str, Any], case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Train the case's steps; returns seconds, tokens and peak memory of the steps that count."""
    rows, tokens = build_rows(case, plan["vocabulary"])
    clock = Clock(device)
    model.gradient_checkpointing_disable()
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as folder:
        config = run_config(plan, case, folder)
        if plan["trainer"] == "glmtune":
            trainer: Any = our_trainer(model, rows, config, Path(folder))
            trainer.add_callback(clock)
            train = lambda: trainer.train()  # noqa: E731
        else:
            trainer = plain_trainer(model, rows, config, clock)
            train = trainer.train
        try:
            train()
        finally:
            # It wraps the model's forward for every trainer that is given the model.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    warm_up = plan["warm_up"]
    return {
        "seconds": clock.ends[-1] - clock.ends[warm_up - 1],
        "num_tokens": sum(tokens[warm_up:]),
        "num_labels": sum(tokens[warm_up:]) // 2,
        "peak": clock.peak(),
        "weights": clock.weights,
        "loss": clock.loss,
    }


def build_rows(case: dict[str, Any], vocabulary: int) -> tuple[Dataset, list[int]]:
    """Return rows of random ids, the second half of each labelled, and the tokens of each step."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for _ in range(case["num_steps"]):
        for length in case["row_lengths"]:
            ids = torch.randint(16, vocabulary - 64, (length,), generator=generator).tolist()
            half = length - length // 2
            labels = [IGNORE_INDEX] * half + ids[half:]
            rows.append({"input_ids": ids, "labels": labels, "length": length, "where": f"random:{len(rows)}"})
            rows[-1] |= {"weights": [], "is_truncated": False, "num_trained": length // 2, "digest": len(rows)}
            rows[-1]["row"] = len(rows) - 1
    return Dataset.from_list(rows), [sum(case["row_lengths"])] * case["num_steps"]


def run_config(plan: dict[str, Any], case: dict[str, Any], folder: str) -> RunConfig:
    """Return the configuration of a case."""
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": case["num_steps"],
        "per_device_train_batch_size": len(case["row_lengths"]),
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "bf16": True,
        "optim": "adamw_bnb_8bit" if plan["method"] == "sft" and torch.cuda.is_available() else "adamw_torch",
    }
    if case["recomputes"]:
        arguments |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return config_from_mapping(
        {
            "data_config": {"train_file": "rows.jsonl"},
            "max_input_length": case["length"],
            "max_output_length": case["length"],
            "packing": case["is_packed"],
            "model_dtype": "bfloat16",
            "training_args": arguments,
            "peft_config": PEFT_CONFIGS[plan["method"]],
        },
        where="benchmark",
    )


def our_trainer(model: Any, rows: Dataset, config: RunConfig, folder: Path) -> Any:
    """Return glmtune's trainer, as a run builds it."""
    prepared = Prepared(
        request=RunRequest(data_dir=folder, model="random", config=config),
        method=SFT,
        source=ModelSource(base="random"),
        tokenizer=build_tokenizer(),
        family=GLM,
        stop_ids=frozenset(),
        layout=ReplyLayout(),
        data_files={},
        data={"train": EncodedData(dataset=rows)},
    )
    return build_trainer(prepared, training_arguments(config, folder, notice), model, folder)


def plain_trainer(model: Any, rows: Dataset, config: RunConfig, clock: Clock) -> Trainer:
    """Return transformers' trainer: rows padded on the right, the loss from all logits."""
    settings = {key: value for key, value in config.training_args.items() if key != "predict_with_generate"}
    arguments = TrainingArguments(**settings, use_cpu=not torch.cuda.is_available())
    columns = [name for name in rows.column_names if name not in ("input_ids", "labels")]
    data: Any = rows.remove_columns(columns)
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=pad, callbacks=[clock])


def pad(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch, padded on the right."""

    def padded(key: str, value: int) -> torch.Tensor:
        parts = [torch.tensor(example[key]) for example in examples]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    input_ids = padded("input_ids", 0)
    mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    return {"input_ids": input_ids, "attention_mask": mask, "labels": padded("labels", IGNORE_INDEX)}


class Clock(TrainerCallback):
    """Notes when steps end, the last loss and the peak of memory."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.ends: list[float] = []
        self.weights = 0
        self.loss = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.ends:
            if self.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")
            self.weights = torch.cuda.memory_allocated() if self.is_cuda else memory("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = logs.get("loss", self.loss)

    def peak(self) -> int:
        """Return the most memory that the steps took, in bytes, weights included."""
        return torch.cuda.max_memory_allocated() if self.is_cuda else memory("VmHWM")


if __name__ == "__main__":
    main()
