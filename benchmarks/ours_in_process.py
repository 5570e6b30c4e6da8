"""The work with glmtune's own parts, so that a callback can measure inside of a step.

python benchmarks/ours_in_process.py WORK.json

`glmtune train` does the same; where only times are measured, the benchmarks use that.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed
from work import LORA, StepReport, Work, read_work

from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.console import notice
from glmtune.training.building import build_model, build_trainer
from glmtune.training.folder.run_folder import RunRequest
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.preparation import prepare_run
from glmtune.training.setup.run_arithmetic import arithmetic_of_run


def main() -> None:
    """Train."""
    work = read_work()
    config = run_config(work)
    prepared = prepare_run(RunRequest(data_dir=Path(work.data), model=work.model, config=config))
    run_folder = Path(work.output)
    run_folder.mkdir(parents=True)
    settings = training_arguments(config, run_folder, notice)
    prepared = replace(prepared, arithmetic=arithmetic_of_run(prepared, settings))
    set_seed(settings.seed)  # of an adapter's first weights
    trainer = build_trainer(prepared, settings, build_model(prepared, settings, None), run_folder)
    trainer.add_callback(StepReport())
    trainer.train()


def run_config(work: Work) -> RunConfig:
    """Return the configuration of the work."""
    return config_from_mapping(as_yaml(work), where="benchmark")


def as_yaml(work: Work) -> dict[str, Any]:
    """Return what a configuration file would say."""
    arguments = work.training_arguments()
    if not work.checkpointing:
        del arguments["gradient_checkpointing"]
    return {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": work.max_length // 2,
        "max_output_length": work.max_length // 2,
        "training_args": arguments | {"eval_strategy": "no"},
        "peft_config": {"peft_type": "LORA", **LORA},
        **(work.options or {}),
    }


if __name__ == "__main__":
    main()
