"""A training run from beginning to end: the page to read first.

rows ──encode──▶ examples ─┐
model ──adapt──▶ trainable ┴─▶ GlmTrainer.train() ──▶ checkpoint-N
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from glmtune.config.run_config import AnyConfig, RunConfig, as_config
from glmtune.config.sections import training_fields
from glmtune.console import is_main_process, notice, quiet_libraries, say
from glmtune.encoded.dataset import EncodedData
from glmtune.errors import GlmtuneError
from glmtune.files.user_paths import refuse_unreadable_name, user_path
from glmtune.modeling.finding.links import refuse_links
from glmtune.modeling.finding.model_source import DEMO, checkpoints_of
from glmtune.processes.group_watch import watch_group
from glmtune.processes.signals import Preempted, heed_signals, stop_request
from glmtune.processes.undoing import undone_at_exit
from glmtune.python_arguments import expect_paths
from glmtune.python_terms import in_python_terms
from glmtune.reports.loss_curve import try_draw_loss_curve
from glmtune.tested_versions import note_untested_versions
from glmtune.text.secret_values import masked_argument
from glmtune.training.callbacks.status_updates import StatusUpdates
from glmtune.training.callbacks.unfinished import remains
from glmtune.training.distributed.fsdp import with_accelerates_fsdp
from glmtune.training.distributed.global_batch import keep_global_batch
from glmtune.training.folder.changes import changes_since, refuse_changes, refuse_moving, refuse_unfit, saves_model_only
from glmtune.training.folder.foreign_code import refuse_code
from glmtune.training.folder.known_files import refuse_unknown_files
from glmtune.training.folder.run_folder import (
    TRACKED,
    RunRequest,
    check_shared,
    discard_own_files,
    read_request,
    record_changes,
    refuse_used_folder,
    world_size,
    write_run_file,
)
from glmtune.training.folder.run_lock import hold_run
from glmtune.training.folder.saved_state import check_state, num_waited
from glmtune.training.folder.status_file import StatusFile, told_status
from glmtune.training.setup.arguments import training_arguments, use_one_gpu
from glmtune.training.setup.checks import check_run
from glmtune.training.setup.consent import Consent, check_consent, remember
from glmtune.training.setup.epochs import check_epoch
from glmtune.training.setup.preparation import Prepared, absolute, model_source, prepare_run
from glmtune.training.setup.run_arithmetic import arithmetic_of_run
from glmtune.training.setup.run_data import as_records, find_run_files, record_left_out

from .building import build_model, build_trainer
from .folder import checkpoint
from .replay import choose_for_replay, replay
from .trainer import GlmTrainer


@quiet_libraries()
@heed_signals()
@watch_group()
def train(
    data_dir: str | Path,
    model: str,
    config: AnyConfig,
    *,
    overrides: Sequence[str] = (),
    base_model: str | None = None,
    init_from: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Train a model on a folder of rows and return the run's folder.

    Args:
        data_dir: Folder that holds the files which the configuration names.
        model: A model folder, hub name or `demo`; or an adapter's checkpoint, whose base is then trained anew.
        config: A YAML file, the keys and values of one as a mapping, or a configuration loaded before.
        overrides: `key=value` strings on top of the file.
        base_model: Where the base model of `init_from` is now, if it has moved.
        init_from: A checkpoint whose weights the new run starts from; its steps and optimizer are not taken over.
        dry_run: Run the preflight alone: a step, an evaluation, a save and a reload on the longest rows.
    """
    note_untested_versions()
    expect_paths(data_dir=data_dir)
    config = as_config(config, overrides)
    for line in config.notices:
        notice(line)
    config = with_accelerates_fsdp(config)
    request = RunRequest(
        data_dir=user_path(data_dir),
        model=absolute(model),
        config=config,
        base_model=absolute(base_model) if base_model else None,
        init_from=absolute(init_from) if init_from else None,
    )
    run_folder = Path(config.training_args["output_dir"])
    refuse_unreadable_name(run_folder, "run")
    with ExitStack() as held:
        is_new_folder = False if dry_run else held.enter_context(hold_run(run_folder))
        refuse_used_folder(run_folder)
        check_run(config)
        if config.data_config.has_val_rows and config.training_args.get("eval_strategy", "no") == "no":
            notice("the validation rows are never evaluated in the run: `eval_strategy` is `no`")
        if str(model) == DEMO and config.peft_config is not None and init_from is None:
            notice(
                "`demo` has random weights, and an adapter on them learns little: give `demo-sft`, the same model "
                "after its first training, or the checkpoint of a run that trained all of them (`configs/sft.yaml`)"
            )
        if dry_run:
            from .preflight import preflight

            return preflight(prepare_run(request), run_folder)
        status = held.enter_context(told_status(run_folder, num_processes=world_size()))
        prepared = prepare_run(request)
        with started_run(prepared, run_folder, status, is_new_folder=is_new_folder) as trainer:
            trainer.train()
    return run_folder


@quiet_libraries()
@heed_signals()
@watch_group()
def resume(
    run_dir: str | Path,
    *,
    checkpoint_step: int | None = None,
    base_model: str | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    verify: bool = False,
    trust_remote_code: bool = False,
    allow_sending: bool = False,
) -> Path:
    """Go on with a run where its newest checkpoint stands, or that of a step; the losses are those it would have had.

    Args:
        run_dir: The run's folder.
        checkpoint_step: Step to go on from.
        base_model: Where the base model is now, if it has moved.
        overrides: `key=value` strings on top of the run's configuration; they are changes, to be accepted.
        accept_changes: Go on although data, model or configuration have changed.
        verify: Train the last logged losses once more and compare, instead of going on.
        trust_remote_code: Run code that the model brings along, where the run's configuration asks for it. A run that
            this user began on this machine needs no such word.
        allow_sending: Let the trackers that the configuration names send figures away, likewise.

    Raises:
        GlmtuneError: No such checkpoint, a damaged one, a finished run, or something that has changed.
    """
    note_untested_versions()
    run_folder = user_path(run_dir)
    request, record = read_request(run_folder, overrides)
    refuse_moving(overrides, run_folder)
    refuse_links(run_folder, not_inside=TRACKED)
    with hold_run(run_folder):
        return _go_on(
            run_folder,
            request,
            record,
            consent=Consent.of(overrides, runs_code=trust_remote_code, sends=allow_sending),
            checkpoint_step=checkpoint_step,
            base_model=base_model,
            accept_changes=accept_changes,
            verify=verify,
            typed=_typed(
                checkpoint_step,
                base_model,
                overrides,
                {"--verify": verify, "--trust-remote-code": trust_remote_code, "--allow-sending": allow_sending},
            ),
        )


def _go_on(
    run_folder: Path,
    request: RunRequest,
    record: dict[str, Any],
    *,
    consent: Consent,
    checkpoint_step: int | None,
    base_model: str | None,
    accept_changes: bool,
    verify: bool,
    typed: str,
) -> Path:
    """Choose the checkpoint, compare what the run was trained with, and train on; its folder is held meanwhile."""
    chosen = choose_for_replay(run_folder) if verify else checkpoint.choose(run_folder, checkpoint_step)
    refuse_unknown_files(chosen, may_hold_code=request.config.trust_remote_code)
    refuse_code(chosen)
    check_state(chosen)
    if verify or not _is_finished(chosen, request.config):
        _refuse_without_optimizer(chosen)
        _refuse_without_steps(chosen, request.config)
    else:
        _refuse_finished(chosen, request.config, run_folder)
    if base_model is not None:
        request = replace(request, model=absolute(base_model), base_model=None)
    files = find_run_files(request.data_dir, request.config)
    source = model_source(request)
    refuse_unfit(chosen, request.config)
    own = read_request(run_folder)[0]
    check_consent(run_folder, own, request.config, source, chosen, consent)
    changes = changes_since(record, chosen, request.config, as_records(files), source)
    if changes and not accept_changes:
        refuse_changes(changes, run_folder, typed)
    for line in changes:
        notice(f"since the run began: {line}")
    config, told = keep_global_batch(request.config, record, world_size())
    if told:
        notice(told)
    check_run(config)
    if verify:
        return replay(prepare_run(replace(request, config=config), files), run_folder, chosen, record)
    with told_status(run_folder, num_processes=world_size()) as status:
        prepared = prepare_run(replace(request, config=config), files)
        if changes and is_main_process():
            record_changes(run_folder, record, request, source, prepared.data_files, changes)
        remember(replace(own, config=request.config), source)
        state = checkpoint.read_state(chosen)
        say(f"resuming {run_folder} at step {state['global_step']} of {state['max_steps']}")
        with started_run(prepared, run_folder, status, resume_from=chosen, record=record) as trainer:
            trainer.train(chosen)
    return run_folder


@contextmanager
def started_run(
    prepared: Prepared,
    run_folder: Path,
    status: StatusFile,
    *,
    resume_from: Path | None = None,
    record: Mapping[str, Any] | None = None,
    is_new_folder: bool = False,
) -> Iterator[GlmTrainer]:
    """Load and adapt the model, and yield its trainer; then score it. A run that cannot start leaves no folder behind.

    Args:
        prepared: The run.
        run_folder: Where it goes.
        status: What the run says of itself.
        resume_from: The checkpoint that it goes on from.
        record: The `run.yaml` of a run that goes on.
        is_new_folder: Whether the folder is there for this run alone.
    """
    config = prepared.request.config
    use_one_gpu(notice)
    arguments = training_arguments(config, run_folder, notice)
    set_seed(arguments.seed)
    trainer: GlmTrainer | None = None

    def clean_up() -> None:
        _clean_up(trainer, run_folder, is_new_folder=is_new_folder, is_resumed=resume_from is not None)

    try:
        with undone_at_exit(clean_up):
            check_epoch(prepared.data["train"], arguments, config.tokens_per_batch)
            prepared = replace(prepared, arithmetic=arithmetic_of_run(prepared, arguments, record))
            status.tell("loading the model")
            model = build_model(prepared, arguments, resume_from)
            if is_main_process():
                run_folder.mkdir(parents=True, exist_ok=True)
                checkpoint.discard_staging(run_folder)
                if resume_from is None:
                    write_run_file(
                        run_folder,
                        prepared.request,
                        prepared.source,
                        prepared.data_files,
                        arguments,
                        prepared.arithmetic.names() if prepared.arithmetic else None,
                    )
                record_left_out(run_folder, list(prepared.data.values()))
            if resume_from is None:
                remember(prepared.request, prepared.source)
            check_shared(run_folder)
            trainer = build_trainer(prepared, arguments, model, run_folder)
            trainer.add_callback(StatusUpdates(trainer, status))
            status.tell("trying")
            yield trainer
            score_test_rows(trainer, prepared.data.get("test"))
    except BaseException as error:
        clean_up()
        if isinstance(error, (KeyboardInterrupt, Preempted)) and trainer is not None:
            say(f"stopped at step {trainer.state.global_step}: {in_python_terms(_way_on(run_folder))}")
        if stop_request().is_leaving:
            leave_process_group()
        raise
    if is_main_process():
        checkpoint.discard_staging(run_folder)
        try_draw_loss_curve(run_folder)
        say(f"done: {run_folder}")


def leave_process_group() -> None:
    """Part from the other processes in step: one that leaves alone may let the others wait for it."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _typed(
    checkpoint_step: int | None, base_model: str | None, overrides: Sequence[str], flags: Mapping[str, bool]
) -> str:
    """Return the options of `resume` as they are typed on the command line, each with a space before it."""
    words = [] if checkpoint_step is None else ["--checkpoint", str(checkpoint_step)]
    words += [] if base_model is None else ["--base-model", base_model]
    words += [word for override in overrides for word in ("--set", masked_argument(override))]
    words += [flag for flag, is_given in flags.items() if is_given]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _is_finished(chosen: Path, config: RunConfig) -> bool:
    """Whether the checkpoint is the run's last, as the configuration is now."""
    state = checkpoint.read_state(chosen)
    if _has_stopped_early(state, config):
        return True
    if state["global_step"] < state["max_steps"]:
        return False
    arguments = {**training_fields(), **config.training_args}
    if arguments["max_steps"] > 0:
        return bool(state["global_step"] >= arguments["max_steps"])
    return bool(state["epoch"] >= arguments["num_train_epochs"])


def _has_stopped_early(state: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a run has ended before its last step, and would do so again."""
    patience = config.early_stopping_patience
    return patience is not None and num_waited(state["stateful_callbacks"]) >= patience


def _refuse_without_steps(chosen: Path, config: RunConfig) -> None:
    """Raise where a shortened run has taken its last step already: it would come to its end without another."""
    state = checkpoint.read_state(chosen)
    arguments = {**training_fields(), **config.training_args}
    if arguments["max_steps"] > 0:
        key, there, unit = "max_steps", state["global_step"], "steps"
    else:
        key, there, unit = "num_train_epochs", state["epoch"], "epochs"
    if there >= arguments[key]:
        raise GlmtuneError(
            f"no step would be taken: `{chosen.name}` stands at {there:g} {unit}, and `{key}` is {arguments[key]:g}",
            fix=f"set a greater `{key}`, or use the checkpoint as it is",
        )


def _refuse_finished(chosen: Path, config: RunConfig, run_folder: Path) -> None:
    """Raise where nothing of a finished run remains to be done."""
    state = checkpoint.read_state(chosen)
    if not remains(run_folder, state, config):
        if _has_stopped_early(state, config):
            raise GlmtuneError(
                f"the run has stopped early, at `{chosen.name}`: its evaluations got no better",
                where=str(run_folder),
                fix="to train on all the same: "
                f"`glmtune resume {run_folder} --set early_stopping_patience=null --accept-changes`",
            )
        raise GlmtuneError(
            f"the run has finished: `{chosen.name}` is its last step",
            where=str(run_folder),
            fix=f"to train on from its weights: `glmtune train DATA_DIR MODEL CONFIG --init-from {chosen}`",
        )


def _refuse_without_optimizer(chosen: Path) -> None:
    """Raise where a checkpoint holds the weights alone: the optimizer would begin anew, and the losses with it."""
    if saves_model_only(chosen):
        raise GlmtuneError(
            f"`{chosen.name}` holds no optimizer, because the run was trained with `save_only_model: true`",
            where=str(chosen),
            fix="a run cannot be resumed from it; to begin anew with its weights: "
            f"`glmtune train DATA_DIR MODEL CONFIG --init-from {chosen}`",
        )


def score_test_rows(trainer: GlmTrainer, test_data: EncodedData | None) -> None:
    """Score the trained model on the test rows, where there are any; a signal ends the run before, and at once."""
    request = stop_request()
    request.is_stepping = False
    if test_data is None:
        return
    if request.agree(trainer.args.device):
        trainer.stop()
    trainer.evaluate(test_data, metric_key_prefix="test")


def _clean_up(trainer: GlmTrainer | None, run_folder: Path, *, is_new_folder: bool, is_resumed: bool) -> None:
    """Remove what a run that ended early leaves half made; all that it wrote where not one step was taken."""
    if trainer is not None:
        for callback in trainer.run_callbacks:
            callback.on_given_up()
    if not is_main_process():
        return
    checkpoint.discard_staging(run_folder)
    if is_resumed or (trainer is not None and trainer.state.global_step > 0):
        return
    if is_new_folder:
        shutil.rmtree(run_folder, ignore_errors=True)
    else:
        # The folder was the user's; another run may begin in it.
        discard_own_files(run_folder)


def _way_on(run_folder: Path) -> str:
    """Say how an interrupted run goes on."""
    complete = checkpoints_of(run_folder) if run_folder.is_dir() else []
    if not complete:
        return "no checkpoint yet, so the run begins anew"
    if saves_model_only(complete[-1]):
        return f"`--init-from {complete[-1]}` begins anew with its weights (`save_only_model` keeps no optimizer)"
    return f"`glmtune resume {run_folder}` goes on from {complete[-1].name}"
