"""Hints in Python's terms: what a message names of the command line has its argument, or none on purpose."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import GenerationConfig

import glmtune
from glmtune import python_terms
from glmtune.config.run_config import load_config
from glmtune.errors import GlmtuneError
from glmtune.python_terms import ARGUMENTS, FUNCTIONS, SPAN, in_python_terms, translated
from glmtune.server.run import Limits

PACKAGE = Path(glmtune.__file__).parent
TERMINAL_ONLY = [
    "glmtune init --from",  # of other tools' files
    *("glmtune chat", "glmtune config", "glmtune data formats", "glmtune data inspect", "glmtune demo", "glmtune env"),
    *("--api-key-env", "--max-tool-rounds", "--tool-env", "--url"),  # of `chat`
    *("--input", "--prompt"),  # of `infer`, which a list of prompts stands for
    *("--nproc", "--use_deepspeed", "--use_fsdp", "--fsdp_version", "--json"),  # one process; other programs' own
]
"""What messages name that has no function: it is typed in a terminal."""


@pytest.fixture
def _in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_terms, "_is_command_line", False)


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a module without its docstrings; what is put into one is X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | inside):
            yield node.value


SPANS = sorted(
    {
        span
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "cli" and path.name != "python_terms.py"
        for text in texts(path)
        for span in SPAN.findall(text)
    }
)


def test_messages_with_commands_are_found() -> None:
    assert len(SPANS) > 40
    assert "--base-model FOLDER" in SPANS
    assert "glmtune resume X" in SPANS


@pytest.mark.parametrize("span", SPANS)
def test_every_command_in_a_message_has_a_form_in_python_or_is_for_a_terminal(span: str) -> None:
    is_for_terminal = any(name in f"{span} " for name in (f"{each} " for each in TERMINAL_ONLY))
    told = translated(span)
    assert (told == span) == is_for_terminal
    if told != span and "(" in told:
        call = ast.parse(told, mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        given = {keyword.arg for keyword in call.keywords}
        assert given <= inspect.signature(getattr(glmtune, call.func.id)).parameters.keys()


def test_every_argument_is_one_of_a_function() -> None:
    known = {each.name for each in fields(Limits)} | set(GenerationConfig().to_dict())
    for name in FUNCTIONS.values():
        known |= set(inspect.signature(getattr(glmtune, name)).parameters)
    assert set(ARGUMENTS.values()) <= known


def test_every_verb_and_option_of_the_tables_is_one_of_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from glmtune.cli.app import app\nfrom typer.main import get_command\n"
         "def show(command, name):\n"
         "    print(name, *(option for each in command.params for option in each.opts))\n"
         "    [show(below, f'{name} {key}') for key, below in getattr(command, 'commands', {}).items()]\n"
         "show(get_command(app), '')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ARGUMENTS.keys() <= set(done.stdout.split())
    assert all(any(line.startswith(f" {verb} ") for line in done.stdout.splitlines()) for verb in FUNCTIONS)


TOLD = {
    "lower `--batch-size` or `--max-new-tokens`": "lower `batch_size` or `max_new_tokens`",
    "add `--base-model FOLDER` to say where it is now": "add `base_model=FOLDER` to say where it is now",
    "choose another with `--checkpoint STEP`": "choose another with `checkpoint_step=STEP`",
    "add `--trust-remote-code`": "add `trust_remote_code=True`",
    "go on with it: `glmtune resume runs/a`": 'go on with it: `resume("runs/a")`',
    "`glmtune resume runs/a --checkpoint 5 --set a.b=1 --set 'c=d e' --accept-changes`":
        '`resume("runs/a", checkpoint_step=5, overrides=["a.b=1", "c=d e"], accept_changes=True)`',
    "`glmtune train DATA_DIR MODEL CONFIG --init-from runs/a/checkpoint-2`":
        '`train(DATA_DIR, MODEL, CONFIG, init_from="runs/a/checkpoint-2")`',
    "`glmtune train --dry-run` tries it": "`train(..., dry_run=True)` tries it",
    "`glmtune init --from a.yaml`": "`glmtune init --from a.yaml`",
    "`glmtune init` writes one": "`first_config(...)` writes one",
    "`glmtune data prepare rows demo a.yaml`": '`prepare_data("rows", "demo", "a.yaml")`',
    "(`--column instruction=q --column output=a`)": '(`columns={"instruction": "q", "output": "a"}`)',
    "`--set training_args.output_dir=...`": '`overrides=["training_args.output_dir=..."]`',
    "`--deepspeed ds_zero3.json` shards": '`overrides=["training_args.deepspeed=ds_zero3.json"]` shards',
    "run with `--debug`": "run with `GLMTUNE_DEBUG=1`",
    "`glmtune resume C:\\runs\\a`": '`resume("C:\\\\runs\\\\a")`',
    "ask it with `glmtune chat`": "ask it with `glmtune chat`",
    "add `--nproc N`": "add `--nproc N`",
    "`hf download a --local-dir b`": "`hf download a --local-dir b`",
    "`glmtune resume it's`": "`glmtune resume it's`",
    "a text without any": "a text without any",
}  # fmt: skip


@pytest.mark.usefixtures("_in_python")
@pytest.mark.parametrize("text", TOLD)
def test_a_message_is_told_in_pythons_terms(text: str) -> None:
    assert in_python_terms(text) == TOLD[text]


@pytest.mark.parametrize("text", TOLD)
def test_the_command_line_tells_it_as_it_is_written(text: str) -> None:
    assert in_python_terms(text) == text


@pytest.mark.usefixtures("_in_python")
def test_a_mistake_in_an_override_is_placed_in_the_argument() -> None:
    config = {"data_config": {"train_file": "a.jsonl"}, "training_args": {"output_dir": "runs/a"}}
    with pytest.raises(GlmtuneError) as caught:
        load_config(config, ["training_args.max_steps=x"])
    assert str(caught.value) == (
        "`training_args.max_steps`: expected a whole number, found the text `x`\n"
        '  --> overrides=["training_args.max_steps=x"]'
    )


@pytest.mark.usefixtures("_in_python")
def test_notes_are_told_in_pythons_terms(capsys: pytest.CaptureFixture[str]) -> None:
    from glmtune.console import notice

    notice("`--column KEY=NAME` says otherwise")
    assert capsys.readouterr().err == 'note: `columns={"KEY": "NAME"}` says otherwise\n'
