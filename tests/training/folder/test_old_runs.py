"""A run that an earlier version began goes on with the code of today; see `tests/golden/make_old_run.py`."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import yaml

from glmtune import generate, resume

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the run, whose rows have moved."""
    run = tmp_path / "old-run"
    shutil.copytree(GOLDEN / "old-run", run)
    runpy.run_path(str(GOLDEN / "make_old_run.py"))["write_rows"](tmp_path / "data")
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["asked"]["data_dir"] = str(tmp_path / "data")
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    return run


def test_an_old_run_is_resumed_to_the_losses_that_it_had(old_run: Path, read_losses) -> None:
    expected = read_losses(old_run)
    assert set(expected) == {1, 2, 3, 4}
    logged = (old_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (old_run / "metrics.jsonl").write_text("".join(logged[:2]), encoding="utf-8")

    resume(old_run)

    # A processor that adds in another order may move the last digits.
    assert read_losses(old_run) == pytest.approx(expected, rel=1e-5)
    assert (old_run / "checkpoint-4" / "manifest.json").is_file()


def test_an_old_checkpoint_answers(old_run: Path, demo_model: str) -> None:
    assert len(generate(old_run, ["类型#裙*颜色#红"], base_model=demo_model, max_new_tokens=4)) == 1
