"""What libraries log is no result: stdout belongs to our own output, which other programs read."""

from __future__ import annotations

import logging

NO_GPU = "Setting accelerator to CPU"
"""Begins what DeepSpeed warns of wherever it is imported without a GPU, as transformers does to save any model."""


NO_RUNTIME = "No CUDA runtime is found"
"""Begins what torch warns of where DeepSpeed is imported on a machine that has CUDA's compiler and no GPU."""

NO_FASTER_CPU = "Failed to load CPU gemm_4bit_forward"
"""Begins what bitsandbytes warns of on import where one more package would make 4 bits faster on a CPU."""


def keep_stdout_for_results() -> None:
    """Send to stderr what DeepSpeed logs, whose own handler writes to stdout; words on the missing GPU to nobody."""
    for name in ("torch.utils.cpp_extension", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_says_more_than_no_gpu)
    # Before DeepSpeed is imported: it logs while it is, and a filter of its logger is asked before its handlers are.
    logging.getLogger("DeepSpeed").addFilter(_to_stderr)


def _says_more_than_no_gpu(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith((NO_RUNTIME, NO_FASTER_CPU))


def _to_stderr(record: logging.LogRecord) -> bool:
    if not record.getMessage().startswith(NO_GPU) and logging.lastResort is not None:
        logging.lastResort.handle(record)
    return False
