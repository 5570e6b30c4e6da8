"""Tokens become text as the tokenizer itself would decode them, in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from glmtune.chatformat.replies import ROLE_LINE, ReplyLayout, ReplyReader
from glmtune.generation.decoding import AnswerReader, StopStrings, TextStream, token_text


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pieces_put_together_are_the_decoded_whole(demo_tokenizer: Any, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(demo_tokenizer) - 1), max_size=12))
    stream = TextStream(demo_tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.rest() == demo_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["雾蓝色的衬衫，很好看！", "naïve 🙂🙃 café", "a\n\n  b\t"])
def test_no_piece_ends_inside_a_character(text: str, demo_tokenizer: Any, glm_tokenizer: Any) -> None:
    for tokenizer in (demo_tokenizer, glm_tokenizer):
        stream = TextStream(tokenizer)
        pieces = [stream.add(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)


def test_a_space_that_a_token_has_only_behind_another_is_there() -> None:
    """As in tokenizers of Llama's kind, which leave it out at the beginning of what they decode."""
    words = {"<unk>": 0, "▁warm": 1, "▁and": 2, "▁dry": 3}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.decoder = decoders.Metaspace()
    stream = TextStream(PreTrainedTokenizerFast(tokenizer_object=made))
    assert [stream.add(token) for token in (1, 2, 3)] == ["warm", " and", " dry"]
    assert stream.rest() == ""


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.text("ab<|", max_size=3), max_size=8),
    stops=st.lists(st.text("ab<|", min_size=1, max_size=3), max_size=3),
)
def test_a_text_ends_before_its_first_stop_string_however_it_is_split(pieces: list[str], stops: list[str]) -> None:
    cutter = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += cutter.add(piece)
        if cutter.reached:
            break
        assert not any(stop in shown for stop in stops)
    else:
        shown += cutter.rest()
    text = "".join(pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    assert (cutter.reached is not None) == bool(places)
    if not places:
        assert shown == text
    elif len(stops) == 1:
        assert shown == text[: places[0]]
    else:
        # Of two that overlap, the one whose end comes first may have ended the text already.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_as_much_is_held_back_as_may_begin_a_stop_string() -> None:
    cutter = StopStrings(["ababc"])
    assert cutter.add("xabab") == "x"
    assert cutter.add("abc") == "ab"
    assert cutter.reached


def test_without_a_chat_the_text_stays_as_it_is(demo_tokenizer: Any) -> None:
    reader = AnswerReader(demo_tokenizer)
    ids = demo_tokenizer(" \n a \n", add_special_tokens=False)["input_ids"]
    pieces = [piece.text for token in ids for piece in reader.add(token)] + [piece.text for piece in reader.end()]
    assert "".join(pieces) == " \n a \n"


def test_what_may_have_become_a_call_is_given_out_where_a_stop_string_ends_the_answer(demo_tokenizer: Any) -> None:
    reader = AnswerReader(demo_tokenizer, stops=["STOP"], reader=ReplyReader(ReplyLayout(calls=ROLE_LINE)))
    events = []
    for token in demo_tokenizer("get_weather STOP and more", add_special_tokens=False)["input_ids"]:
        events += reader.add(token)
        if reader.is_stopped:
            break
    assert reader.is_stopped
    assert "".join(event.text for event in events) == "get_weather"
    assert reader.end() == []


def test_the_bytes_of_a_token_are_told_where_its_text_is_no_character(demo_tokenizer: Any) -> None:
    ids = demo_tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert bytes(byte for token in ids for byte in token_text(demo_tokenizer, token)[1]).decode() == "🙂"


def test_bytes_that_never_become_a_character_are_given_out(demo_tokenizer: Any) -> None:
    """Otherwise each token would decode all those before it once more."""
    begin = demo_tokenizer("裙", add_special_tokens=False)["input_ids"][0]
    broken = next(token for token in range(len(demo_tokenizer)) if demo_tokenizer.decode([token] * 3) == "\ufffd" * 3)
    stream = TextStream(demo_tokenizer)
    pieces = [stream.add(token) for token in [begin, *[broken] * 100]]
    assert len(max(pieces, key=len)) < 40
    assert len("".join(pieces)) > 60
