"""The work with LLaMA-Factory, which encodes the rows itself. Runs in LLaMA-Factory's environment.

python benchmarks/peer_llamafactory.py WORK.json

The data folder holds `sharegpt.json`: the rows in the form that LLaMA-Factory knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp
from work import LORA, StepReport, Work, read_work

COLUMNS = {
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
}


def main() -> None:
    """Train."""
    work = read_work()
    information = {"rows": {"file_name": "sharegpt.json", **COLUMNS}}
    (Path(work.data) / "dataset_info.json").write_text(json.dumps(information), encoding="utf-8")
    run_exp(arguments(work), callbacks=[StepReport()])


def arguments(work: Work) -> dict[str, Any]:
    """Return what its YAML file would say."""
    shared = work.training_arguments()
    for key in ("gradient_checkpointing", "train_sampling_strategy"):  # it has keys of its own for both
        del shared[key]
    return shared | {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": work.model,
        "dataset_dir": work.data,
        "dataset": "rows",
        "template": "glm4",
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": LORA["lora_dropout"],
        "lora_target": ",".join(LORA["target_modules"]),
        "cutoff_len": work.max_length,
        "disable_gradient_checkpointing": not work.checkpointing,
        "disable_shuffling": True,
        "overwrite_cache": True,
        "overwrite_output_dir": True,
        "preprocessing_num_workers": None,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    main()
