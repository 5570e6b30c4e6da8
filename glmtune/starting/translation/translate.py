"""The way in: a file of another tool becomes a configuration of ours, with a list of what has no place in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.other_tools import AXOLOTL, DATASET_INFO, LLAMAFACTORY, SWIFT, recognise, tool_of_command
from glmtune.config.yaml_source import read_keys
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import read_utf8
from glmtune.files.user_paths import user_path
from glmtune.text.secret_values import remember_all

from .axolotl import translate_axolotl
from .commands import read_command
from .draft import Translation, Untranslated
from .llamafactory import translate_dataset_info, translate_llamafactory
from .llamafactory_data import info_of
from .swift import translate_swift

__all__ = ["Translation", "Untranslated", "recognise", "translate"]

LARGEST_COMMAND = 1 << 20
"""Bytes of a file for the shell."""
VARIABLES = {
    "NPROC_PER_NODE": "how many processes there are: `glmtune train ... --nproc N`",
    "NNODES": "how many machines there are: `torchrun` starts `glmtune train` on each",
    "CUDA_VISIBLE_DEVICES": "put it before `glmtune train`, too",
    "ASCEND_RT_VISIBLE_DEVICES": "put it before `glmtune train`, too",
}
"""Variables before a command, and what to do with them; of others nothing is known."""


def translate(path: str | Path) -> Translation:
    """Return a file of LLaMA-Factory, ms-swift or axolotl as a configuration of ours.

    Args:
        path: A YAML or JSON of one of them, a `dataset_info.json`, or a file for the shell with its training command.

    Raises:
        GlmtuneError: The file cannot be read, is ours already, or is of no tool that is known.
    """
    file = user_path(path)
    if file.is_dir():
        raise GlmtuneError(f"`{file}` is a folder; expected a file", fix="name the file that the other tool is given")
    if file.name == "dataset_info.json" and file.is_file():
        return translate_dataset_info(info_of(file), file)
    if _is_for_shell(file):
        return _translate_command(file)
    values = read_keys(path).values
    tool = recognise(values)
    if tool is None:
        is_ours = "data_config" in values or "training_args" in values
        raise GlmtuneError(
            "this is a configuration of glmtune already"
            if is_ours
            else "these are not the keys of LLaMA-Factory, ms-swift or axolotl: "
            + ", ".join(f"`{key}`" for key in list(values)[:6]),
            where=str(path),
            fix=f"`glmtune train DATA_DIR MODEL {path}` trains by it"
            if is_ours
            else "expected the file that `llamafactory-cli train`, `swift sft` or `axolotl train` is given",
        )
    return _translate_values(tool, values, file)


def _translate_values(tool: str, values: Mapping[str, Any], file: Path) -> Translation:
    if tool == DATASET_INFO:
        return translate_dataset_info(values, file)
    return {LLAMAFACTORY: translate_llamafactory, SWIFT: translate_swift, AXOLOTL: translate_axolotl}[tool](
        values, file
    )


def _is_for_shell(file: Path) -> bool:
    """Whether a file is no YAML but holds a training command."""
    if file.suffix.lower() in (".yaml", ".yml", ".json") or not file.is_file():
        return False
    if file.suffix.lower() in (".sh", ".bash", ".zsh"):
        return True
    return tool_of_command(read_utf8(file, at_most=LARGEST_COMMAND)) is not None


def _translate_command(file: Path) -> Translation:
    command = read_command(read_utf8(file, at_most=LARGEST_COMMAND), str(file))
    values = command.values
    remember_all([values, command.variables])
    if command.file is not None:
        named = next((each for each in (Path(command.file), file.parent / command.file) if each.is_file()), None)
        if named is None:
            raise GlmtuneError(
                f"the command names `{command.file}`, which is not there", where=str(file), fix="name that file itself"
            )
        values = read_keys(named).values | values
    if command.tool == SWIFT:
        found = translate_swift(values, file, verb=command.verb)
    else:
        found = translate_llamafactory(values, file)
    told = [Untranslated(name, text, VARIABLES[name]) for name, text in command.variables.items() if name in VARIABLES]
    found.untranslated.extend(told)
    return found
