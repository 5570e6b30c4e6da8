"""The trainer's loss: each token's own cross entropy times its weight, over the number of trained tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from json_lines import json_lines
from transformers import AutoModelForCausalLM, Seq2SeqTrainingArguments

from glmtune import train
from glmtune.chatformat.encoding import Encoder
from glmtune.encoded.collating import Collator
from glmtune.encoded.dataset import EncodedData, encode_file
from glmtune.family import GLM, IGNORE_INDEX
from glmtune.kernels.loss import LabelledLoss
from glmtune.kernels.packing import attention_for
from glmtune.training.methods.sft import mean_cross_entropy
from glmtune.training.trainer import GlmTrainer

LOSSES = [(None, None), (0.5, 2), (True, False), (None, 0.25)]


def write_rows(path: Path, losses: list[tuple[float | None, ...]]) -> Path:
    lines = []
    for number, row in enumerate(losses):
        messages = []
        for turn, loss in enumerate(row):
            answer = {"role": "assistant", "content": f"答{turn}" * (number + 1)}
            messages += [
                {"role": "user", "content": f"问题{number}{turn}"},
                answer | ({} if loss is None else {"loss": loss}),
            ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def data(demo_tokenizer, tmp_path: Path) -> EncodedData:
    return encode_file(write_rows(tmp_path / "rows.jsonl", LOSSES), Encoder(demo_tokenizer, GLM))


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def trainer(
    request: pytest.FixtureRequest, demo_model: str, demo_tokenizer, data: EncodedData, tmp_path: Path
) -> GlmTrainer:
    packed = request.param
    return GlmTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            demo_model, dtype=torch.float32, attn_implementation=attention_for(None, is_packed=packed)
        ),
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "run"), use_cpu=True, remove_unused_columns=False, report_to=[]
        ),
        data_collator=Collator(pad_token_id=demo_tokenizer.pad_token_id, is_packed=packed),
        run_folder=tmp_path / "run",
        tokenizer=demo_tokenizer,
        train_data=data,
        eval_data=None,
        test_data=None,
        plan=None,
        asked={},
        loss_function=mean_cross_entropy,
    )


def by_hand(model, rows) -> tuple[float, int]:
    """Return the weighted sum over all trained tokens of the rows, each computed alone, and their number."""
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != IGNORE_INDEX:
                weight = row["weights"][position] if row["weights"] else 1.0
                total -= weight * logits[position - 1, label].item()
                count += 1
    return total, count


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_the_loss_is_the_weighted_sum_over_the_number_of_trained_tokens(
    trainer: GlmTrainer, data: EncodedData, kernel: str
) -> None:
    trainer.loss = LabelledLoss(trainer.model, kernel=kernel)
    rows = list(data.dataset)
    assert [bool(row["weights"]) for row in rows] == [False, True, False, True]
    batch = trainer.data_collator(rows)
    trainer.model.eval()
    total, count = by_hand(trainer.model, rows)
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(total / count, rel=1e-5)
        # Over accumulation steps the number of all trained tokens of the step is given.
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(2 * count))
        assert loss.item() == pytest.approx(total / (2 * count), rel=1e-5)


def test_a_batch_without_weights_has_the_same_loss_as_weights_of_one(trainer: GlmTrainer, data: EncodedData) -> None:
    batch = trainer.data_collator([data.dataset[0], data.dataset[2]])
    assert "weights" not in batch
    trainer.model.eval()
    with torch.no_grad():
        plain = trainer.compute_loss(trainer.model, batch)
        ones = trainer.compute_loss(trainer.model, batch | {"weights": torch.ones(batch["labels"].shape)})
    torch.testing.assert_close(ones, plain, rtol=1e-6, atol=0)


def test_the_tokens_of_a_step_are_counted_whatever_they_weigh(trainer: GlmTrainer, data: EncodedData) -> None:
    batches = [trainer.data_collator([row]) for row in data.dataset]
    trained = sum(label != IGNORE_INDEX for row in data.dataset for label in row["labels"])
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")) == trained


def test_a_run_logs_the_weighted_loss(demo_model: str, demo_tokenizer, write_config, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "train.jsonl", LOSSES)
    config = write_config(
        "sft", max_steps=1, eval_strategy="no", per_device_train_batch_size=2, gradient_accumulation_steps=2,
        top={"data_config": {"train_file": "train.jsonl"}},
    )  # fmt: skip
    run = train(rows, "demo", config)
    data = encode_file(rows / "train.jsonl", Encoder(demo_tokenizer, GLM))
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    total, count = by_hand(model, data.dataset)
    lines = json_lines(run / "metrics.jsonl")
    assert next(line["loss"] for line in lines if "loss" in line) == pytest.approx(total / count, rel=1e-4)


def test_rows_without_some_of_their_turns_are_listed_by_the_run(write_config, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "train.jsonl", [(None,), (None, None, None)])
    config = write_config(
        max_steps=1, eval_strategy="no",
        top={"data_config": {"train_file": "train.jsonl"}, "max_input_length": 20, "max_output_length": 16,
             "truncation": "drop_turns"},
    )  # fmt: skip
    run = train(rows, "demo", config)
    lines = (run / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "where": f"{rows / 'train.jsonl'}:2",
            "reason": "2 turns left out at the length limit, the others trained",
        }
    ]
