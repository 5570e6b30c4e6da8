"""Examples of every verb, shown at the end of its `--help` and in the reference."""

from __future__ import annotations

from collections.abc import Iterator

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "glmtune init",
        "glmtune init rows.csv --model zai-org/glm-4-9b-chat-hf",
        "glmtune init rows.csv --method sft --column instruction=ask --column output=reply",
    ),
    "train": (
        "glmtune train rows.csv zai-org/glm-4-9b-chat-hf",
        "glmtune train data/demo demo configs/lora.yaml",
        "glmtune train data zai-org/glm-4-9b-chat-hf configs/lora.yaml --set training_args.learning_rate=1e-4",
        "glmtune train data models/glm-4-9b configs/sft.yaml --nproc 8 --deepspeed configs/ds_zero3.json",
    ),
    "resume": (
        "glmtune resume output",
        "glmtune resume output --checkpoint 500",
        "glmtune resume output --set training_args.num_train_epochs=5 --accept-changes",
    ),
    "runs": ("glmtune runs", "glmtune runs runs --json"),
    "stop": ("glmtune stop output",),
    "estimate": (
        "glmtune estimate zai-org/glm-4-9b-chat-hf configs/lora.yaml",
        "glmtune estimate models/glm-4-9b configs/sft.yaml --gpus 8 --deepspeed configs/ds_zero3.json",
    ),
    "eval": (
        "glmtune eval output data/test.jsonl",
        "glmtune eval output/checkpoint-500 data/test.jsonl --limit 100 --output predictions.jsonl",
        "glmtune eval output data/test.jsonl --metrics my_metrics.py",
    ),
    "compare": (
        "glmtune compare demo-sft output data/test.jsonl",
        "glmtune compare output/checkpoint-100 output/checkpoint-200 rows.jsonl --output report.html",
        "glmtune compare zai-org/glm-4-9b-chat-hf output rows.jsonl --retention general.jsonl",
    ),
    "infer": (
        "glmtune infer output --prompt '类型#裙*风格#简约'",
        "glmtune infer output --input prompts.jsonl --json --greedy",
        "cat question.txt | glmtune infer zai-org/glm-4-9b-chat-hf --stream",
    ),
    "chat": (
        "glmtune chat output",
        "glmtune chat output --tools my_tools.py --system '你是客服'",
        "glmtune chat --url http://localhost:8000/v1",
    ),
    "serve": (
        "glmtune serve output",
        "glmtune serve models/glm-4-9b --adapter ads=output --adapter support=output-2 --port 8080",
    ),
    "export": (
        "glmtune export output merged",
        "glmtune export output/checkpoint-500 merged --dtype bfloat16 --gguf",
        "glmtune export output merged --push OWNER/NAME",
    ),
    "demo": (
        "glmtune demo",
        "glmtune demo --output somewhere-else",
    ),
    "env": ("glmtune env", "glmtune env --json > environment.json"),
    "data inspect": (
        "glmtune data inspect data/train.jsonl zai-org/glm-4-9b-chat-hf",
        "glmtune data inspect data/train.jsonl demo --html rows.html --limit 50",
    ),
    "data check": (
        "glmtune data check data/train.jsonl",
        "glmtune data check data zai-org/glm-4-9b-chat-hf --config configs/lora.yaml --max-bad 0.01",
    ),
    "data convert": (
        "glmtune data convert alpaca.json train.jsonl",
        "glmtune data convert questions.csv train.jsonl --from alpaca --column instruction=question",
    ),
    "data formats": ("glmtune data formats",),
    "data prepare": (
        "glmtune data prepare data zai-org/glm-4-9b-chat-hf configs/lora.yaml",
        "glmtune data prepare data models/glm-4-9b configs/lora.yaml --strict",
    ),
    "config schema": ("glmtune config schema > schema.json",),
}
"""By the name of the verb, as it is typed."""


def add_examples(group: typer.Typer, prefix: str = "") -> None:
    """End the help of every verb of a group, and of the groups below it, with its examples."""
    for name, command in _commands(group, prefix):
        if name in EXAMPLES:
            # \b: lines that stay as they are, however narrow the terminal.
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in EXAMPLES[name])


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, typer.models.CommandInfo]]:
    """Yield each verb with its name as it is typed."""
    for command in group.registered_commands:
        if command.callback is not None:
            yield f"{prefix}{command.name or command.callback.__name__.replace('_', '-')}", command
    for below in group.registered_groups:
        if below.typer_instance is not None:
            yield from _commands(below.typer_instance, f"{prefix}{below.name} ")
