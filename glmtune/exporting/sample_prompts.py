"""The questions that an export is checked with: the user's, rows of the run's own data, or a few that stand here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.conversion import row_format
from glmtune.data.reading.read_rows import read_rows
from glmtune.generation.ask import read_prompts
from glmtune.generation.generate import encode_question

MAX_PROMPTS = 32
"""Of a file. The logits of every answer are kept: 10 MB a prompt for GLM-4 in bfloat16."""
NUM_ROWS = 8
NUM_ROWS_READ = 200
LONGEST_PROMPT_TOKENS = 1024

QUESTIONS = (
    "你好，请介绍一下你自己。",
    "用一句话解释什么是潮汐。",
    "把下面这句话翻译成英文：今天下午有雨，记得带伞。",
    "为一款黑色的棉质连衣裙写一段广告。",
    "What is the capital of Australia?",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that returns the sum of a list.",
    "List three ways to save water at home.",
)


def sample_prompts(path: Path | None, record: Mapping[str, Any], encoder: Encoder) -> tuple[list[list[int]], str]:
    """Return the ids of the questions, and in words where they come from.

    Args:
        path: The user's file, as `glmtune infer --input` takes it.
        record: A run's `run.yaml`; empty without a run.
        encoder: Of the model's tokenizer.
    """
    if path is not None:
        prompts = read_prompts(None, path)
        chosen = prompts[:MAX_PROMPTS]
        rows = f"{len(chosen)} of {len(prompts)} rows" if len(chosen) < len(prompts) else f"{len(chosen)} rows"
        return [encode_question(encoder, prompt, None) for prompt in chosen], f"{rows} of {path.name}"
    for file, conversations in _run_rows(record):
        ids = [*islice(_encoded(conversations, encoder), NUM_ROWS)]
        if ids:
            return ids, f"{len(ids)} rows of {file.name}"
    return [encode_question(encoder, question, None) for question in QUESTIONS], f"{len(QUESTIONS)} general questions"


def _run_rows(record: Mapping[str, Any]) -> Iterator[tuple[Path, Iterator[Conversation]]]:
    """Yield the files of a run that are still there, those it was evaluated on first, and their first rows."""
    settings = record.get("asked", {}).get("config", {}).get("data_config", {})
    for split in ("val", "train"):
        for entry in record.get("data", {}).get(split, ()):
            path = Path(str(entry["path"]))
            if path.is_file():
                yield path, _conversations(path, settings)


def _conversations(path: Path, settings: Mapping[str, Any]) -> Iterator[Conversation]:
    rows_are = row_format(settings.get("format"), settings.get("columns") or {}, "data_config.format")
    for row in islice(read_rows(path, rows_are), NUM_ROWS_READ):
        yield from (part for part in row.parts(rows_are) if isinstance(part, Conversation))


def _encoded(conversations: Iterator[Conversation], encoder: Encoder) -> Iterator[list[int]]:
    """Yield the ids that ask each conversation's last question; those that are no chat, or long, are passed over."""
    for conversation in conversations:
        messages = conversation.messages
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or conversation.is_plain_text:
            continue
        try:
            ids = encoder.encode_prompt(Conversation(messages=messages))
        except RowError:
            continue
        if len(ids) <= LONGEST_PROMPT_TOKENS:
            yield ids
