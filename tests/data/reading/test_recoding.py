"""Files in another encoding than UTF-8: read with a note where it is certain which, and else as before."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.recoding import BLOCK_BYTES, LOOKED_AT_BYTES, codec_of
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
