"""The demo's rows: reproducible, learnable, and held-out rows really held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtune.demo.rows import FOLDERS, LIVELY, PLAIN, Row, build_rows, copy_of, prompt_of, write_rows

DATA = Path(__file__).parents[2] / "data"
STYLES = (PLAIN, LIVELY)
SPLITS = ("train", "dev", "test")


def questions(rows: list[Row]) -> list[str]:
    """Return the first user message of every row."""
    return [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]


def answers(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield from (m["content"] for m in row["messages"] if m["role"] == "assistant" and m["content"])


def tool_rows(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["messages"][0]["role"] == "system"]


def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_rows(tmp_path)
    names = [f"{folder}/{split}.jsonl" for folder in FOLDERS.values() for split in SPLITS]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl")) == sorted(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), f"{name}: see data/README.md"


def test_the_splits_have_the_promised_sizes() -> None:
    assert {split: len(rows) for split, rows in build_rows(PLAIN).items()} == {"train": 2000, "dev": 100, "test": 100}
    assert {split: len(rows) for split, rows in build_rows(LIVELY).items()} == {"train": 600, "dev": 80, "test": 80}


def test_no_held_out_prompt_is_in_any_training_split() -> None:
    trained = {question for style in STYLES for question in questions(build_rows(style)["train"])}
    for style in STYLES:
        rows = build_rows(style)
        assert not trained.intersection(questions(rows["dev"]) + questions(rows["test"]))
        assert not set(questions(rows["dev"])).intersection(questions(rows["test"]))


def test_no_prompt_stands_twice_in_a_split() -> None:
    for style in STYLES:
        for rows in build_rows(style).values():
            assert len(set(questions(rows))) == len(rows)


def test_no_item_that_a_function_is_asked_for_is_in_two_splits() -> None:
    rows = build_rows(PLAIN)
    calls = [row["messages"][2]["tool_calls"][0]["function"] for split in SPLITS for row in tool_rows(rows[split])]
    items = [json.loads(call["arguments"])["item"] for call in calls]
    assert len(set(items)) == len(items) == 216


def test_every_word_of_a_held_out_prompt_is_in_training_prompts() -> None:
    for style in STYLES:
        rows = build_rows(style)
        trained = {pair for question in questions(rows["train"]) for pair in question.split("*")}
        held_out = questions(rows["dev"]) + questions(rows["test"])
        assert trained.issuperset(pair for question in held_out if "#" in question for pair in question.split("*"))


def test_both_styles_say_the_same_of_the_same_attributes_in_other_words() -> None:
    attributes = {"类型": "风衣", "颜色": "墨绿", "材质": "羊毛"}
    assert prompt_of(attributes) == "类型#风衣*颜色#墨绿*材质#羊毛"
    assert copy_of(attributes, PLAIN) == "这是一件百搭的风衣。主色为墨绿，沉静耐看。衣身选用羊毛面料，蓄热保暖。"
    assert copy_of(attributes, LIVELY) == "姐妹们快看这件风衣！选用羊毛面料，真的蓄热保暖！主色为墨绿，真的沉静耐看！"


def test_copy_opens_with_the_garment_s_style_where_it_has_one() -> None:
    attributes = {"类型": "连衣裙", "风格": "复古", "场合": "约会"}
    assert copy_of(attributes, PLAIN) == "这是一条复古风格的连衣裙，韵味十足。适合约会时穿着，优雅又动人。"


@pytest.mark.parametrize("style", STYLES)
def test_the_same_prompt_always_has_the_same_copy(style: str) -> None:
    rows = [row for split in build_rows(style).values() for row in split if not tool_rows([row])]
    for row in rows:
        question, answer = row["messages"][:2]
        attributes = dict(pair.split("#") for pair in question["content"].split("*"))
        assert answer["content"] == copy_of(attributes, style)


def test_answers_are_long_enough_for_bleu_4() -> None:
    import jieba

    for style in STYLES:
        assert min(len(jieba.lcut(answer)) for answer in answers(build_rows(style)["test"])) >= 4


def test_the_plain_rows_hold_function_calls_and_second_turns_in_every_split() -> None:
    for split, rows in build_rows(PLAIN).items():
        lengths = Counter(len(row["messages"]) for row in rows)
        assert lengths[4] >= 6, split
        assert 0.05 <= lengths[5] / len(rows) <= 0.1, split
        assert lengths[2] + lengths[4] + lengths[5] == len(rows), split


def test_function_calls_name_an_offered_function_and_both_roles_of_a_result_occur() -> None:
    rows = tool_rows(build_rows(PLAIN)["train"])
    for row in rows:
        system, _, call, result, answer = row["messages"]
        function = call["tool_calls"][0]["function"]
        offered = [tool["function"]["name"] for tool in system["tools"]]
        assert function["name"] in offered
        (amount,) = json.loads(result["content"]).values()
        assert amount == 0 or str(amount) in answer["content"]
    assert {row["messages"][3]["role"] for row in rows} == {"tool", "observation"}
    assert {len(row["messages"][0]["tools"]) for row in rows} == {1, 2}
