"""The sections of a configuration that transformers, PEFT and DeepSpeed define: their keys, types and files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError, install_hint, nearest
from glmtune.files.shipped import shipped_file
from glmtune.files.text_encoding import read_utf8
from glmtune.files.user_paths import expand

from .adapter_keys import TASK, settle_adapter
from .field_types import check_fields
from .generation_options import find_problems
from .training_keys import settle_noted, settle_refused
from .yaml_source import Source, found

TRAINING_DEFAULTS = {
    "output_dir": "./output",  # where the original demos write
    "remove_unused_columns": False,  # a batch has columns of ours, which Trainer would take out as unknown to the model
    "report_to": ["none"],  # nothing leaves the machine unless asked for, whichever tracker happens to be installed
    "logging_nan_inf_filter": False,  # a loss that is not a number must be seen, not averaged away
    "per_device_eval_batch_size": 4,  # evaluation generates: every row holds its keys and values beside the weights
}
"""Values of `training_args` that differ from those of transformers, and why; the user's own always win."""

PATHS = ("output_dir", "logging_dir", "deepspeed", "fsdp_config")
"""Keys of `training_args` that are paths where they are text."""


def training_fields() -> dict[str, Any]:
    """Return the keys of the installed `Seq2SeqTrainingArguments` with their defaults."""
    from transformers import Seq2SeqTrainingArguments

    return {
        each.name: each.default if each.default is not MISSING else None
        for each in fields(Seq2SeqTrainingArguments)
        if each.init
    }


def adapter_fields(peft_type: str) -> dict[str, Any]:
    """Return the keys of PEFT's settings of a method, by its name there, with their defaults."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    return {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for each in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)])
        if each.default is not MISSING or each.default_factory is not MISSING
    }


def training_section(source: Source, homes: Mapping[str, str]) -> dict[str, Any]:
    """Return checked keyword arguments for `Seq2SeqTrainingArguments`, with our defaults, without generation."""
    from transformers import Seq2SeqTrainingArguments

    given = {key: value for key, value in source.section("training_args").items() if key != "generation_config"}
    given = settle_refused(source, given)
    # transformers annotates it as text alone, and calls text outdated.
    fsdp = {"fsdp": given.pop("fsdp")} if isinstance(given.get("fsdp"), bool) else {}
    arguments = check_fields(source, "training_args", given, Seq2SeqTrainingArguments, homes=homes) | fsdp
    settle_noted(source, arguments)
    if not arguments.get("output_dir", TRAINING_DEFAULTS["output_dir"]):
        key = "training_args.output_dir"
        source.complain(key, f"expected a folder, found {found(arguments['output_dir'])}", "name one, or leave it out")
    # Text cannot be scored that was not generated; without rows to evaluate on there is nothing to generate from.
    data = source.section("data_config")
    has_rows_to_evaluate = data.get("val_file") is not None or bool(data.get("val_size"))
    defaults = {**TRAINING_DEFAULTS, "predict_with_generate": has_rows_to_evaluate}
    if source.values.get("early_stopping_patience") is not None and arguments.get("metric_for_best_model") is None:
        arguments["metric_for_best_model"] = "loss"
        where = source.where("early_stopping_patience")
        source.notices.append(
            f"{where}: `early_stopping_patience` goes by the loss of the evaluations; `metric_for_best_model` names "
            "another metric"
        )
    return {**defaults, **arguments}


def generation_section(source: Source) -> dict[str, Any]:
    """Return checked keyword arguments for `transformers.GenerationConfig`."""
    section = "training_args.generation_config"
    arguments = dict(source.section(section))
    for problem in find_problems(arguments):
        key = f"{section}.{problem.option}" if problem.option else section
        source.complain(key, problem.message, problem.fix)
    return arguments


_PREFIX = "set `PREFIX_TUNING`, which is P-Tuning v2, or `PROMPT_TUNING`"
_LORA = "set `LORA`, with `use_rslora` or a `rank_pattern` if you like"
_NO_ENCODER = "its checkpoint holds the prompt and not the encoder that makes it, so that no run could be resumed"
NOT_TRAINED = {
    "P_TUNING": (_NO_ENCODER, _PREFIX),
    "MULTITASK_PROMPT_TUNING": (_NO_ENCODER, _PREFIX),
    "CPT": ("it needs a loss of its own", _PREFIX),
    "CARTRIDGE": ("gradient checkpointing would lose what it puts into the cache", _PREFIX),
    "ADALORA": ("its ranks would never be adapted, and its loss would lack a part", _LORA),
    "ADAMSS": ("its subspaces would never be chosen", _LORA),
    "SHADOW": ("it needs a loss of its own", _LORA),
    "LILY": ("a run of it could not be resumed as it stood", _LORA),
    "POLY": ("every row would need the number of a task", _LORA),
    "XLORA": ("it mixes adapters that were trained before", _LORA),
}
"""Methods of PEFT that want more of a training loop than a loss of labels: why, and what to set instead."""


def peft_section(source: Source) -> dict[str, Any] | None:
    """Return checked keyword arguments for the PEFT configuration that `peft_type` names; None for full training."""
    if source.values.get("peft_config") is None:
        return None
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    given = dict(source.section("peft_config"))
    if "peft_config" in source.wrong_keys:
        return None
    classes = {peft_type.value: cls for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    written = given.pop("peft_type", None)
    peft_type = str(written).upper()
    if peft_type not in classes:
        seen = "it is missing" if written is None else f"found {found(written)}{nearest(peft_type, list(classes))}"
        source.complain(
            "peft_config.peft_type",
            f"expected a method of PEFT such as `LORA` or `PREFIX_TUNING`; {seen}",
            "write `peft_config: null` to train every weight" if written is None else None,
        )
        return None
    if peft_type in NOT_TRAINED:
        why, instead = NOT_TRAINED[peft_type]
        source.complain("peft_config.peft_type", f"`{peft_type}` cannot be trained here: {why}", instead)
    arguments = check_fields(source, "peft_config", given, classes[peft_type], homes={})
    arguments = settle_adapter(source, peft_type, arguments)
    has_prefix = "num_virtual_tokens" in [field.name for field in fields(classes[peft_type])]
    if has_prefix and (arguments.get("num_virtual_tokens") or 0) < 1:
        source.complain(
            "peft_config.num_virtual_tokens",
            f"expected how many tokens are trained, such as 128; found {found(arguments.get('num_virtual_tokens'))}",
        )
    if not any(key.startswith("peft_config") for key in source.wrong_keys):
        _try_peft_config(source, classes[peft_type], arguments)
    return {"peft_type": peft_type, "task_type": TASK, **arguments}


def _try_peft_config(source: Source, settings_class: Any, arguments: Mapping[str, Any]) -> None:
    """Complain where PEFT refuses settings that are each of the right type, or lacks a package for them."""
    # How an adapter begins is looked at later, and may be refused with a reason of its own.
    settings = {key: value for key, value in arguments.items() if key != "init_lora_weights"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is made once more for the run
            settings_class(**settings)
    except (ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        source.complain("peft_config", f"PEFT refuses these settings: {reason}", install_hint(error))


def expand_paths(source: Source) -> None:
    """Put in the place of `~` and variables in the paths of `training_args` what they stand for, in `source`.

    The names of data files stay as they are written: they are looked up in a folder first.
    """
    arguments = source.section("training_args")
    for name in PATHS:
        written, key = arguments.get(name), f"training_args.{name}"
        if not isinstance(written, str):
            continue
        try:
            meant = expand(written)
        except GlmtuneError as error:
            source.complain(key, error.what, error.fix)
            continue
        if meant != written:
            source.set(key, meant, source.where(key))


def find_deepspeed_file(source: Source, config_folder: Path | None) -> None:
    """Put the full path of the DeepSpeed file in the place of its name, in `source`; complain where it cannot be read.

    The name is looked up from the working directory, then beside the configuration, there also without its folder:
    the original demos name `configs/ds_zero_3.json` in a file that lies in `configs` itself. A name that is nowhere
    there is taken for one of the files that come along with glmtune.
    """
    key = "training_args.deepspeed"
    name = source.section("training_args").get("deepspeed")
    if not isinstance(name, str):
        return
    if name.lstrip().startswith("{"):
        source.complain(
            key, "expected the name of a file or keys and values, found JSON in quotes", "take the quotes away"
        )
        return
    path = Path(name)
    folders = [] if config_folder is None else [config_folder.absolute()]
    candidates = list(
        dict.fromkeys([path.absolute(), *(each / part for each in folders for part in (path, path.name))])
    )
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None and (file := shipped_file(path)):
        source.notices.append(f"`{key}`: there is no `{name}` here; took the one that comes along, `{file}`")
    if file is None:
        present = _json_names([Path.cwd(), *folders])
        looked = ", ".join(f"`{candidate}`" for candidate in candidates)
        source.complain(key, f"there is no file `{name}`{nearest(path.name, present)}; looked for {looked}")
        return
    source.set(key, str(file), source.where(key))
    try:
        content = json.loads(read_utf8(file))
    except json.JSONDecodeError as error:
        source.complain(key, f"broken JSON: {error.msg}", where=f"{file}:{error.lineno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists in lists
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too large"
        source.complain(key, f"broken JSON: {reason}", where=str(file))
    except GlmtuneError as error:
        source.complain(key, error.what, error.fix, where=error.where)
    except OSError as error:
        source.complain(key, f"cannot read `{file}`: {error}")
    else:
        if not isinstance(content, dict):
            source.complain(key, f"expected an object, found {found(content)}", where=f"{file}:1")


def find_metrics_file(source: Source, config_folder: Path | None) -> None:
    """Put the full path of the file of metrics in the place of its name, in `source`; complain where there is none.

    It is looked for like DeepSpeed's. What a run's folder names is left as it is: only a run that goes on needs it.
    """
    key = "metrics"
    name = source.values.get(key)
    if not isinstance(name, str):
        return
    try:
        path = Path(expand(name))
    except GlmtuneError as error:
        source.complain(key, error.what, error.fix)
        return
    folders = [Path.cwd(), *([] if config_folder is None else [config_folder.absolute()])]
    file = next((folder / path for folder in folders if (folder / path).is_file()), None)
    if file is not None and file.suffix == ".py":
        source.set(key, str(file), source.where(key))
    elif file is not None:
        source.complain(key, f"expected a Python file (`.py`), found {found(name)}")
    elif config_folder is not None or source.is_override(key):
        names = sorted({each.name for folder in folders for each in folder.glob("*.py")})
        looked = ", ".join(dict.fromkeys(f"`{folder / path}`" for folder in folders))
        source.complain(key, f"there is no file `{name}`{nearest(path.name, names)}; looked for {looked}")


def _json_names(folders: Iterable[Path]) -> list[str]:
    return sorted({file.name for folder in folders for file in folder.glob("*.json")})
