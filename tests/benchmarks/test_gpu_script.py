"""The GPU benchmark, on a tiny model: it is to work when a GPU is at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def results_of(method: str, trainer: str) -> list[dict[str, Any]]:
    import gpu_case
    from gpu_glm4_9b import cases_of

    device = torch.device("cpu")
    plan = {"method": method, "trainer": trainer, "is_tiny": True, "vocabulary": gpu_case.TINY_VOCABULARY, "warm_up": 1}
    model = gpu_case.build_model(method, trainer, device, is_tiny=True)
    cases = cases_of(trainer, [32], ["one", "packed", "padded"], num_steps=1)
    return [gpu_case.attempt(model, plan, case | {"recomputes": False}, device) for case in cases]


@pytest.mark.parametrize("trainer", ["glmtune", "plain"])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_every_method_is_measured_with_both_trainers(method: str, trainer: str) -> None:
    found = results_of(method, trainer)
    assert [each.get("problem") for each in found] == [None] * (3 if trainer == "glmtune" else 2)
    assert [each["num_tokens"] for each in found] == [32] * len(found)


def test_both_trainers_have_the_same_loss_on_the_same_rows() -> None:
    ours = [each["loss"] for each in results_of("lora", "glmtune")]
    plain = [each["loss"] for each in results_of("lora", "plain")]
    assert ours[0] == pytest.approx(plain[0], rel=1e-2)
    assert ours[2] == pytest.approx(plain[1], rel=1e-2)


def test_operations_of_glm4_9b_are_those_counted_by_hand() -> None:
    from gpu_case import glm_config
    from gpu_glm4_9b import operations_per_step

    weights = 40 * (4096 * (4096 + 256 + 256 + 4096) + 3 * 4096 * 13696)  # of all layers
    head = 4096 * 151552
    attention = 12 * (1024 * 1024 / 2) * 4096 * 40
    config = glm_config(is_tiny=False)
    assert operations_per_step(config, [1024], 512, "lora") == 4 * (1024 * weights + 512 * head) + attention
    assert operations_per_step(config, [1024], 512, "sft") == 6 * (1024 * weights + 512 * head) + attention


@pytest.mark.slow
@pytest.mark.long
def test_the_script_prints_a_table_for_a_tiny_model(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import gpu_glm4_9b

    monkeypatch.setattr(
        sys, "argv", ["gpu_glm4_9b.py", "--tiny", "--methods", "lora", "--lengths", "32", "--steps", "1"]
    )
    gpu_glm4_9b.main()
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| lora")]
    assert [row[2:5] for row in rows] == [
        ["1 row", "glmtune", "no"],
        ["1 row", "Trainer + PEFT", "no"],
        ["8 rows end to end", "glmtune", "no"],
        ["8 rows padded", "glmtune", "no"],
        ["8 rows padded", "Trainer + PEFT", "no"],
    ]
