"""What DeepSpeed cannot do here is refused before anything is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune import GlmtuneError, load_config
from glmtune.training.distributed.sharding import check_sharding

CONFIGS = Path(__file__).parents[3] / "configs"
GATHERED = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
NVME_FIX = "hint: in a copy of the file, set it to a folder on an NVMe disk of this machine"


def refusal(config: Path, **zero_optimization: Any) -> str:
    file = config.parent / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero_optimization}), encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(config, [f"training_args.deepspeed={file}"]))
    return str(caught.value).replace(str(file), "DS_FILE")


def test_zero_3_without_weights_in_its_checkpoints_is_refused(write_config: Callable[..., Path]) -> None:
    assert refusal(write_config(), stage=3) == (
        "the checkpoints would hold no weights: under ZeRO-3 they have to be gathered for it\n"
        "  --> DS_FILE\n"
        "hint: set `zero_optimization.stage3_gather_16bit_weights_on_model_save` to true"
    )


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
@pytest.mark.parametrize("path", ["/path/to/a/folder/on/nvme", None])
def test_offloading_to_a_folder_that_is_not_there_names_the_key(
    key: str, path: str | None, write_config: Callable[..., Path]
) -> None:
    offload = {"device": "nvme", "nvme_path": path}
    assert refusal(write_config(), **GATHERED, **{key: offload}) == (
        f"`zero_optimization.{key}.nvme_path` is `{path}`, which is not a folder that can be written to\n"
        f"  --> DS_FILE\n{NVME_FIX}"
    )


def test_the_shipped_nvme_file_has_to_be_given_a_folder(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(), [f"training_args.deepspeed={CONFIGS / 'ds_zero3_nvme.json'}"])
    with pytest.raises(GlmtuneError, match=r"`zero_optimization\.offload_optimizer\.nvme_path` is `/path/to/a/folder"):
        check_sharding(config)


def test_an_optimizer_that_deepspeed_would_replace_is_refused(write_config: Callable[..., Path]) -> None:
    config = write_config(optim="adafactor")
    assert refusal(config, stage=2, offload_optimizer={"device": "cpu"}) == (
        "`training_args.optim: adafactor` does not run on the CPU under DeepSpeed, which would take Adam instead\n"
        "  --> DS_FILE\n"
        "hint: leave `optim` out, which is AdamW; or do not offload the optimizer"
    )


def test_deepspeed_by_accelerates_own_settings_is_refused(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "")
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(write_config()))
    assert str(caught.value) == (
        "accelerate's own DeepSpeed settings are not read: a resumed run would not know them\n"
        "hint: leave `--use_deepspeed` out of `accelerate launch` (in its file: `distributed_type: MULTI_GPU`), "
        "and give glmtune the DeepSpeed file: `--deepspeed ds_zero3.json`"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "broken", "message"),
    [
        ("cpu", "CXX", "error: DeepSpeed cannot compile its `cpu_adam`, which the offload needs: "),
        ("nvme", "CC", "error: DeepSpeed cannot read and write NVMe disks here: its `async_io` needs libaio and a C++ "
                       "compiler"),
    ],
)  # fmt: skip
def test_an_offload_that_cannot_be_compiled_is_refused_with_the_reason(
    device: str, broken: str, message: str, write_config: Callable[..., Path], demo_data: Path, tmp_path: Path
) -> None:
    offload = {"device": device, "nvme_path": str(tmp_path)}
    (tmp_path / "ds.json").write_text(
        json.dumps({"zero_optimization": {**GATHERED, "offload_optimizer": offload}}), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "train", str(demo_data), "demo", str(write_config()),
         "--set", "training_args.deepspeed=ds.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {broken: "false", "TORCH_EXTENSIONS_DIR": str(tmp_path / "compiled"),
                          "PYTHONPATH": str(CONFIGS.parent)},
    )  # fmt: skip
    assert done.returncode == 2
    # A compiler that takes longer than three seconds to fail is announced.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: DeepSpeed compiles")]
    assert lines[0].startswith(message), done.stderr
    assert lines[1] == f"  --> {tmp_path / 'ds.json'}"
    assert not (tmp_path / "run").exists()
