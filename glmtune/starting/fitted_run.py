"""A run for which a configuration is fitted to the rows where none is given, and kept in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from glmtune.config.run_config import AnyConfig, RunConfig, as_config
from glmtune.console import notice
from glmtune.python_arguments import expect_mapping, expect_overrides, expect_paths
from glmtune.training import run as training

from .choices import METHODS, check_method, refuse_unfitted
from .run import first_config, reserved_run_folder, summary


def train(
    data_dir: str | Path,
    model: str,
    config: AnyConfig | None = None,
    *,
    method: str | None = None,
    columns: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    base_model: str | None = None,
    init_from: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Train a model on rows and return the run's folder.

    Args:
        data_dir: Folder that holds the files which the configuration names; without one, the rows: a file, a pattern,
            a folder, or `hub:OWNER/NAME`.
        model: A model folder, hub name or `demo`; or an adapter's checkpoint, whose base is then trained anew.
        config: A YAML file, the keys and values of one as a mapping, or a configuration loaded before. Without it,
            what `glmtune.first_config` fits to rows, model and machine; the run's folder keeps it.
        method: Without a configuration: `lora` (as by default), `ptuning_v2` or `sft`.
        columns: Key of the format: what the files call it. Names that are known are found where nothing is configured.
        overrides: `key=value` strings on top of the configuration.
        base_model: Where the base model of `init_from` is now, if it has moved.
        init_from: A checkpoint whose weights the new run starts from; its steps and optimizer are not taken over.
        dry_run: Run the preflight alone: a step, an evaluation, a save and a reload on the longest rows.
    """
    expect_paths(data_dir=data_dir)
    expect_mapping(columns=columns)
    expect_overrides(overrides)
    check_method(method)
    refuse_unfitted(data_dir, model, config, method)
    run = configured_run(
        data_dir, model, config, method=method, columns=columns, overrides=overrides, is_kept=not dry_run
    )
    with run as (folder, whole, changes):
        return training.train(
            folder,
            model,
            whole,
            overrides=changes,
            base_model=base_model,
            init_from=init_from,
            dry_run=dry_run,
        )


@contextmanager
def configured_run(
    data: str | Path,
    model: str,
    config: AnyConfig | None,
    *,
    method: str | None,
    columns: Mapping[str, str] | None,
    overrides: Sequence[str],
    is_kept: bool,
) -> Iterator[tuple[str | Path, AnyConfig, Sequence[str]]]:
    """Yield what `training.run.train` needs: the folder of the rows, the configuration, and changes on top of it.

    Args:
        data: As in `train`; so are all but the last.
        model: Its name or folder.
        config: The configuration; without it, one is fitted to the rows.
        method: What it trains, where it is fitted.
        columns: Key of the format: what the files call it.
        overrides: `key=value` strings on top of the configuration.
        is_kept: Whether the run leaves a folder, which is reserved meanwhile for a configuration that is fitted.
    """
    if config is None:
        with _fitted_config(data, model, method, columns or {}, overrides, is_kept=is_kept) as (folder, fitted):
            yield folder, fitted, ()
    else:
        mapped = (f"data_config.columns.{key}={json.dumps(name)}" for key, name in (columns or {}).items())
        yield data, config, [*overrides, *mapped]


@contextmanager
def _fitted_config(
    data: str | Path,
    model: str,
    method: str | None,
    columns: Mapping[str, str],
    overrides: Sequence[str],
    *,
    is_kept: bool,
) -> Iterator[tuple[Path, RunConfig]]:
    """Yield the folder of the rows, and the configuration that a run without one has; says what was chosen."""
    method = method or METHODS[0]
    trusts = any(override.replace(" ", "").lower() == "trust_remote_code=true" for override in overrides)
    with reserved_run_folder(str(data), method) if is_kept else nullcontext() as run_folder:
        first = first_config(
            data, model, method=method, columns=columns, output_dir=run_folder, trust_remote_code=trusts
        )
        config = as_config(first.config, overrides)
        for line in (*first.notes, *summary(config, is_kept=is_kept)):
            notice(line)
        yield first.data_dir, config
