"""FSDP as it is asked for: in the configuration or by `accelerate launch`; what cannot work is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glmtune import GlmtuneError, load_config
from glmtune.config.run_config import config_from_mapping
from glmtune.training.distributed.fsdp import with_accelerates_fsdp
from glmtune.training.distributed.sharding import check_sharding

BY_ACCELERATE = {  # what `accelerate launch --use_fsdp --fsdp_version 2` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GlmDecoderLayer",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.parametrize("value", [True, False])
def test_fsdp_is_switched_by_true_and_false(value: bool, write_config: Callable[..., Path]) -> None:
    assert load_config(write_config(fsdp=value)).training_args["fsdp"] is value


def test_the_settings_of_accelerate_are_kept_for_a_resumed_run(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in BY_ACCELERATE.items():
        monkeypatch.setenv(name, value)
    config = with_accelerates_fsdp(load_config(write_config()))
    check_sharding(config)
    assert config.training_args["fsdp"] is True
    assert config.training_args["fsdp_config"] == {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": False,
        "transformer_layer_cls_to_wrap": ["GlmDecoderLayer"],
        "min_num_params": 100_000_000,
        "activation_checkpointing": False,
    }
    again = config_from_mapping(config.source, where="run.yaml")
    assert again.training_args["fsdp_config"] == config.training_args["fsdp_config"]


def test_the_configurations_own_settings_go_before_those_of_accelerate(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    config = load_config(write_config(fsdp=True))
    assert with_accelerates_fsdp(config) is config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": True, "deepspeed": {"zero_optimization": {"stage": 2}}},
         "`training_args.fsdp` and `training_args.deepspeed` exclude each other"),
        ({"fsdp": True, "fsdp_config": "fsdp.json"},
         "`training_args.fsdp_config` is the file `fsdp.json`, which a resumed run may not find\n"
         "hint: write its keys and values in the place of its name"),
        ({"fsdp": True, "fsdp_config": {"version": 1}},
         "`training_args.fsdp_config.version` is `1`; expected `2`: FSDP1 is not supported: transformers drops it\n"
         "hint: with `accelerate launch`: `--fsdp_version 2`"),
        ({"fsdp": True, "fsdp_config": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}},
         "`training_args.fsdp_config.state_dict_type` is `SHARDED_STATE_DICT`; expected `FULL_STATE_DICT`: "
         "a checkpoint holds whole weights\nhint: leave `state_dict_type` out"),
        ({"fsdp": True, "fsdp_config": {"activation_checkpointing": True}},
         "FSDP's own checkpointing of activations does not work with adapters: it renames their layers\n"
         "hint: set `training_args.gradient_checkpointing: true` instead"),
    ],
)  # fmt: skip
def test_what_fsdp_cannot_do_is_refused(settings: dict, message: str, write_config: Callable[..., Path]) -> None:
    config = load_config(write_config("lora", **settings))
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(config)
    assert str(caught.value) == message


def test_fsdp_in_one_process_is_refused(write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(write_config(fsdp=True)))
    assert str(caught.value) == ("FSDP shards a model over several processes, and there is one\nhint: add `--nproc N`")


def test_a_run_that_began_without_fsdp_is_not_resumed_with_it(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(write_config()))
    assert str(caught.value) == (
        "the run began without FSDP, and `accelerate launch` asks for it\n"
        "hint: leave `--use_fsdp` out (in accelerate's file: `distributed_type: MULTI_GPU`), or use `torchrun`"
    )
