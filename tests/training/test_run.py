"""Runs from beginning to end: what they leave behind, and what they refuse."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from json_lines import json_lines
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

from glmtune import evaluate, generate, train
from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.demo.rows import PLAIN, build_rows, to_json
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.family import family_of
from glmtune.kernels.loss import LabelledLoss

QUESTION = "类型#风衣*颜色#墨绿"


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_a_run_explains_itself(method: str, demo_data: Path, write_config) -> None:
    config = write_config(method, max_steps=4, eval_steps=2, save_steps=2, save_total_limit=3)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data_config"]["test_file"] = "test.jsonl"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = train(demo_data, "demo", config)

    assert sorted(path.name for path in run.iterdir() if not path.name.startswith("loss")) == [
        "checkpoint-2", "checkpoint-4", "metrics.jsonl", "predictions", "run.yaml", "status.json",
    ]  # fmt: skip
    metrics = json_lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4]
    evaluations = [line for line in metrics if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert {"eval_perplexity", "eval_bleu-4", "eval_rouge-1", "eval_rouge-2", "eval_rouge-l"} <= set(evaluations[0])
    assert any("test_loss" in line for line in metrics)
    predictions = json_lines(run / "predictions" / "step-4.jsonl")
    assert set(predictions[0]) == {"where", "turn", "prompt", "reference", "prediction"}
    assert predictions[0]["where"] == f"{demo_data / 'dev.jsonl'}:1"
    assert predictions[0]["prompt"].endswith("<|assistant|>")
    assert predictions[0]["reference"] not in predictions[0]["prompt"]

    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert record["asked"]["model"] == "demo"
    assert record["data"]["train"][0]["sha256"]
    assert record["packages"]["torch"] == version("torch")
    resolved = record["resolved_training_args"]
    assert [resolved[key] for key in ("learning_rate", "output_dir", "save_total_limit")] == [1e-3, str(run), 3]
    assert not (run / "checkpoint-4" / "training_args.bin").exists()


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_adapters_load_in_plain_peft(method: str, demo_data: Path, demo_model: str, write_config) -> None:
    run = train(demo_data, "demo", write_config(method, max_steps=2, eval_strategy="no"))
    checkpoint = run / "checkpoint-2"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(demo_model), checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = plain.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True).strip()
    assert generate(str(checkpoint), [QUESTION], max_new_tokens=12, do_sample=False) == [expected]


def test_full_checkpoints_load_in_plain_transformers(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config("sft", max_steps=2, eval_strategy="no"))
    checkpoint = run / "checkpoint-2"
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    assert plain.generation_config.eos_token_id == sorted(stops)
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in saved.items())


def test_saved_stop_tokens_travel_with_an_adapter(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no"))
    saved = json.loads((run / "checkpoint-1" / "generation_config.json").read_text(encoding="utf-8"))
    assert len(saved["eos_token_id"]) == 3


def test_accumulation_does_not_change_the_step(demo_data: Path, write_config, tmp_path: Path, read_weights) -> None:
    results = []
    for per_device, accumulation in ((4, 1), (1, 4)):
        config = write_config(
            "sft",
            max_steps=2,
            optim="sgd",  # its step is the gradient; Adam would blow up the rounding of tiny ones
            learning_rate=0.1,
            eval_strategy="no",
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            output_dir=str(tmp_path / f"run-{accumulation}"),
        )
        run = train(demo_data, "demo", config)
        losses = [line["loss"] for line in json_lines(run / "metrics.jsonl") if "loss" in line]
        results.append((losses, read_weights(run / "checkpoint-2")))
    (losses, weights), (other_losses, other_weights) = results
    assert losses == pytest.approx(other_losses, rel=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_logged_loss_is_the_mean_over_all_trained_tokens(
    smoothing: float, demo_data: Path, demo_model: str, write_config
) -> None:
    """Computed plainly: one row at a time, all logits, no padding."""
    run = train(
        demo_data,
        "demo",
        write_config("sft", max_steps=1, per_device_train_batch_size=40, gradient_accumulation_steps=1,
                     eval_strategy="no", label_smoothing_factor=smoothing),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    encoder = Encoder(AutoTokenizer.from_pretrained(demo_model), family_of("glm"), max_length_tokens=193)
    total = count = 0.0
    for row in json_lines(demo_data / "train.jsonl"):
        example = encoder.encode(to_conversation(row))
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels[1:])
        total += torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=-100, reduction="sum", label_smoothing=smoothing
        ).item()
        count += (labels != -100).sum().item()
    logged = next(line["loss"] for line in json_lines(run / "metrics.jsonl") if "loss" in line)
    assert logged == pytest.approx(total / count, rel=1e-5)


def test_evaluation_figures_of_a_run_and_of_the_verb_are_the_same(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config("sft", max_steps=8, eval_steps=8, save_steps=8))
    logged = next(line for line in json_lines(run / "metrics.jsonl") if "eval_loss" in line)
    scores = evaluate(str(run), demo_data / "dev.jsonl", batch_size=5, max_new_tokens=4)
    for name in ("loss", "bleu-4", "rouge-1", "rouge-2", "rouge-l"):
        assert scores.metrics[name] == pytest.approx(logged[f"eval_{name}"], rel=1e-5), name


def test_a_loss_that_is_infinite_ends_the_run_too(
    demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = LabelledLoss.summed
    monkeypatch.setattr(LabelledLoss, "summed", lambda *args, **options: summed(*args, **options) * math.inf)
    with pytest.raises(RunFailure) as caught:
        train(demo_data, "demo", write_config("sft", eval_strategy="no"))
    assert caught.value.what.startswith("the loss became inf at step 1; nothing of this step was saved")


def test_the_first_loss_that_is_no_number_ends_the_run_and_names_its_rows(demo_data: Path, write_config) -> None:
    config = write_config("sft", learning_rate=1e30, max_grad_norm=0, eval_strategy="no", save_steps=1)
    with pytest.raises(RunFailure) as caught:
        train(demo_data, "demo", config)
    error = caught.value
    assert error.what.startswith("the loss became nan at step 2; nothing of this step was saved")
    assert error.where is not None
    assert len(error.where.split(", ")) == 2
    assert all(f"{demo_data / 'train.jsonl'}:" in place for place in error.where.split(", "))
    run = config.parent / "run"
    assert not (run / "checkpoint-2").exists()


def test_a_full_gpu_names_the_rows_of_the_batch_and_what_to_lower(demo_data: Path, write_config, monkeypatch) -> None:
    forward = GlmForCausalLM.forward

    def without_memory(self, *args, **kwargs):
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
        return forward(self, *args, **kwargs)

    # In the place of a GPU: the forward pass fails as torch's allocator does.
    monkeypatch.setattr(GlmForCausalLM, "forward", functools.wraps(forward)(without_memory))
    with pytest.raises(RunFailure) as caught:
        train(demo_data, "demo", write_config())
    what, where, hint = str(caught.value).splitlines()
    assert what == "the GPU's memory is full: it ran out while training on 2 rows"
    place = rf"{demo_data / 'train.jsonl'}:\d+ \(\d+ tokens\)"
    assert re.fullmatch(f"  --> {place}, {place}", where)
    assert hint.startswith("hint: lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`) or ")


@pytest.mark.usefixtures("failing_evaluations")
def test_a_failing_evaluation_is_reported_and_training_goes_on(demo_data: Path, write_config, capsys) -> None:
    config = write_config(max_steps=4, eval_steps=2, save_steps=2, load_best_model_at_end=True,
                          metric_for_best_model="bleu-4")  # fmt: skip
    run = train(demo_data, "demo", config)
    assert "warning: the evaluation at step 2 failed" in capsys.readouterr().err
    assert "Traceback" in (run / "evaluation-failures.log").read_text(encoding="utf-8")
    assert (run / "checkpoint-4").is_dir()


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
@pytest.mark.parametrize("metric", ["loss", "rouge-l"])
def test_the_best_model_is_found_by_loss_and_by_generation(
    method: str, metric: str, demo_data: Path, write_config
) -> None:
    config = write_config(
        method, max_steps=6, eval_steps=2, save_steps=2, load_best_model_at_end=True, metric_for_best_model=metric,
        greater_is_better=metric != "loss", save_total_limit=2,
    )  # fmt: skip
    run = train(demo_data, "demo", config)
    state = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))
    evaluations = {line["step"]: line[f"eval_{metric}"] for line in json_lines(run / "metrics.jsonl")
                   if f"eval_{metric}" in line}  # fmt: skip
    best = (max if metric != "loss" else min)(evaluations.values())
    assert state["best_metric"] == best
    assert Path(state["best_model_checkpoint"]).is_dir()
    assert len(list(run.glob("checkpoint-*"))) <= 2


def data_with(tmp_path: Path, demo_data: Path, rows: list[dict]) -> Path:
    """Return a data folder with the demo's rows to train on and these to evaluate on."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(demo_data / "train.jsonl", folder)
    (folder / "dev.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rows_with_calls() -> list[dict]:
    return [row for row in build_rows(PLAIN)["dev"] if len(row["messages"]) == 5][:2]


def test_the_best_model_is_found_by_its_tool_calls(demo_data: Path, write_config, tmp_path: Path) -> None:
    config = write_config(max_steps=2, eval_steps=2, save_steps=2, load_best_model_at_end=True,
                          metric_for_best_model="tool-call-accuracy")  # fmt: skip
    run = train(data_with(tmp_path, demo_data, rows_with_calls()), "demo", config)
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    line = next(line for line in json_lines(run / "metrics.jsonl") if "eval_loss" in line)
    assert state["best_metric"] == line["eval_tool-call-accuracy"] == 0.0
    assert {"eval_tool-name-accuracy", "eval_false-call-rate"} <= line.keys()


def test_a_metric_that_the_rows_cannot_give_is_told_before_the_run(
    demo_data: Path, write_config, tmp_path: Path
) -> None:
    plain = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好。"}]}
    folder = data_with(tmp_path, demo_data, [plain])
    with pytest.raises(GlmtuneError, match="`tool-name-accuracy` cannot be measured: no row to evaluate on calls"):
        train(folder, "demo", write_config(metric_for_best_model="tool-name-accuracy"))
    assert not (tmp_path / "run").exists()


def test_init_from_starts_a_new_run_with_the_old_weights(
    demo_data: Path, write_config, tmp_path: Path, read_losses
) -> None:
    first = train(demo_data, "demo", write_config("lora", max_steps=10, eval_strategy="no", learning_rate=1e-2))
    again = train(
        demo_data,
        "demo",
        write_config("lora", max_steps=2, eval_strategy="no", output_dir=str(tmp_path / "again")),
        init_from=str(first / "checkpoint-10"),
    )
    assert read_losses(again)[1] < read_losses(first)[1] - 0.5
    assert set(read_losses(again)) == {1, 2}


def test_training_straight_from_an_adapter_is_refused(demo_data: Path, write_config, tmp_path: Path) -> None:
    first = train(demo_data, "demo", write_config("lora", max_steps=1, eval_strategy="no"))
    config = write_config("lora", output_dir=str(tmp_path / "again"))
    with pytest.raises(GlmtuneError, match="is an adapter's checkpoint, not a model\nhint: to train it further"):
        train(demo_data, str(first / "checkpoint-1"), config)
    config = write_config("sft", output_dir=str(tmp_path / "again"))
    with pytest.raises(GlmtuneError, match="is an adapter, but the configuration trains all weights"):
        train(demo_data, "demo", config, init_from=str(first / "checkpoint-1"))


def test_a_whole_model_is_nothing_to_start_an_adapter_from(demo_data: Path, write_config, tmp_path: Path) -> None:
    first = train(demo_data, "demo", write_config("sft", max_steps=1, eval_strategy="no"))
    config = write_config("lora", output_dir=str(tmp_path / "again"))
    for name in ("demo", str(first), str(first / "checkpoint-1"), "acme/glm"):
        with pytest.raises(GlmtuneError) as caught:
            train(demo_data, "demo", config, init_from=name)
        assert str(caught.value) == (
            f"`--init-from {name}` is a whole model, not an adapter\nhint: give it in the place of MODEL: "
            f"`glmtune train DATA_DIR {name} CONFIG`"
        )
    assert not (tmp_path / "again").exists()


def test_a_dry_run_leaves_nothing_behind(demo_data: Path, write_config, tmp_path: Path, capsys) -> None:
    config = write_config("sft", output_dir=str(tmp_path / "runs" / "own" / "run"))
    before = sorted(path.name for path in tmp_path.iterdir())
    train(demo_data, "demo", config, dry_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("preflight passed in") for line in lines)
    assert all(line.startswith("note: ") for line in lines if "no GPU found" in line)


def test_a_run_that_cannot_start_leaves_no_folder(demo_data: Path, write_config, tmp_path: Path) -> None:
    config = write_config("lora", lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="no")
    with pytest.raises(GlmtuneError, match=r"transformers refuses `training_args`: .*lr_scheduler_type.*requires"):
        train(demo_data, "demo", config)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_never_overwritten(demo_data: Path, write_config) -> None:
    config = write_config(max_steps=1, eval_strategy="no")
    run = train(demo_data, "demo", config)
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", config)
    assert str(caught.value) == (
        f"`{run}` already holds a run (`run.yaml`)\n"
        f"hint: go on with it: `glmtune resume {run}`; or choose another folder: "
        f"`--set training_args.output_dir={run}-2`"
    )


def test_rows_that_were_cut_or_left_out_are_listed(demo_data: Path, write_config, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    good = (demo_data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    long = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 600}]})
    (rows / "train.jsonl").write_text("\n".join([*good, "{broken", long]), encoding="utf-8")
    (rows / "dev.jsonl").write_text("\n".join(good), encoding="utf-8")
    run = train(rows, "demo", write_config(max_steps=1, eval_strategy="no"))
    rejects = json_lines(run / "rejects.jsonl")
    assert [line["where"] for line in rejects] == [f"{rows / 'train.jsonl'}:5", f"{rows / 'train.jsonl'}:6"]
    assert rejects[0]["reason"].startswith("not JSON: ")
    assert rejects[1]["reason"] == "cut at the length limit, trained in part"


def test_evaluation_does_not_change_the_training_that_follows(
    demo_data: Path, write_config, tmp_path: Path, read_losses
) -> None:
    runs = []
    for number, eval_steps in enumerate((1, 4)):
        sampling = {"max_new_tokens": 4, "do_sample": True}
        config = write_config(max_steps=4, eval_steps=eval_steps, output_dir=str(tmp_path / f"run-{number}"),
                              generation_config=sampling)  # fmt: skip
        runs.append(read_losses(train(demo_data, "demo", config)))
    assert runs[0] == runs[1]
    assert all(math.isfinite(loss) for loss in runs[0].values())
