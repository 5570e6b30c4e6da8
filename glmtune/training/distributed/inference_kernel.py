"""A kernel of DeepSpeed's that no training calls, and that every run on CPUs would compile before its first step."""

from __future__ import annotations

KERNEL = "deepspeed_shm_comm"


def skip_inference_kernel() -> None:
    """Keep DeepSpeed from compiling its all-reduce for inference on CPUs: half a minute of two cores, and a compiler.

    Before it compiles, it looks into a table of what this machine can compile, and says of it that edits persist.
    """
    import deepspeed

    compatible = getattr(deepspeed.ops, "__compatible_ops__", {})
    if KERNEL in compatible:
        compatible[KERNEL] = False
