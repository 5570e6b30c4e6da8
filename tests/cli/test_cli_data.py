"""`glmtune data`: what each verb prints, writes and answers a mistake with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import Done, command_line, in_own_process
from json_lines import json_lines

GOOD = {"instruction": "写广告", "input": "裙", "output": "好看"}
BAD = {"messages": [{"role": "user", "content": "hi"}]}
CONFIG = {
    "data_config": {
        "train_file": [{"path": "a.jsonl", "weight": 2}, "b.jsonl"],
        "val_size": 2,
        "columns": {"instruction": "question"},
    },
    "max_input_length": 32,
    "max_output_length": 32,
    "training_args": {
        "output_dir": "run",
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "generation_config": {"max_new_tokens": 2},
    },
    "peft_config": {"peft_type": "LORA", "r": 2},
}


def data_verb(*arguments: str | Path, cwd: Path) -> Done[str]:
    return command_line("data", *arguments, cwd=cwd)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """`rows.jsonl` with two good rows and a bad one between them."""
    lines = [json.dumps(row, ensure_ascii=False) for row in (GOOD, BAD, GOOD)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_check_prints_a_table_and_exits_with_2_where_a_row_is_bad(workplace: Path) -> None:
    done = data_verb("check", "rows.jsonl", "demo", cwd=workplace)
    assert done.returncode == 2
    assert done.stderr == (
        "error: 1 of 3 rows cannot be trained on\n"
        "hint: mend them, or allow some with `--max-bad`: a number, or a share below 1\n"
    )
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "rows.jsonl",
        "rows        2 usable, 1 rejected",
        "formats     alpaca 2",
        "messages    user 2, assistant 2",
        "turns       2; 1 a row",
    ]
    assert lines[-4:] == [
        "rejected    1 of 3 rows",
        "  1  message 0, the last, has role `user`; expected an assistant message at the",
        "     end",
        "     --> rows.jsonl:2",
    ]


def test_check_allows_as_many_bad_rows_as_it_is_told(workplace: Path) -> None:
    assert data_verb("check", "rows.jsonl", "--max-bad", "1", cwd=workplace).returncode == 0
    assert data_verb("check", "rows.jsonl", "--max-bad", "0.3", cwd=workplace).returncode == 2


def test_check_prints_figures_for_programs_and_draws_the_lengths(workplace: Path) -> None:
    done = data_verb("check", "rows.jsonl", "demo", "--json", "--plot", "lengths.png", "--max-bad", "1", cwd=workplace)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["train"]
    assert (figures["rows"], figures["usable"], figures["rejected"]) == (3, 2, 1)
    assert figures["tokens"]["total"] > figures["tokens"]["trained"] > 0
    assert (workplace / "lengths.png").read_bytes().startswith(b"\x89PNG")
    again = data_verb("check", "rows.jsonl", "--plot", "lengths.png", cwd=workplace)
    assert (again.returncode, again.stderr) == (2, "error: `--plot` needs a MODEL, whose tokenizer counts tokens\n")


def test_convert_writes_messages_and_names_the_rows_left_out(workplace: Path) -> None:
    done = data_verb("convert", "rows.jsonl", "out.jsonl", cwd=workplace)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "2 rows in out.jsonl\n"
        "left out: rows.jsonl:2: message 0, the last, has role `user`; expected an assistant message at the end\n"
    )
    rows = json_lines(workplace / "out.jsonl")
    assert [message["content"] for message in rows[0]["messages"]] == ["写广告\n裙", "好看"]


def test_convert_takes_a_format_and_column_names(workplace: Path) -> None:
    (workplace / "own.jsonl").write_text('{"question": "q", "reply": "a"}\n', encoding="utf-8")
    columns = ["--column", "instruction=question", "--column", "output=reply"]
    done = data_verb("convert", "own.jsonl", "out.jsonl", "--from", "alpaca", *columns, cwd=workplace)
    assert done.returncode == 0, done.stderr
    wrong = data_verb("convert", "own.jsonl", "o.jsonl", "--column", "instruction", cwd=workplace)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: `--column instruction` is not KEY=NAME\nhint: such as `--column instruction=question`\n",
    )


def test_formats_lists_every_format_in_a_line(workplace: Path) -> None:
    done = data_verb("formats", cwd=workplace)
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert names == [
        "preference", "messages", "sharegpt", "chatglm3", "alpaca", "instruction-response",
        "query-response", "input-output", "firefly", "turns", "moss", "advertisegen", "prompt-response",
        "prompt-completion", "toolalpaca", "text",
    ]  # fmt: skip


def test_inspect_shows_rows_of_any_format_also_as_a_page(workplace: Path) -> None:
    done = data_verb("inspect", "rows.jsonl", "demo", "--row", "2", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("row 2 (rows.jsonl:3)\n")
    assert done.stdout.endswith("[gMASK]<sop><|user|>\n写广告\n裙<|assistant|>[[\n好看<|user|>]]\n")
    page = data_verb("inspect", "rows.jsonl", "demo", "--html", "page.html", cwd=workplace)
    assert (page.returncode, page.stderr.splitlines()[-1]) == (0, "3 rows in page.html")
    text = (workplace / "page.html").read_text(encoding="utf-8")
    assert "expected an assistant message at the end" in text
    again = data_verb("inspect", "rows.jsonl", "demo", "--html", "page.html", cwd=workplace)
    assert (again.returncode, again.stderr) == (
        2,
        "error: `page.html` exists already\nhint: choose another name, or remove it first\n",
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of two files under other column names, of which one row stands in both."""
    for name, numbers in (("a", range(12)), ("b", range(11, 20))):
        rows = [{"question": f"问题{number}" * 4, "output": f"答{number}" * 9} for number in numbers]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return tmp_path


def test_prepare_keeps_the_rows_that_a_run_then_finds(mixed: Path, program: Path) -> None:
    done = data_verb("prepare", ".", "demo", "config.yaml", cwd=mixed)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("train: a.jsonl, b.jsonl: ")
    assert lines[1].startswith("val: a.jsonl, b.jsonl: 2 rows, ")
    folder = Path(lines[-1].removeprefix("encoded rows are kept in "))
    before = {path: path.stat().st_ino for path in folder.glob("*/rows.arrow")}
    assert before
    trained = in_own_process("train", ".", "demo", "config.yaml", cwd=mixed, program=program)
    assert trained.returncode == 0, trained.stderr
    assert {path: path.stat().st_ino for path in folder.glob("*/rows.arrow")} == before
    # 2 x 12 + 9 rows, but for those of the two that are evaluated on, wherever and however often they stand.
    counted = [line for line in trained.stderr.splitlines() if line.startswith(("train: ", "val: "))]
    assert counted == lines[:2]
    record = yaml.safe_load((mixed / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert [(Path(file["path"]).name, file["weight"]) for file in record["data"]["train"]] == [
        ("a.jsonl", 2.0),
        ("b.jsonl", 1.0),
    ]


def test_near_duplicates_are_told_at_the_start(mixed: Path) -> None:
    text = (mixed / "a.jsonl").read_text(encoding="utf-8")
    (mixed / "val.jsonl").write_text(text.splitlines(keepends=True)[3], encoding="utf-8")
    overrides = ["--set", "data_config.val_size=0", "--set", "data_config.val_file=val.jsonl"]
    done = data_verb("prepare", ".", "demo", "config.yaml", *overrides, cwd=mixed)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert told[0] == (
        "note: 1 of 1 validation rows (100.0%) have a near-duplicate among the training rows "
        "(similarity of 0.8 or more); exact copies: 1"
    )
    again = data_verb("prepare", ".", "demo", "config.yaml", *overrides, cwd=mixed)
    assert again.stderr == done.stderr


def test_near_duplicates_of_test_rows_are_told_too(mixed: Path) -> None:
    text = (mixed / "a.jsonl").read_text(encoding="utf-8")
    (mixed / "held.jsonl").write_text(text.splitlines(keepends=True)[3], encoding="utf-8")
    overrides = ["--set", "data_config.val_size=0", "--set", "data_config.test_file=held.jsonl"]
    overrides += ["--set", "training_args.eval_strategy=no"]
    done = data_verb("prepare", ".", "demo", "config.yaml", *overrides, cwd=mixed)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "near-duplicate" in line]
    assert told[0] == (
        "note: 1 of 1 test rows (100.0%) have a near-duplicate among the training rows "
        "(similarity of 0.8 or more); exact copies: 1"
    )


@pytest.mark.parametrize(
    "arguments",
    [("check", ""), ("inspect", "", "demo"), ("convert", "", "out.jsonl"), ("prepare", "", "demo", "config.yaml")],
)
def test_an_empty_argument_is_no_folder(workplace: Path, arguments: tuple[str, ...]) -> None:
    done = data_verb(*arguments, cwd=workplace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: an argument is empty; expected a name\n"
        "hint: a variable of the shell may not be set: leave the argument out, or write what it stands for\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--strict", "", "demo", "config.yaml"), "an argument is empty; expected a name"),
        (("train", ".", "demo", "config.yaml", "--deepspeed", ""), "the value of `--deepspeed` is empty"),
        (("demo", "--output="), "the value of `--output` is empty"),
        (("chat", "demo", "--base-model", " "), "the value of `--base-model` is empty"),
        (("infer", "demo", "--input", ""), "the value of `--input` is empty"),
    ],
)
def test_no_empty_value_is_the_current_folder(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command_line(*arguments, cwd=workplace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}\nhint: a variable of the shell may not be set")


def test_options_that_contradict_each_other_are_refused(workplace: Path) -> None:
    columns = ["--column", "messages=a", "--column", "messages=b"]
    done = data_verb("convert", "rows.jsonl", "o.jsonl", *columns, cwd=workplace)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `--column` names `a` and `b` for `messages`\n")
    done = data_verb("check", "rows.jsonl", "--max-bad", "1.5", cwd=workplace)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `--max-bad` is 1.5; expected a whole number of rows, or a share below 1\n")


def test_columns_are_known_by_their_names_wherever_rows_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("问题,回答\n还有货吗？,有的。\n", encoding="utf-8")
    told = "note: columns are read by their names: `问题` as `instruction`, `回答` as `output`"
    for arguments in (["check", "a.csv"], ["inspect", "a.csv", "demo"], ["convert", "a.csv", "b.jsonl"]):
        done = command_line("data", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert told in done.stderr
    assert json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8"))["messages"][1]["content"] == "有的。"
