"""The page that shows rows token by token."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.datatools.inspection_html import PageRow, html_page, write_page
from glmtune.family import GLM


def body_of(rows: list[PageRow], tokenizer, title: str = "rows") -> str:
    page = "".join(html_page(rows, tokenizer, title))
    assert page.startswith("<!DOCTYPE html>\n")
    return page.partition("</header>\n")[2]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def row_of(ids: list[int], labels: list[int] | None = None, **more) -> PageRow:
    return PageRow(number=0, where="a.jsonl:1", input_ids=ids, labels=ids if labels is None else labels, **more)


def shown_text(body: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", re.search(r"<p class=row>(.*?)</p>", body, re.DOTALL)[1]))


PAGE = """\
<section><h2>row 0 <span>a.jsonl:1 · 9 tokens, 3 trained</span></h2>
<p class=row><i class=c title="151331→-100">[gMASK]</i><i class=c title="151333→-100">&lt;sop&gt;</i>\
<i class=c title="151336→-100">&lt;|user|&gt;</i><i title="198→-100">⏎
</i><i title="109377→-100">你好</i><i class=c title="151337→-100">&lt;|assistant|&gt;</i>\
<b title="198→198">⏎
</b><b title="99526→99526">您</b><b class=c title="151336→151336">&lt;|user|&gt;</b></p></section>
<section><h2>row 1 <span>a.jsonl:2 · refused</span></h2>
<p class=bad>message 0 has role `&lt;b&gt;`</p></section>
<p id=totals>2 rows · 1 refused · 9 tokens · 3 trained (33.3%)</p>
"""


def test_every_token_is_an_element_with_its_id_and_its_label(glm_tokenizer) -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您"}]
    example = Encoder(glm_tokenizer, GLM).encode(to_conversation({"messages": messages}))
    refused = PageRow(number=1, where="a.jsonl:2", problem="message 0 has role `<b>`")
    assert body_of([row_of(example.input_ids, example.labels), refused], glm_tokenizer) == PAGE


def test_a_page_without_rows_has_its_legend_and_totals(demo_tokenizer) -> None:
    assert body_of([], demo_tokenizer) == "<p id=totals>0 rows · 0 tokens · 0 trained</p>\n"


def test_everything_from_a_row_is_escaped(demo_tokenizer) -> None:
    bad = "</p><script>alert('1')</script>&"
    rows = [
        row_of(ids_of(demo_tokenizer, bad)),
        PageRow(number=1, where=bad, problem=bad),
    ]
    page = "".join(html_page(rows, demo_tokenizer, bad))
    assert "<script" not in page
    assert page.count("</p>") == 3
    assert shown_text(page) == bad


def test_the_page_loads_nothing(demo_tokenizer) -> None:
    page = "".join(html_page([], demo_tokenizer, "rows"))
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("a  b ", "a␣ b␣"),
        ("a\n\n  b", "a⏎\n⏎\n␣ b"),
        ("a\tb\r\n", "a⇥\tb␍⏎\n"),
        ("a\u200bb\u3000c\x1b", "a\\u200bb\\u3000c\\x1b"),
    ],
)
def test_white_space_can_be_seen(text: str, shown: str, glm_tokenizer) -> None:
    assert shown_text(body_of([row_of(ids_of(glm_tokenizer, text))], glm_tokenizer)) == shown


def test_a_token_that_is_a_space_can_be_seen(demo_tokenizer) -> None:
    assert shown_text(body_of([row_of(ids_of(demo_tokenizer, "a  b"))], demo_tokenizer)) == "a␣␣b"


# Characters of several tokens


def test_the_tokens_of_one_character_are_shown_together(demo_tokenizer) -> None:
    ids = ids_of(demo_tokenizer, "a𠮷b")
    assert len(ids) > 3
    tips = " ".join(f"{token}→{token}" for token in ids[1:-1])
    assert f'<b title="{tips}">𠮷</b>' in body_of([row_of(ids)], demo_tokenizer)


@pytest.mark.parametrize("text", ["龘靐 鱻麤, 𠮷野家 한국어", "👨👩👧 naïve ﷽", "龘" * 40])
def test_text_of_any_script_is_shown_whole(text: str, demo_tokenizer, glm_tokenizer) -> None:
    for tokenizer in (demo_tokenizer, glm_tokenizer):
        shown = shown_text(body_of([row_of(ids_of(tokenizer, text))], tokenizer))
        assert shown.replace("␣", " ") == text


def test_a_replacement_character_of_the_text_stands_alone(demo_tokenizer) -> None:
    ids = ids_of(demo_tokenizer, "a\ufffd𠮷b")
    assert shown_text(body_of([row_of(ids)], demo_tokenizer)).endswith("�𠮷b")


def test_a_row_cut_inside_a_character_shows_every_token(demo_tokenizer) -> None:
    ids = ids_of(demo_tokenizer, "a𠮷")[:-1]
    body = body_of([row_of(ids)], demo_tokenizer)
    assert body.count("<b ") == len(ids)


def test_a_character_is_not_joined_over_the_border_of_what_is_trained(demo_tokenizer) -> None:
    ids = ids_of(demo_tokenizer, "𠮷")
    body = body_of([row_of(ids, [-100, *ids[1:]])], demo_tokenizer)
    assert body.count("<i ") == 1
    assert body.count("<b ") == len(ids) - 1


# Weights


def test_a_weight_below_one_is_lighter_and_told(demo_tokenizer) -> None:
    one, two, three = ids = ids_of(demo_tokenizer, "abc")
    assert (
        f'<b title="{one}→{one}">a</b><b style="--w:0.25" title="{two}→{two} weight 0.25">b</b>'
        f'<i style="--w:0" title="{three}→-100 weight 0">c</i>'
    ) in body_of([row_of(ids, [one, two, -100], weights=[1.0, 0.25, 0.0])], demo_tokenizer)


# Files


def test_a_page_is_written_row_by_row(tmp_path: Path, demo_tokenizer) -> None:
    rows = [row_of(ids_of(demo_tokenizer, "abc")), PageRow(number=1, where="\udcff.jsonl:1", problem="half a \ud83d")]
    write_page(tmp_path / "rows.html", iter(rows), demo_tokenizer, "行")
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert "<title>行</title>" in page
    assert "half a \\ud83d" in page


def test_a_token_takes_few_bytes(glm_tokenizer, shared_data: Path) -> None:
    text = (shared_data / "AdvertiseGen" / "dev.jsonl").read_text(encoding="utf-8")[:20_000]
    ids = ids_of(glm_tokenizer, text)
    assert len("".join(html_page([row_of(ids)], glm_tokenizer, "rows")).encode()) < 45 * len(ids)
