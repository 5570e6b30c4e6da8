"""Whatever stdin, stdout and stderr are: no traceback, no work lost, and JSON that stays JSON."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.console import say

TEXT = "还有货吗🚀？ é\udce5"
ROW = {"messages": [{"role": "user", "content": "还有货吗🚀？"}, {"role": "assistant", "content": "有。"}]}
BARE_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
Done = subprocess.CompletedProcess


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "训练.jsonl"
    path.write_text(json.dumps(ROW, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def program(code: str, input: bytes = b"", **environment: str) -> Done[bytes]:
    prepared = f"import sys\nfrom glmtune.standard_streams import *\nprepare_streams()\n{code}"
    command = [sys.executable, "-c", prepared]
    return subprocess.run(command, input=input, capture_output=True, env={**os.environ, **environment}, check=False)


def shell(line: str, cwd: Path, **environment: str) -> Done[str]:
    """Run a line of a shell in which `glmtune` is the command."""
    function = f'glmtune() {{ "{sys.executable}" -m glmtune "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", function],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **environment},
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8:surrogateescape", "gbk", "gb18030", "big5", "shift_jis", "cp1252", "latin-1", "ascii"]
)
def test_json_is_the_same_in_every_encoding(encoding: str) -> None:
    done = program(f"import json\nprint(json.dumps({TEXT!r}, ensure_ascii=False))", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode(encoding.partition(":")[0])) == TEXT


def test_text_is_written_as_it_is_where_the_encoding_knows_it() -> None:
    assert program("print('还🚀')", PYTHONIOENCODING="gbk").stdout == "还".encode("gbk") + b"\\ud83d\\ude80\n"
    assert program("print('还🚀')", PYTHONIOENCODING="utf-8").stdout == "还🚀\n".encode()


@pytest.mark.parametrize("environment", [BARE_LOCALE, *({"PYTHONIOENCODING": name} for name in ("gbk", "ascii"))])
def test_commands_say_what_an_encoding_cannot(rows: Path, environment: dict[str, str]) -> None:
    check = f"glmtune data check {rows.name} && " if environment is BARE_LOCALE else ""
    done = shell(f"{check}glmtune data check 没有.jsonl", rows.parent, **environment)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


CLOSED = ["".join(each) for number in (1, 2, 3) for each in itertools.combinations((" <&-", " >&-", " 2>&-"), number)]


@pytest.mark.parametrize("closed", [" <&-", " >&-", " 2>&-", CLOSED[-1]])
def test_a_closed_stream_is_no_mistake(rows: Path, closed: str) -> None:
    done = shell(f"glmtune data convert {rows.name} out.jsonl {closed}", rows.parent)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr in ("", "1 rows in out.jsonl\n")
    assert json.loads((rows.parent / "out.jsonl").read_text(encoding="utf-8")) == ROW


@pytest.mark.parametrize("closed", CLOSED)
def test_what_is_printed_never_ends_up_in_a_file_that_took_the_number_of_a_closed_stream(
    tmp_path: Path, closed: str
) -> None:
    code = (
        "from glmtune.standard_streams import prepare_streams; import os, sys; prepare_streams()\n"
        "file = open('weights', 'w'); os.write(1, b'printed'); os.write(2, b'printed'); print('printed')"
    )
    subprocess.run(["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], cwd=tmp_path, check=True)
    assert (tmp_path / "weights").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stdout_is_told_in_one_line(rows: Path) -> None:
    done = shell(f"glmtune data check {rows.name} > /dev/full", rows.parent)
    assert done.returncode == 1
    assert done.stderr == (
        "error: stdout cannot be written to: No space left on device\n"
        "hint: write to another place; files that the command wrote by itself are whole\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stderr_ends_nothing(rows: Path) -> None:
    done = shell(f"glmtune data convert {rows.name} out.jsonl 2> /dev/full", rows.parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_of_what_libraries_log_gets_between_results() -> None:
    code = (
        "import glmtune, os; os.environ.pop('DS_ACCELERATOR', None)\n"
        "from deepspeed.accelerator import get_accelerator; get_accelerator()\n"
        "from deepspeed.utils.logging import logger; logger.warning('a lost process')\n"
    )
    done = program(code, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"a lost process" in done.stderr
    assert b"Setting accelerator" not in done.stderr


def test_libraries_may_write_to_a_stderr_that_is_gone() -> None:
    code = (
        "import logging, os, warnings\nreader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 2)\n"
        "warnings.warn('w')\nlogging.warning('l')\nprint('p' * 100_000, file=sys.stderr, flush=True)\nprint('done')"
    )
    assert program(code).stdout == b"done\n"


def test_a_reader_that_has_read_enough_is_no_mistake(rows: Path) -> None:
    done = shell("glmtune --help | true; echo ${PIPESTATUS[0]}", rows.parent)
    assert (done.stderr, done.stdout) == ("", "1\n")


@pytest.mark.parametrize(
    ("content", "environment"),
    [("还有货吗？".encode(), {}), ("\ufeff还有货吗？".encode(), {}), ("还有货吗？".encode(), BARE_LOCALE),
     ("还有货吗？".encode(), {"PYTHONIOENCODING": "gbk"}), ("还有货吗？".encode("gbk"), {"PYTHONIOENCODING": "gbk"})],
)  # fmt: skip
def test_stdin_is_utf_8_or_what_the_locale_says(content: bytes, environment: dict[str, str]) -> None:
    done = program("print(ascii(read_input()))", content, **environment)
    assert done.stdout.decode().strip() == ascii("还有货吗？")
    is_gbk = content == "还有货吗？".encode("gbk")
    note = "note: stdin is not UTF-8: it is read as gbk, which this machine's locale names\n" if is_gbk else ""
    assert done.stderr.decode() == note


@pytest.mark.parametrize(
    ("encoding", "seen", "name"),
    [("gbk", "GBK", "GB18030"), ("gb18030", "GBK", "GB18030"), ("utf-16", "UTF-16", "UTF-16"),
     ("utf-32", "UTF-32", "UTF-32"), ("cp1252", "CP1252", "CP1252"), ("cp037", "", "ENCODING")],
)  # fmt: skip
@pytest.mark.parametrize("environment", [{}, BARE_LOCALE], ids=["own locale", "C"])
def test_other_encodings_on_stdin_are_named_with_the_remedy(
    encoding: str, seen: str, name: str, environment: dict[str, str]
) -> None:
    content = ("Où est-ce ?" if encoding.startswith("cp") else "还有货吗？").encode(encoding)
    done = program(
        "from glmtune.errors import GlmtuneError\ntry: read_input()\nexcept GlmtuneError as error: print(error)",
        content,
        **environment,
    )
    assert done.stdout.decode() == (
        f"stdin is not UTF-8{f': it seems to be {seen}' if seen else ''}\n"
        f"hint: convert the text, such as by `iconv -f {name} -t UTF-8`, or set the terminal to UTF-8\n"
    )


def test_an_argument_is_text_in_every_locale() -> None:
    code = "print(ascii(argument_text(sys.argv[1])))"
    prepared = f"import sys\nfrom glmtune.standard_streams import *\n{code}"
    for environment in (BARE_LOCALE, {"LC_ALL": "C.UTF-8"}):
        command = [sys.executable, "-c", prepared, "还有货吗🚀？"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
        assert done.stdout.strip() == ascii("还有货吗🚀？")


@pytest.mark.parametrize("stderr", ["None", "open('/dev/full', 'w')"])
def test_a_program_without_a_stderr_that_works_may_use_the_package(stderr: str) -> None:
    code = f"import sys; sys.stderr = {stderr}; from glmtune.console import say, notice; say('a'); notice('b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode in (0, 120), done.stdout) == (True, b"")  # 120: Python itself cannot empty the stream


def test_lines_for_the_user_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")
