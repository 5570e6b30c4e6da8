"""An estimate as a user reads it: a table, the line that says what to do, JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from glmtune.text.text_table import format_table

from .run import Estimate, EstimateRow

GB, MB = 1e9, 1e6
MARK = "*"


def table(estimate: Estimate) -> str:
    """Return all ways to train with their memory per device; the configured one is marked."""
    unit = _unit(estimate)
    on_gpu = estimate.device == "cuda"
    has_host = any(row.host for row in estimate.rows)
    parts = [name for name in vars(estimate.configured.memory) if on_gpu or name != "runtime"]
    titles = ["CUDA" if name == "runtime" else name for name in parts]
    lines = []
    for row in estimate.rows:
        numbers = [getattr(row.memory, name) for name in parts]
        numbers += [row.memory.total, *([row.host] if has_host else [])]
        checkpointing = "yes" if row.gradient_checkpointing else "no"
        shown = [f"{number / unit:,.1f}" for number in numbers]
        lines.append([MARK if row.is_configured else "", row.method, row.sharding, checkpointing, *shown])
    headers = ["", "method", "sharding", "checkpointing", *titles, "total", *(["in RAM"] if has_host else [])]
    return format_table(headers, lines)


def heading(estimate: Estimate) -> str:
    """Return what the figures are of."""
    batch = estimate.batch
    shape = f"{batch.num_rows} x {batch.length_tokens:,} tokens" + (" end to end" if batch.is_packed else "")
    device = f"each of {estimate.num_devices} GPUs" if estimate.num_devices > 1 else "one GPU"
    if estimate.device == "cpu":
        device = "the CPU"
    unit = "GB" if _unit(estimate) == GB else "MB"
    return f"{estimate.num_parameters:,} parameters, {shape} at a time; {unit} on {device} at the peak of a step"


def advice(estimate: Estimate) -> str:
    """Return the configured total, its biggest part, and what would make that smaller."""
    row = estimate.configured
    parts = row.memory.parts()
    biggest = max(parts, key=lambda name: parts[name])
    unit = "GB" if _unit(estimate) == GB else "MB"
    total, part = (f"{number / _unit(estimate):,.1f} {unit}" for number in (row.memory.total, parts[biggest]))
    return f"{MARK} as configured: {total}, of which {biggest} take {part}; {_reduced_by(biggest, estimate, row)}"


def _reduced_by(part: str, estimate: Estimate, row: EstimateRow) -> str:
    """Return what makes a part smaller, from the cheapest on."""
    if part == "activations" and not row.gradient_checkpointing:
        other = next(
            each
            for each in estimate.rows
            if (each.method, each.sharding, each.gradient_checkpointing) == (row.method, row.sharding, True)
        )
        unit = "GB" if _unit(estimate) == GB else "MB"
        if other.memory.total < row.memory.total:
            return (
                f"`gradient_checkpointing: true` would need {other.memory.total / _unit(estimate):,.1f} {unit} in all"
            )
    ways = {
        "weights": [
            "`quantization: 4bit` quantizes frozen ones" if row.method != "sft" else "LoRA can train on quantized ones"
        ],
        "gradients": ["LoRA has few"],
        "optimizer": ["`optim: adamw_bnb_8bit` needs a quarter"],
        "activations": ["fewer rows at a time (`per_device_train_batch_size`) or shorter ones (`max_input_length`)"],
        "logits": ["they do not grow with the rows; a smaller vocabulary alone has smaller ones"],
        "runtime": ["that is CUDA's own"],
    }[part]
    if part in ("weights", "gradients", "optimizer"):
        more = "over the GPUs" if estimate.num_devices > 1 else "where there are several GPUs"
        ways.append(f"`--deepspeed ds_zero3.json` shards them {more}")
    return ", ".join(ways)


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """Return the estimate for JSON: all sizes in bytes."""
    rows = []
    for row in estimate.rows:
        sizes = {name: round(size) for name, size in row.memory.parts().items()}
        rows.append(
            {
                "method": row.method,
                "sharding": row.sharding,
                "gradient_checkpointing": row.gradient_checkpointing,
                "configured": row.is_configured,
                "bytes": {**sizes, "total": sum(sizes.values())},
                "bytes_in_ram": round(row.host),
            }
        )
    return {
        "device": estimate.device,
        "num_devices": estimate.num_devices,
        "num_parameters": estimate.num_parameters,
        "batch": asdict(estimate.batch),
        "rows": rows,
        "notices": list(estimate.notices),
    }


def _unit(estimate: Estimate) -> float:
    return GB if max(row.memory.total for row in estimate.rows) >= GB else MB
