"""Rows may be no longer than the model's context: told before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtune import train
from glmtune.config.run_config import load_config
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model
from glmtune.training import trainer
from glmtune.training.folder.run_folder import RunRequest
from glmtune.training.setup.preparation import prepare_run


@pytest.mark.parametrize(
    ("method", "lengths", "message"),
    [
        ("lora", (8000, 193), "`max_input_length` (8,000) and `max_output_length` (193) are 8,193 tokens together, "
         "and the model's context ends at 8,192"),
        ("ptuning_v2", (8000, 189), "`max_input_length` (8,000) and `max_output_length` (189), with 4 virtual tokens, "
         "are 8,193 tokens together, and the model's context ends at 8,192"),
    ],
)  # fmt: skip
def test_lengths_beyond_the_models_context_are_refused(
    method: str, lengths: tuple[int, int], message: str, write_config, demo_data: Path, tmp_path: Path
) -> None:
    path = write_config(method, top={"max_input_length": lengths[0], "max_output_length": lengths[1]})
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", path)
    assert caught.value.what == message
    assert not (tmp_path / "run").exists()
    fitting = load_config(path, [f"max_output_length={lengths[1] - 1}"])
    assert prepare_run(RunRequest(data_dir=demo_data, model="demo", config=fitting)).source == find_model("demo")


def test_an_adapter_on_the_untrained_demo_model_is_noted(write_config, demo_data: Path, capsys) -> None:
    train(demo_data, Path("demo"), write_config(max_steps=1), dry_run=True)
    assert "note: `demo` has random weights, and an adapter on them learns little: " in capsys.readouterr().err
    train(demo_data, "demo", write_config("sft", max_steps=1), dry_run=True)
    assert "random weights" not in capsys.readouterr().err


def test_an_id_that_no_answer_can_have_is_told_before_the_rows_are_read(
    write_config, demo_data: Path, tmp_path: Path, capsys
) -> None:
    for options in ({"forced_eos_token_id": 999_999}, {"suppress_tokens": [5, 999_999]}):
        key = f"training_args.generation_config.{next(iter(options))}"
        with pytest.raises(GlmtuneError, match=f"`{key}` has `999999`, and the model has the ids 0 to ") as caught:
            train(demo_data, "demo", write_config(generation_config=options))
        assert caught.value.where == key
    assert "rows" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_answers_longer_than_the_models_context_are_noted_and_the_trial_stays_short(
    write_config, demo_data: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    score = trainer.score_model

    def watched(*arguments, plan, **options):
        asked.append(plan.config.max_new_tokens)
        if len(asked) > 1:
            plan = plan.shortened(2)
        return score(*arguments, plan=plan, **options)

    monkeypatch.setattr(trainer, "NUM_FIRST_EVALUATION_TOKENS", 3)
    monkeypatch.setattr(trainer, "score_model", watched)
    options = {"max_new_tokens": 10**12}
    train(demo_data, "demo", write_config(generation_config=options, max_steps=1, eval_steps=1))
    assert asked == [3, 8192]
    assert (
        "note: `max_new_tokens` is 1,000,000,000,000, but an answer ends where the model's context does: at 8,192 "
        "tokens together with its prompt\n"
    ) in capsys.readouterr().err
