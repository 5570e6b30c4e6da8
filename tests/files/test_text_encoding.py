"""Files in other encodings: the encoding is guessed from the bytes, and a note has the command that mends the file."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import ENCODINGS, MARKS, guess_encoding, marked_encoding, read_utf8, utf8_command

SIMPLIFIED = "介绍这本书：这是一本关于航海的小说，讲了船长和他的水手们在风暴中互相帮助的故事。"
TRADITIONAL = "介紹這本書：這是一本關於航海的小說，講了船長和他的水手們在風暴中互相幫助的故事。"
TEXTS = {
    "GB18030": ("gbk", [SIMPLIFIED, "几点开门？九点开门。", "你好，世界", "问题"]),
    "BIG5": ("big5", [TRADITIONAL, "幾點開門？九點開門。", "你好，請問"]),
    "CP932": ("cp932", ["これは船長と水手たちの物語です。", "おはようございます、カメラ"]),
    "CP949": ("cp949", ["이 책은 바다를 항해하는 선장과 선원들의 이야기입니다."]),
    "CP1252": (
        "cp1252",
        ["Wo ist der Laden? In der Hauptstraße.", "Il est déjà allé à l’école", "naïve", "“quoted” – 5 €"],
    ),
}


@pytest.mark.parametrize(
    ("encoding", "codec", "text"),
    [(encoding, codec, text) for encoding, (codec, texts) in TEXTS.items() for text in texts],
)
def test_the_encoding_of_a_text_is_guessed(encoding: str, codec: str, text: str) -> None:
    raw = json.dumps({"instruction": text, "output": text + text}, ensure_ascii=False).encode(codec)
    assert guess_encoding(raw) == encoding
    assert guess_encoding(raw[:-1]) == encoding


@pytest.mark.parametrize("text", ["好", "你好", "还有货吗？"])
def test_a_word_of_chinese_is_enough(text: str) -> None:
    """Such as a question on stdin, or a comment of a configuration."""
    assert guess_encoding(f"output_dir: {text}".encode("gbk")) == "GB18030"


@pytest.mark.parametrize("text", ["é", "20 °C", "§A", "naïve", "Straße", "“q”"])
def test_a_word_of_another_language_is_not_taken_for_chinese(text: str) -> None:
    assert guess_encoding(text.encode("cp1252")) in (None, "CP1252")


@pytest.mark.parametrize(("codec", "text"), [(codec, texts[0]) for codec, texts in TEXTS.values()])
def test_a_configuration_in_another_encoding_is_told_with_the_command_that_mends_it(
    codec: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(f"# a\n# {text}\n".encode(codec))
    with pytest.raises(GlmtuneError) as caught:
        read_utf8(path)
    encoding = next(name for name, (each, _) in TEXTS.items() if each == codec)
    assert caught.value.what == f"the file is not UTF-8: it seems to be {'GBK' if codec == 'gbk' else encoding}"
    assert caught.value.where == f"{path}:2"
    assert caught.value.fix == f"save it as UTF-8, such as by `{utf8_command(path, encoding)}`"
    subprocess.run(["bash", "-c", utf8_command(path, encoding)], check=True)
    assert read_utf8(tmp_path / "utf8-c.yaml") == f"# a\n# {text}\n"


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_first_bytes_tell_wide_encodings(codec: str) -> None:
    assert (marked_encoding("a: 1".encode(codec)) or "").startswith(codec[:6].upper())
    assert set(MARKS.values()) == {"UTF-16", "UTF-32"}


def test_every_encoding_that_is_guessed_is_tested_and_known_to_iconv() -> None:
    assert set(TEXTS) == set(ENCODINGS)
    for encoding, (codec, texts) in TEXTS.items():
        command = ["iconv", "-f", encoding, "-t", "UTF-8"]
        done = subprocess.run(command, input=texts[0].encode(codec), capture_output=True, check=True)
        assert done.stdout.decode() == texts[0]


@pytest.mark.parametrize("raw", [b"", b"plain", b"\xfe\xff\xfe\xff", b"a\x81b\x8d", bytes(range(128, 256))])
def test_bytes_that_fit_no_encoding_well_are_not_guessed(raw: bytes) -> None:
    assert guess_encoding(raw) is None


ROW = json.dumps({"instruction": SIMPLIFIED, "output": SIMPLIFIED}, ensure_ascii=False)
FILES = {
    "a.jsonl": f'{{"text": "plain"}}\n{ROW}\n',
    "a.json": f"[\n{ROW},\n{ROW}]",
    "a.csv": f"instruction,output\n{SIMPLIFIED},{SIMPLIFIED}\n",
    "a.tsv": f"instruction\toutput\n{SIMPLIFIED}\t{SIMPLIFIED}\n",
    "a b.jsonl.gz": f"\n{ROW}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_another_encoding_is_noted_once_with_its_line_and_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    raw = FILES[name].encode("gb18030")
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    rows = list(read_rows(path))
    assert [row.problem for row in rows if "UTF-8" in row.problem]
    line = 2
    command = utf8_command(path, "GB18030")
    assert capsys.readouterr().err == (
        f"note: `{path}:{line}` is not UTF-8; it reads as GB 18030 (GBK), as Chinese Windows writes; "
        f"save the file as UTF-8: `{command}`\n"
    )
    subprocess.run(["bash", "-c", command], check=True)
    mended = [row for row in read_rows(path.with_name(f"utf8-{name}")) if not row.problem]
    assert len(mended) == len(rows)
    assert SIMPLIFIED in mended[-1].text


def test_a_header_in_another_encoding_is_an_error_with_the_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("问题,回答\r\n几点开门？,九点开门。\r\n".encode("gbk"))
    with pytest.raises(GlmtuneError, match="the header cannot be read: byte 1 of the row, 0xce, is not UTF-8"):
        list(read_rows(path))
    assert "`iconv -f GB18030 -t UTF-8 " in capsys.readouterr().err


def test_a_file_joined_from_two_encodings_is_not_to_be_converted_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW.encode() + b"\n" + ROW.encode("gbk") + b"\n")
    assert [bool(row.problem) for row in read_rows(path)] == [False, True]
    error = capsys.readouterr().err
    assert error.startswith(f"note: `{path}:2` is not UTF-8; it reads as GB 18030")
    assert error.endswith(
        "other lines of the file are UTF-8: save each of the files that it was joined from as UTF-8\n"
    )


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeff还有\r\n".encode())
    assert read_utf8(path) == "还有\n"
