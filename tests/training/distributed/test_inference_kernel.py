"""DeepSpeed asks the table that we edit before it compiles what no training calls; another DeepSpeed might not."""

from __future__ import annotations

from importlib import import_module

import pytest

from glmtune.training.distributed.inference_kernel import KERNEL, skip_inference_kernel

deepspeed = pytest.importorskip("deepspeed")


def test_the_kernel_is_compiled_unless_it_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    compiled: list[str] = []
    builder = import_module("deepspeed.ops.op_builder.cpu.comm").ShareMemCommBuilder
    assert builder.NAME == KERNEL
    monkeypatch.setattr(builder, "load", lambda self: compiled.append(self.name))
    build = import_module("deepspeed.comm.torch").build_shm_op
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, KERNEL, True)
    build()
    assert compiled == [KERNEL]
    skip_inference_kernel()
    assert build() is None
    assert compiled == [KERNEL]
