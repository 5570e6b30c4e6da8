"""Files in the forms of other tools: each is read rightly, or refused with what it lacks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import other_tools_page
import pytest

from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

FORMS = other_tools_page.forms()
SEEN = "expected text alone: the model would not see or hear it"
NO_QUESTION = "the row has `response` and no question; expected `query`, `instruction` or `prompt` beside it, or, for "
NO_ANSWER = "message 0, the last, has role `user`; expected an assistant message at the end"

# Name: usable rows, rejected ones, how the reason of these begins, and trained messages.
PEERS: dict[str, tuple[int, int, str, int]] = {
    "Lightning-AI+litgpt__tests_data__fixtures_alpaca.json": (23, 0, "", 23),
    "Lightning-AI+litgpt__tests_data__fixtures_dolly.json": (12, 0, "", 12),
    "Lightning-AI+litgpt__tests_data__fixtures_longform_train.json": (17, 0, "", 17),
    "Lightning-AI+litgpt__tests_data__fixtures_longform_val.json": (9, 0, "", 9),
    "axolotl-ai-cloud+axolotl__tests_fixtures_alpaca_alpaca.json": (2, 0, "", 2),
    "axolotl-ai-cloud+axolotl__tests_fixtures_conversation.json": (1, 0, "", 6),
    "axolotl-ai-cloud+axolotl__tests_fixtures_conversation.missingturns.json": (
        *(0, 1),
        "message 1 is an assistant message without content",
        0,
    ),
    "hiyouga+LLaMA-Factory__data_dataset_info.json": (0, 1, "this is LLaMA-Factory's dataset_info.json", 0),
    "hiyouga+LLaMA-Factory__data_kto_en_demo.first40.json": (25, 15, "the answer is marked as bad (`label`", 31),
    "hiyouga+LLaMA-Factory__data_mllm_audio_demo.json": (0, 3, f"the row has `audios`; {SEEN}", 0),
    "hiyouga+LLaMA-Factory__data_mllm_demo.json": (0, 6, f"the row has `images`; {SEEN}", 0),
    "hiyouga+LLaMA-Factory__data_mllm_video_audio_demo.json": (0, 3, f"the row has `videos`; {SEEN}", 0),
    "hiyouga+LLaMA-Factory__data_mllm_video_demo.json": (0, 3, f"the row has `videos`; {SEEN}", 0),
    "hiyouga+LLaMA-Factory__data_reason_tool_use_demo_50.jsonl": (50, 0, "", 127),
    "hiyouga+LLaMA-Factory__data_v1_dpo_demo.jsonl": (10, 0, "", 10),
    "hiyouga+LLaMA-Factory__data_v1_multimodal_demo.jsonl": (
        *(0, 24),
        "content of message 0 has parts of type image_url; expected text only",
        0,
    ),
    "hiyouga+LLaMA-Factory__data_v1_sft_demo.jsonl": (500, 0, "", 500),
    "hiyouga+LLaMA-Factory__data_wiki_demo.first.txt": (0, 1, "the file is plain text: it has no question", 0),
    "modelscope+ms-swift__examples_megatron_grpo_multi_turn_frozen_lake.jsonl": (0, 128, NO_ANSWER, 0),
    "modelscope+ms-swift__examples_train_grpo_plugin_openenv_sudoku.jsonl": (0, 10, NO_ANSWER, 0),
    "modelscope+ms-swift__tests_llm_data_alpaca.csv": (3, 0, "", 3),
    "modelscope+ms-swift__tests_llm_data_alpaca.jsonl": (3, 0, "", 4),
    "modelscope+ms-swift__tests_llm_data_alpaca2.csv": (3, 0, "", 3),
    "modelscope+ms-swift__tests_llm_data_chatml.jsonl": (3, 0, "", 5),
    "modelscope+ms-swift__tests_llm_data_conversations.jsonl": (3, 0, "", 5),
    "modelscope+ms-swift__tests_llm_data_multi_modal_1.jsonl": (
        *(1, 2),
        f"a question has `<img>` with a file; {SEEN}",
        3,
    ),
    "modelscope+ms-swift__tests_llm_data_multi_modal_2.jsonl": (0, 3, f"the row has `images`; {SEEN}", 0),
    "modelscope+ms-swift__tests_llm_data_multi_modal_3.jsonl": (0, 3, f"the row has `images`; {SEEN}", 0),
    "modelscope+ms-swift__tests_llm_data_sharegpt.jsonl": (3, 0, "", 5),
    "modelscope+ms-swift__tests_llm_data_swift_multi.json": (3, 0, "", 5),
    "modelscope+ms-swift__tests_llm_data_swift_multi.jsonl": (3, 0, "", 5),
    "modelscope+ms-swift__tests_llm_data_swift_pre.csv": (0, 3, NO_QUESTION, 0),
    "modelscope+ms-swift__tests_llm_data_swift_pre.jsonl": (0, 3, NO_QUESTION, 0),
    "modelscope+ms-swift__tests_llm_data_swift_single.csv": (3, 0, "", 3),
    "modelscope+ms-swift__tests_llm_data_swift_single.jsonl": (3, 0, "", 3),
    "pytorch+torchtune__tests_assets_alpaca_tiny.json": (100, 0, "", 100),
    "pytorch+torchtune__tests_assets_chat_tiny.json": (1, 0, "", 2),
    "pytorch+torchtune__tests_assets_hh_rlhf_tiny.json": (1, 0, "", 1),
    "pytorch+torchtune__tests_assets_instruct_tiny.json": (2, 0, "", 2),
    "pytorch+torchtune__tests_assets_stack_exchange_paired_tiny.json": (25, 0, "", 25),
    "pytorch+torchtune__tests_assets_vqa_tiny.json": (0, 1, f"the row has `image`; {SEEN}", 0),
}


@pytest.mark.parametrize("example", FORMS, ids=[f"{example['tool']} {example['form']}" for example in FORMS])
def test_a_form_is_read_or_lacks_what_the_table_says(example: dict[str, Any]) -> None:
    found = other_tools_page.verdict(example)
    assert bool(found.reason) == ("lacks" in example), found


def test_both_things_happen_to_forms() -> None:
    assert Counter("lacks" in example for example in FORMS)[True] >= 10
    assert len(FORMS) == len({(example["tool"], example["form"]) for example in FORMS})


@pytest.fixture
def peers(shared_data: Path) -> Path:
    if not (shared_data / "peers").is_dir():
        pytest.skip("the example files of other tools are not there (../shared/data/peers)")
    return shared_data / "peers"


def read_all(path: Path) -> tuple[list[Conversation], list[str]]:
    """Return the conversations of a file, and the reasons of what is refused."""
    conversations: list[Conversation] = []
    reasons: list[str] = []
    try:
        for row in read_rows(path):
            for part in row.read().parts:
                try:
                    if isinstance(part, RowError):
                        raise part
                    part.check_trainable()
                    conversations.append(part)
                except RowError as error:
                    reasons.append(str(error))
    except GlmtuneError as error:
        reasons.append(error.what)
    return conversations, reasons


def trained(conversation: Conversation) -> list[Message]:
    return [message for message in conversation.messages if message.role == "assistant" and message.loss != 0]


@pytest.mark.parametrize("name", PEERS)
def test_an_example_file_of_another_tool_is_read_or_refused_by_name(name: str, peers: Path) -> None:
    num_usable, num_rejected, reason, num_trained = PEERS[name]
    conversations, reasons = read_all(peers / name)
    assert (len(conversations), len(reasons)) == (num_usable, num_rejected)
    assert all(each.startswith(reason) for each in reasons), set(reasons)
    assert sum(len(trained(each)) for each in conversations) == num_trained


def test_every_example_file_is_looked_at(peers: Path) -> None:
    assert {path.name for path in peers.iterdir()} == set(PEERS)


def test_reasoning_and_calls_of_parts_stand_in_their_own_places(peers: Path) -> None:
    path = peers / "hiyouga+LLaMA-Factory__data_reason_tool_use_demo_50.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    conversations, _ = read_all(path)
    for row, conversation in zip(rows, conversations, strict=True):
        parts = [part for message in row["messages"] for part in message["content"]]
        reasoning = [part["value"] for part in parts if part["type"] == "reasoning"]
        calls = [json.loads(part["value"]) for part in parts if part["type"] == "tool_call"]
        answers = [message for message in conversation.messages if message.role == "assistant"]
        assert [message.reasoning for message in answers if message.reasoning] == reasoning
        called = [(message.metadata, json.loads(message.content)) for message in answers if message.metadata]
        assert called == [(call["name"], call["arguments"]) for call in calls]


def test_the_better_answer_of_stack_exchange_is_trained(peers: Path) -> None:
    path = peers / "pytorch+torchtune__tests_assets_stack_exchange_paired_tiny.json"
    conversations, _ = read_all(path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [trained(each)[0].content for each in conversations] == [row["response_j"] for row in rows]
