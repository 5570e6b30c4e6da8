"""`run.yaml` of somebody else's run: one clear line for what glmtune cannot have written, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune import resume
from glmtune.errors import GlmtuneError
from glmtune.exporting.export_check import Check, Distance
from glmtune.exporting.model_card import CardFacts, model_card, read_record
from glmtune.modeling.finding.run_record import MAX_RUN_FILE_BYTES
from glmtune.reports.loss_curve import read_loss_history
from glmtune.reports.metrics_file import read_logs
from glmtune.training.folder.run_folder import read_request

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)

TEXTS: dict[str, tuple[bytes, str]] = {
    "bytes of another encoding": ("数据: 1".encode("gbk"), "it is not UTF-8"),
    "a NUL byte": (b"a: \x00", "unacceptable character"),
    "an escape sequence": (b"a: \x1b]0;title\x07", "unacceptable character"),
    "too deep": (b"[" * 20_000, "it is nested too deeply"),
    "deep keys": (b"{a: " * 20_000, "it is nested too deeply"),
    "aliases that multiply": (BOMB.encode(), "it has an alias (`*name`), and glmtune writes none"),
    "an alias of itself": (b"a: &a [*a]", "it has an alias (`*name`), and glmtune writes none"),
    "a tag of Python's": (b"!!python/object/apply:os.mkdir [crater]", "could not determine a constructor"),
    "a module of Python's": (b"!!python/module:os ''", "could not determine a constructor"),
    "a tag of an object": (b"!!python/object/new:subprocess.Popen [[mkdir, crater]]", "could not determine"),
    "half a bracket": (b"{a: 1", "expected ',' or '}'"),
    "nothing": (b"", "TypeError: 'NoneType' object is not subscriptable"),
    "text": (b"x", "TypeError: string indices must be integers"),
    "a list": (b"[1]", "TypeError: list indices must be integers"),
    "a date that is none": (b"a: 2026-99-99", "month must be in 1..12"),
}


@pytest.mark.parametrize(("content", "problem"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_no_run_has_written_is_one_clear_line(content: bytes, problem: str, run: Path) -> None:
    (run / "run.yaml").write_bytes(content)
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert caught.value.what.startswith("`run.yaml` cannot be read: ")
    assert problem in caught.value.what
    assert caught.value.where == str(run / "run.yaml")
    assert not Path("crater").exists()


def test_a_file_of_many_megabytes_is_not_read(run: Path) -> None:
    with (run / "run.yaml").open("r+b") as file:
        file.truncate(MAX_RUN_FILE_BYTES + 1)
    with pytest.raises(GlmtuneError, match=r"`run\.yaml` has 16,000,001 bytes; glmtune writes less"):
        resume(run)


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def without(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "no request": without("asked"),
    "a request of a list": at("asked", value=[1]),
    "no model": without("asked", "model"),
    "a model of a number": at("asked", "model", value=5),
    "a model of keys": at("asked", "model", value={"a": 1}),
    "rows of a list": at("asked", "data_dir", value=["a"]),
    "a start of a number": at("asked", "init_from", value=1),
    "a base of a list": at("asked", "base_model", value=[1]),
    "no fingerprint": without("model", "fingerprint"),
    "a model's record of text": at("model", value="x"),
    "data of text": at("data", value="x"),
    "data of numbers": at("data", "train", value=[1]),
    "a weight of text": at("data", "train", 0, "weight", value="x"),
    "a hash of a number": at("data", "train", 0, "sha256", value=5),
    "no processes": without("world_size"),
    "0 processes": at("world_size", value=0),
    "10^12 processes": at("world_size", value=10**12),
    "processes of text": at("world_size", value="2"),
    "no arguments": without("resolved_training_args"),
    "rows of text": at("resolved_training_args", "per_device_train_batch_size", value="x"),
    "10^12 steps of accumulation": at("resolved_training_args", "gradient_accumulation_steps", value=10**12),
    "changes of text": at("changes", value="x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_record_with_something_else_in_it_is_one_clear_line(
    change: Callable[[dict[str, Any]], None], run: Path
) -> None:
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    change(record)
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        read_request(run)
    assert caught.value.what.startswith("`run.yaml` cannot be read: ")
    assert "\n" not in caught.value.what


def test_configurations_of_other_kinds_are_told_as_a_configurations_mistakes(run: Path) -> None:
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["asked"]["config"]["training_args"]["learning_rate"] = [1]
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    with pytest.raises(GlmtuneError, match=r"learning_rate"):
        read_request(run)


LINES: dict[str, str] = {
    "a list": "[1]",
    "a number": "5",
    "text": '"x"',
    "nothing": "null",
    "no step": '{"loss": 1}',
    "a step of text": '{"step": "1", "loss": 1}',
    "a step of 10^30": f'{{"step": {10**30}, "loss": 1}}',
    "a loss of text": '{"step": 1, "loss": "x", "eval_loss": "x"}',
    "a loss of 10^400": f'{{"step": 1, "loss": {10**400}, "eval_loss": {10**400}}}',
    "a number of 10,000 digits": f'{{"step": 1, "loss": {"1" * 10_000}}}',
    "a loss that is none": '{"step": 1, "loss": NaN, "eval_loss": Infinity}',
    "too deep": "[" * 50_000,
    "half a line": '{"step": 1, "lo',
    "other bytes": "\udcff\udcfe",
}
"""Of a `metrics.jsonl`."""


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_foreign_line_of_the_metrics_does_not_end_a_run_nor_an_export(line: str, run: Path, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n" + path.read_bytes())
    assert list(read_logs(path))
    history = read_loss_history(path, damaged=[])
    assert history.training
    card = model_card_of(run)
    assert "## Training" in card
    assert resume(run) == run


def model_card_of(run: Path) -> str:
    none = Distance(largest=0, typical=0)
    check = Check(num_prompts=0, distance=none, rounding=none)
    facts = CardFacts(name="x", base="a/b", kind="adapter", method="LoRA", dtype="x", prompts="x", check=check)
    return model_card(facts, read_record(run), run, 2)


CARD_CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a request of a list": at("asked", value=[1]),
    "settings of text": at("asked", "config", value="x"),
    "data settings of a list": at("asked", "config", "data_config", value=[1]),
    "arguments of a list": at("resolved_training_args", value=[1]),
    "packages of a list": at("packages", value=[1]),
    "data of a list": at("data", value=[1]),
    "files of numbers": at("data", "train", value=[1]),
    "files of text": at("data", "train", value="x"),
    "a file without a path": without("data", "train", 0, "path"),
    "a weight of text": at("data", "train", 0, "weight", value="x"),
}


@pytest.mark.parametrize("change", CARD_CHANGES.values(), ids=CARD_CHANGES)
def test_an_export_tells_a_foreign_record_in_one_line(change: Callable[[dict[str, Any]], None], run: Path) -> None:
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    change(record)
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    with pytest.raises(GlmtuneError, match=r"^`run\.yaml` cannot be read: `\S+` is not what a run writes"):
        read_record(run)


@pytest.mark.parametrize(("content", "problem"), list(TEXTS.values())[:11], ids=list(TEXTS)[:11])
def test_an_export_tells_a_file_that_no_run_has_written(content: bytes, problem: str, run: Path) -> None:
    (run / "run.yaml").write_bytes(content)
    with pytest.raises(GlmtuneError) as caught:
        read_record(run)
    assert problem in caught.value.what


def test_a_run_cannot_write_its_own_lines_into_a_model_card(run: Path) -> None:
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["resolved_training_args"]["optim"] = "adamw\n\n# Buy this\n\n| a |"
    record["packages"]["torch"] = "1\n# Buy that"
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    card = model_card_of(run)
    assert "\n# Buy" not in card
    assert "| optim | adamw # Buy this \\| a \\| |\n" in card
