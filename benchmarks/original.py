"""What the original GLM-4 `finetune.py` does, written anew: rows encoded one by one, padded, full logits.

python benchmarks/original.py WORK.json

`Seq2SeqTrainer` with LoRA, `DataCollatorForSeq2Seq` that pads to the longest row of a batch, the loss from the logits
of every position. The original always recomputes activations; here `checkpointing` of the work decides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from work import LORA, StepReport, Work, read_encoded, read_work


def main() -> None:
    """Train."""
    work = read_work()
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    dtype = torch.bfloat16 if work.is_half else torch.float32
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype, use_cache=False)
    model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **LORA))
    if work.checkpointing:
        model.enable_input_require_grads()
    arguments = work.training_arguments() | {
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest", return_tensors="pt"),
        train_dataset=_rows(work, tokenizer),
        callbacks=[StepReport()],
    )
    trainer.train()


def _rows(work: Work, tokenizer: Any) -> Dataset:
    """Encode the rows; those with tools come encoded, for the original knows them only in another form."""
    if (work.options or {}).get("is_encoded"):
        return Dataset.from_list(read_encoded(work))
    lines = (Path(work.data) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    return rows.map(lambda row: encode(row["messages"], tokenizer, work.max_length), remove_columns=rows.column_names)


def encode(messages: list[dict[str, Any]], tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """Render each message alone and take the repeated prefix off; an answer and the token behind it are trained."""
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    input_ids, is_answer = list(prefix), [False] * len(prefix)
    for message in messages:
        ids = tokenizer.apply_chat_template([message], tokenize=True, return_dict=False)[len(prefix) :]
        input_ids += ids
        is_answer += [message["role"] == "assistant"] * len(ids)
    input_ids.append(tokenizer.eos_token_id)
    # What follows an answer's token is trained: not its role token, but the one behind its last.
    is_trained = [False, *is_answer]
    labels = [token if trained else -100 for token, trained in zip(input_ids, is_trained)]
    return {"input_ids": input_ids[:max_length], "labels": labels[:max_length]}


if __name__ == "__main__":
    main()
