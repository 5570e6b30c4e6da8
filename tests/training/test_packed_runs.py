"""A run takes the same steps, however its rows are put into batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import evaluate, load_config, resume, train
from glmtune.errors import GlmtuneError
from glmtune.training.trainer import GlmTrainer

NO_DROPOUT: dict[str, Any] = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "sft": None,
}


@pytest.fixture(scope="module")
def few_rows(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of one step of eight."""
    folder = tmp_path_factory.mktemp("few")
    lines = (demo_data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("method", NO_DROPOUT)
def test_packed_or_padded_in_few_batches_or_many_the_steps_are_the_same(
    method: str, few_rows: Path, write_config, read_losses, read_weights, tmp_path: Path
) -> None:
    results = {}
    for packing, rows, accumulation in ((True, 8, 1), (True, 1, 8), (True, 4, 2), (False, 8, 1), (False, 2, 4)):
        name = f"{packing}-{rows}x{accumulation}"
        config = write_config(
            method, output_dir=str(tmp_path / name), max_steps=5, per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation, eval_strategy="no", save_steps=5,
            top={"packing": packing, "peft_config": NO_DROPOUT[method], "data_config": {"train_file": "train.jsonl"}},
        )  # fmt: skip
        run = train(few_rows, "demo", config)
        results[name] = read_losses(run), read_weights(run / "checkpoint-5")
    losses, weights = results.pop("True-8x1")
    assert losses[5] < losses[1]
    for other_losses, other_weights in results.values():
        assert other_losses == pytest.approx(losses, rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(other_weights[name], tensor, atol=1e-4, rtol=0)


def test_batches_filled_by_tokens_are_trained_and_resumed_exactly(
    demo_data: Path, write_config, read_losses, read_weights
) -> None:
    config = write_config(
        top={"tokens_per_batch": 256}, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_steps=16
    )
    run = train(demo_data, "demo", config)
    losses, weights = read_losses(run), read_weights(run / "checkpoint-16")
    assert losses[16] < losses[1]
    for checkpoint in ("checkpoint-8", "checkpoint-12", "checkpoint-16"):
        shutil.rmtree(run / checkpoint)
    resume(run)
    assert read_losses(run) == losses
    assert all(read_weights(run / "checkpoint-16")[name].equal(tensor) for name, tensor in weights.items())


def test_a_model_that_cannot_be_packed_is_padded_and_that_is_said(
    demo_data: Path, write_config, capfd: pytest.CaptureFixture[str]
) -> None:
    # PEFT gives the prefix to the first row only where the attention is transformers' own.
    run = train(demo_data, "demo", write_config("ptuning_v2", max_steps=2, top={"attn_implementation": "eager"}))
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: packing")]
    assert notes == [
        "note: packing is off, rows are padded: a row's logits change with the row before it",
    ]
    assert evaluate(str(run), demo_data / "dev.jsonl", limit=1, max_new_tokens=2).metrics["loss"] > 0


def test_batches_filled_by_tokens_are_refused_where_the_model_cannot_be_packed(demo_data: Path, write_config) -> None:
    config = write_config(
        "ptuning_v2", per_device_train_batch_size=1, top={"attn_implementation": "eager", "tokens_per_batch": 256}
    )
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", config)
    assert str(caught.value) == (
        "rows cannot be laid end to end in this model: a row's logits change with the row before it\n"
        "  --> tokens_per_batch\n"
        "hint: leave `tokens_per_batch` out, and set `per_device_train_batch_size`"
    )


@pytest.mark.parametrize(
    ("top", "rows", "message"),
    [
        (
            {"tokens_per_batch": 256, "packing": False},
            1,
            "`tokens_per_batch`: rows are laid end to end to fill a batch, which `packing: false` rules out",
        ),
        ({"tokens_per_batch": 256}, 2, "rows are counted by their tokens; found `per_device_train_batch_size: 2`, too"),
        ({"tokens_per_batch": 100}, 1, "`100` is less than the longest row may have, 192 tokens"),
        ({"tokens_per_batch": 0}, 1, "expected 1 or more, found `0`"),
    ],
)
def test_what_does_not_go_together_is_refused(
    top: dict[str, Any], rows: int, message: str, demo_data: Path, write_config
) -> None:
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(top=top, per_device_train_batch_size=rows))
    assert message in str(caught.value)


def test_a_batch_as_large_as_the_longest_row_may_be_is_enough(write_config) -> None:
    options = {"per_device_train_batch_size": 1}
    assert load_config(write_config(top={"tokens_per_batch": 192}, **options)).tokens_per_batch == 192
    with pytest.raises(GlmtuneError, match="`191` is less than the longest row may have, 192 tokens"):
        load_config(write_config(top={"tokens_per_batch": 191}, **options))


@pytest.fixture
def trained_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every batch that is trained, in order."""
    batches: list[list[int]] = []
    training_step = GlmTrainer.training_step

    def record(self: GlmTrainer, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        batches.append(inputs["rows"].tolist())
        return training_step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(GlmTrainer, "training_step", record)
    return batches


def test_rows_that_turn_out_to_need_padding_are_batched_as_padded_ones(
    demo_data: Path, write_config, read_losses, monkeypatch: pytest.MonkeyPatch, trained_batches: list[list[int]]
) -> None:
    options: dict[str, Any] = {"max_steps": 10, "eval_strategy": "no", "per_device_train_batch_size": 4}
    config = write_config("sft", top={"packing": False}, **options)
    run = train(demo_data, "demo", config)
    padded, losses = trained_batches.copy(), read_losses(run)
    shutil.rmtree(run)
    trained_batches.clear()
    monkeypatch.setattr("glmtune.training.callbacks.settling.leak_between_rows", lambda *_, **__: "it is said to leak")
    run = train(demo_data, "demo", write_config("sft", **options))
    assert trained_batches == padded
    assert read_losses(run) == pytest.approx(losses, rel=1e-5)


def test_the_seeds_and_the_strategy_of_a_configuration_decide_the_order_of_rows(
    demo_data: Path, write_config, tmp_path: Path, trained_batches: list[list[int]]
) -> None:
    def order(**arguments: Any) -> list[list[int]]:
        trained_batches.clear()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        train(demo_data, "demo", write_config("sft", max_steps=3, eval_strategy="no", save_strategy="no", **arguments))
        return trained_batches.copy()

    by_seed = order(seed=3)
    assert order(seed=4, data_seed=3) == by_seed
    assert order(seed=3, data_seed=0) != by_seed
    assert order(seed=0) == order(seed=3, data_seed=0)
    in_order = order(train_sampling_strategy="sequential")
    assert sorted(row for batch in in_order for row in batch) == list(range(12))  # three steps of four rows
    assert sorted(row for batch in in_order[:2] for row in batch) == [0, 1, 2, 3]


@pytest.mark.parametrize(("drops_rest", "num_steps"), [(False, 14), (True, 13)])
def test_the_rest_of_an_epoch_is_trained_unless_it_is_to_be_dropped(
    drops_rest: bool, num_steps: int, demo_data: Path, write_config, trained_batches: list[list[int]]
) -> None:
    run = train(
        demo_data, "demo",
        write_config(max_steps=-1, num_train_epochs=1, per_device_train_batch_size=3, gradient_accumulation_steps=1,
                     dataloader_drop_last=drops_rest, eval_strategy="no", save_strategy="epoch"),
    )  # fmt: skip
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{num_steps}"]
    assert sum(map(len, trained_batches)) == (39 if drops_rest else 40)
