"""Attention that cannot work on a machine: told before anything is read."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from glmtune import GlmtuneError, load_config
from glmtune.training.setup.machine import ATTENTION_PACKAGES, _check_attention, check_machine

OUT = "leave `attn_implementation` out, which is torch's own attention"
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ATTENTION_PACKAGES)
def test_flash_attention_without_its_package_names_it(name: str) -> None:
    package = ATTENTION_PACKAGES[name]
    if importlib.util.find_spec(package.module) or importlib.util.find_spec("kernels"):
        pytest.skip(f"`{package.module}` or `kernels` is installed")
    with pytest.raises(GlmtuneError) as caught:
        _check_attention(name, GPU)
    assert str(caught.value) == (
        f"`{package.module}` is not installed, which this attention needs\n  --> attn_implementation: {name}\n"
        f"hint: run `pip install {package.install}` and try again, or {OUT}"
    )


def test_flash_attention_needs_a_gpu(write_config) -> None:
    with pytest.raises(GlmtuneError, match="this attention needs a GPU, and none was found"):
        check_machine(load_config(write_config(use_cpu=True, top={"attn_implementation": "flash_attention_2"})))


def test_attention_of_the_hub_needs_what_downloads_it() -> None:
    if importlib.util.find_spec("kernels"):
        pytest.skip("`kernels` is installed")
    with pytest.raises(GlmtuneError, match="`kernels` is not installed, which downloads this attention"):
        _check_attention("kernels-community/flash-attn", CPU)


def test_an_unknown_attention_is_told_with_the_known_ones() -> None:
    with pytest.raises(GlmtuneError) as caught:
        _check_attention("flash_atention_2", CPU)
    assert caught.value.what == "transformers knows no such attention (did you mean `flash_attention_2`?)"
    assert "`eager`" in str(caught.value.fix)
    assert "`sdpa`" in str(caught.value.fix)


@pytest.mark.parametrize("name", [None, "eager", "sdpa", "flex_attention"])
def test_torchs_own_attention_needs_nothing(name: str | None, write_config) -> None:
    config = load_config(write_config(use_cpu=True, top={"attn_implementation": name}))
    check_machine(config)
    assert config.attn_implementation == name
