"""From a file of one's own to a model that answers, with nothing written by hand."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import termios
import time
from pathlib import Path

import pytest
from command_line import command_line

from glmtune.starting.run import reserved_run_folder

QUICK = ("--set", "training_args.num_train_epochs=1")
NUM_RECORDS = 40


def excel_file(folder: Path, encoding: str = "gbk") -> Path:
    """Write a CSV as Excel does: in GBK, lines that end with CR LF, line breaks in cells, a record that is broken."""
    answer = '"有的，还有几件。\n今天下单，明天""发货""。"'
    cells = (f"衬衫 {number} 还有货吗？,{answer}" for number in range(NUM_RECORDS))
    path = folder / "kefu.csv"
    path.write_bytes("\r\n".join(["问题,回答", *cells, "坏行,只有,三格", ""]).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["gbk", "utf-8-sig"])
def test_a_configuration_is_written_that_trains(encoding: str, tmp_path: Path) -> None:
    excel_file(tmp_path, encoding)
    done = command_line("init", "kefu.csv", "--model", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "columns are read by their names: `问题` as `instruction`, `回答` as `output`" in done.stderr
    assert "1 of the rows looked at cannot be trained on; kefu.csv:82: the record has 3 cells" in done.stderr
    assert done.stderr.endswith("next: glmtune train . demo glmtune.yaml\n")
    [command] = re.findall(r"^next: glmtune (.*)$", done.stderr, re.MULTILINE)
    trained = command_line(*command.split(), *QUICK, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "train: kefu.csv: " in trained.stderr
    scored = command_line("eval", "runs/kefu-lora", "kefu.csv", "--limit", "2", "--max-new-tokens", "4", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "the rows are read as the run reads its own: `instruction` is `问题`, `output` is `回答`" in scored.stderr
    assert json.loads(scored.stdout)["loss"] > 0


def test_nothing_is_overwritten_and_the_next_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    excel_file(tmp_path)
    (tmp_path / "glmtune.yaml").write_text("mine", encoding="utf-8")
    (tmp_path / "runs" / "kefu-lora").mkdir(parents=True)
    done = command_line("init", "kefu.csv", "--model", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `glmtune.yaml` exists already")
    assert (tmp_path / "glmtune.yaml").read_text(encoding="utf-8") == "mine"
    done = command_line("init", "kefu.csv", "--model", "demo", "--output", "b.yaml", "--method", "sft", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "output_dir: runs/kefu-sft  #" in (tmp_path / "b.yaml").read_text(encoding="utf-8")
    done = command_line("init", "kefu.csv", "--model", "demo", "--output", "c.yaml", cwd=tmp_path)
    assert "output_dir: runs/kefu-lora-2  #" in (tmp_path / "c.yaml").read_text(encoding="utf-8")


def test_a_run_without_a_configuration_keeps_the_one_that_it_had(tmp_path: Path) -> None:
    excel_file(tmp_path)
    done = command_line("train", "kefu.csv", "demo", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: no configuration is given: `lora` for 1 epochs" in done.stderr
    kept = (tmp_path / "runs" / "kefu-lora" / "fitted-config.yaml").read_text(encoding="utf-8")
    written = command_line("init", "kefu.csv", "--model", "demo", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    text = (tmp_path / "glmtune.yaml").read_text(encoding="utf-8").replace("runs/kefu-lora-2", "runs/kefu-lora")
    assert kept == text + "\n# and on top of it:\n# --set training_args.num_train_epochs=1\n"
    again = command_line("train", "kefu.csv", "demo", *QUICK, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs" / "kefu-lora-2" / "run.yaml").is_file()


def test_a_dry_run_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    excel_file(tmp_path)
    done = command_line("train", "kefu.csv", "demo", "--set", "training_args.max_steps=2", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: no configuration is given: `lora` for 2 steps with" in done.stderr
    assert "note: `glmtune init` writes these settings to a file for you to change\n" in done.stderr
    assert "kept" not in done.stderr
    assert not (tmp_path / "runs").exists()


NAMES = {
    "$HOME.jsonl": "HOME",
    "new\nline.jsonl": "newline",
    "x:y.jsonl": "xy",
    "客服 数据.csv": "客服数据",
    "v1.2_a-b.jsonl.gz": "v1.2_a-b",
    "-rows.csv": "rows",
    "..": "rows",
    "...csv": "rows",
    "?*.jsonl": "rows",
    "many.parts/": "many.parts",
    "हिन्दी.csv": "हिन्दी",
    "hub:owner/rows": "rows",
    "modelscope:owner/rows-1.5:test": "rows-1.5-test",
    "a" * 250 + ".csv": "a" * 200,
}


@pytest.mark.parametrize(("data", "name"), NAMES.items())
def test_a_run_folder_has_a_plain_name(data: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many.parts").mkdir()
    with reserved_run_folder(data, "lora") as folder:
        assert folder == f"runs/{name}-lora"


def test_two_runs_that_begin_at_once_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with reserved_run_folder("rows.csv", "lora") as one, reserved_run_folder("rows.csv", "lora") as other:
        assert (one, other) == ("runs/rows-lora", "runs/rows-lora-2")
        (tmp_path / one / "run.yaml").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["rows-lora"]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    excel_file(tmp_path)
    done = command_line("train", "kefu.csv", "demo", "--set", "training_args.optim=none_such", cwd=tmp_path)
    assert done.returncode == 2
    done = command_line("train", "kefu.csv", "demo", "--set", "training_args.deepspeed=none.json", cwd=tmp_path)
    assert done.returncode == 2
    done = command_line("train", "kefu.csv", "demo", *QUICK, "--set", "training_args.output_dir=own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kefu.csv", "own"]


LLAMAFACTORY = """\
model_name_or_path: demo
stage: sft
finetuning_type: lora
lora_rank: 4
dataset: mine
dataset_dir: data
cutoff_len: 128
template: glm4
output_dir: saves/mine
per_device_train_batch_size: 4
learning_rate: 5.0e-3
num_train_epochs: 1.0
"""


def llamafactory_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    rows = [{"ask": f"{number} 还有货吗？", "say": "有的。"} for number in range(12)]
    (folder / "data" / "mine.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    info = {"mine": {"file_name": "mine.json", "columns": {"prompt": "ask", "response": "say"}}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "train.yaml").write_text(LLAMAFACTORY, encoding="utf-8")


def test_a_configuration_of_another_tool_becomes_one_that_trains(tmp_path: Path) -> None:
    llamafactory_folder(tmp_path)
    done = command_line("train", "data", "demo", "train.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "hint: `glmtune init --from train.yaml` makes a configuration of it" in done.stderr
    done = command_line("init", "--from", "train.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not translated: template: glm4 (rows are written with the chat template of" in done.stderr
    [command] = re.findall(r"^next: glmtune (.*)$", done.stderr, re.MULTILINE)
    trained = command_line(*command.split(), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "12 rows" in trained.stderr
    assert (tmp_path / "saves" / "mine" / "run.yaml").is_file()


def test_what_the_other_tool_says_itself_is_not_taken_twice(tmp_path: Path) -> None:
    llamafactory_folder(tmp_path)
    done = command_line("init", "rows.csv", "--from", "train.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr.partition("\n")[0]) == (
        2,
        "error: `--from` takes rows from the file that it names",
    )


WRONG = {
    "a method that there is not": (["--method", "lore"], "there is no method `lore` (did you mean `lora`?"),
    "columns that say nothing": (["--column", "instruction"], "`--column instruction` is not KEY=NAME"),
    "two columns for a key": (
        ["--column", "output=问题", "--column", "output=回答"],
        "`--column` names `问题` and `回答`",
    ),
}


@pytest.mark.parametrize(("options", "told"), WRONG.values(), ids=WRONG)
def test_slips_are_told_in_a_line(options: list[str], told: str, tmp_path: Path) -> None:
    excel_file(tmp_path)
    for verb in (["init", "kefu.csv", "--model", "demo"], ["train", "kefu.csv", "demo"]):
        done = command_line(*verb, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr.partition("\n")[0][: len(told) + 7]) == (2, f"error: {told}")


def test_several_processes_need_a_file(tmp_path: Path) -> None:
    excel_file(tmp_path)
    done = command_line("train", "kefu.csv", "demo", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "hint: write one: `glmtune init kefu.csv --model demo`" in done.stderr


def test_a_configuration_leaves_no_choice_of_a_method(tmp_path: Path) -> None:
    excel_file(tmp_path)
    done = command_line("train", ".", "demo", "x.yaml", "--method", "sft", cwd=tmp_path)
    assert "error: `--method` is for a run without CONFIG" in done.stderr


def test_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    done = command_line("init", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: no rows are given\nhint: name a file or a folder: `glmtune init rows.csv --model MODEL`\n"
    )


def at_a_terminal(program: Path, folder: Path, *answers: bytes, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the exit code and what is shown of `init`; each answer is typed when its question stands there.

    In a process of its own, whose terminal sends it Ctrl-C.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [program, "init", *options],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    waiting, shown, seen, last = list(answers), b"", 0, b""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 2)[0]:
            if last == b"\x03":  # between a question and the wait for its answer it is heard with the next key alone
                os.write(ours, last)
            continue
        try:
            block = os.read(ours, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not block:
            break
        shown += block
        if waiting and shown[seen:].endswith(b": "):
            seen = len(shown)
            last = waiting.pop(0)
            os.write(ours, last)
    else:
        process.kill()
    os.close(ours)
    return process.wait(), shown.decode().replace("\r\n", "\n")


def test_a_terminal_is_asked_and_every_question_has_an_answer(program: Path, tmp_path: Path) -> None:
    excel_file(tmp_path)
    code, shown = at_a_terminal(program, tmp_path, b"\n", b"\n", b"\n", options=("--model", "demo"))
    assert code == 0, shown
    assert "Your rows: a file or a folder [kefu.csv]: " in shown
    assert "One of" not in shown
    assert (tmp_path / "glmtune.yaml").is_file()


def test_blanks_around_an_answer_are_none_of_it(program: Path, tmp_path: Path) -> None:
    excel_file(tmp_path)
    code, shown = at_a_terminal(program, tmp_path, b"  kefu.csv \n", b" demo\n", b" sft \n", b"  mine.yaml \n")
    assert code == 0, shown
    assert "output_dir: runs/kefu-sft  #" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")


def test_a_wrong_answer_is_told_at_once_and_asked_for_again(program: Path, tmp_path: Path) -> None:
    excel_file(tmp_path)
    (tmp_path / "taken.yaml").touch()
    answers = (b"kefo.csv\n", b"\n", b"lore\n", b"   \n", b"taken.yaml\n", b"none/x.yaml\n", b"mine.yaml\n")
    code, shown = at_a_terminal(program, tmp_path, *answers, options=("--model", "demo"))
    assert code == 0, shown
    assert "\ndata file `kefo.csv` does not exist (did you mean `kefu.csv`?)\nYour rows: a file" in shown
    assert "\nthere is no method `lore` (did you mean `lora`?)\n" in shown
    assert "\n`taken.yaml` exists already\nhint: choose another name, or remove it first\nThe file to write" in shown
    assert "\nfolder `none` does not exist\nhint: make it first\nThe file to write" in shown
    assert (tmp_path / "mine.yaml").is_file()


def test_an_output_that_is_taken_is_told_before_anything_is_asked(program: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.yaml").touch()
    code, shown = at_a_terminal(program, tmp_path, options=("--output", "taken.yaml"))
    assert (code, shown) == (
        2,
        "error: `taken.yaml` exists already\nhint: choose another name, or remove it first\n",
    )


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_questions_end_as_everything_else_does(key: bytes, program: Path, tmp_path: Path) -> None:
    excel_file(tmp_path)
    code, shown = at_a_terminal(program, tmp_path, b"\n", key)
    assert code == 130, shown
    assert shown.replace("^C", "").replace("^D\b\b", "").endswith("[demo-sft]: \ninterrupted\n"), shown


def test_a_file_is_offered_where_its_name_can_be_shown_as_it_is(program: Path, tmp_path: Path) -> None:
    (tmp_path / "a\nb.csv").touch()
    (tmp_path / " blank.csv").touch()
    _, shown = at_a_terminal(program, tmp_path, b"\x04")
    assert "Your rows: a file or a folder: " in shown
    excel_file(tmp_path)
    _, shown = at_a_terminal(program, tmp_path, b"\x04")
    assert "Your rows: a file or a folder [kefu.csv]: " in shown
