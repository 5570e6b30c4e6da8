"""Where a run is reported beside its own folder: TensorBoard, SwanLab, and transformers' other integrations."""

from __future__ import annotations

from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from glmtune.config.run_config import RunConfig
from glmtune.errors import GlmtuneError, require

PIP_NAMES = {
    "comet_ml": "comet-ml",
    "dagshub": "dagshub mlflow",
    "swanlab": "'glmtune[swanlab]'",  # the versions that work
}
"""What to install for a reporter that has another name there."""

UNLISTED = ("azure_ml", "flyte", "kubeflow")
"""Reporters that transformers leaves out of its list of what is installed; it checks them later itself."""


def reporters(config: RunConfig) -> list[str]:
    """Return the names of what a run reports to; `swanlab` switches SwanLab as in the original."""
    names = config.training_args.get("report_to") or []
    names = [names] if isinstance(names, str) else list(names)
    if config.swanlab in ("local", "cloud"):
        return [name for name in names if name not in ("none", "swanlab")] + ["swanlab"]
    return names


def check_reporters(config: RunConfig) -> None:
    """Raise where the package of a reporter is missing: at the start, not after all rows are encoded."""
    for name in reporters(config):
        if name in ("all", "none", *UNLISTED):
            continue
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            raise GlmtuneError(f"`training_args.report_to`: {error}", where="training_args.report_to") from None
        if name not in get_available_reporting_integrations():
            raise GlmtuneError(
                f"the run reports to `{name}`, which is not installed",
                fix=f"run `pip install {PIP_NAMES.get(name, name)}`, or take it out of the configuration",
            )
    if config.swanlab == "local":
        require("swanboard", extra="swanlab")  # SwanLab's own local mode only logs an error without it
