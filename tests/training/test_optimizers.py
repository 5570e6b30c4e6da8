"""`training_args.optim`: every value works, or says at the start why not."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from glmtune import GlmtuneError, load_config, resume, train
from glmtune.training.folder.foreign_code import refuse_code
from glmtune.training.setup.machine import OPTIMIZER_PACKAGES, check_machine, check_optimizer_settings

NO_GPU = "a paged optimizer moves its state between the GPU's memory and the machine's, and this run has no GPU"
INSTALL = "hint: run `pip install {}` and try again, or leave `optim` out, which is AdamW"

REFUSED = {
    "adamw_torch_8bit": ("`torchao` is not installed, which this optimizer needs", INSTALL.format("torchao")),
    "galore_adamw": ("`galore_torch` is not installed, which this optimizer needs", INSTALL.format("galore-torch")),
    "apollo_adamw": ("`apollo_torch` is not installed, which this optimizer needs", INSTALL.format("apollo-torch")),
    "lomo": ("`lomo_optim` is not installed, which this optimizer needs", INSTALL.format("lomo-optim")),
    "grokadamw": ("`grokadamw` is not installed, which this optimizer needs", INSTALL.format("grokadamw")),
    "stable_adamw": ("`optimi` is not installed, which this optimizer needs", INSTALL.format("torch-optimi")),
    "schedule_free_adamw": (
        "`schedulefree` is not installed, which this optimizer needs",
        INSTALL.format("schedulefree"),
    ),
    "galore_adamw_layerwise": (
        "an optimizer of each layer's own keeps its state where no checkpoint holds it: the run could not be resumed",
        "hint: take `galore_adamw`",
    ),
    "paged_adamw_8bit": (NO_GPU, "hint: take `adamw_bnb_8bit`, or train on a machine with a GPU"),
    "paged_lion_32bit": (NO_GPU, "hint: take `adamw_torch`, or train on a machine with a GPU"),
}
OWN = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
"""Optimizers of torch and transformers, which need no package."""


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_work_here_is_refused_in_one_error(name: str, write_config) -> None:
    package = OPTIMIZER_PACKAGES[name].module
    if package != "bitsandbytes" and importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    what, hint = REFUSED[name]
    with pytest.raises(GlmtuneError) as caught:
        check_machine(load_config(write_config(optim=name, use_cpu=True)))
    assert str(caught.value) == f"{what}\n  --> training_args.optim: {name}\n{hint}"


def test_every_optimizer_of_transformers_is_known() -> None:
    assert {name.value for name in OptimizerNames} <= OWN | OPTIMIZER_PACKAGES.keys()


def test_an_optimizer_that_cannot_work_here_is_told_before_any_row_is_encoded(
    demo_data: Path, write_config, tmp_path: Path, capsys
) -> None:
    with pytest.raises(GlmtuneError):
        train(demo_data, "demo", write_config(optim="paged_adamw_8bit", use_cpu=True))
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "run").exists()


def test_settings_that_an_optimizer_cannot_read_are_refused_before_the_first_step(
    demo_data: Path, write_config, tmp_path: Path
) -> None:
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(optim="sgd", optim_args="momentum 0.9", eval_strategy="no"))
    assert str(caught.value) == (
        "transformers refuses the optimizer: not enough values to unpack (expected 2, got 1)\n"
        "  --> training_args.optim: sgd\n"
        "hint: look at `training_args.optim_args`, which is text such as `beta1=0.9,beta2=0.99`"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "written", "idle"),
    [
        ("adamw_torch_fused", "foo=bar", ["foo"]),
        ("adamw_torch", "beta1=0.8,fused=true", ["beta1", "fused"]),
        ("sgd", "momentum=0.9, nesterov=true", []),
        ("sgd", "momentum=0", []),
        ("sgd", "momentun=0.9,nesterov=false", ["momentun"]),
        ("rmsprop", "centered=true,alpha=0.9,eps=1e-8,beta1=0.9", ["beta1"]),
        ("adagrad", "lr_decay=0.1,rho=1", ["rho"]),
        ("adafactor", "scale_parameter=true", ["scale_parameter"]),
        ("adamw_torch", None, []),
    ],
)
def test_settings_that_an_optimizer_does_not_read_are_noted(
    name: str, written: str | None, idle: list[str], tmp_path: Path, capsys
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, optim_args=written, use_cpu=True)
    check_optimizer_settings(arguments, torch.nn.Linear(2, 2))
    assert capsys.readouterr().err.splitlines() == [
        f"note: `training_args.optim_args`: `{key}` does nothing: the optimizer `{name}` does not read it"
        for key in idle
    ]
    assert arguments.optim_args == written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit", "adafactor"])
def test_a_resumed_run_repeats_the_uninterrupted_one_with_other_optimizers(
    name: str, demo_data: Path, write_config, read_losses, read_weights
) -> None:
    """Full training: 8 bits are for weights of 4,096 numbers and more, which adapters this small do not have."""
    if name in OPTIMIZER_PACKAGES:
        pytest.importorskip("bitsandbytes")
    run = train(demo_data, "demo", write_config("sft", optim=name, max_steps=4, save_steps=2, eval_strategy="no"))
    losses, weights = read_losses(run), read_weights(run / "checkpoint-4")
    assert losses[4] < losses[1]
    if name in OPTIMIZER_PACKAGES:
        state = torch.load(run / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
        types = {tensor.dtype for each in state.values() for tensor in tensors_in(each)}
        assert torch.uint8 in types

    shutil.rmtree(run / "checkpoint-4")
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    resume(run)
    assert read_losses(run) == {step: loss for step, loss in losses.items() if step > 2}
    resumed = read_weights(run / "checkpoint-4")
    assert all(resumed[weight].equal(tensor) for weight, tensor in weights.items())


def tensors_in(state: dict) -> list[torch.Tensor]:
    """Return the tensors of one weight's state; bitsandbytes nests them."""
    inner = [value for value in state.values() if isinstance(value, dict)]
    own = [value for value in state.values() if isinstance(value, torch.Tensor)]
    return own + [tensor for each in inner for tensor in tensors_in(each)]


def test_a_paged_state_is_no_foreign_code(tmp_path: Path) -> None:
    """The tensors of bitsandbytes' paged state are marked with attributes, which torch saves along."""
    state = torch.zeros(4)
    state.is_paged = True
    state.page_deviceid = 0
    torch.save({"state": {0: {"state1": state}}}, tmp_path / "optimizer.pt")
    refuse_code(tmp_path)
    assert torch.load(tmp_path / "optimizer.pt", weights_only=True)["state"][0]["state1"].equal(torch.zeros(4))


@pytest.mark.parametrize(
    ("kind", "kwargs", "told"),
    [
        ("cosine_with_min_lr", {"min_lr_rte": 0.1}, "(did you mean `min_lr_rate`?)"),
        ("cosine_with_min_lr", {}, "`cosine_with_min_lr`"),
        ("linear", {"num_cycles": 2}, "`linear`"),
        ("cosine", {"num_cycle": 2}, "(did you mean `num_cycles`?)"),
    ],
)
def test_keys_that_a_scheduler_does_not_have_are_told_before_the_run(
    kind: str, kwargs: dict, told: str, demo_data: Path, write_config, tmp_path: Path
) -> None:
    config = write_config(lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs, eval_strategy="no")
    with pytest.raises(GlmtuneError, match="transformers refuses `lr_scheduler_kwargs`") as caught:
        train(demo_data, "demo", config)
    assert told in caught.value.what
    assert caught.value.where == "training_args.lr_scheduler_kwargs"
    assert not (tmp_path / "run").exists()
