"""The command line: every verb parses, calls one function and prints. Heavy modules are imported inside the verbs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from glmtune import __version__
from glmtune.console import (
    ignore_library_warnings,
    keep_lost_interrupts,
    notice,
    put,
    put_json,
    say,
    show_harmlessly,
)
from glmtune.errors import DISK_FULL, EXIT_FAILURE, EXIT_INTERRUPTED, GlmtuneError, RunFailure, shown
from glmtune.files.new_file import free_path, refuse_taken
from glmtune.files.user_paths import user_path
from glmtune.processes.launching import GroupEnded, adopt_deepspeed_launcher, end_with_launcher, start_group
from glmtune.processes.own_path import shut_out_current_folder
from glmtune.python_terms import spoken_on_the_command_line
from glmtune.standard_streams import OutputLost, argument_text, prepare_streams
from glmtune.starting.choices import check_method, refuse_unfitted
from glmtune.text.plain_json import plain_json
from glmtune.text.visible_text import ANSWER_KEEPS, UNSEEN

from .argument_order import check_order
from .chat_verb import chat
from .compare_verb import compare
from .config_verbs import config_app
from .data_verbs import data_app
from .env_verb import env
from .export_verb import export
from .init_verb import Method, init
from .options import (
    BaseModel,
    BatchSize,
    Column,
    Combine,
    MaxNewTokens,
    OwnMetrics,
    Quantization,
    SamplingOptions,
    Schema,
    Seed,
    Strict,
    Thinking,
    TrustRemoteCode,
    check_files,
    check_model,
    columns_of,
    given,
    strict_setting,
    with_sampling_options,
)
from .run_verbs import runs, stop
from .serve_verb import serve
from .verb_examples import add_examples
from .web_verb import web

app = typer.Typer(
    name="glmtune",
    help="Fine-tune GLM-4 chat models: LoRA, P-Tuning v2 or full SFT, from one YAML file.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain help: drawing boxes takes as long as the rest of the start-up (0.22 s of processor time, 0.11 s without).
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

COMPLETION = re.compile(r"--(install|show)-completion(=|$)")
MAY_BE_EMPTY = ("--prompt", "--system", "--vllm-args")
"""Options whose value is a text."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training_args.learning_rate=1e-4."),
]
DeepSpeed = Annotated[str | None, typer.Option(help="DeepSpeed's file: --set training_args.deepspeed=FILE in short.")]
NumProcesses = Annotated[
    int | None, typer.Option("--nproc", help="Processes to start on this machine, one for each GPU.", min=1)
]


app.command()(init)


@app.command()
def train(
    data_dir: Annotated[
        Path,
        typer.Argument(help="Folder of the files that CONFIG names; without CONFIG, the rows: a file or a folder."),
    ],
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, `demo` or `demo-sft`.")],
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file, such as configs/lora.yaml; without it, what `glmtune init` would write."),
    ] = None,
    method: Method = None,
    overrides: Overrides = None,
    init_from: Annotated[
        str | None, typer.Option(help="Start a new run from this checkpoint's adapter (new data, new rate).")
    ] = None,
    base_model: BaseModel = None,
    column: Column = None,
    strict: Strict = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="A step, an evaluation, a save and a reload on the longest batch; no run.")
    ] = False,
    deepspeed: DeepSpeed = None,
    num_processes: NumProcesses = None,
) -> None:
    """Train a model as CONFIG says; without it, as fits the rows."""
    check_order("train", rows=data_dir, model=model, config=config)
    check_method(method)
    refuse_unfitted(data_dir, model, config, method, is_group=num_processes is not None)
    check_files(rows=data_dir) if config is None else check_files(data_dir=data_dir, config=config)
    check_model(model, base_model=None if init_from else base_model)
    if start_group(num_processes):
        return
    from glmtune.starting.fitted_run import configured_run
    from glmtune.training.run import leave_process_group
    from glmtune.training.run import train as run_training

    run = configured_run(
        data_dir,
        model,
        config,
        method=method,
        columns=columns_of(column),
        overrides=[*(overrides or ()), *strict_setting(strict), *_setting(deepspeed)],
        is_kept=not dry_run,
    )
    with run as (rows, whole, changes):
        run_training(
            rows,
            model,
            whole,
            overrides=changes,
            base_model=base_model,
            init_from=init_from,
            dry_run=dry_run,
        )
    leave_process_group()


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run: its `output_dir`.")],
    checkpoint: Annotated[
        int | None, typer.Option(help="Step to go on from; the newest whole checkpoint by default.")
    ] = None,
    base_model: BaseModel = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key from now on; needs --accept-changes."),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although data, model or configuration have changed.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Train the last logged losses once more and compare; then stop.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the code that the run's folder asks for: the model's own, a file of metrics. Read it first.",
        ),
    ] = False,
    allow_sending: Annotated[
        bool,
        typer.Option("--allow-sending", help="Let the trackers that the run's folder names send its figures away."),
    ] = False,
    num_processes: NumProcesses = None,
) -> None:
    """Go on with an interrupted run; nothing else is needed."""
    check_files(run_dir=run_dir)
    if start_group(num_processes):
        return
    from glmtune.training.run import leave_process_group
    from glmtune.training.run import resume as resume_run

    resume_run(
        run_dir,
        checkpoint_step=checkpoint,
        base_model=base_model,
        overrides=overrides or (),
        accept_changes=accept_changes,
        verify=verify,
        trust_remote_code=trust_remote_code,
        allow_sending=allow_sending,
    )
    leave_process_group()


app.command()(runs)
app.command()(stop)
app.command()(web)


@app.command()
def estimate(
    model: Annotated[
        str, typer.Argument(help="A model folder (its config.json is enough), a hub name, `demo` or `demo-sft`.")
    ],
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/lora.yaml.")],
    gpus: Annotated[
        int | None,
        typer.Option(help="GPUs to plan for, here or not; 0: the CPU. By default those of this machine.", min=0),
    ] = None,
    deepspeed: DeepSpeed = None,
    overrides: Overrides = None,
    labelled: Annotated[float, typer.Option(help="Share of the tokens that have a label; 1 is the worst case.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, in bytes.")] = False,
) -> None:
    """Estimate the memory of a run, and of every other way to train. As CONFIG says; nothing is loaded."""
    check_order("estimate", model=model, config=config)
    check_files(config=config)
    check_model(model, needs_weights=False)
    from glmtune.memory.estimate_report import advice, as_dict, heading, table
    from glmtune.memory.run import estimate as estimate_memory

    found = estimate_memory(
        model, config, overrides=[*(overrides or ()), *_setting(deepspeed)], num_gpus=gpus, labelled=labelled
    )
    for line in found.notices:
        notice(line)
    if as_json:
        put_json(plain_json(as_dict(found), indent=2))
        return
    for part in (heading(found), table(found), advice(found)):
        print(shown(part, ANSWER_KEEPS))


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint, a model folder, a run, a hub name, `demo` or `demo-sft`.")
    ],
    data_file: Annotated[Path, typer.Argument(help="Rows to score on.")],
    output: Annotated[
        Path | None, typer.Option(help="File for the predictions; `predictions-DATA_FILE` here by default.")
    ] = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    limit: Annotated[int | None, typer.Option(help="Score the first rows only.", min=1)] = None,
    combine: Combine = False,
    column: Column = None,
    metrics: OwnMetrics = None,
    quantization: Quantization = None,
    base_model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score a model on rows: BLEU-4, ROUGE, tool calls, perplexity."""
    check_order("eval", model=model, rows=data_file)
    path = output or free_path(Path(f"predictions-{data_file.stem}.jsonl"))
    refuse_taken(user_path(path))
    check_files(rows=data_file, metrics=metrics)
    check_model(model, base_model=base_model)
    from glmtune.evaluation.evaluate import evaluate as score

    scores = score(
        model,
        data_file,
        output=path,
        base_model=base_model,
        batch_size=batch_size,
        limit=limit,
        combine=combine,
        columns=columns_of(column) or None,
        metrics=metrics,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        **given(max_new_tokens=max_new_tokens),
    )
    put_json(plain_json({name: round(value, 4) for name, value in scores.metrics.items()}, indent=2))
    for reject in scores.left_out:
        say(f"left out: {reject.where}: {reject.reason}")
    say(f"{len(scores.predictions)} predictions in {path}")
    if scores.failed is not None:
        raise scores.failed


app.command()(compare)


@app.command()
@with_sampling_options
def infer(
    *,
    model: Annotated[
        str, typer.Argument(help="A checkpoint, a model folder, a run, a hub name, `demo` or `demo-sft`.")
    ],
    prompts_given: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Text to ask; stdin is read where nothing is given."),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `prompt` (text) or `messages`, with `system`, `tools`; an answer a line."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message before every prompt.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is written.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print {prompt, answer} as JSON lines, and a row's own answer as `reference`."),
    ] = False,
    schema: Schema = None,
    sampling: SamplingOptions,
    thinking: Thinking = None,
    num_beams: Annotated[int | None, typer.Option(help="Beams of beam search.", min=1)] = None,
    seed: Seed = None,
    batch_size: BatchSize = 8,
    quantization: Quantization = None,
    base_model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Ask a model: one prompt, a file of them, or stdin."""
    if len(prompts_given or ()) > 1:
        raise GlmtuneError(
            f"`--prompt` is given {len(prompts_given or ())} times; expected one",
            fix='write them to a file, `{"prompt": ...}` a line, and give that as `--input`',
        )
    prompt = next(iter(prompts_given or ()), None)
    options = sampling.generation_options() | given(num_beams=num_beams)
    if stream and (num_beams or 1) > 1:
        raise GlmtuneError("beam search cannot be streamed: its answer is known at the end only", fix="leave one out")
    check_files(rows=None if prompts_given else input)
    if schema and (num_beams or 1) > 1:
        raise GlmtuneError("beam search cannot follow a schema", fix="leave one of them out")
    from glmtune.constrained.schemas import read_schema

    followed = read_schema(schema) if schema else None
    check_model(model, base_model=base_model)
    from glmtune.generation.ask import answer_all, read_prompts, split_reference

    prompts = read_prompts(argument_text(prompt) if prompt else prompt, input)
    answers = answer_all(
        model,
        prompts,
        stream=stream and not as_json,
        system=argument_text(system) if system else system,
        seed=seed,
        thinking=thinking,
        schema=followed,
        batch_size=batch_size,
        base_model=base_model,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        **options,
    )
    for asked, pieces in zip(prompts, answers):
        if as_json:
            question, reference = split_reference(asked)
            line = {"prompt": question, "answer": "".join(pieces), **given(reference=reference)}
            put_json(plain_json(line))
            continue
        with contextlib.closing(pieces):  # whatever ends the command ends the writing, too
            for piece in pieces:
                put(piece, end="")
        print()


app.command()(chat)
app.command()(serve)
app.command()(export)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's runs; it must be empty or absent.")] = Path(
        "demo-output"
    ),
) -> None:
    """Show it all on the embedded tiny GLM-4 in about three minutes."""
    from .tour import run_tour

    run_tour(output)


app.command()(env)


def _show_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Declare the options before a verb; `main` has taken `--debug` already."""


add_examples(app)


def _setting(deepspeed: str | None) -> list[str]:
    """Return the override that a `--deepspeed` stands for."""
    return [] if deepspeed is None else [f"training_args.deepspeed={json.dumps(deepspeed)}"]


def _os_error(error: OSError) -> GlmtuneError:
    """Return what a system's refusal of a file means for its user."""
    fix = "free some space" if error.errno in DISK_FULL else "see whether this user may read and write there"
    return RunFailure(
        f"{error.strerror or error}", where=str(error.filename), fix=f"{fix}; `--debug` shows where it happened"
    )


def _refuse_unseen_options(arguments: Sequence[str]) -> None:
    """Raise where the name of a file, put in by a pattern, is taken for an option, which would be quoted as it is."""
    for argument in arguments:
        if argument.startswith("-") and UNSEEN.search(argument.partition("=")[0]):
            raise GlmtuneError(f"unknown option `{argument}`", fix="a file of this name is `./NAME`")


def _refuse_empty_arguments(arguments: Sequence[str]) -> None:
    """Raise where an argument or an option's value is empty: as a path it would be the folder that one stands in."""
    flags = {flag for command in _commands(get_command(app)) for flag in _flags(command)}
    for before, argument in zip(("", *arguments), arguments):
        option, value = (before if before.startswith("-") and before not in flags else ""), argument
        if argument.startswith("--") and "=" in argument:
            option, _, value = argument.partition("=")
        if not value.strip() and option not in MAY_BE_EMPTY:
            raise GlmtuneError(
                f"the value of `{option}` is empty" if option else "an argument is empty; expected a name",
                fix="a variable of the shell may not be set: leave the argument out, or write what it stands for",
            )


def _commands(command: Any) -> Iterator[Any]:
    """Yield a command of Typer's and all below it."""
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _commands(below)


def _program_name(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the name that a shell completes: that of the command, also where `python -m glmtune` installs it."""
    return {"prog_name": app.info.name} if any(map(COMPLETION.match, arguments)) else {}


def _flags(command: Any) -> list[str]:
    """Return the options of a command that take no value."""
    return [
        name
        for parameter in command.params
        if getattr(parameter, "is_flag", False)
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]


@spoken_on_the_command_line()
def main() -> None:
    """Run the command line; a user's mistake is told in three lines, without a traceback."""
    shut_out_current_folder()
    prepare_streams()
    show_harmlessly()
    if "--debug" in sys.argv:
        # Taken out here, so that it may stand behind the verb, too.
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        os.environ["GLMTUNE_DEBUG"] = "1"
    else:
        ignore_library_warnings()
    keep_lost_interrupts()
    end_with_launcher()
    adopt_deepspeed_launcher()
    try:
        try:
            _refuse_unseen_options(sys.argv[1:])
            _refuse_empty_arguments(sys.argv[1:])
            app(**_program_name(sys.argv[1:]))
        finally:
            sys.stdout.flush()  # now, when it can still be told that this fails
    except GlmtuneError as error:
        if isinstance(error, OutputLost) and error.is_reader_gone:
            sys.exit(EXIT_FAILURE)  # `| head` has read enough; nothing is wrong
        if os.environ.get("GLMTUNE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("GLMTUNE_DEBUG") or error.filename is None:
            raise
        print(f"error: {_os_error(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except SystemExit as ended:
        # Typer ends with this code at Ctrl-C, without a word.
        if ended.code == EXIT_INTERRUPTED and not isinstance(ended, GroupEnded):
            say("interrupted")
        raise
