"""The first configuration: the page to read first.

files ──look──▶ columns, lengths ─┐
model ──shape─▶ width, context ───┼─fit─▶ settings with their reasons ──write──▶ YAML
machine ──────▶ memory ───────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category, normalize

from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import RunConfig, config_from_text
from glmtune.config.yaml_source import dump_value
from glmtune.console import quiet_libraries
from glmtune.errors import GlmtuneError
from glmtune.family import family_of
from glmtune.files.durable import replace_file
from glmtune.files.missing import HUBS
from glmtune.files.new_file import check_new, free_path
from glmtune.files.user_paths import user_path
from glmtune.modeling.config_loading import load_model_config, load_tokenizer
from glmtune.modeling.finding.model_source import find_model
from glmtune.processes.undoing import undone_at_exit
from glmtune.python_arguments import expect_mapping, expect_paths
from glmtune.text.secret_values import masked
from glmtune.training.folder.run_folder import FITTED_CONFIG

from .choices import METHODS, check_method
from .fitting import fit, this_machine
from .row_facts import find_columns, find_files, look_at
from .translation.translate import translate
from .writing import yaml_text

RUNS = Path("runs")
LONGEST_STEM = 200
"""Bytes of a run folder's name that come of the rows; file systems take 255, with the method and a number."""


@dataclass(frozen=True, kw_only=True)
class FirstConfig:
    """A configuration for a user's own rows, as a file would hold it."""

    text: str
    """YAML, with what each value does behind it."""
    config: RunConfig
    """The same, loaded."""
    data_dir: Path
    """What the names of its files are relative to."""
    num_gpus: int
    """Of this machine, which the configuration counts on."""
    notes: tuple[str, ...]
    """Lines for the user: what may not go well."""
    unread: tuple[str, ...] = ()
    """Lines for the user: what of the rows is not used, which a run tells, too."""

    def __repr__(self) -> str:
        """Return what was chosen, and the notes."""
        lines = [f"<FirstConfig: {_chosen(self.config)}>", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)

    def write(self, path: str | Path) -> Path:
        """Write the configuration into a new YAML file and return where that is; nothing is overwritten."""
        expect_paths(path=path)
        target = user_path(path)
        check_new(target)
        replace_file(target, self.text.encode())
        return target


def summary(config: RunConfig, *, is_kept: bool = True) -> tuple[str, ...]:
    """Return what was chosen for a run without a configuration of the user's, in two lines.

    Args:
        config: The configuration.
        is_kept: Whether the run's folder will hold it.
    """
    kept = Path(config.training_args["output_dir"]) / FITTED_CONFIG
    return (
        f"no configuration is given: {_chosen(config)}",
        f"it is kept as `{kept}`; `glmtune init` writes such a file for you to change"
        if is_kept
        else "`glmtune init` writes these settings to a file for you to change",
    )


def _chosen(config: RunConfig) -> str:
    arguments = config.training_args
    rows = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    max_steps = arguments.get("max_steps", -1)
    length = f"{max_steps} steps" if max_steps > 0 else f"{arguments['num_train_epochs']} epochs"
    return (
        f"`{config.method}` for {length} with a learning rate of "
        f"{arguments['learning_rate']:g}, {rows} rows a step and GPU, at most "
        f"{config.max_input_length + config.max_output_length:,} tokens a row"
    )


@quiet_libraries()
def first_config(
    data: str | Path,
    model: str,
    *,
    method: str | None = None,
    columns: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> FirstConfig:
    """Return a configuration that is fitted to rows, a model and this machine's memory; nothing is written.

    Args:
        data: A file of rows, a pattern, a folder, or `hub:OWNER/NAME`. Of a folder, files called `train`, `dev` (or
            `val`) and `test` are taken for these; without a `train` all of them are trained on.
        model: A model folder, hub name or `demo`.
        method: `lora` (as by default), `ptuning_v2` or `sft`.
        columns: Key of the format: what the file calls it. Names that are known, such as `question` and `answer`, are
            found.
        output_dir: The run's folder; a new one below `runs` by default.
        trust_remote_code: Run code that the model brings along.
    """
    expect_paths(data=data)
    expect_mapping(columns=columns)
    check_method(method)
    method = method or METHODS[0]
    files = find_files(str(data))
    source = find_model(model)
    if source.adapter is not None:
        raise GlmtuneError(
            f"`{model}` is an adapter's checkpoint, not a model",
            fix=f"give its base model, `{source.base}`; to train the adapter further, add `--init-from {model}` to "
            "`glmtune train`",
        )
    found = find_columns(files.train, columns or {})
    model_config = load_model_config(source, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    facts = look_at(files, Encoder(tokenizer, family_of(model_config.model_type)), found)
    run_folder = str(output_dir) if output_dir is not None else _free_run_folder(str(data), method)
    machine = this_machine()
    fitted = fit(
        files,
        facts,
        model=model,
        model_config=model_config,
        method=method,
        output_dir=run_folder,
        machine=machine,
        trust_remote_code=trust_remote_code,
    )
    heading = (f"Fitted to {data} and {model}, by `glmtune init`. Every value may be changed.",)
    text = yaml_text(fitted.values, fitted.comments, heading)
    return FirstConfig(
        text=text,
        config=config_from_text(text, where="the fitted configuration"),
        data_dir=files.folder,
        num_gpus=machine.num_gpus,
        notes=tuple(fitted.notes),
        unread=tuple(facts.unread),
    )


@dataclass(frozen=True, kw_only=True)
class TranslatedConfig:
    """A configuration of another tool in our keys, as a file would hold it."""

    text: str
    """YAML, with what each key was called behind it, and what has no place in it below."""
    data_dir: str
    """What the names of its files are relative to."""
    model: str | None
    """As the other tool's file names it."""
    left_out: tuple[str, ...]
    """Keys of the other tool that have no place in it, each with the reason."""


def translated_config(path: str | Path) -> TranslatedConfig:
    """Return a configuration of LLaMA-Factory, ms-swift or axolotl in our keys; nothing is written.

    Args:
        path: The YAML, JSON or shell file that the other tool is given, or LLaMA-Factory's `dataset_info.json`.
    """
    found = translate(path)
    left_out = tuple(f"{key}: {_one_line(value)} ({reason})" for key, value, reason in found.untranslated)
    heading = [f"Translated from {path} of {found.tool}, by `glmtune init --from`. Every value may be changed."]
    if left_out:
        heading += ["", "Not translated:", *(f"  {line}" for line in left_out)]
    return TranslatedConfig(
        text=yaml_text(found.config, found.comments, heading),
        data_dir=found.data_dir,
        model=found.model,
        left_out=left_out,
    )


def _one_line(value: object) -> str:
    return masked(" ".join(dump_value(value).split()))


@contextmanager
def reserved_run_folder(data: str, method: str) -> Iterator[str | None]:
    """Make a new folder for a run, so that no other takes its name; it goes where nothing was written into it.

    Yields None where none can be made: whatever the run does there tells why.
    """
    made = [] if RUNS.exists() else [RUNS]
    folder: Path | None = None
    while folder is None:
        candidate = Path(_free_run_folder(data, method))
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if RUNS.is_dir():
                continue  # another run was faster
            break
        except OSError:
            break
        folder = candidate
        made.insert(0, folder)

    def leave() -> None:
        for each in made:
            with suppress(OSError):  # it holds something, or is gone
                each.rmdir()

    try:
        with undone_at_exit(leave):
            yield None if folder is None else str(folder)
    finally:
        leave()


def _free_run_folder(data: str, method: str) -> str:
    """Return a folder for a run that is not there yet, named after rows and method."""
    return str(free_path(RUNS / f"{_plain_stem(data)}-{method}"))


def _plain_stem(data: str) -> str:
    """Return the name of a file of rows, of letters, digits, `-`, `_` and `.` alone: no shell finds more in it."""
    hub = next((prefix for prefix in HUBS if data.startswith(prefix)), None)
    if hub:
        stem = data.removeprefix(hub).rpartition("/")[2].replace(":", "-")
    else:
        path = Path(data)
        is_compressed = path.suffix.lower() in (".gz", ".zst", ".bz2", ".xz", ".zip")
        stem = path.name if path.is_dir() else Path(path.stem).stem if is_compressed else path.stem
    kept = "".join(char for char in normalize("NFC", stem) if category(char)[0] in "LMN" or char in "-_.")
    return kept.encode()[:LONGEST_STEM].decode(errors="ignore").strip("-.") or "rows"
