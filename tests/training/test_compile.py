"""`torch_compile`: the same losses as without it, or the reason why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glmtune import GlmtuneError, load_config, resume, train
from glmtune.training.setup.machine import check_machine

REPOSITORY = Path(__file__).parents[2]


# Compiled code draws other random numbers for dropout.
METHODS = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "sft": None,
}


def steps(run: Path, read_losses) -> list[float]:
    losses = read_losses(run)
    return [losses[step] for step in sorted(losses)]


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so(demo_data: Path, write_config, tmp_path: Path) -> None:
    config = write_config(torch_compile=True, use_cpu=True)
    environment = os.environ | {
        "CXX": "no-such-compiler", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "train", str(demo_data), "demo", str(config)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: torch cannot compile here: it needs a C++ compiler, such as `g++` ("), lines
    assert lines[1:] == [
        "  --> training_args.torch_compile",
        "hint: install it, or leave `torch_compile` out: the run gives the same result without it",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "training_args", "what"),
    [
        ("lora", {"fsdp": True}, "`torch_compile` is not supported under DeepSpeed and FSDP"),
        (
            "ptuning_v2",
            {"gradient_checkpointing": True},
            "`torch_compile` is not supported for P-Tuning v2 with `gradient_checkpointing`: the compiler stops at "
            "each layer's hook that hands the prefix on",
        ),
    ],
)
def test_what_does_not_go_together_with_compiling_is_refused(
    method: str, training_args: dict, what: str, write_config
) -> None:
    with pytest.raises(GlmtuneError) as caught:
        check_machine(load_config(write_config(method, torch_compile=True, use_cpu=True, **training_args)))
    assert str(caught.value) == (
        f"{what}\n  --> training_args.torch_compile\n"
        "hint: leave `torch_compile` out: the run gives the same result without it"
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("method", "quantization"), [*((method, None) for method in METHODS), ("lora", "4bit")])
def test_a_traced_run_has_the_losses_of_a_plain_one_and_two_traces(
    method: str,
    quantization: str | None,
    demo_data: Path,
    write_config,
    read_losses,
    tmp_path: Path,
    capsys,
) -> None:
    """Traced, not translated into machine code, which takes minutes: rows of many lengths, the first traced alone."""
    if quantization:
        pytest.importorskip("bitsandbytes")
    # Padded rows have other companions in a step than packed ones.
    top = {"quantization": quantization, "packing": False, "peft_config": METHODS[method]}
    settings = {"max_steps": 4, "eval_strategy": "no", "use_cpu": True}
    plain = train(demo_data, "demo", write_config(top=top, output_dir=str(tmp_path / "plain"), **settings))
    assert "compiled" not in capsys.readouterr().err
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        traced = train(demo_data, "demo", write_config(top=top, torch_compile_backend="aot_eager", **settings))
    assert ", compiled on, " in capsys.readouterr().err
    assert steps(traced, read_losses) == pytest.approx(steps(plain, read_losses), rel=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_resumes_exactly(
    demo_data: Path, write_config, read_losses, read_weights, tmp_path: Path
) -> None:
    settings = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "use_cpu": True}
    top = {"packing": False, "peft_config": METHODS["lora"]}
    plain = train(demo_data, "demo", write_config(top=top, output_dir=str(tmp_path / "plain"), **settings))
    run = train(demo_data, "demo", write_config(top=top, torch_compile=True, **settings))
    losses, weights = read_losses(run), read_weights(run / "checkpoint-4")
    assert steps(run, read_losses) == pytest.approx(steps(plain, read_losses), rel=1e-6)

    shutil.rmtree(run / "checkpoint-4")
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    resume(run)
    assert read_losses(run) == {step: loss for step, loss in losses.items() if step > 2}
    resumed = read_weights(run / "checkpoint-4")
    assert all(resumed[name].equal(tensor) for name, tensor in weights.items())
