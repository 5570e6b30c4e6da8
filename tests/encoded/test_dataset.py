"""A data file to an encoded dataset: what it holds, what was left out, and that nothing is lost on the way."""

from __future__ import annotations

import copy
import gc
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.data.reading.read_rows import Reject
from glmtune.encoded import dataset as dataset_module
from glmtune.encoded.collating import collate
from glmtune.encoded.dataset import EncodedData, encode_file, join, write_rejects
from glmtune.encoded.splitting import row_digest
from glmtune.errors import GlmtuneError
from glmtune.family import GLM, IGNORE_INDEX

LIMIT = 12
# A row is [gMASK] <sop> <|user|> newline QUESTION <|assistant|> newline ANSWER <|user|>; a capital letter is one token.
SHORT, LONG, NO_ANSWER = ("A", "B"), ("A", "BCDFGHJKL"), ("ABCDFGHJKL", "B")


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, *lines: str | tuple[str, str]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(row(*line)) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def encoder(demo_tokenizer) -> Encoder:
    return Encoder(demo_tokenizer, GLM)


@pytest.fixture
def limited(demo_tokenizer) -> Encoder:
    return Encoder(demo_tokenizer, GLM, max_length_tokens=LIMIT)


@pytest.fixture
def mixed(limited: Encoder, tmp_path: Path) -> EncodedData:
    """Six rows: whole, broken, cut, without a trained token, unknown, whole."""
    return encode_file(write(tmp_path / "rows.jsonl", *MIXED), limited)


MIXED = (SHORT, "{", LONG, NO_ANSWER, '{"text": 1}', ("C", "D"))


def test_every_row_is_encoded_in_order_with_its_place(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, "", LONG)
    data = encode_file(path, encoder)
    examples = [encoder.encode(to_conversation(row(*pair))) for pair in (SHORT, LONG)]
    assert data.dataset.to_list() == [
        {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "weights": [],
            "where": f"{path}:{line}",
            "is_truncated": False,
            "length": len(example.input_ids),
            "num_trained": sum(label != IGNORE_INDEX for label in example.labels),
            "digest": row_digest(json.dumps(row(*pair))),
            "row": number,
        }
        for number, (example, pair, line) in enumerate(zip(examples, (SHORT, LONG), (1, 3)))
    ]
    assert (data.rejects, data.num_truncated) == ((), 0)


def test_an_array_is_encoded_as_its_lines_would_be(encoder: Encoder, tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([row(*SHORT), row(*LONG)], indent=1), encoding="utf-8")
    data = encode_file(array, encoder)
    lines = encode_file(write(tmp_path / "rows.jsonl", SHORT, LONG), encoder)
    assert data.dataset["input_ids"][:] == lines.dataset["input_ids"][:]
    assert data.dataset["where"][:] == [f"{array}:2", f"{array}:14"]


def test_bad_rows_are_rejected_with_their_place_and_the_rest_trains(mixed: EncodedData, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert mixed.rejects == (
        Reject(
            where=f"{path}:2",
            reason="not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        Reject(where=f"{path}:4", reason="no trained token within the limit of 12 tokens (the row has 18)"),
        Reject(where=f"{path}:5", reason="`text` is a number; expected text"),
    )
    assert mixed.dataset["where"][:] == [f"{path}:1", f"{path}:3", f"{path}:6"]
    assert mixed.dataset["row"][:] == [0, 1, 2]
    assert mixed.dataset["is_truncated"][:] == [False, True, False]
    assert [len(ids) for ids in mixed.dataset["input_ids"]] == [9, LIMIT, 9]
    assert mixed.num_truncated == 1


def test_every_example_has_as_many_labels_as_ids_and_a_label_is_its_id(mixed: EncodedData) -> None:
    for example in mixed.dataset:
        assert len(example["labels"]) == len(example["input_ids"])
        assert any(label != IGNORE_INDEX for label in example["labels"])
        for token, label in zip(example["input_ids"], example["labels"]):
            assert label in (token, IGNORE_INDEX)


def error_of(path: Path, encoder: Encoder) -> str:
    with pytest.raises(GlmtuneError) as caught:
        encode_file(path, encoder)
    return str(caught.value)


def test_a_file_without_rows_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "", " ")
    assert error_of(path, encoder) == f"the file has no rows\n  --> {path}"


def test_a_file_whose_rows_are_all_bad_is_an_error_that_names_the_first(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "", '{"text": 1}', "{")
    assert error_of(path, encoder) == (
        f"no row of `{path}` can be trained on; the first: `text` is a number; expected text\n  --> {path}:2"
    )


def test_a_row_that_only_half_of_a_character_spoils_is_rejected_alone(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, ("a", "b\ud83d"))
    data = encode_file(path, encoder)
    assert len(data.dataset) == 1
    assert data.rejects == (
        Reject(where=f"{path}:2", reason="message 1 holds `\\ud83d`, which is half of a character"),
    )


def test_truncation_drop_rejects_the_long_rows(demo_tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, LONG)
    data = encode_file(path, Encoder(demo_tokenizer, GLM, max_length_tokens=LIMIT, truncation="drop"))
    assert data.rejects == (Reject(where=f"{path}:2", reason="17 tokens, over the limit of 12"),)
    assert (len(data.dataset), data.num_truncated) == (1, 0)


def test_truncation_error_stops_at_the_first_long_row(demo_tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{", SHORT, LONG, NO_ANSWER)
    encoder = Encoder(demo_tokenizer, GLM, max_length_tokens=LIMIT, truncation="error")
    assert error_of(path, encoder) == (
        "17 tokens, over the limit of 12\n"
        f"  --> {path}:3\n"
        "hint: raise `max_input_length` or `max_output_length`, or set `truncation: right` or `drop`"
    )


def test_truncation_error_rejects_rows_that_are_bad_otherwise(demo_tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, json.dumps({"messages": [{"role": "over the limit"}]}))
    data = encode_file(path, Encoder(demo_tokenizer, GLM, max_length_tokens=LIMIT, truncation="error"))
    assert [reject.where for reject in data.rejects] == [f"{path}:2"]


@pytest.mark.parametrize("num_good_rows", [0, 300, 600])
def test_an_error_that_is_kept_does_not_keep_garbage_from_being_collected(
    num_good_rows: int, encoder: Encoder, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", *[SHORT] * num_good_rows, "{", *[SHORT] * 600)
    with pytest.raises(GlmtuneError) as kept:
        encode_file(path, encoder, strict=True)
    assert gc.isenabled()
    assert kept.value.where == f"{path}:{num_good_rows + 1}"


def test_a_tokenizer_that_dies_does_not_keep_garbage_from_being_collected(demo_tokenizer, tmp_path: Path) -> None:
    class Dying(Encoder):
        def tokenize(self, planned: Any) -> Any:
            raise MemoryError(len(planned.texts))

    dying = Dying(demo_tokenizer, GLM, use_skeletons=False)
    with pytest.raises(MemoryError) as kept:
        dying.encode_batch([to_conversation(row(*SHORT))] * 600)
    assert gc.isenabled()
    assert kept.value.args[0] > 256


@pytest.mark.parametrize("limit", [1, 5, 255, 256, 257, 700])
def test_no_more_rows_are_encoded_than_a_limit_wants(limit: int, demo_tokenizer, tmp_path: Path) -> None:
    class Counting(Encoder):
        num_rows = 0

        def plan(self, conversations: Any) -> Any:
            self.num_rows += len(conversations)
            return super().plan(conversations)

    encoder = Counting(demo_tokenizer, GLM)
    path = write(tmp_path / "rows.jsonl", "{", *[SHORT] * 1_000)
    data = encode_file(path, encoder, limit=limit)
    assert encoder.num_rows <= limit + 8  # eight are verified
    assert data.dataset["where"][:] == [f"{path}:{number + 2}" for number in range(limit)]
    assert [reject.where for reject in data.rejects] == [f"{path}:1"]


def test_rows_behind_those_that_a_limit_wants_are_not_read(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[SHORT] * 40)
    path.write_bytes(gzip.compress(path.read_bytes() + random.Random(0).randbytes(1 << 20))[: -(1 << 18)])
    path = path.rename(tmp_path / "rows.jsonl.gz")
    assert len(encode_file(path, encoder, limit=3).dataset) == 3
    with pytest.raises(GlmtuneError, match="the file cannot be read"):
        encode_file(path, encoder)


@pytest.mark.parametrize("limit", [2, 3, 100])
def test_a_limit_beyond_the_file_gives_all_of_it(
    limit: int, mixed: EncodedData, limited: Encoder, tmp_path: Path
) -> None:
    data = encode_file(tmp_path / "rows.jsonl", limited, limit=limit)
    assert data.dataset.to_list() == mixed.dataset.to_list()[:limit]


def test_a_tokenizer_that_fails_the_check_stops_before_the_rows_are_encoded(demo_tokenizer, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    # A control token that swallows the newline behind it: the one that tells an answer from a tool call.
    swallowing = AddedToken("<|assistant|>", rstrip=True, special=True, normalized=False)
    tokenizer.add_tokens([swallowing], special_tokens=True)
    encoder = Encoder(tokenizer, GLM)
    path = write(tmp_path / "rows.jsonl", "{", SHORT)
    assert error_of(path, encoder) == (
        "encoding differs from the tokenizer's own rendering at token 6: ['A', '<|assistant|>', 'Ċ', 'B', '<|user|>'] "
        "instead of ['A', '<|assistant|>', 'B']\n"
        f"  --> {path}:2\n"
        "hint: this chat template cannot be trained on message by message"
    )


# What is asked of the encoded rows.


def test_the_summary_counts_rows_tokens_and_what_became_of_the_others(
    mixed: EncodedData, encoder: Encoder, tmp_path: Path
) -> None:
    assert mixed.summary() == (
        "3 rows, 30 tokens, 12 of them trained; 1 rows cut at the length limit; "
        "3 rows rejected, 1 of them for their length"
    )
    whole = encode_file(write(tmp_path / "whole.jsonl", *[SHORT] * 1000), encoder)
    assert whole.summary() == "1,000 rows, 9,000 tokens, 3,000 of them trained"


def test_the_first_rows_alone_count_their_own_cut_rows(mixed: EncodedData) -> None:
    assert mixed.first(1).dataset.to_list() == mixed.dataset.to_list()[:1]
    assert [mixed.first(number).num_truncated for number in (1, 2, 3, 99)] == [0, 1, 1, 1]
    assert [len(mixed.first(number).dataset) for number in (0, 1, 3, 99)] == [0, 1, 3, 3]
    assert mixed.first(1).rejects == mixed.rejects
    assert mixed.first(1).summary() == (
        "1 rows, 9 tokens, 3 of them trained; 3 rows rejected, 1 of them for their length"
    )


def test_the_longest_rows_come_longest_first_and_keep_their_numbers(encoder: Encoder, tmp_path: Path) -> None:
    data = encode_file(write(tmp_path / "rows.jsonl", SHORT, LONG, ("A", "BC"), ("AB", "CDFGHJKLM")), encoder)
    assert data.longest(3).dataset["row"][:] == [3, 1, 2]
    assert [len(ids) for ids in data.longest(3).dataset["input_ids"]] == [18, 17, 10]
    assert data.longest(99).dataset["row"][:] == [3, 1, 2, 0]


def test_turns_are_every_stretch_that_was_not_cut_with_the_row_it_stands_in(
    limited: Encoder, demo_tokenizer, tmp_path: Path
) -> None:
    two = json.dumps({"messages": [*row("A", "B")["messages"], *row("C", "DFGHJ")["messages"]]})
    path = write(tmp_path / "rows.jsonl", SHORT, LONG, two)
    decode = demo_tokenizer.decode
    turns = encode_file(path, limited).turns()
    assert [(where, decode(turn.prompt_ids), decode(turn.answer_ids)) for where, turn in turns] == [
        (f"{path}:1", "[gMASK]<sop><|user|>\nA<|assistant|>", "\nB<|user|>"),
        (f"{path}:3", "[gMASK]<sop><|user|>\nA<|assistant|>", "\nB<|user|>"),
    ]


def test_rejected_and_cut_rows_are_written_line_by_line(
    mixed: EncodedData, limited: Encoder, encoder: Encoder, tmp_path: Path
) -> None:
    other = encode_file(write(tmp_path / "other.jsonl", LONG, SHORT), limited)
    whole = encode_file(write(tmp_path / "whole.jsonl", SHORT), encoder)
    write_rejects(tmp_path / "rejects.jsonl", [mixed, whole, other])
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    cut = "cut at the length limit, trained in part"
    assert [json.loads(line) for line in lines] == [
        *({"where": reject.where, "reason": reject.reason} for reject in mixed.rejects),
        {"where": f"{tmp_path / 'rows.jsonl'}:3", "reason": cut},
        {"where": f"{tmp_path / 'other.jsonl'}:1", "reason": cut},
    ]
    write_rejects(tmp_path / "rejects.jsonl", [whole])
    assert (tmp_path / "rejects.jsonl").read_text(encoding="utf-8") == ""


def test_two_processes_encode_what_one_does(limited: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for number in range(40) for line in (*MIXED, (f"问题{number}", "答" * (number % 3 + 1)))]
    path = write(tmp_path / "rows.jsonl", *lines)
    one = encode_file(path, limited, num_proc=1)
    monkeypatch.setattr(dataset_module, "MIN_ROWS_PER_PROCESS", 10)
    monkeypatch.setattr(dataset_module.os, "cpu_count", lambda: 2)
    two = encode_file(path, limited, num_proc=2)
    assert one.dataset.to_list() == two.dataset.to_list()
    assert one.dataset.features == two.dataset.features
    assert (one.rejects, one.num_truncated) == (two.rejects, two.num_truncated)
    assert len(one.dataset) + len(one.rejects) == len(lines)


def test_a_batch_is_padded_on_the_right_and_masked_by_length_not_by_id(mixed: EncodedData) -> None:
    pad = 0  # stands in a row as well, as its stop token
    rows = [{"input_ids": [5, pad], "labels": [IGNORE_INDEX, pad], "row": 3}, {"input_ids": [6], "labels": [6]}]
    batch = {name: tensor.tolist() for name, tensor in collate(rows, pad).items()}
    assert batch == {
        "input_ids": [[5, pad], [6, pad]],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [[IGNORE_INDEX, pad], [6, IGNORE_INDEX]],
        "rows": [3, -1],
        "lengths": [2, 1],
    }
    whole = collate(list(mixed.dataset), pad)
    assert whole["attention_mask"].sum(1).tolist() == [9, LIMIT, 9]
    assert whole["rows"].tolist() == [0, 1, 2]


def test_a_cache_that_cannot_be_written_to_is_told_with_the_way_out(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(GlmtuneError) as caught:
        encode_file(path, encoder, content_hash="0")
    assert str(caught.value) == (
        "encoded rows cannot be written: Not a directory\n"
        f"  --> {tmp_path}/file/encoded\n"
        "hint: set `GLMTUNE_CACHE` to a folder that you can write to and that has room"
    )


def weighted_row(*losses: Any) -> str:
    messages = []
    for loss in losses:
        messages += row("A", "B")["messages"]
        messages[-1] |= {"loss": loss}
    return json.dumps({"messages": messages})


def test_weights_of_messages_reach_the_batch_and_rows_without_any_weigh_one(encoder: Encoder, tmp_path: Path) -> None:
    data = encode_file(write(tmp_path / "rows.jsonl", SHORT, weighted_row(0.5, 2), weighted_row(True)), encoder)
    # [gMASK] <sop> <|user|> newline A <|assistant|>, then newline B <|user|> with the weight.
    second = [*[0.0] * 6, *[0.5] * 3, *[0.0] * 3, *[2.0] * 3]
    assert data.dataset["weights"][:] == [[], second, []]
    batch = collate(list(data.dataset), 0)
    assert batch["weights"].tolist() == [[1.0] * 15, second, [1.0] * 15]
    assert "weights" not in collate([data.dataset[0], data.dataset[2]], 0)


def test_a_batch_with_weights_is_padded_with_labels_that_count_nothing() -> None:
    rows = [
        {"input_ids": [5], "labels": [5], "weights": [0.5]},
        {"input_ids": [6, 7, 8], "labels": [IGNORE_INDEX, 7, 8], "weights": []},
    ]
    batch = collate(rows, 0)
    assert batch["weights"].tolist() == [[0.5, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert batch["labels"].tolist() == [[5, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 7, 8]]


THREE_TURNS = json.dumps({"messages": [message for answer in "BDF" for message in row("A", answer)["messages"]]})


def test_rows_without_some_of_their_turns_are_counted_and_listed(demo_tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, THREE_TURNS, LONG, THREE_TURNS)
    data = encode_file(path, Encoder(demo_tokenizer, GLM, max_length_tokens=15, truncation="drop_turns"))
    reason = "1 turns left out at the length limit, the others trained"
    assert data.cuts == (Reject(where=f"{path}:2", reason=reason), Reject(where=f"{path}:4", reason=reason))
    assert data.rejects == (
        Reject(where=f"{path}:3", reason="17 tokens, and not even one turn is within the limit of 15"),
    )
    assert data.summary() == (
        "3 rows, 39 tokens, 15 of them trained; 2 rows without some of their turns; "
        "1 rows rejected, 1 of them for their length"
    )
    write_rejects(tmp_path / "rejects.jsonl", [data])
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["where"] for line in lines] == [f"{path}:3", f"{path}:2", f"{path}:4"]


def test_rows_are_counted_by_what_became_of_them_and_not_by_words_of_the_reason(demo_tokenizer, tmp_path: Path) -> None:
    odd = [
        json.dumps({"messages": [{"role": f"the limit, {words}", "content": "a"}]})
        for words in ("turns left out", "cut", "over the limit")
    ]
    data = encode_file(write(tmp_path / "rows.jsonl", SHORT, *odd), Encoder(demo_tokenizer, GLM))
    assert data.summary() == "1 rows, 9 tokens, 3 of them trained; 3 rows rejected"


def test_dropped_rows_are_counted(demo_tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHORT, LONG, "{", LONG)
    data = encode_file(path, Encoder(demo_tokenizer, GLM, max_length_tokens=LIMIT, truncation="drop"))
    assert data.summary() == "1 rows, 9 tokens, 3 of them trained; 3 rows rejected, 2 of them for their length"


def test_turns_are_left_out_while_the_next_rows_are_in_the_tokenizer(demo_tokenizer, tmp_path: Path) -> None:
    long = json.dumps({"messages": [message for number in range(9) for message in row("A", f"B{number}")["messages"]]})
    lines = [line for number in range(700) for line in (long, (f"问题{number}", "答"))]
    path = write(tmp_path / "rows.jsonl", *lines)
    encoder = Encoder(demo_tokenizer, GLM, max_length_tokens=40, truncation="drop_turns")
    data = encode_file(path, encoder)
    assert data.rejects == ()
    assert len(data.cuts) == 700
    alone = encoder.encode(to_conversation(json.loads(long)))
    assert {tuple(ids) for ids in data.dataset["input_ids"][::2]} == {tuple(alone.input_ids)}


def test_the_rows_of_several_files_are_numbered_through(encoder: Encoder, tmp_path: Path) -> None:
    parts = [
        encode_file(write(tmp_path / f"{number}.jsonl", *lines), encoder)
        for number, lines in enumerate([[SHORT, "{"], [("C", "D"), LONG, "["], [("E", "F")]])
    ]
    whole = join(parts)
    places = [
        f"{tmp_path / '0.jsonl'}:1",
        *(f"{tmp_path / '1.jsonl'}:{line}" for line in (1, 2)),
        f"{tmp_path / '2.jsonl'}:1",
    ]
    assert whole.dataset["where"][:] == places
    assert whole.dataset["row"][:] == [0, 1, 2, 3]
    assert [reject.where for reject in whole.rejects] == [f"{tmp_path / '0.jsonl'}:2", f"{tmp_path / '1.jsonl'}:3"]
    chosen = join(parts, [0, 0, 2, 3])
    assert chosen.dataset["row"][:] == [0, 0, 2, 3]
    assert chosen.dataset["input_ids"][:] == [whole.dataset[index]["input_ids"] for index in (0, 0, 2, 3)]
    again = join([chosen, whole])
    assert again.dataset["row"][:] == list(range(8))


def test_selected_rows_may_repeat_and_keep_their_numbers(mixed: EncodedData) -> None:
    twice = mixed.selected([2, 0, 2])
    assert twice.dataset["row"][:] == [2, 0, 2]
    assert twice.numbers("row").tolist() == [2, 0, 2]
    assert twice.numbers("is_truncated").tolist() == [False] * 3
    assert (twice.rejects, twice.cuts) == (mixed.rejects, mixed.cuts)


def test_plain_text_rows_are_encoded_beside_conversations(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "A", "response": "B"}', SHORT, '{"text": "C"}')
    data = encode_file(path, encoder)
    trained = [
        encoder.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
        for labels in data.dataset["labels"]
    ]
    assert trained == ["B<|endoftext|>", "\nB<|user|>", "C<|endoftext|>"]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_template_that_slips_past_the_probes_fails_in_every_process(
    num_proc: int, demo_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset_module, "MIN_ROWS_PER_PROCESS", 50)
    monkeypatch.setattr(dataset_module.os, "cpu_count", lambda: 2)
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n"
        "{{ '!' if m.content | length > 5000 else m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [(f"A{number}", "B" * (6000 if number > 300 else 1)) for number in range(700)]
    path = write(tmp_path / "rows.jsonl", *rows)
    data = encode_file(path, Encoder(tokenizer, GLM), num_proc=num_proc)
    assert f"looks into the text of some messages of `{path}`" in capsys.readouterr().err
    assert int(data.numbers("length").max()) < 20
    assert len(data.dataset) == 700
