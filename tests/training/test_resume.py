"""A resumed run is the uninterrupted run, digit for digit."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from json_lines import json_lines

from glmtune import load_config, resume, train
from glmtune.errors import GlmtuneError
from glmtune.memory.run import estimate
from glmtune.training.setup.preparation import prepare_data


def forget_steps_after(run: Path, step: int) -> None:
    """Leave the run as a crash after `step` would have left it."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2].split(".")[0]) > step:
            shutil.rmtree(checkpoint)
    (run / "metrics.jsonl").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "gradient_checkpointing"),
    [
        ("lora", False),
        ("ptuning_v2", False),
        ("sft", False),
        ("ptuning_v2", True),  # the only one that goes a way of its own then
        *(pytest.param(method, True, marks=[pytest.mark.slow, pytest.mark.long]) for method in ("lora", "sft")),
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_exactly(
    method: str, gradient_checkpointing: bool, demo_data: Path, write_config, read_losses, read_weights
) -> None:
    run = train(demo_data, "demo", write_config(method, gradient_checkpointing=gradient_checkpointing))
    expected_losses, expected_weights = read_losses(run), read_weights(run / "checkpoint-16")
    assert set(expected_losses) == set(range(1, 17))
    assert expected_losses[16] < expected_losses[1]

    for step in (4, 12):  # in the first epoch, and in the second
        forget_steps_after(run, step)
        resume(run)
        assert read_losses(run) == {at: loss for at, loss in expected_losses.items() if at > step}
        resumed = read_weights(run / "checkpoint-16")
        assert all(resumed[name].equal(tensor) for name, tensor in expected_weights.items())


def test_resume_tells_what_it_cannot_do(demo_data: Path, write_config, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(demo_data, rows)
    run = train(rows, "demo", write_config(max_steps=3, save_steps=1, eval_strategy="no"))

    def message(**options: object) -> str:
        with pytest.raises(GlmtuneError) as caught:
            resume(run, **options)
        return str(caught.value)

    assert message() == (
        f"the run has finished: `checkpoint-3` is its last step\n  --> {run}\n"
        "hint: to train on from its weights: "
        f"`glmtune train DATA_DIR MODEL CONFIG --init-from {run / 'checkpoint-3'}`"
    )
    assert message(checkpoint_step=7) == (
        f"`{run}` has no `checkpoint-7`\nhint: choose one of: `checkpoint-1`, `checkpoint-2`, `checkpoint-3`"
    )
    with (run / "checkpoint-2" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert message(checkpoint_step=2) == (
        "checkpoint `checkpoint-2` is damaged: `adapter_model.safetensors` has changed since it was saved\n"
        f"  --> {run / 'checkpoint-2'}\n"
        "hint: choose another with `--checkpoint STEP`; the run has: `checkpoint-1`, `checkpoint-2`, `checkpoint-3`"
    )
    (run / "checkpoint-1" / "manifest.json").unlink()
    assert message(checkpoint_step=1).startswith("checkpoint `checkpoint-1` is damaged: it has no `manifest.json`\n")
    shutil.rmtree(run / "checkpoint-3")
    (run / "checkpoint-2" / "adapter_model.safetensors").unlink()
    assert message() == (
        "the run has no complete checkpoint to resume from:\n"
        "  - `checkpoint-2`: `adapter_model.safetensors` is missing\n"
        "  - `checkpoint-1`: it has no `manifest.json`\n"
        f"  --> {run}\n"
        "hint: train anew, into another folder"
    )


def test_resume_passes_over_damaged_checkpoints_and_names_them(
    demo_data: Path, write_config, read_weights, capsys
) -> None:
    run = train(demo_data, "demo", write_config(max_steps=4, save_steps=1, eval_strategy="no"))
    expected = read_weights(run / "checkpoint-4")
    (run / "checkpoint-4" / "manifest.json").unlink()
    weights = run / "checkpoint-3" / "adapter_model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-10])
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    capsys.readouterr()
    resume(run)
    told = capsys.readouterr().err
    assert told.startswith(
        "note: passed over `checkpoint-4`: it has no `manifest.json`\n"
        f"note: passed over `checkpoint-3`: `adapter_model.safetensors` has {size - 10} bytes instead of {size}\n"
        "note: passed over `checkpoint-2`: `optimizer.pt` is missing\n"
    )
    assert f"resuming {run} at step 1 of 4\n" in told
    again = read_weights(run / "checkpoint-4")
    assert all(again[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_log_covers_the_steps_before_an_interruption_too(
    method: str, demo_data: Path, write_config, read_losses, read_weights
) -> None:
    config = write_config(method, max_steps=11, logging_steps=4, save_steps=3, eval_strategy="no")
    run = train(demo_data, "demo", config)
    expected_losses, expected_weights = read_losses(run), read_weights(run / "checkpoint-11")
    assert set(expected_losses) == {4, 8}
    for step in (3, 6):  # three steps into a window of four, and two
        forget_steps_after(run, step)
        resume(run)
        assert read_losses(run) == {at: loss for at, loss in expected_losses.items() if at > step}
        resumed = read_weights(run / "checkpoint-11")
        assert all(resumed[name].equal(tensor) for name, tensor in expected_weights.items())


def test_resume_names_what_has_changed_and_goes_on_only_where_that_is_accepted(
    demo_data: Path, write_config, tmp_path: Path, capsys
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(demo_data, rows)
    run = train(rows, "demo", write_config(max_steps=4, save_steps=2, eval_strategy="no"))
    shutil.rmtree(run / "checkpoint-4")
    with (rows / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["asked"]["config"]["training_args"]["learning_rate"] = 5e-4
    record["model"]["fingerprint"] = "0123456789abcdef"
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    base = record["model"]["base"]
    changes = [
        f"`{rows / 'train.jsonl'}` has changed",
        f"the base model `{base}` is not the one that the run was trained on; "
        "say where that one is with `--base-model FOLDER`",
        "`training_args.learning_rate` is 0.0005, it was 0.001",
        "`training_args.warmup_steps` is 1, it was not set",
    ]
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(GlmtuneError) as caught:
        resume(run, overrides=["training_args.warmup_steps=1"])
    assert str(caught.value) == (
        "the run cannot go on where it stood, because this has changed since it began:\n"
        + "".join(f"  - {change}\n" for change in changes)
        + f"  --> {run}\n"
        "hint: restore it, or go on with it as it is now: "
        f"`glmtune resume {run} --set training_args.warmup_steps=1 --accept-changes`"
    )
    assert sorted(path.name for path in run.iterdir()) == before

    capsys.readouterr()
    resume(run, overrides=["training_args.warmup_steps=1"], accept_changes=True)
    told = capsys.readouterr().err
    for change in changes:
        assert f"note: since the run began: {change}\n" in told
    # From now on this is the run.
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert record["changes"][0]["what"] == changes
    assert record["asked"]["config"]["training_args"]["warmup_steps"] == 1
    assert json.loads((run / "checkpoint-4" / "asked.json").read_text(encoding="utf-8")) == record["asked"]["config"]


def test_verify_trains_the_last_logged_losses_once_more(demo_data: Path, write_config, capsys) -> None:
    run = train(demo_data, "demo", write_config(max_steps=6, save_steps=4, eval_strategy="no"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    resume(run, verify=True)
    assert capsys.readouterr().err.endswith("verified: 2 logged losses are equal to the last digit\n")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not list(run.parent.glob(".*-replay"))

    metrics = run / "metrics.jsonl"
    lines = json_lines(metrics)
    for line in lines:
        if line["step"] == 6 and "loss" in line:
            line["loss"] *= 1.02
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        resume(run, verify=True)
    assert str(caught.value) == (
        f"the replayed losses differ from the logged ones by up to 2 %\n  --> {metrics}\n"
        "hint: look for what differs from the machine and the packages in `run.yaml`"
    )
    metrics.write_text("", encoding="utf-8")
    with pytest.raises(GlmtuneError, match="there is nothing to verify: no loss was logged after"):
        resume(run, verify=True)


def test_steps_trained_again_keep_the_checkpoints_that_stood_there(demo_data: Path, write_config, read_weights) -> None:
    run = train(demo_data, "demo", write_config(max_steps=3, save_steps=1, eval_strategy="no"))
    resume(run, checkpoint_step=1)
    assert (run / "checkpoint-2.replaced-1").is_dir()
    replaced, again = read_weights(run / "checkpoint-2.replaced-1"), read_weights(run / "checkpoint-2")
    assert all(again[name].equal(tensor) for name, tensor in replaced.items())


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        resume(tmp_path)
    assert str(caught.value) == (
        f"`{tmp_path}` is not a run folder: it has no `run.yaml`\nhint: give a run's `output_dir`"
    )


def test_the_way_past_refused_changes_repeats_what_was_typed(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config(max_steps=4, save_steps=2, eval_strategy="no"))
    shutil.rmtree(run / "checkpoint-4")
    with pytest.raises(GlmtuneError) as caught:
        resume(
            run,
            checkpoint_step=2,
            overrides=["training_args.learning_rate=2e-3", "training_args.lr_scheduler_kwargs={num_cycles: 2}"],
        )
    assert caught.value.fix is not None
    command = caught.value.fix.partition("`")[2].rstrip("`")
    assert shlex.split(command) == [
        "glmtune", "resume", str(run), "--checkpoint", "2", "--set", "training_args.learning_rate=2e-3",
        "--set", "training_args.lr_scheduler_kwargs={num_cycles: 2}", "--accept-changes",
    ]  # fmt: skip


def test_a_finished_run_goes_on_with_more_steps_or_more_epochs(
    demo_data: Path, write_config, tmp_path: Path, read_losses
) -> None:
    by_epochs = {"max_steps": -1, "save_strategy": "epoch", "lr_scheduler_type": "constant", "eval_strategy": "no"}
    run = train(demo_data, "demo", write_config(num_train_epochs=1, **by_epochs))
    with pytest.raises(GlmtuneError, match="the run has finished: `checkpoint-10`"):
        resume(run)
    with pytest.raises(GlmtuneError, match="the run has finished: `checkpoint-10`"):
        resume(run, overrides=["training_args.num_train_epochs=0.5"], accept_changes=True)
    with pytest.raises(GlmtuneError, match=r"`training_args.num_train_epochs` is 2, it was 1"):
        resume(run, overrides=["training_args.num_train_epochs=2"])
    resume(run, overrides=["training_args.num_train_epochs=2"], accept_changes=True)
    whole = tmp_path / "whole"
    train(demo_data, "demo", write_config(num_train_epochs=2, output_dir=str(whole), **by_epochs))
    assert read_losses(run) == read_losses(whole)
    resume(run, overrides=["training_args.max_steps=21"], accept_changes=True)
    assert (run / "checkpoint-21").is_dir()


def test_overrides_count_on_top_of_a_configuration_that_is_loaded(demo_data: Path, write_config) -> None:
    config = load_config(write_config(max_steps=4, eval_strategy="no"))
    run = train(demo_data, "demo", config, overrides=["training_args.max_steps=1"])
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    with pytest.raises(GlmtuneError, match=r"`training_args\.max_step`: unknown key"):
        train(demo_data, "demo", config, overrides=["training_args.max_step=1"])
    with pytest.raises(GlmtuneError, match=r"`max_input_length`: expected 1 or more"):
        prepare_data(demo_data, "demo", config, overrides=["max_input_length=0"])
    with pytest.raises(GlmtuneError, match=r"`max_input_length`: expected 1 or more"):
        estimate("demo", config, overrides=["max_input_length=0"])
    with pytest.raises(GlmtuneError, match="changed after it was loaded"):
        train(demo_data, "demo", replace(config, packing=False), overrides=["training_args.max_steps=1"])


def test_the_checkpoint_that_a_run_goes_on_from_may_be_deleted_on_the_way(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config(max_steps=2, save_steps=1, save_total_limit=1, eval_strategy="no"))
    resume(run, overrides=["training_args.max_steps=3"], accept_changes=True)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3"]
