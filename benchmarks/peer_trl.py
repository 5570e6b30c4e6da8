"""The work with TRL's `SFTTrainer`, on rows that are encoded already. Runs in TRL's environment.

python benchmarks/peer_trl.py WORK.json
"""

from __future__ import annotations

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
from work import LORA, StepReport, read_encoded, read_work


def main() -> None:
    """Train."""
    work = read_work()
    arguments = work.training_arguments() | {
        "max_length": None,
        "model_init_kwargs": {"dtype": "bfloat16" if work.is_half else "float32"},
        "disable_tqdm": True,
    }
    trainer = SFTTrainer(
        model=work.model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(read_encoded(work)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[StepReport()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
