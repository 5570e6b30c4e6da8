"""Puts the answers of a torch in place that was built for CUDA, on a machine without GPU or driver (torch 2.15)."""

import torch

NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"


def no_driver(*_: object, **__: object) -> None:
    raise RuntimeError(NO_DRIVER)


def current_accelerator(check_available: bool = False) -> torch.device | None:
    return None if check_available else torch.device("cuda")


torch.accelerator.current_accelerator = current_accelerator
torch.accelerator.is_available = lambda: False
torch.cuda.is_available = lambda: False
torch.cuda.device_count = lambda: 0
torch.cuda._lazy_init = no_driver
torch.cuda.is_bf16_supported = lambda including_emulation=True: False
torch.backends.cuda.is_built = lambda: True
torch.version.cuda = "13.2"
