"""Files in another encoding than UTF-8: read with a note where it is certain which, and else as before."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.recoding import BLOCK_BYTES, LOOKED_AT_BYTES, Recoded, codec_of
from glmtune.errors import GlmtuneError

TEXTS = {
    "gb18030": "请问这件商品还有货吗？有的，我们今天下午就可以发货。",
    "big5hkscs": "請問這件商品還有貨嗎？有的，我們今天下午就可以發貨。",
    "cp932": "この商品はまだありますか。はい、きょうの午後に発送できます。",
    "cp949": "이 상품은 아직 재고가 있습니까 네 오늘 오후에 발송할 수 있습니다",
}
NOTES = {
    "gb18030": "GB 18030 (GBK), as Chinese Windows writes",
    "big5hkscs": "Big5, as Windows writes in Taiwan and Hong Kong",
    "cp932": "Shift JIS, as Japanese Windows writes",
    "cp949": "EUC-KR, as Korean Windows writes",
}
NUM_ROWS = 12
NOT_UTF8 = "note: `{path}` is not UTF-8 but {encoding}, and is read as such\n"


def lines(text: str) -> list[str]:
    rows = [{"instruction": f"{number} {text}", "output": text} for number in range(NUM_ROWS)]
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def files(text: str) -> dict[str, str]:
    return {
        "a.jsonl": "\n".join(lines(text)),
        "a.json": f"[{', '.join(lines(text))}]",
        "a.csv": "instruction,output\r\n" + f'"{text}\n{text}",{text}\r\n' * NUM_ROWS,
        "a.jsonl.gz": "\n".join(lines(text)),
    }


def write(path: Path, text: str, encoding: str) -> Path:
    raw = text.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", files(""))
@pytest.mark.parametrize("codec", [*TEXTS, "gbk", "utf-16", "utf-32"])
def test_a_file_in_a_certain_encoding_is_read_with_a_note(
    codec: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"gbk": "gb18030"}.get(codec, codec)
    content = files(TEXTS.get(own, TEXTS["gb18030"]))[name]
    path = write(tmp_path / name, content, codec)
    rows = list(read_rows(path))
    assert (
        capsys.readouterr().err
        == f"note: `{path}` is not UTF-8 but {NOTES.get(own, codec.upper())}, and is read as such\n"
    )
    plain = write(tmp_path / f"utf8-{name}", content, "utf-8")
    assert [(row.text, row.problem) for row in rows] == [(row.text, row.problem) for row in read_rows(plain)]
    assert len(rows) == NUM_ROWS


def test_lines_in_utf8_far_behind_the_others_are_read_as_what_they_are(tmp_path: Path) -> None:
    text = TEXTS["gb18030"]
    rows = ({"instruction": f"{number} {text}", "output": text} for number in range(20_000))
    first = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(first).encode("gbk") + b"\n" + "\n".join(lines("这几行是 UTF-8。")).encode())
    rows = list(read_rows(path))
    assert not any(row.problem for row in rows)
    assert [json.loads(row.text)["output"] for row in rows[-NUM_ROWS:]] == ["这几行是 UTF-8。"] * NUM_ROWS
    assert json.loads(rows[0].text)["output"] == text


@pytest.mark.parametrize(("codec", "text"), [
    ("euc_jp", "今日はとても天気がいいので公園に散歩に行きましょう。"),
    ("euc_jp", "東京大学、京都大学、北海道、沖縄県、機械学習。"),
    ("tis_620", "สวัสดีครับวันนี้อากาศดีมากเราไปเดินเล่นในสวนกันเถอะ"),
    ("cp1251", "Сегодня очень хорошая погода, пойдём гулять в парк."),
    ("koi8_r", "Сегодня очень хорошая погода, пойдём гулять в парк."),
    ("cp1253", "Σήμερα ο καιρός είναι πολύ καλός, πάμε βόλτα στο πάρκο."),
    ("cp1256", "الطقس اليوم جميل جدا هيا نتمشى في الحديقة"),
])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", ""], ids=["many lines", "one line"])
def test_text_of_other_languages_is_not_taken_for_text_of_these(codec: str, text: str, end: str) -> None:
    assert codec_of(io.BytesIO((text + end).encode(codec) * 40)) is None


@pytest.mark.parametrize(
    "text", ["“기계 학습은 인공지능의 한 분야입니다.” ㅋ…", "한국(韓國)의 역사를 알려 주세요, 펲시콜라도 있어요."]
)
def test_signs_and_chinese_characters_in_korean_do_not_make_it_chinese(text: str) -> None:
    assert codec_of(io.BytesIO((text + "\n").encode("cp949") * 20)) == "cp949"


@pytest.mark.parametrize("size", [1, 7, BLOCK_BYTES])
def test_lines_of_any_length_come_through(size: int, tmp_path: Path) -> None:
    text = TEXTS["gb18030"]
    content = f"{text * 3000}\n\n{text}\r\n{text}"
    recoded = Recoded(io.BytesIO(content.encode("gbk")), "gb18030", tmp_path)
    pieces = []
    while piece := recoded.read(size * 100):
        pieces.append(piece)
    assert b"".join(pieces).decode() == content


def test_a_damaged_line_costs_its_own_row_and_no_other(tmp_path: Path) -> None:
    rows = [line.encode("gbk") for line in lines(TEXTS["gb18030"]) * 10]
    rows[50] = rows[50][:20] + b"\xff\xff" + rows[50][20:]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(rows))
    problems = [(row.where, row.problem) for row in read_rows(path) if row.problem]
    assert [where for where, _ in problems] == [f"{path}:51"]
    assert "is not UTF-8" in problems[0][1]


CHINESE = "\n".join(lines(TEXTS["gb18030"]))
UNCERTAIN = {
    "too few characters": "还有货吗？".encode("gbk") * 10,
    "joined from two": CHINESE.encode("gbk") + b"\n" + CHINESE.encode(),
    "Windows-1252, in which any bytes are text": ("Où est le café ? Déjà là, à côté. " * 20).encode("cp1252"),
    "UTF-16 without its mark": CHINESE.encode("utf-16-le"),
    "UTF-8": CHINESE.encode(),
    "UTF-8 with a mark": CHINESE.encode("utf-8-sig"),
    "UTF-8 with a block that ends in a character": (CHINESE * 100).encode()[:BLOCK_BYTES] + CHINESE.encode(),
    "nothing": b"",
    "ASCII as far as is looked": b"x" * (LOOKED_AT_BYTES + 2 * BLOCK_BYTES) + "还".encode("gbk") * 1000,
    "bytes of any kind": bytes(range(128, 256)) * 100,
}


@pytest.mark.parametrize("raw", UNCERTAIN.values(), ids=UNCERTAIN)
def test_whatever_is_not_certain_is_left_as_it_is(raw: bytes) -> None:
    assert codec_of(io.BytesIO(raw)) is None


def test_text_behind_a_megabyte_of_ascii_tells_the_encoding() -> None:
    raw = b'{"a": 1}\n' * 120_000 + CHINESE.encode("gbk")
    assert codec_of(io.BytesIO(raw)) == "gb18030"


def test_a_file_that_is_cut_off_in_a_wide_character_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(CHINESE.encode("utf-16")[:-1])
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    assert caught.value.what == "the file is not UTF-16, as its mark says: truncated data"
    assert caught.value.where == str(path)


def test_a_file_that_was_written_anew_is_looked_at_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHINESE, "gbk")
    assert not any(row.problem for row in read_rows(path))
    write(path, CHINESE, "utf-8")
    assert not any(row.problem for row in read_rows(path))
