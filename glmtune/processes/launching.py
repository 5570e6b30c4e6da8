"""Start the processes of a run on one machine, as `torchrun` would: `--nproc 8` needs no launcher around it.

The launcher is torch's elastic agent, in a thread; the main thread passes on the signals that end a run. The workers
live in sessions of their own, so that a Ctrl-C in the terminal reaches the launcher alone, and from it each worker
once. A worker that gets a signal saves and ends by itself; nothing here kills one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from glmtune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_PREEMPTED, GlmtuneError, RunFailure
from glmtune.operating_system import CAN_LEAD_WORKERS, signals

from .own_path import shut_out_current_folder

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

PASSED_ON = signals("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
MONITOR_SECONDS = 0.1
LAUNCHER_VARIABLE = "GLMTUNE_LAUNCHER_PID"
STRANGE_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}
"""Variable that holds a number of processes, and the command that sets it but no `RANK` and `WORLD_SIZE`."""
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class GroupEnded(SystemExit):
    """The workers have ended and said why; the launcher has only their exit code to add."""


def start_group(num_processes: int | None) -> bool:
    """Run this very command in that many processes where a number is given; returns whether it has been done so."""
    refuse_strange_launchers()
    if num_processes is None:
        return False
    launch(num_processes, worker_arguments(sys.argv[1:]))
    return True


def worker_arguments(argv: Sequence[str]) -> list[str]:
    """Return what python is to run in each worker: this command without `--nproc N`."""
    kept: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--nproc":
            next(arguments, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    # `main` has taken this one out for itself.
    return ["-m", "glmtune", *(["--debug"] if os.environ.get("GLMTUNE_DEBUG") else []), *kept]


def launch(num_processes: int, python_arguments: Sequence[str]) -> None:
    """Run python with these arguments in several processes of this machine, one for each GPU.

    Raises:
        GlmtuneError: A launcher is at work already, or there are not as many GPUs.
        RunFailure: A worker was killed.
        GroupEnded: A worker failed, or was stopped by a signal; its exit code is ours.
    """
    _refuse_impossible(num_processes)
    # As torchrun does it: the threads of many processes would wait for each other on the same cores.
    if num_processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    shut_out_current_folder()
    with tempfile.TemporaryDirectory(prefix="glmtune-launch-") as log_folder:
        agent = _Agent(num_processes, python_arguments, Path(log_folder))
        with _torch_silenced(), _signals_passed_on() as received:
            agent.start()
            agent.join()
    if agent.failures:
        raise _ending(agent.failures, num_processes, received)
    if agent.error is not None:
        raise agent.error


def end_with_launcher() -> None:
    """Have the kernel send this worker SIGTERM when its launcher dies, even of SIGKILL: it saves and ends.

    Does nothing in a process that `launch` did not start, and on systems other than Linux.
    """
    launcher = int(os.environ.get(LAUNCHER_VARIABLE, "0"))
    if not launcher or not sys.platform.startswith("linux"):
        return
    if os.getppid() == launcher:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(launcher, 0)
    except ProcessLookupError:
        sys.exit(EXIT_FAILURE)  # it died before the kernel was asked


def adopt_deepspeed_launcher() -> None:
    """Take DeepSpeed's launcher for `torchrun`: its `--local_rank=N` is no option of ours, and one name differs."""
    if "LOCAL_RANK" not in os.environ:
        return
    sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank=")]
    if "LOCAL_SIZE" in os.environ:
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])


def refuse_strange_launchers() -> None:
    """Raise in one of several processes that know nothing of each other: each would take the run for its own."""
    if "WORLD_SIZE" in os.environ:
        return
    for variable, launcher in STRANGE_LAUNCHERS.items():
        num_processes = os.environ.get(variable, "1")
        if num_processes != "1":
            raise GlmtuneError(
                f"`{launcher}` has started {num_processes} processes that know nothing of each other "
                f"(`{variable}` is {num_processes})",
                fix=f"have it start one on each machine: `{launcher} --ntasks-per-node=1 torchrun ... -m glmtune`"
                if launcher == "srun"
                else "start `torchrun -m glmtune` on each machine instead",
            )


class _Agent(threading.Thread):
    """Torch's elastic agent, which starts the workers and waits for them; when one fails, it ends the others."""

    def __init__(self, num_processes: int, python_arguments: Sequence[str], log_folder: Path) -> None:
        super().__init__(name="elastic-agent", daemon=True)
        self.num_processes = num_processes
        self.python_arguments = python_arguments
        self.log_folder = log_folder
        self.failures: dict[int, ProcessFailure] = {}
        """By rank, where any worker ended with another exit code than 0."""
        self.error: Exception | None = None
        """What the agent itself failed of."""

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            # The name of a machine cannot always be resolved, and on one machine it need not be.
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=MONITOR_SECONDS,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=str(self.log_folder)),
        )
        try:
            elastic_launch(config, sys.executable)(*self.python_arguments)
        except ChildFailedError as failed:
            self.failures = failed.failures
        except Exception as error:  # the main thread raises it
            self.error = error


def _refuse_impossible(num_processes: int) -> None:
    if not CAN_LEAD_WORKERS:
        raise GlmtuneError(
            "`--nproc` needs signals and groups of processes, which this system does not have",
            fix="leave it out, and one process trains; or use Linux, on Windows in WSL",
        )
    if "WORLD_SIZE" in os.environ:
        raise GlmtuneError(
            "`--nproc` starts the processes itself, but a launcher has done so already: `WORLD_SIZE` is set",
            fix="leave `--nproc` out, or leave out the launcher (`torchrun`, `accelerate launch`, `deepspeed`)",
        )
    import torch

    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < num_processes:
        raise GlmtuneError(
            f"`--nproc {num_processes}` is more than the {num_gpus} GPU{'s' * (num_gpus > 1)} of this machine",
            fix=f"use `--nproc {num_gpus}`; to train on the CPU, write `CUDA_VISIBLE_DEVICES=` before the command",
        )


@contextlib.contextmanager
def _torch_silenced() -> Iterator[None]:
    """Keep the agent from telling in its own words what the workers and we say."""
    if os.environ.get("GLMTUNE_DEBUG"):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """Pass signals on to the workers; yields a list of those that came."""
    import psutil

    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        workers = psutil.Process().children()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(number)
        if not workers:
            # Nothing has begun; a worker that is just being started ends with this process.
            raise GroupEnded(_exit_code_after(number))

    # What was ignored stays ignored, as `nohup` wants it.
    former = {number: signal.getsignal(number) for number in PASSED_ON}
    handled = [number for number, handler in former.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, pass_on)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, former[number])


def _ending(failures: dict[int, ProcessFailure], num_processes: int, received: list[int]) -> SystemExit | RunFailure:
    """Return what the launcher ends with: the exit code of the first failure, or which worker was killed."""

    def order(rank: int) -> tuple[int, int]:
        """By time in seconds; within one, a death comes before what others ended with because of it."""
        code = failures[rank].exitcode
        is_ended_by_agent = -code == signal.SIGTERM and signal.SIGTERM not in received
        return failures[rank].timestamp, 2 if is_ended_by_agent else 0 if code < 0 else 1

    rank = min(failures, key=order)
    code = failures[rank].exitcode
    if code >= 0:
        return GroupEnded(code)
    if -code in received:
        return GroupEnded(_exit_code_after(-code))  # a worker that was too young to know what to do with it
    reason = " (out of memory?)" if -code == signal.SIGKILL else ""
    return RunFailure(f"process {rank + 1} of {num_processes} (rank {rank}) was killed by signal {-code}{reason}")


def _exit_code_after(number: int) -> int:
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
