"""Somebody else's checkpoint is read as data or refused by name: nothing in it runs."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_checkpoints import FORMS, GADGETS, UNKNOWN_FILES, as_torch_file, gadgets, seal

from glmtune import resume
from glmtune.errors import GlmtuneError
from glmtune.training.folder.known_files import refuse_unknown_files

STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "optimizer.bin", "rng_state_1.pth")


def refused(run: Path) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert "\n" not in caught.value.what
    return caught.value


def plant(run: Path, name: str, form: str, gadget: str, crater: Path) -> Path:
    path = run / "checkpoint-2" / name
    path.parent.mkdir(exist_ok=True)
    crater.with_suffix(".py").write_text(f"import os\nos.mkdir({str(crater)!r})\n", encoding="utf-8")
    FORMS[form](path, gadgets(crater)[gadget])
    seal(run / "checkpoint-2")
    return path


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_gadget_runs(gadget: str, run: Path, crater: Path) -> None:
    path = plant(run, "optimizer.pt", "torch", gadget, crater)
    error = refused(run)
    assert re.fullmatch(
        r"checkpoint `checkpoint-2` is refused: `optimizer\.pt` (names `\S+`, which could run code"
        r"|is not a file of tensors)",
        error.what,
    )
    assert error.where == str(path)
    assert not crater.exists()


def test_the_gadgets_are_real(tmp_path: Path) -> None:
    for number, name in enumerate(
        name for name in GADGETS if name in ("posix.mkdir", "builtins.eval", "runpy.run_path")
    ):
        crater = tmp_path / f"crater{number}"
        crater.with_suffix(".py").write_text(f"import os\nos.mkdir({str(crater)!r})\n", encoding="utf-8")
        pickle.loads(pickle.dumps(gadgets(crater)[name]))
        assert crater.is_dir()


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_pickle_runs(form: str, run: Path, crater: Path) -> None:
    plant(run, "scheduler.pt", form, "builtins.eval", crater)
    assert refused(run).what.startswith("checkpoint `checkpoint-2` is refused: `scheduler.pt` ")
    assert not crater.exists()


@pytest.mark.parametrize("name", STATE_FILES)
def test_no_file_of_the_state_may_name_code(name: str, run: Path, crater: Path) -> None:
    plant(run, name, "torch", "posix.mkdir", crater)
    assert refused(run).what == (
        f"checkpoint `checkpoint-2` is refused: `{name}` names `posix.mkdir`, which could run code"
    )
    assert not crater.exists()


@pytest.mark.parametrize("name", UNKNOWN_FILES)
def test_a_checkpoint_holds_known_names_alone(name: str, run: Path, crater: Path) -> None:
    path = run / "checkpoint-2" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(pickle.dumps(gadgets(crater)["posix.mkdir"]))
    seal(run / "checkpoint-2")
    error = refused(run)
    assert error.what.startswith("checkpoint `checkpoint-2` is refused: the f")
    assert error.what.endswith("is none that glmtune writes")
    assert not crater.exists()


@pytest.mark.parametrize("name", ["optimizer_0", "pytorch_model_fsdp_0", "global_step", "a", "global_step2/a"])
def test_a_checkpoint_holds_known_folders_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(GlmtuneError, match=rf"the folder `{name}` is none that glmtune writes"):
        refuse_unknown_files(tmp_path)


def only_the_stranger_is_refused(folder: Path) -> None:
    (folder / "stranger.pkl").touch()
    with pytest.raises(GlmtuneError, match=r"the file `stranger\.pkl` is none that glmtune writes"):
        refuse_unknown_files(folder)


@pytest.mark.parametrize("name", [".DS_Store", "._optimizer.pt", "Thumbs.db", ".gitattributes"])
def test_what_systems_leave_in_folders_does_no_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    refuse_unknown_files(tmp_path)
    only_the_stranger_is_refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "vocab.txt", "qwen.tiktoken", "merges.txt", "model-00001-of-00002.safetensors",
     "global_step4/optimizer-00001-of-00002.safetensors", "global_step4/engine.json", "global_step4/scheduler.pt",
     "additional_chat_templates/tools.jinja", "preprocessor_config.json", "rng_state_15.pth"],
)  # fmt: skip
def test_what_runs_write_is_known(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    refuse_unknown_files(tmp_path)
    only_the_stranger_is_refused(tmp_path)


def test_code_is_known_where_the_model_brings_its_own(tmp_path: Path) -> None:
    (tmp_path / "modeling_own.py").touch()
    refuse_unknown_files(tmp_path, may_hold_code=True)
    with pytest.raises(GlmtuneError, match=r"the file `modeling_own\.py` is none that glmtune writes"):
        refuse_unknown_files(tmp_path)


def changed(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record | values


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: {name: value for name, value in record.items() if name != key}


RECORDS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "a state of a list": ("trainer_state.json", lambda _: [], "`trainer_state.json` holds no JSON object"),
    "a state of text": ("trainer_state.json", lambda _: "x", "`trainer_state.json` holds no JSON object"),
    "no step": ("trainer_state.json", without("global_step"), "`global_step` is null; expected a whole number"),
    "a step as text": ("trainer_state.json", changed(global_step="2"), '`global_step` is "2"; expected a whole'),
    "a step below 0": ("trainer_state.json", changed(global_step=-1), "`global_step` is -1; expected a whole number"),
    "an endless step": ("trainer_state.json", changed(global_step=10**30), "`global_step` is 1000000000000000"),
    "another step": ("trainer_state.json", changed(global_step=3), "`global_step` is 3, in a checkpoint of another"),
    "true for a step": ("trainer_state.json", changed(max_steps=True), "`max_steps` is true; expected a whole number"),
    "an epoch of text": ("trainer_state.json", changed(epoch="a"), '`epoch` is "a"; expected a number'),
    "an epoch that is none": ("trainer_state.json", changed(epoch=float("nan")), "`epoch` is NaN; expected a number"),
    "a best folder of a list": ("trainer_state.json", changed(best_model_checkpoint=[1]), "`best_model_checkpoint` is"),
    "callbacks of a list": ("trainer_state.json", changed(stateful_callbacks=[1]), "`stateful_callbacks` is [1]; exp"),
    "a record of text": ("trainer_state.json", changed(stateful_callbacks={"unfinished": "x"}), "`stateful_callbacks`"),
    "half a record": (
        "trainer_state.json", changed(stateful_callbacks={"unfinished": {"a": 1}}), "`stateful_callbacks` is",
    ),
    "a history of numbers": ("trainer_state.json", changed(log_history=[1]), "`log_history` is [1]; expected a list"),
    "a foreign key": ("trainer_state.json", changed(evil=1), "`evil` is no key of such a record"),
    "settings of a list": ("asked.json", lambda _: [1], "`asked.json` holds no JSON object"),
    "arguments of a list": ("asked.json", changed(training_args=[1]), "`training_args` is [1]; expected keys and"),
    "sums of text": ("loss_window.json", changed(sums="x"), '`sums` is "x"; expected a list of numbers'),
    "no sums": ("loss_window.json", changed(sums=[]), "`sums` is []; expected a list of numbers"),
    "sums that are none": ("loss_window.json", changed(sums=[float("inf")]), "`sums` is [Infinity]; expected a list"),
    "a first step of text": ("loss_window.json", changed(first_step="0"), '`first_step` is "0"; expected a whole'),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), RECORDS.values(), ids=RECORDS)
def test_a_damaged_record_is_one_clear_line(
    name: str, change: Callable[[dict[str, Any]], Any], message: str, run: Path
) -> None:
    path = run / "checkpoint-2" / name
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    seal(run / "checkpoint-2")
    error = refused(run)
    assert message in error.what
    assert error.where == str(path)


@pytest.mark.parametrize("name", ["trainer_state.json", "asked.json", "loss_window.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": '])
def test_a_record_that_is_no_json_is_one_clear_line(name: str, content: bytes, run: Path) -> None:
    (run / "checkpoint-2" / name).write_bytes(content)
    seal(run / "checkpoint-2")
    assert refused(run).what.startswith(f"`{name}` is ")


FOREIGN_STATES: dict[str, tuple[str, Any, str]] = {
    "an empty optimizer": ("optimizer.pt", {}, "the optimizer and schedule of `checkpoint-2` cannot be gone on with"),
    "an optimizer of text": ("optimizer.pt", "x", "the optimizer and schedule of `checkpoint-2` cannot be gone"),
    "another model's optimizer": (
        "optimizer.pt", {"state": {}, "param_groups": []}, "the optimizer and schedule of `checkpoint-2` cannot",
    ),
    "a schedule of a list": ("scheduler.pt", [1], "the optimizer and schedule of `checkpoint-2` cannot be gone"),
    "random states of a number": ("rng_state.pth", 1, "the random states of `checkpoint-2` cannot be gone on with"),
    "empty random states": ("rng_state.pth", {}, "the random states of `checkpoint-2` cannot be gone on with"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), FOREIGN_STATES.values(), ids=FOREIGN_STATES)
def test_the_state_of_something_else_is_one_clear_line(name: str, value: Any, message: str, run: Path) -> None:
    torch.save(value, run / "checkpoint-2" / name)
    seal(run / "checkpoint-2")
    assert refused(run).what.startswith(message)


def test_an_honest_checkpoint_is_gone_on_from(run: Path) -> None:
    as_torch_file(run.parent / "not-in-it.pt", 1)
    assert resume(run) == run
    assert (run / "checkpoint-4" / "manifest.json").is_file()
