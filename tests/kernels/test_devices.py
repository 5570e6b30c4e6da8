"""Which device a command computes on, and in which type: asked of torch, whose answers are replaced here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from glmtune.modeling.loading import default_device, default_dtype
from glmtune.training.callbacks.active import computing_type


@pytest.fixture
def built_for(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts the answers of a torch for a device in place."""

    def build(device: str, *, is_there: bool) -> None:
        def current_accelerator(check_available: bool = False) -> torch.device | None:
            return torch.device(device) if is_there or not check_available else None

        monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)

    return build


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "hpu"])
def test_a_device_counts_where_it_is_there_not_where_torch_was_built_for_it(device: str, built_for) -> None:
    built_for(device, is_there=True)
    assert default_device() == torch.device(device)
    built_for(device, is_there=False)
    assert default_device() == torch.device("cpu")
    assert default_dtype() is torch.float32


@pytest.mark.parametrize(("is_new", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_apple_gpu_computes_in_bfloat16_where_its_system_does(
    is_new: bool, dtype: torch.dtype, built_for, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def is_macos_or_newer(major: int, minor: int) -> bool:
        asked.append((major, minor))
        return is_new

    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", is_macos_or_newer)
    built_for("mps", is_there=True)
    assert default_dtype() is dtype
    assert asked == [(14, 0)]


@pytest.mark.parametrize("has_type", [True, False])
def test_a_gpu_computes_in_bfloat16_where_it_does_without_emulation(
    has_type: bool, built_for, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: has_type and not including_emulation
    )
    built_for("cuda", is_there=True)
    assert default_dtype() is (torch.bfloat16 if has_type else torch.float32)


@pytest.mark.parametrize(
    ("device", "bf16", "fp16", "text"),
    [("cpu", False, False, ""), ("mps", True, False, "bfloat16 on mps"), ("mps", False, False, "float32 on mps"),
     ("cuda", False, True, "float16 on cuda")],
)  # fmt: skip
def test_the_active_line_says_what_an_accelerator_computes_in(device: str, bf16: bool, fp16: bool, text: str) -> None:
    assert computing_type(SimpleNamespace(device=torch.device(device), bf16=bf16, fp16=fp16)) == text
