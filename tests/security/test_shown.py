"""What others wrote is harmless to look at, wherever it is shown."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
from command_line import command_line
from hostile_text import FORGED, ORDERS, is_harmless

from glmtune import console
from glmtune.console import notice, put, put_json, say, show_harmlessly
from glmtune.datatools.inspection_html import PageRow, html_page
from glmtune.encoded.inspection import format_text, format_tokens
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.text.text_table import format_table, wrap
from glmtune.text.visible_text import visible, visible_json

EACH = pytest.mark.parametrize(("text", "shown"), ORDERS.values(), ids=ORDERS)


class Terminal(io.StringIO):
    """A stdout that somebody looks at."""

    def isatty(self) -> bool:
        return True


@EACH
def test_every_text_of_an_error_is_written_out(text: str, shown: str) -> None:
    for kind in (GlmtuneError, RunFailure):
        assert (
            str(kind(text, where=text, fix=text, details=[text])) == f"{shown}\n{shown}\n  --> {shown}\nhint: {shown}"
        )


@EACH
def test_messages_and_notes_are_written_out(text: str, shown: str, capsys) -> None:
    say(text)
    notice(text)
    assert capsys.readouterr().err == f"{shown}\nnote: {shown}\n"


@EACH
def test_tables_and_wrapped_lines_are_written_out(text: str, shown: str) -> None:
    assert format_table(["a"], [[text]]).splitlines()[2:] == [shown]
    assert wrap(text, 80) == [shown]


@EACH
def test_results_are_written_out_on_a_terminal_alone(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), shown), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", stream)
        put(text, end="")
        assert stream.getvalue() == expected


@EACH
def test_json_on_a_terminal_means_the_same(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.dumps({"answer": text}, ensure_ascii=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    put_json(written)
    assert is_harmless(stream.getvalue())
    assert json.loads(stream.getvalue()) == {"answer": text}
    assert visible_json('{\n\t"a": 1}') == '{\n\t"a": 1}'


@EACH
def test_rows_are_inspected_with_such_characters_seen(text: str, shown: str, demo_tokenizer) -> None:
    ids = demo_tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"]
    assert format_text(demo_tokenizer, ids, ids) == f"[[a{shown}b]]"
    assert is_harmless(format_tokens(demo_tokenizer, ids, ids))


@EACH
def test_pages_show_such_characters_in_names_problems_and_rows(text: str, shown: str, demo_tokenizer) -> None:
    ids = demo_tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"]
    rows = [PageRow(number=0, where=text, problem=text), PageRow(number=1, where="x", input_ids=ids, labels=ids)]
    page = "".join(html_page(rows, demo_tokenizer, text))
    assert is_harmless(page)
    assert page.count(shown) >= 4  # title and heading, place, problem


@EACH
def test_what_libraries_log_and_warn_of_is_written_out(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    try:
        show_harmlessly()
        record = logging.getLogger("library").makeRecord("library", 30, "f.py", 1, "loading %s", (text,), None)
        assert record.getMessage() == f"loading {shown}"
        try:
            raise ValueError(f"a{text}")
        except ValueError:
            failed = logging.getLogger("library").makeRecord("library", 40, "f.py", 1, "it fails", (), sys.exc_info())
        told = logging.Formatter().format(failed)
        assert is_harmless(told)
        assert told.endswith(f"ValueError: a{shown}")
        assert f"UserWarning: {shown}\n" in warnings.formatwarning(text, UserWarning, "f.py", 1)
    finally:
        logging.setLogRecordFactory(factory)


def test_a_traceback_is_written_out(capsys) -> None:
    try:
        raise ValueError(ORDERS["a title"][0])
    except ValueError as error:
        console._show_traceback(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert is_harmless(told)
    assert told.endswith("ValueError: \\x1b]0;pwned\\x07\n")


def test_texts_of_people_stay_as_they_are() -> None:
    for text in ("中文，“引号”……", "é ü ß", "👨‍👩‍👧 ❤️", "می‌خواهم", "עברית", "a\u3000b\xa0c"):
        assert visible(text) == text


def row(**changes: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {"messages": messages, **changes}


def hostile_rows(text: str) -> dict[str, dict[str, object]]:
    """Return rows with a text in each place that something is told of."""
    call = {"role": "assistant", "content": "", "tool_calls": text}
    return {
        "role": {"messages": [{"role": text, "content": "x"}]},
        "key": row(**{text: 1}),
        "content": {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]},
        "twice": {"messages": [{"role": "assistant", "content": text}]},
        "tool": row(tools=[{"type": text, "name": text}]),
        "call": {"messages": [{"role": "user", "content": "q"}, call]},
    }


@pytest.mark.parametrize("place", hostile_rows(""))
@pytest.mark.parametrize("order", ["a title", "an override of the order", "a next line"])
def test_every_look_at_rows_is_harmless(place: str, order: str, tmp_path: Path, demo_model: str) -> None:
    path = tmp_path / f"{ORDERS[order][0].replace('/', '')}.jsonl"
    path.write_text(json.dumps(hostile_rows(ORDERS[order][0])[place]) + "\n", encoding="utf-8")
    for verb in (["check"], ["inspect", demo_model], ["convert", "out.jsonl"]):
        arguments = ["data", verb[0], path.name, *verb[1:]]
        done = command_line(*arguments, cwd=tmp_path)
        assert done.returncode in (0, 2), done.stderr
        assert is_harmless(done.stdout)
        assert is_harmless(done.stderr)


FORGERIES = {
    "data file": ["data", "check", FORGED],
    "model": ["data", "check", "rows.jsonl", f"./{FORGED}"],
    "configuration": ["train", ".", "demo", FORGED],
    "data folder": ["train", FORGED, "demo", "lora.yaml"],
    "run": ["resume", FORGED],
    "option": ["data", "check", f"--{FORGED}"],
    "override": ["train", ".", "demo", "lora.yaml", "--set", f"{FORGED}=1"],
    "output": ["data", "convert", "rows.jsonl", f"no/{FORGED}.jsonl"],
    "checkpoint": ["export", f"./{FORGED}", "out"],
    "prompts": ["infer", "demo", "--input", FORGED],
}


@pytest.mark.parametrize("arguments", FORGERIES.values(), ids=FORGERIES)
def test_a_newline_in_a_name_forges_no_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()) + "\n", encoding="utf-8")
    (tmp_path / "lora.yaml").write_text("data_config: {train_file: rows.jsonl}\npeft_config: null\n", encoding="utf-8")
    done = command_line(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert is_harmless(done.stderr)
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


def test_names_of_files_in_a_folder_forge_no_line(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}{FORGED}.jsonl").write_text(f"[{json.dumps(row())}]\n{{\n", encoding="utf-8")
    done = command_line("data", "check", tmp_path, cwd=tmp_path)
    assert is_harmless(done.stderr)
    assert is_harmless(done.stdout)
