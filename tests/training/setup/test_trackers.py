"""Reports beside the run folder: what is missing is told at once, what is there writes into the run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from glmtune import train
from glmtune.errors import GlmtuneError

MISSING = {
    "tensorboard": ({"report_to": "tensorboard"}, {}, "tensorboard"),
    "trackio": ({"report_to": ["none", "trackio"]}, {}, "trackio"),
    "swanlab": ({}, {"swanlab": "local"}, "'glmtune[swanlab]'"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_reporter_that_is_not_installed_is_told_before_any_row_is_encoded(
    name: str, demo_data: Path, write_config, capsys
) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    training_args, top, package = MISSING[name]
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(top=top, **training_args))
    assert str(caught.value) == (
        f"the run reports to `{name}`, which is not installed\n"
        f"hint: run `pip install {package}`, or take it out of the configuration"
    )
    assert "train: " not in capsys.readouterr().err


def test_a_reporter_that_transformers_does_not_know_is_refused(demo_data: Path, write_config) -> None:
    with pytest.raises(
        GlmtuneError, match=r"`training_args.report_to`: paper is not supported, only azure_ml, "
    ) as caught:
        train(demo_data, "demo", write_config(report_to="paper"))
    assert caught.value.where == "training_args.report_to"


def test_tensorboard_writes_into_each_run_folder(demo_data: Path, write_config, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("one", "two"):
        config = write_config(max_steps=2, eval_strategy="no", report_to="tensorboard", output_dir=str(tmp_path / name))
        run = train(demo_data, "demo", config)
        events = EventAccumulator(str(run / "runs"))
        events.Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


def test_swanlab_writes_into_each_run_folder_and_nowhere_else(
    demo_data: Path, write_config, tmp_path: Path, monkeypatch
) -> None:
    """The fixture for all tests refuses connections, so that nothing can be sent away."""
    pytest.importorskip("swanboard")
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        config = write_config(
            max_steps=2, eval_strategy="no", top={"swanlab": "local"}, output_dir=str(tmp_path / name)
        )
        run = train(demo_data, "demo", config)
        assert any(path.is_file() for path in (run / "swanlog").rglob("*"))
    assert not (tmp_path / "swanlog").exists()
