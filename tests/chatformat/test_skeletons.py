"""The quick way to render equals the template's own, or is not taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_layouts import CHATML, CHATML_TOKENS, GLM_TOKENS, LAYOUTS, RENDERED, encoder_of, with_template
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.pieces import Piece
from glmtune.chatformat.skeletons import MARK, TextRules
from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.formats import to_conversation
from glmtune.encoded.dataset import encode_file
from glmtune.family import GENERIC

PIECES = [
    "a", "B c", "你好", " ", "\n", "\n\n", "\r\n", "\t", "\u2028", "\\", '"', "{}", '{"name": "f", "arguments": {}}',
    "<think>", "</think>", "<think>b</think>", "/nothink", "/think", "system", "user", "tool", "Be brief.", "hello",
    "metadata", "\ufdd0", "\ufdef", f"{MARK}0{MARK}", f"{MARK}1{MARK}", "<|", "|>", "\\u003c|user|>", "\0",
    *CHATML_TOKENS, *GLM_TOKENS,
]  # fmt: skip
"""Texts that a template or the quick way may stumble over."""

texts = (
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=4)
    .map("".join)
    .filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))
)
filled = texts.filter(bool)
arguments = st.one_of(
    st.dictionaries(texts, st.one_of(texts, st.none(), st.integers()), max_size=2).map(json.dumps),
    st.dictionaries(texts, texts, max_size=2).map(lambda value: json.dumps(value, ensure_ascii=False)),
    st.just("{}"),
)
schemas = st.none() | st.lists(filled, min_size=1, max_size=2).map(
    lambda names: json.dumps([{"type": "function", "function": {"name": n, "description": n}} for n in names])
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    rows: list[Message] = []
    tools = draw(schemas)
    if tools or draw(st.booleans()):
        rows.append(Message(role="system", content=draw(texts), tools=tools, number=0))
    for _ in range(draw(st.integers(1, 3))):
        rows.append(Message(role="user", content=draw(filled), number=len(rows)))
        if draw(st.booleans()):
            number = len(rows)
            if draw(st.booleans()):
                rows.append(Message(role="assistant", content=draw(filled), number=number))
            for _ in range(draw(st.integers(1, 2))):
                rows.append(Message(role="assistant", content=draw(arguments), metadata=draw(filled), number=number))
            rows.append(Message(role="observation", content=draw(filled), number=number + 1))
        reasoning = draw(st.sampled_from(["", "", "", "hm"]))
        loss = draw(st.sampled_from([None, None, 0.0, 0.5]))
        rows.append(Message(role="assistant", content=draw(filled), reasoning=reasoning, loss=loss, number=len(rows)))
    return Conversation(messages=tuple(rows))


def outcome(encoder: Encoder, conversation: Conversation) -> Any:
    [result] = encoder.plan([conversation]).rows
    return str(result) if isinstance(result, RowError) else result


def assert_both_ways_agree(encoder: Encoder, conversation: Conversation) -> None:
    assert outcome(encoder, conversation) == outcome(encoder.without_skeletons(), conversation)


def quick_pieces(encoder: Encoder, conversation: Conversation) -> list[Piece] | None:
    assert encoder._skeletons is not None
    weights = [float(message.role == "assistant") for message in conversation.messages]
    return encoder._skeletons.pieces(conversation, weights)


def turns(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        messages=tuple(Message(role=roles[index % 2], content=text) for index, text in enumerate(texts))
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(conversation=conversations())
def test_the_quick_way_equals_the_template_on_any_conversation(layout: str, conversation: Conversation) -> None:
    encoder, slow = encoder_of(layout), encoder_of(layout, use_skeletons=False)
    # Twice: a shape is rendered by the first row that has it, and filled in by the second.
    for row in (conversation, conversation):
        assert outcome(encoder, row) == outcome(slow, row)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(first=conversations(), data=st.data())
def test_a_shape_that_is_known_holds_for_rows_with_other_texts(first: Conversation, data: st.DataObject) -> None:
    for layout in LAYOUTS:
        encoder, slow = encoder_of(layout), encoder_of(layout, use_skeletons=False)
        outcome(encoder, first)
        other = Conversation(
            messages=tuple(
                Message(
                    role=message.role,
                    content=message.content if message.metadata else message.content and data.draw(filled),
                    metadata=message.metadata and data.draw(filled),
                    tools=message.tools,
                    loss=message.loss,
                    number=message.number,
                )
                for message in first.messages
            )
        )
        assert outcome(encoder, other) == outcome(slow, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_turns_go_the_quick_way_under_every_layout(layout: str) -> None:
    encoder = encoder_of(layout)
    assert encoder._skeletons is not None
    assert encoder._skeletons.works
    assert quick_pieces(encoder, turns("hello", "how are you", "well", "good")) is not None


@pytest.mark.parametrize("name", RENDERED)
def test_both_ways_agree_on_every_row_of_the_rendering_tests(name: str) -> None:
    layout, messages, tools, _ = RENDERED[name]
    assert_both_ways_agree(encoder_of(layout), to_conversation({"messages": messages, "tools": tools}))


@pytest.mark.parametrize(
    "text",
    ["a<|user|>", "<|im_start|>", "</think>b", "<think>", f"a{MARK}b", f"{MARK}0{MARK}"],
)
def test_texts_that_a_template_may_look_into_go_the_slow_way(text: str) -> None:
    assert quick_pieces(encoder_of("glm-4.5"), turns("a", text)) is None or text == "<|im_start|>"
    assert_both_ways_agree(encoder_of("glm-4.5"), turns("a", text))


def test_white_space_at_the_edges_goes_the_slow_way_where_the_template_takes_it_off() -> None:
    assert quick_pieces(encoder_of("llama"), turns("a ", "b")) is None
    assert quick_pieces(encoder_of("llama"), turns("a b", "c")) is not None
    assert quick_pieces(encoder_of("chatml"), turns("a ", "\nb")) is not None


# Templates that do something to texts: none of them may go the quick way where it matters.

M = "m['content']"
LOOKING = {
    "takes white space off": (f"{M} | trim", (" a", "b ")),
    "takes newlines off": (f"{M}.strip('\\n')", ("\na", "b\n")),
    "writes small letters": (f"{M} | lower", ("HELLO", "How ARE you")),
    "writes capital letters": (f"({M} | upper if m['role'] == 'user' else {M})", ("hello", "b")),
    "escapes": (f"({M} | tojson if m['role'] == 'user' else {M})", ('a "b"', "c & d")),
    "breaks lines in one way": (f"{M}.splitlines() | join('\\n')", ("a\rb", "c\u2028d")),
    "joins blanks": (f"{M}.split() | join(' ')", ("a  b", "c\td")),
    "makes links": (f"{M} | urlize", ("see https://a.b", "c")),
    "looks for a text": (f"('!' if 'xyz' in {M} else {M})", ("wxyz", "b")),
    "compares with a text": (f"('!' if {M} == 'xyz' else {M})", ("xyz", "b")),
    "looks for one of many": (f"('!' if {M} in ['xyz', 'uvw'] else {M})", ("uvw", "b")),
    "looks at the beginning": (f"('!' if {M}.startswith('xyz') else {M})", ("xyz b", "b")),
    "looks at the first letter": (f"('!' if {M}[0] == 'Q' else {M})", ("Quiet", "b")),
    "looks at the first letters": (f"('!' if {M}[:2] == '##' else {M})", ("## a", "b")),
    "looks at the first letter by a filter": (f"('!' if {M} | first == 'Q' else {M})", ("Quiet", "b")),
    "looks for a text in small letters": (f"('!' if 'xyz' in {M} | lower else {M})", ("WXYZ", "b")),
    "looks at the small letters": (f"('!' if {M} | lower == 'xyz' else {M})", ("xYz", "b")),
    "replaces": (f"{M} | replace('xyz', '')", ("wxyz", "b")),
    "splits": (f"{M}.split('xyz')[-1]", ("wxyz!", "b")),
    "looks by a name for the text": (f"('!' if word in {M} else {M})", ("wxyz", "b")),
    "looks by a name in a namespace": (f"('!' if words.word in {M} else {M})", ("wxyz", "b")),
    "cuts": (f"{M}[:2000]", ("a" * 2500, "b")),
    "knows what was said before": (
        f"('same' if loop.index0 and {M} == messages[loop.index0 - 1]['content'] else {M})",
        ("a", "a"),
    ),
    "numbers its turns": (f"(loop.index ~ '. ' ~ {M})", ("a", "b")),
    "writes the last message otherwise": (
        f"({M} ~ ('.' if loop.last and m['role'] == 'assistant' else ''))",
        ("a", "b"),
    ),
    "takes edges off that it looks for": (f"{M}.lstrip('\\n').rstrip(' ')", ("\na ", " b ")),
}


@pytest.mark.parametrize("name", LOOKING)
def test_what_a_template_does_to_texts_is_the_same_in_both_ways(name: str) -> None:
    expression, (question, answer) = LOOKING[name]
    names = "{% set word = 'xyz' %}{% set words = namespace(word='xyz') %}"
    encoder = Encoder(with_template(names + CHATML.replace(M, expression), CHATML_TOKENS), GENERIC)
    for row in (turns("good", "well"), turns(question, answer), turns("good", answer, question, "well", "a", "b")):
        for _ in range(2):
            assert_both_ways_agree(encoder, row)


@pytest.mark.parametrize("name", ["numbers its turns", "writes the last message otherwise", "looks for a text"])
def test_a_template_that_does_not_change_texts_goes_the_quick_way(name: str) -> None:
    encoder = Encoder(with_template(CHATML.replace(M, LOOKING[name][0]), CHATML_TOKENS), GENERIC)
    assert quick_pieces(encoder, turns("good", "well")) is not None


@pytest.mark.parametrize(
    ("template", "rules"),
    [
        (None, None),
        ({"default": CHATML}, None),
        ("{% for m in messages %}", None),
        ("{% generation %}a{% endgeneration %}", None),
        ("{{ m.content }}", TextRules(frozenset(), ())),
        (
            "{% if m.role == 'user' and 'b' in m.content and m.content.split('c') | trim('d') %}e{% endif %}",
            TextRules(frozenset({"user", "b", "c", "d"}), ("b", "c", "d")),
        ),
        ("{% if messages[0]['role'] == 'system' %}{% endif %}", TextRules(frozenset({"role", "system"}), ())),
        ("{% for m in messages %}{% continue %}{% endfor %}", TextRules(frozenset(), ())),
    ],
    ids=["none", "several", "broken", "unknown tag", "plain", "looks", "a key", "continue"],
)
def test_the_rules_of_a_template_are_the_texts_in_it(template: Any, rules: TextRules | None) -> None:
    assert TextRules.of_template(template) == rules


def test_a_template_that_cannot_be_read_is_rendered_row_by_row() -> None:
    several = Encoder(with_template({"default": CHATML}, CHATML_TOKENS), GENERIC)
    assert quick_pieces(several, turns("a", "b")) is None
    assert several.encode(turns("a", "b")) == encoder_of("chatml").encode(turns("a", "b"))


def test_a_template_that_looks_for_blanks_and_newlines_leaves_no_edge_to_probe() -> None:
    template = CHATML.replace(M, f"{M}.lstrip('\\n').replace(' ', '_')")
    encoder = Encoder(with_template(template, CHATML_TOKENS), GENERIC)
    assert_both_ways_agree(encoder, turns("a b", "\nc"))


def test_only_so_many_shapes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmtune.chatformat.skeletons.MAX_SHAPES", 3)
    encoder = Encoder(with_template(CHATML, CHATML_TOKENS), GENERIC)
    for length in (2, 4, 6, 8, 10, 2):
        assert_both_ways_agree(encoder, turns(*["a"] * length))
        assert encoder._skeletons is not None
        assert len(encoder._skeletons._known) <= 3


# A template that slips past the probes: the rows that are rendered in both ways tell.

BUILT = CHATML.replace(M, f"('!' if 'x' ~ 'yz' in {M} else {M})").replace("'x' ~ 'yz'", "['x', 'y'] | join")
LONG = CHATML.replace(M, f"('!' if {M} | length > 5000 else {M})")


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("place", [0, 40, 300, 560])
def test_a_template_that_slips_past_the_probes_renders_every_row_itself(
    place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(f"question {number}", f"answer {number}") for number in range(600)]
    # From some row on every text is long: the sample meets one, and all rows have to be rendered anew.
    pairs[place:] = [(question, answer * 600) for question, answer in pairs[place:]]
    path = write(tmp_path / "rows.jsonl", pairs)
    encoder = Encoder(with_template(LONG, CHATML_TOKENS), GENERIC)
    slow = encode_file(path, encoder.without_skeletons())
    assert capsys.readouterr().err == ""
    data = encode_file(path, encoder)
    if place <= 300:
        assert f"the chat template looks into the text of some messages of `{path}`: it renders every row itself" in (
            capsys.readouterr().err
        )
        assert data.dataset.to_list() == slow.dataset.to_list()
        assert data.rejects == slow.rejects


def test_an_example_of_a_template_that_slips_past_the_probes_is_rendered_by_the_template() -> None:
    encoder = Encoder(with_template(LONG, CHATML_TOKENS), GENERIC)
    row = turns("a" * 6000, "b")
    assert encoder.encode(row) == encoder.without_skeletons().encode(row)
    assert len(encoder.encode(row).input_ids) < 100


def test_a_built_text_is_not_known_to_the_rules_but_seen_by_the_sample(tmp_path: Path) -> None:
    encoder = Encoder(with_template(BUILT, CHATML_TOKENS), GENERIC)
    path = write(tmp_path / "rows.jsonl", [("xy", "b"), ("c", "d")])
    assert (
        encode_file(path, encoder).dataset.to_list() == encode_file(path, encoder.without_skeletons()).dataset.to_list()
    )
