"""Every method, under every way to spread it, with and without gradient checkpointing: 24 cells.

In each cell: 20 steps, one evaluation with generation in the middle, a resumed run, an answer from the saved model.
All cells of two processes run in one group, since starting a group takes longer than a cell. Where time is short,
DeepSpeed's two ways to spread a run have one method each, and one process has both; the rest is marked `long`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from json_lines import json_lines
from safetensors.torch import load_file

from glmtune import generate

# One worker does all of it: the runs are made once.
pytestmark = pytest.mark.multi

REPOSITORY = Path(__file__).parents[2]
METHODS: dict[str, dict[str, Any] | None] = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "sft": None,
}
STRATEGIES = {"single": None, "ddp": None, "zero2": "ds_zero2.json", "zero3": "ds_zero3.json"}
NUM_STEPS = 20
NUM_SAVED = 7
"""Steps between checkpoints: the run goes on from the second one, in the second epoch of ten steps."""


class Cell(NamedTuple):
    method: str
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"{self.method}{'-checkpointing' if self.checkpointing else ''}"


CELLS = [Cell(method, checkpointing) for method in METHODS for checkpointing in (False, True)]
SHORT = {
    # With gradient checkpointing a prefix goes a way of its own.
    "zero2": Cell("ptuning_v2", True),
    "zero3": Cell("sft", False),
}


def is_short(strategy: str, cell: Cell) -> bool:
    """Whether a run belongs to the short form of the matrix."""
    return cell in SHORT.values() if strategy == "single" else cell == SHORT.get(strategy)


def cells_of(*strategies: str) -> pytest.MarkDecorator:
    """Run a test for every cell of the strategies."""
    return pytest.mark.parametrize(
        ("strategy", "cell"),
        [
            pytest.param(
                strategy, cell, id=f"{strategy}-{cell.name}",
                marks=[] if is_short(strategy, cell) else pytest.mark.long,
            )
            for strategy in strategies
            for cell in CELLS
        ],
    )  # fmt: skip


def write_config(folder: Path, cell: Cell, strategy: str, **changes: Any) -> Path:
    """Write the configuration of a cell: four rows a step, whoever shares them."""
    folder.mkdir(parents=True, exist_ok=True)
    deepspeed = STRATEGIES[strategy]
    config = {
        "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
        "max_input_length": 128,
        "max_output_length": 64,
        "training_args": {
            "output_dir": str(folder / "run"),
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 2 if strategy == "single" else 1,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": cell.checkpointing,
            "learning_rate": 1e-3,
            # A softmax does not feel the bias of its keys, whose gradient is nothing but rounding: with 1e-8 Adam
            # would make whole steps of it.
            "adam_epsilon": 1e-6,
            "logging_steps": 1,
            "save_steps": NUM_SAVED,
            "eval_strategy": "steps",
            "eval_steps": 9,
            # Five rows for two processes, two at once: the last batch is half empty on one, and missing on the other.
            "per_device_eval_batch_size": 2,
            "generation_config": {"max_new_tokens": 5},
            **({"deepspeed": str(REPOSITORY / "configs" / deepspeed)} if deepspeed else {}),
            **changes,
        },
        "peft_config": METHODS[cell.method],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def run_in_one_group(steps: list[tuple[str, list[Any]]], folder: Path, processes: int) -> str:
    """Do a list of things in one group of processes; returns what it printed."""
    plan = folder / f"steps-{processes}.json"
    plan.write_text(json.dumps(steps), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(Path(__file__).with_name("several_runs.py")), plan],
        capture_output=True, text=True, timeout=1800, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
                          "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def losses_of(folder: Path, name: str = "metrics.jsonl") -> dict[int, float]:
    lines = json_lines(folder / "run" / name)
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def evaluation_of(folder: Path) -> dict[str, float]:
    lines = (folder / "run" / "metrics-before.jsonl").read_text(encoding="utf-8").splitlines()
    return next(line for line in map(json.loads, lines) if "eval_loss" in line)


def weights_of(folder: Path, name: str = f"checkpoint-{NUM_STEPS}") -> dict[str, torch.Tensor]:
    checkpoint = folder / "run" / name
    path = checkpoint / "adapter_model.safetensors"
    return load_file(path if path.is_file() else checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def rows(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows to train on, five to evaluate on."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "train.jsonl").write_bytes((demo_data / "train.jsonl").read_bytes())
    lines = (demo_data / "dev.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "dev.jsonl").write_text("".join(lines[:5]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[Cell, Path]]:
    """The cells asked for, each trained, kept aside, and trained again from its second checkpoint."""
    is_long = any(item.get_closest_marker("long") for item in request.session.items)
    top = tmp_path_factory.mktemp("runs")
    folders: dict[str, dict[Cell, Path]] = {}
    steps: dict[int, list[tuple[str, list[Any]]]] = {1: [], 2: []}
    for strategy in STRATEGIES:
        cells = [cell for cell in CELLS if is_long or is_short(strategy, cell)]
        folders[strategy] = {cell: top / strategy / cell.name for cell in cells}
        for cell, folder in folders[strategy].items():
            config = write_config(folder, cell, strategy)
            steps[1 if strategy == "single" else 2] += [
                ("train", [str(rows), "demo", str(config)]),
                ("forget", [str(folder / "run"), 2 * NUM_SAVED]),
                ("resume", [str(folder / "run")]),
            ]
    for processes, todo in steps.items():
        run_in_one_group(todo, top, processes)
    return folders


@cells_of(*STRATEGIES)
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(runs, strategy: str, cell: Cell) -> None:
    folder = runs[strategy][cell]
    before = losses_of(folder, "metrics-before.jsonl")
    assert list(before) == list(range(1, NUM_STEPS + 1))
    assert before[NUM_STEPS] < before[1]
    assert losses_of(folder) == {step: loss for step, loss in before.items() if step > 2 * NUM_SAVED}
    expected, resumed = weights_of(folder, "before"), weights_of(folder)
    assert expected.keys() == resumed.keys()
    assert all(resumed[name].equal(tensor) for name, tensor in expected.items())


@cells_of("ddp", "zero2", "zero3")
def test_two_processes_take_the_steps_of_one(runs, strategy: str, cell: Cell) -> None:
    ours, theirs = runs[strategy][cell], runs["single"][cell]
    assert losses_of(ours, "metrics-before.jsonl") == pytest.approx(
        losses_of(theirs, "metrics-before.jsonl"), abs=1e-4, rel=0
    )
    for name in ("eval_loss", "eval_rouge-l", "eval_bleu-4"):
        assert evaluation_of(ours)[name] == pytest.approx(evaluation_of(theirs)[name], rel=1e-4)
    predictions = [(folder / "run" / "predictions" / "step-9.jsonl").read_text("utf-8") for folder in (ours, theirs)]
    assert sorted(predictions[0].splitlines()) == sorted(predictions[1].splitlines())
    assert len(predictions[0].splitlines()) == 5
    weights, expected = weights_of(ours), weights_of(theirs)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].shape == tensor.shape
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)


@cells_of(*STRATEGIES)
def test_the_saved_model_answers_in_a_single_process(runs, strategy: str, cell: Cell) -> None:
    prompt = "类型#马甲*材质#纯棉"
    options = {"max_new_tokens": 12, "do_sample": False}
    answers = [
        generate(str(runs[name][cell] / "run" / f"checkpoint-{NUM_STEPS}"), [prompt], **options)
        for name in (strategy, "single")
    ]
    assert answers[0] == answers[1]
    assert answers[0] != [""]


@pytest.mark.parametrize(
    "strategy",
    ["zero3", *(pytest.param(strategy, marks=pytest.mark.long) for strategy in ("single", "ddp", "zero2"))],
)
def test_another_number_of_processes_goes_on_with_the_same_rows(runs, strategy: str, tmp_path: Path) -> None:
    """Two processes began and one goes on; where one process began, two go on."""
    short = Cell("lora", False), *SHORT.values()
    cells = {cell.method: cell for cell in short if cell in runs[strategy]}
    for method, cell in cells.items():
        # Its last checkpoint is the one in the middle; the end is kept aside.
        ignored = shutil.ignore_patterns(f"checkpoint-{NUM_STEPS}")
        shutil.copytree(runs[strategy][cell] / "run", tmp_path / method / "run", ignore=ignored)
        (tmp_path / method / "run" / "metrics.jsonl").unlink()
    steps = [("resume", [str(tmp_path / method / "run")]) for method in cells]
    told = run_in_one_group(steps, tmp_path, 2 if strategy == "single" else 1)
    # Also where ZeRO-3 hands on what the output layer returns in a tensor of its own.
    assert told.count("loss fused over labelled positions") == len(cells)
    for method, cell in cells.items():
        before, folder = runs[strategy][cell], tmp_path / method
        losses = losses_of(before, "metrics-before.jsonl").items()
        assert losses_of(folder) == pytest.approx(
            {step: loss for step, loss in losses if step > 2 * NUM_SAVED}, abs=1e-4, rel=0
        )
        weights = weights_of(folder)
        for name, tensor in weights_of(before).items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.long
def test_the_best_checkpoint_is_what_a_spread_run_ends_with(
    rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The learning rate ruins the model after its first evaluation; the test at the end is the best model's."""
    scores = {}
    for strategy in ("single", "zero2", "zero3"):
        top = tmp_path_factory.mktemp(f"{strategy}-best")
        changes = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "learning_rate": 0.3, "warmup_steps": 3,
                   "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
                   "predict_with_generate": False}  # fmt: skip
        config = write_config(top, Cell("sft", False), strategy, **changes)
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings["data_config"]["test_file"] = "dev.jsonl"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        run_in_one_group([("train", [str(rows), "demo", str(config)])], top, 1 if strategy == "single" else 2)
        lines = (top / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        evaluations = [line["eval_loss"] for line in metrics if "eval_loss" in line]
        assert evaluations[0] < evaluations[-1]
        scores[strategy] = next(line["test_loss"] for line in metrics if "test_loss" in line)
        assert scores[strategy] == pytest.approx(evaluations[0], rel=1e-5)
    assert scores["zero2"] == pytest.approx(scores["single"], rel=1e-4)
    assert scores["zero3"] == pytest.approx(scores["single"], rel=1e-4)
