"""The command line as a user meets it: exit codes, messages on full text, data on stdout alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from command_line import command_line, in_own_process

from glmtune.modeling.finding.model_source import checkpoints_of

QUESTION = "类型#风衣*颜色#墨绿"
CONFIG = {
    "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
    "max_input_length": 128,
    "max_output_length": 64,
    "training_args": {
        "output_dir": "run",
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "generation_config": {"max_new_tokens": 4},
    },
    "peft_config": {"peft_type": "LORA", "r": 2},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path, demo_data: Path) -> Path:
    """A run of two steps, made by the command line."""
    done = in_own_process("train", demo_data, "demo", "config.yaml", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return workplace / "run"


def test_a_run_tells_its_story_on_stderr_in_plain_lines(run: Path, workplace: Path, demo_data: Path) -> None:
    done = command_line(
        "train", demo_data, "demo", "config.yaml", "--set", "training_args.output_dir=told",
        "--set", "training_args.logging_steps=1", cwd=workplace,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert any(line.startswith("train: ") and "40 rows" in line for line in lines)
    assert any("trained parts in [[ ]]" in line for line in lines)
    assert any(line.startswith("step 2/2  loss ") and line.endswith("eta 0:00:00") for line in lines)
    assert lines[-1] == "done: told"
    assert "\r" not in done.stderr


def test_eval_prints_json_and_writes_predictions_without_overwriting(run: Path, workplace: Path, demo_data) -> None:
    for name in ("predictions-dev.jsonl", "predictions-dev-2.jsonl"):
        done = command_line("eval", run, demo_data / "dev.jsonl", "--max-new-tokens", "4", cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert {"loss", "perplexity", "bleu-4", "rouge-1", "rouge-2", "rouge-l"} <= set(json.loads(done.stdout))
        assert (workplace / name).is_file()


def test_infer_takes_a_prompt_a_file_and_stdin(run: Path, workplace: Path, program: Path) -> None:
    options = ["--greedy", "--max-new-tokens", "6"]
    by_prompt = in_own_process(
        "infer", run / "checkpoint-2", "--prompt", QUESTION, *options, cwd=workplace, program=program
    )
    by_stdin = command_line("infer", run / "checkpoint-2", *options, cwd=workplace, input=QUESTION + "\n")
    streamed = command_line("infer", run, "--prompt", QUESTION, "--stream", *options, cwd=workplace)
    rows = workplace / "questions.jsonl"
    rows.write_text(json.dumps({"prompt": QUESTION}) + "\n" + json.dumps(
        {"messages": [{"role": "user", "content": QUESTION}]}) + "\n", encoding="utf-8")  # fmt: skip
    by_file = command_line("infer", run, "--input", rows, "--json", *options, cwd=workplace)
    assert by_prompt.returncode == 0, by_prompt.stderr
    answers = [json.loads(line)["answer"] for line in by_file.stdout.splitlines()]
    assert answers == [by_prompt.stdout.strip()] * 2
    assert by_stdin.stdout == by_prompt.stdout
    assert streamed.stdout.strip() == by_prompt.stdout.strip()


def test_infer_shows_the_answer_of_a_row_beside_the_prompt_as_its_reference(workplace: Path) -> None:
    question = {"role": "user", "content": QUESTION}
    answer = {"role": "assistant", "content": "我查一下"}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"a": 1}'}}]}
    rows = [[question], [question, answer], [question, answer, call]]
    path = workplace / "answered.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    done = command_line("infer", "demo", "--input", path, "--json", "--greedy", "--max-new-tokens", "3", cwd=workplace)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == [[question]] * 3
    assert len({line["answer"] for line in lines}) == 1
    assert "reference" not in lines[0]
    assert [line["reference"] for line in lines[1:]] == ["我查一下", '我查一下\nfind\n{"a": 1}']


def test_data_inspect_prints_every_row_as_json(workplace: Path, demo_data: Path, demo_tokenizer) -> None:
    done = command_line("data", "inspect", demo_data, "demo", "--json", cwd=workplace)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["row"] for line in lines] == list(range(40))
    assert all(set(line) == {"row", "input_ids", "labels"} for line in lines)
    assert all(len(line["input_ids"]) == len(line["labels"]) for line in lines)
    shown = command_line("data", "inspect", demo_data / "train.jsonl", "demo", "--row", "3", cwd=workplace)
    assert f"row 3 ({demo_data / 'train.jsonl'}:4)" in shown.stdout
    assert "\x1b[" not in shown.stdout


def test_resume_goes_on_from_the_folder_alone(run: Path, workplace: Path, demo_data: Path) -> None:
    done = command_line(
        "train", demo_data, "demo", "config.yaml", "--set", "training_args.output_dir=again",
        "--set", "training_args.max_steps=3", cwd=workplace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command_line("resume", "again", "--checkpoint", "1", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "resuming again at step 1 of 3" in done.stderr


MISTAKES = {
    "no data folder": (
        ["train", "nowhere", "demo", "config.yaml", "--set", "training_args.output_dir=x"],
        "error: data folder `nowhere` does not exist\nhint: give the folder that holds your data files\n",
    ),
    "no such file in the data folder": (
        ["train", "{data}", "demo", "config.yaml", "--set", "data_config.train_file=train.json",
         "--set", "training_args.output_dir=x"],
        "error: `train_file` names `train.json`, which is not in `{data}` (did you mean `train.jsonl`?)\n"
        "  --> {data}\n"
        "hint: the folder holds `dev.jsonl`, `test.jsonl`, `train.jsonl`; set `data_config.train_file` to one of "
        "them\n",
    ),
    "no DeepSpeed file": (
        ["train", "{data}", "demo", "config.yaml", "--deepspeed", "no such file"],
        "error: `training_args.deepspeed`: there is no file `no such file`; looked for `{work}/no such file`\n"
        '  --> --set training_args.deepspeed="no such file"\n',
    ),
    "no model": (
        ["train", "{data}", "./nothing", "config.yaml", "--set", "training_args.output_dir=x"],
        "error: model `./nothing` does not exist\n"
        "hint: give a model folder, a checkpoint, a hub name such as `zai-org/glm-4-9b-chat-hf`, or `demo`\n",
    ),
    "not a checkpoint": (
        ["infer", "{data}", "--prompt", "a"],
        "error: `{data}` is neither a model nor a checkpoint: it has no `config.json`\n"
        "hint: it holds `dev.jsonl`, `test.jsonl`, `train.jsonl`\n",
    ),
    "nothing to ask": (
        ["infer", "demo", "--prompt", " "],
        "error: there is nothing to ask\nhint: give `--prompt TEXT`, `--input rows.jsonl`, or text on stdin\n",
    ),
    "two prompts": (
        ["infer", "demo", "--prompt", "a", "--prompt", "b"],
        "error: `--prompt` is given 2 times; expected one\n"
        'hint: write them to a file, `{{"prompt": ...}}` a line, and give that as `--input`\n',
    ),
    "two kinds of prompt": (
        ["infer", "demo", "--prompt", "a", "--input", "b"],
        "error: both `--prompt` and `--input` are given\nhint: leave one of them out\n",
    ),
    "an empty data file": (
        ["eval", "demo", "{empty}"],
        "error: the file has no rows\n  --> {empty}\n",
    ),
    "a folder to score on": (
        ["eval", "demo", "{data}"],
        "error: `{data}` is a folder; expected a file of rows\n"
        "hint: it holds `dev.jsonl`, `test.jsonl`, `train.jsonl`\n",
    ),
    "a folder of prompts": (
        ["infer", "demo", "--input", "{data}"],
        "error: `{data}` is a folder; expected a file of rows\n"
        "hint: it holds `dev.jsonl`, `test.jsonl`, `train.jsonl`\n",
    ),
    "no row that can be trained on": (
        ["eval", "demo", "{broken}"],
        "error: no row of `{broken}` can be trained on; the first: not JSON: Expecting property name enclosed in "
        "double quotes: line 1 column 2 (char 1)\n  --> {broken}:1\n",
    ),
    "no such row": (
        ["data", "inspect", "{data}", "demo", "--row", "99"],
        "error: there is no row 99: the file has 40, numbered from 0\n  --> {data}/train.jsonl\n",
    ),
    "a key that does not exist": (
        ["train", "{data}", "demo", "config.yaml", "--set", "training_args.learning_rat=1"],
        "error: `training_args.learning_rat`: unknown key (did you mean `learning_rate`?)\n"
        "  --> --set training_args.learning_rat=1\n",
    ),
}  # fmt: skip


WRONG_SAMPLING = {
    ("--temperature", "0", "--top-p", "0.9"): (
        "error: `--temperature 0` always takes the most likely token, so `--top-p` would do nothing\n"
        "hint: leave one of them out\n"
    ),
    ("--greedy", "--temperature", "0.7"): (
        "error: `--greedy` always takes the most likely token, so `--temperature` would do nothing\n"
        "hint: leave one of them out\n"
    ),
    ("--temperature", "-1"): "error: `--temperature` is -1.0; expected 0 or more\n",
    ("--temperature", "nan"): "error: `--temperature` is nan; expected 0 or more\n",
    ("--top-p", "0"): "error: `--top-p` is 0.0; expected a number above 0, at most 1\n",
    ("--top-p", "1.1"): "error: `--top-p` is 1.1; expected a number above 0, at most 1\n",
    ("--top-k", "0"): "error: `--top-k` is 0; expected 1 or more\n",
    ("--repetition-penalty", "0"): "error: `--repetition-penalty` is 0.0; expected a number above 0\n",
}


@pytest.mark.parametrize("flags", WRONG_SAMPLING, ids=" ".join)
def test_sampling_flags_that_make_no_sense_are_told(flags: tuple[str, ...], tmp_path: Path) -> None:
    done = command_line("infer", "demo", "--prompt", "a", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == WRONG_SAMPLING[flags]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_full_without_a_traceback(
    mistake: str, workplace: Path, demo_data: Path, program: Path
) -> None:
    places = {
        "data": str(demo_data),
        "work": str(workplace),
        "empty": str(workplace / "empty.jsonl"),
        "broken": str(workplace / "broken.jsonl"),
    }
    Path(places["empty"]).write_text("\n", encoding="utf-8")
    Path(places["broken"]).write_text("{broken\n", encoding="utf-8")
    arguments, message = MISTAKES[mistake]
    call = partial(in_own_process, program=program) if mistake == "no data folder" else command_line
    done = call(*(argument.format(**places) for argument in arguments), cwd=workplace)
    assert done.stderr.endswith(message.format(**places)), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not (workplace / "x").exists()


def test_a_wrong_option_is_the_users_mistake(workplace: Path) -> None:
    assert command_line("train", "--nonsense", cwd=workplace).returncode == 2


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback(place: int, workplace: Path) -> None:
    arguments = ["infer", "nowhere", "--prompt=a"]
    call = in_own_process if place == 0 else command_line
    done = call(*arguments[:place], "--debug", *arguments[place:], cwd=workplace)
    assert "Traceback" in done.stderr
    assert done.returncode == 1


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow past 150 kB: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, heeded)


def test_a_full_disk_is_a_failure_told_in_one_line(
    workplace: Path, demo_data: Path, demo_model: str, small_files: None
) -> None:
    done = command_line(
        "train", demo_data, "demo", "config.yaml", "--set", "training_args.output_dir=full",
        "--set", "peft_config.r=16", cwd=workplace,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: the disk is full: the checkpoint could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((workplace / "full").glob("checkpoint-*"))


def heed_ctrl_c() -> None:
    """Let Ctrl-C through: where the tests run in the background, a shell has switched it off for all that follows.

    And the closing of a terminal, which `nohup` has switched off.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGHUP", 75)])
def test_a_signal_saves_and_ends_with_a_code_of_its_own(
    name: str, code: int, workplace: Path, demo_data: Path, program: Path
) -> None:
    arguments = ["train", str(demo_data), "demo", "config.yaml", "--set", f"training_args.output_dir={name}",
                 "--set", "training_args.max_steps=100000", "--set", "training_args.save_steps=100000",
                 "--set", "training_args.logging_steps=1"]  # fmt: skip
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [program, *arguments],
        cwd=workplace, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        deadline = time.monotonic() + 100
        while not process.stderr.readline().startswith("step ") and time.monotonic() < deadline:
            pass
        process.send_signal(signal.Signals[name])
        killer = threading.Timer(150, process.kill)  # a run that heeds no signal would go on for hours
        killer.start()
        rest = process.stderr.read()
        assert process.wait(60) == code
        killer.cancel()
    saved = checkpoints_of(workplace / name)[-1].name
    step = saved.removeprefix("checkpoint-")
    assert "Traceback" not in rest
    assert f"received {name}: saving after this step\n" in rest
    end = f"stopped at step {step}: `glmtune resume {name}` goes on from {saved}\n"
    assert rest.endswith(end + ("interrupted\n" if name == "SIGINT" else ""))


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("gbk", marks=pytest.mark.slow)])
def test_losses_stay_above_the_bar_which_shows_their_course_where_the_terminal_can(
    encoding: str, workplace: Path, demo_data: Path, program: Path
) -> None:
    arguments = ["train", str(demo_data), "demo", "config.yaml", "--set", f"training_args.output_dir=drawn-{encoding}",
                 "--set", "training_args.max_steps=4", "--set", "training_args.logging_steps=1",
                 "--set", "data_config.val_file=null"]  # fmt: skip
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    # The streams of the preloaded program are in UTF-8 already.
    start = [program] if encoding == "utf-8" else [sys.executable, "-m", "glmtune"]
    with subprocess.Popen(
        [*start, *arguments], cwd=workplace, stdin=subprocess.DEVNULL, stdout=inside, stderr=inside,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    ) as process:  # fmt: skip
        os.close(inside)
        seen = b""
        while (part := _read_terminal(terminal)) != b"":
            seen += part
        os.close(terminal)
    assert process.returncode == 0, seen
    text = seen.decode(encoding)
    assert [*re.findall(r"[\r\n]step (\d)/4  loss \d", text)] == ["1", "2", "3", "4"]
    last_bar = re.findall(r"4/4 \[.*, loss \d\.\d{4}([^\]\r]*)\]", text)[-1]
    assert re.fullmatch(" [▁-▇]{4}" if encoding == "utf-8" else "", last_bar), last_bar
    assert "Writing model shards" not in text.partition("step 1/4")[2]


def _read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_a_run_whose_terminal_is_closed_saves_and_ends(workplace: Path, demo_data: Path) -> None:
    arguments = ["train", str(demo_data), "demo", "config.yaml", "--set", "training_args.output_dir=closed",
                 "--set", "training_args.max_steps=100000", "--set", "training_args.save_steps=100000",
                 "--set", "training_args.logging_steps=1"]  # fmt: skip
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # room for a bar

    def take_terminal() -> None:
        heed_ctrl_c()
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "glmtune", *arguments], cwd=workplace, stdin=inside, stdout=inside, stderr=inside,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    try:
        os.close(inside)
        seen = b""
        while not re.search(rb" [1-9]\d*/100000", seen):
            assert select.select([terminal], [], [], 100)[0], "nothing more was said for long"
            seen += os.read(terminal, 4096)
        time.sleep(1)
        os.close(terminal)
        assert process.wait(60) == 75
    finally:
        process.kill()
    assert len(checkpoints_of(workplace / "closed")) == 1


@pytest.mark.parametrize("verb", ["eval", "infer", "infer --stream"])
def test_ctrl_c_while_answers_are_written_ends_with_130(
    verb: str, workplace: Path, demo_data: Path, program: Path
) -> None:
    name, *stream = verb.split()
    rows = workplace / "many.jsonl"
    rows.write_text((demo_data / "train.jsonl").read_text(encoding="utf-8") * 10, encoding="utf-8")
    output = workplace / "unfinished.jsonl"
    output.unlink(missing_ok=True)
    arguments = {
        "eval": [str(rows), "--max-new-tokens", "400", "--output", str(output)],
        "infer": ["--input", str(rows), "--greedy", "--max-new-tokens", "20", *stream],
    }[name]
    with subprocess.Popen(
        [program, name, "demo", *arguments, "--batch-size", "1"],
        cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        if name == "infer":
            assert process.stdout.read(1)
        deadline = time.monotonic() + 100
        while name == "eval" and not _holds_something(output) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def test_the_whole_cycle_works_when_no_network_can_be_reached(workplace: Path, demo_data: Path) -> None:
    """Every verb in one process whose sockets refuse to connect."""
    script = f"""
import socket
def refuse(*arguments):
    raise AssertionError(f"tried to connect: {{arguments[1:]}}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
from glmtune import evaluate, generate, resume, train
import shutil
run = train({str(demo_data)!r}, "demo", "config.yaml", overrides=["training_args.output_dir=offline"])
shutil.rmtree(run / "checkpoint-2")
resume(run)
print(evaluate(str(run), {str(demo_data / "dev.jsonl")!r}, max_new_tokens=2).metrics["loss"])
print(generate(str(run), ["a"], max_new_tokens=2))
import datasets, warnings
assert not datasets.are_progress_bars_disabled()
assert warnings.filters[0][2] is not FutureWarning
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=workplace, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # As quiet as the command line, without touching what the caller has set for other libraries.
    assert "Warning" not in done.stderr
    assert "%|" not in done.stderr
