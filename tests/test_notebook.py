"""A kernel of Jupyter's: errors and interrupts without a traceback, one bar, the example notebook as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
from jupyter_client.manager import KernelManager

REPOSITORY = Path(__file__).parents[1]
TRAIN = """
import glmtune
config = {{
    "data_config": {{"train_file": "train.jsonl", "val_file": "dev.jsonl"}},
    "training_args": {{
        "output_dir": "{run}", "max_steps": {steps}, "per_device_train_batch_size": 2, "logging_steps": 1,
        "learning_rate": 1e-3, "eval_strategy": "no", "save_strategy": "no", "report_to": "none",
    }},
}}
run = glmtune.train(r"{data}", "demo", config)
"""


class Cells:
    """Runs cells in one kernel, and returns what a notebook would show below each."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client = manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str, *, stop_at: str | None = None) -> list[dict[str, Any]]:
        """Run a cell; `stop_at` is a text in what it prints at which the stop button is pressed."""
        asked = self.client.execute(code)
        shown: list[dict[str, Any]] = []
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=240)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return shown
            if kind in ("stream", "error", "display_data", "update_display_data", "execute_result"):
                shown.append({"kind": kind, **content})
            if stop_at is not None and stop_at in content.get("text", ""):
                time.sleep(0.5)  # what is printed is shown before the printing has ended, which is no part of ours
                self.manager.interrupt_kernel()
                stop_at = None
        raise AssertionError("the cell did not end")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    folder = tmp_path_factory.mktemp("notebook")
    manager = KernelManager()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(folder / "ipython")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    manager.start_kernel(cwd=str(folder), env=environment)
    kernel = Cells(manager)
    kernel.folder = folder  # type: ignore[attr-defined]
    yield kernel
    kernel.client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(shown: list[dict[str, Any]]) -> str:
    return "".join(each["text"] for each in shown if each["kind"] == "stream")


@pytest.mark.slow
def test_a_mistake_is_shown_in_three_lines(cells: Cells) -> None:
    [error] = [each for each in cells.run("import glmtune\nglmtune.load_config('no.yaml')") if each["kind"] == "error"]
    assert "\n".join(error["traceback"]).startswith("error: there is no configuration `no.yaml`\n  --> no.yaml")
    assert "Traceback" not in "\n".join(error["traceback"])


@pytest.mark.slow
def test_a_run_has_one_bar_that_is_replaced_and_a_line_for_each_loss(cells: Cells, demo_data: Path) -> None:
    shown = cells.run(TRAIN.format(run="whole", steps=4, data=demo_data))
    displays = [each for each in shown if each["kind"] in ("display_data", "update_display_data")]
    assert [each["kind"] for each in displays].count("display_data") == 1
    assert len({each["transient"]["display_id"] for each in displays}) == 1
    assert displays[-1]["data"]["text/plain"].startswith("100%|")
    assert " 4/4 " in displays[-1]["data"]["text/plain"]
    lines = printed(shown).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert "Warning" not in printed(shown)
    assert "\r" not in printed(shown)


@pytest.mark.slow
def test_the_stop_button_saves_the_step_and_shows_one_line(cells: Cells, demo_data: Path) -> None:
    shown = cells.run(TRAIN.format(run="stopped", steps=2000, data=demo_data), stop_at="step 2/2000")
    [error] = [each for each in shown if each["kind"] == "error"]
    assert error["traceback"] == ["interrupted"]
    [saved] = (cells.folder / "stopped").glob("checkpoint-*")  # type: ignore[attr-defined]
    step = saved.name.removeprefix("checkpoint-")
    assert "received SIGINT: saving after this step\n" in printed(shown)
    assert f"stopped at step {step}: " in printed(shown)
    assert cells.run("1 + 1")[0]["data"]["text/plain"] == "2"


@pytest.mark.slow
def test_an_interrupt_of_anything_else_is_one_line_too(cells: Cells, demo_data: Path) -> None:
    code = f"""
import glmtune
glmtune.check_data(r"{demo_data}", "demo")
print("begun", flush=True)
while True:
    glmtune.check_data(r"{demo_data}", "demo")
"""
    [error] = [each for each in cells.run(code, stop_at="begun") if each["kind"] == "error"]
    assert (error["ename"], error["traceback"]) == ("KeyboardInterrupt", ["interrupted"])
