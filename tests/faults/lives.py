"""Processes that can be killed at any moment, forked from one that has imported everything: a life costs a second.

The parent must not have threads: a fork takes one thread along, and the locks of the others for ever.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.0005


def warm_up() -> None:
    """Import what a run imports; one thread, here and in every child."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    import importlib

    import torch

    torch.set_num_threads(1)
    for module in (
        "datasets.arrow_dataset",
        "glmtune.training.run",
        "glmtune.demo.model",
        "peft.tuners.lora",
        "transformers.models.glm.modeling_glm",
        "transformers.trainer_seq2seq",
        "accelerate.data_loader",
        "torch._dynamo",  # torch's optimizers import it at the first step
        "deepspeed",  # accelerate looks for it when it takes a wrapped model apart
        "glmtune.evaluation.metrics",
        "matplotlib.pyplot",
    ):
        importlib.import_module(module)
    import jieba

    jieba.initialize()
    _fill_caches()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # pyarrow's allocator has a thread of its own, and knows what to do at a fork.
    threads = [name for name in threads if not name.startswith("jemalloc")]
    assert len(threads) == 1, f"a parent with threads cannot be forked: {threads}"


def _fill_caches() -> None:
    """Do once what libraries remember, and keep Python from walking over it in every child."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from glmtune.console import quiet_libraries
    from glmtune.demo.model import demo_model_path

    with quiet_libraries():  # a progress bar would start a thread
        model = AutoModelForCausalLM.from_pretrained(demo_model_path())
        get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
        del model
    gc.collect()
    gc.freeze()


class Life:
    """One process that does one piece of work."""

    def __init__(self, work: Callable[[], Any], log: Path) -> None:
        """Begin to live; what the process says goes to `log`, which is made anew."""
        self.log = log
        self.exit_code: int | None = None
        log.write_bytes(b"")  # here, since the child may be killed before its first line of code
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _live(work, log)

    def has_ended(self) -> bool:
        """Whether the process has ended, by itself or not."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def wait_until(self, happened: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait until something has happened; False where the process ended before it did."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if happened():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing happened for {seconds} s:\n{self.told()}")
            time.sleep(POLL_SECONDS)
        return False

    def wait(self, seconds: float) -> None:
        """Let time pass, or less where the process ends before."""
        deadline = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() >= deadline, seconds + 1)

    def kill(self) -> None:
        """End the process as a power cut would, as far as it can tell; wait until it is gone."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self, seconds: float = 300) -> int:
        """Wait for the process to end by itself, and return its exit code."""
        self.wait_until(lambda: False, seconds)
        assert self.exit_code is not None
        return self.exit_code

    def told(self) -> str:
        """Return what the process has said so far."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""


def _live(work: Callable[[], Any], log: Path) -> None:
    """Do the work and end the process; never returns."""
    from glmtune.errors import GlmtuneError
    from glmtune.python_terms import spoken_on_the_command_line

    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with spoken_on_the_command_line():
            work()
        code = 0
    except GlmtuneError as error:
        # As the command line does it.
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
