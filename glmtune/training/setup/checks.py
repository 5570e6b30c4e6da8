"""Whether a run can be done here as its configuration asks: all that is found out before a row is read."""

from __future__ import annotations

from glmtune.config.run_config import RunConfig
from glmtune.kernels.loss import check_loss_kernel
from glmtune.training.distributed.sharding import check_sharding

from .machine import check_machine
from .trackers import check_reporters


def check_run(config: RunConfig) -> None:
    """Raise where a package, a GPU or a compiler is missing, or where parts of the configuration do not go together."""
    check_reporters(config)
    check_sharding(config)
    check_loss_kernel(config.loss_kernel)
    check_machine(config)
