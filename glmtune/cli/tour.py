"""The demo: everything glmtune does, shown on the embedded tiny GLM-4 in a few minutes on a CPU.

random model ──SFT──▶ plain copy ─┬─LoRA─────────▶ lively copy
                                  └─P-Tuning v2──▶ lively copy
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.console import put, say
from glmtune.demo.rows import FOLDERS, LIVELY, PLAIN, write_rows
from glmtune.demo.trained import COMMON, FIRST_TRAINING, LENGTHS
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import evaluate
from glmtune.files.user_paths import user_path
from glmtune.generation.generate import generate
from glmtune.reports.metrics_file import METRICS_FILE, read_logs
from glmtune.text.text_table import format_table
from glmtune.training.run import resume, train

QUESTION = "类型#风衣*颜色#墨绿*材质#羊毛*场合#约会"

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"training_args": FIRST_TRAINING},
    "lora": {
        "training_args": {"max_steps": 120, "learning_rate": 5e-3, "save_steps": 60},
        "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16},
    },
    "ptuning_v2": {
        "training_args": {"max_steps": 400, "learning_rate": 2e-1, "save_steps": 200},
        "peft_config": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 16},
    },
}
"""Settings found by trying: each reaches its goal with room to spare."""


def run_tour(output: Path) -> None:
    """Train, evaluate, ask and resume in `output`, and print what came of it."""
    output = user_path(output)
    if (output.is_symlink() or output.exists()) and not output.is_dir():
        raise GlmtuneError(f"`{output}` is no folder", fix="choose another with `--output`")
    if output.is_dir() and any(output.iterdir()):
        raise GlmtuneError(f"`{output}` is not empty", fix="choose another with `--output`, one that is not there yet")
    started = time.monotonic()
    write_rows(output / "data")
    plain, lively = (output / "data" / FOLDERS[style] for style in (PLAIN, LIVELY))
    table = [_scores("random weights", "plain", "demo", plain)]

    _headline("full SFT from scratch on plain copy")
    base = str(train(plain, "demo", _config("sft", output)))
    table.append(_scores("full SFT", "plain", base, plain))
    table.append(_scores("full SFT", "lively", base, lively))

    for method, name in (("lora", "LoRA"), ("ptuning_v2", "P-Tuning v2")):
        _headline(f"{name} from plain to lively copy")
        run = train(lively, base, _config(method, output))
        table.append(_scores(name, "lively", str(run), lively))

    _headline("an interrupted run goes on as if nothing had happened")
    _show_resume(output / "lora")

    _headline("asking")
    print(QUESTION)
    for name, model in (("full SFT", base), ("LoRA", output / "lora"), ("P-Tuning v2", output / "ptuning_v2")):
        put(f"  {name}: {generate(str(model), [QUESTION])[0]}")

    _headline("BLEU-4 and ROUGE on held-out rows, 0 to 100")
    print(format_table(["model", "style", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "loss"], table))
    curve = output / "sft" / "loss.png"
    print(f"\nloss curve: {curve}" if curve.is_file() else "\nno loss curve: `pip install 'glmtune[report]'` draws one")
    print(f"the demo took {time.monotonic() - started:.0f} s")


def _config(method: str, output: Path) -> RunConfig:
    settings = METHODS[method]
    source = {
        "data_config": {"train_file": "train.jsonl"},
        **LENGTHS,
        **settings,
        "training_args": COMMON | settings["training_args"] | {"output_dir": str(output / method)},
    }
    return config_from_mapping(source, where=f"the demo's {method}")


def _scores(name: str, style: str, model: str, folder: Path) -> list[str]:
    """Return a row of the table: the scores of a model on a style's held-out rows."""
    metrics: Mapping[str, float] = evaluate(model, folder / "test.jsonl", batch_size=40, max_new_tokens=80).metrics
    figures = [f"{metrics[key]:.1f}" for key in ("bleu-4", "rouge-1", "rouge-2", "rouge-l")]
    say(f"{name} on {style} copy: BLEU-4 {figures[0]}")
    return [name, style, *figures, f"{metrics['loss']:.3f}"]


def _show_resume(run: Path) -> None:
    """Throw the end of a run away, resume it, and compare the losses."""
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    expected = _losses(run)
    shutil.rmtree(last)
    resume(run)
    again = _losses(run)
    num_equal = sum(expected[step] == loss for step, loss in again.items())
    print(f"removed {last.name}, resumed: {num_equal} of {len(again)} logged losses are equal to the last digit")


def _losses(run: Path) -> dict[int, float]:
    return {log["step"]: log["loss"] for log in read_logs(run / METRICS_FILE) if "loss" in log}


def _headline(text: str) -> None:
    print(f"\n== {text} ==", flush=True)
