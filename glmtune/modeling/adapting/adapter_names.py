"""Names in a configuration that mean parts of a model: each has to mean one, or the rest would be trained without it.

PEFT complains where a whole list matches nothing; a single slip among right names goes unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from glmtune.errors import GlmtuneError, nearest

from .name_patterns import check_patterns, patterns_of

SUFFIX_LISTS = ("target_modules", "exclude_modules", "feedforward_modules")
"""Keys whose entries are names of modules, or the ends of them behind a dot."""

PATTERNS = ("rank_pattern", "alpha_pattern")
"""Keys whose own keys are names of modules, or regular expressions for the ends of them."""

Matches = Callable[[str, str], bool]
"""Takes an entry and the name of a module; tells whether the entry means it."""


def check_adapter_names(settings: Mapping[str, Any], model: nn.Module) -> None:
    """Raise where an entry of PEFT's settings names nothing of the model, with what it may have meant.

    Args:
        settings: Keyword arguments of a PEFT configuration.
        model: Without an adapter.
    """
    check_patterns(filter(_is_expression, patterns_of(settings)), _all_names(model), "peft_config")
    names = [name for name, _ in model.named_modules() if name]
    for key in SUFFIX_LISTS:
        # Text is a regular expression, or a word such as `all-linear`: PEFT says where the whole of it matches nothing.
        if not isinstance(settings.get(key), str):
            _check(key, settings.get(key) or (), names, _ends)
    if isinstance(settings.get("exclude_modules"), str):
        _check("exclude_modules", [settings["exclude_modules"]], names, _is_all)
    _check("modules_to_save", settings.get("modules_to_save") or (), names, _is_part)
    targets = _targets(settings.get("target_modules"), names)
    for key in PATTERNS:
        _check(key, settings.get(key) or {}, targets, _ends_as_pattern)
    parameters = [name for name, _ in model.named_parameters()]
    _check("target_parameters", settings.get("target_parameters") or (), parameters, _ends)
    _check_layers(settings, names)
    _check_token_indices(settings.get("trainable_token_indices"), model)


def check_optimizer_modules(wanted: str | Iterable[str] | None, model: nn.Module) -> None:
    """Raise where an entry of `optim_target_modules` is the name of no layer; `all-linear` means all of them."""
    if wanted is None or (isinstance(wanted, str) and wanted.replace("_", "-") == "all-linear"):
        return
    names = [name for name, _ in model.named_modules() if name]
    entries = [wanted] if isinstance(wanted, str) else wanted
    check_patterns(filter(_is_expression, entries), _all_names(model), "training_args.optim_target_modules")
    if isinstance(wanted, str):
        _check("optim_target_modules", [wanted], names, _is_all, section="training_args")
    else:
        _check("optim_target_modules", wanted, names, _is_contained, section="training_args")


def _check(
    key: str, entries: Iterable[str], names: list[str], matches: Matches, *, section: str = "peft_config"
) -> None:
    for entry in entries:
        try:
            if any(matches(entry, name) for name in names):
                continue
        except (re.error, RecursionError, OverflowError) as error:
            raise GlmtuneError(
                f"`{section}.{key}` has `{entry}`, which is no regular expression: {error}", where=f"{section}.{key}"
            ) from error
        last_names = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        meant = nearest(entry.rpartition(".")[2], last_names)
        raise GlmtuneError(
            f"`{section}` does not fit the model: `{key}` has `{entry}`, which matches nothing there{meant}",
            where=f"{section}.{key}",
            fix=f"correct it, or take it out; {_listed(last_names)}",
        )


def _all_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]


def _is_expression(entry: str) -> bool:
    """Whether an entry has to be tried; what is none is refused by its name where it is looked up."""
    try:
        re.compile(entry)
    except (re.error, RecursionError, OverflowError):
        return False
    return re.fullmatch(r"[\w.-]*", entry) is None


def _listed(last_names: list[str]) -> str:
    words = [name for name in last_names if not name.isdigit()]
    return "the model has " + ", ".join(f"`{name}`" for name in words[:30]) + (", ..." if len(words) > 30 else "")


def _ends(entry: str, name: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _is_all(entry: str, name: str) -> bool:
    return re.fullmatch(entry, name) is not None


def _is_part(entry: str, name: str) -> bool:
    return name.endswith(entry)  # as PEFT finds the modules that it copies


def _ends_as_pattern(entry: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({entry})$", name) is not None


def _is_contained(entry: str, name: str) -> bool:
    return entry in name or _is_all(entry, name)


def _targets(wanted: Any, names: list[str]) -> list[str]:
    """Return the modules that get an adapter, as far as they are named; all where a word or expression chooses them."""
    if not wanted or isinstance(wanted, str):
        return names
    return [name for name in names if any(_ends(entry, name) for entry in wanted)]


def _check_layers(settings: Mapping[str, Any], names: list[str]) -> None:
    """Raise where a number of `layers_to_transform` is that of no layer, or `layers_pattern` names no layers."""
    wanted = settings.get("layers_to_transform")
    if wanted is None:
        return
    pattern = settings.get("layers_pattern") or []
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    _check("layers_pattern", patterns, names, _ends_as_pattern)
    present = sorted(set(_layer_numbers(patterns, names)))
    for number in [wanted] if isinstance(wanted, int) else wanted:
        if number not in present:
            layers = f"layers {present[0]} to {present[-1]}" if present else "no numbered layers"
            raise GlmtuneError(
                f"`peft_config` does not fit the model: `layers_to_transform` has `{number}`, and the model has "
                f"{layers}",
                where="peft_config.layers_to_transform",
                fix="layers are counted from 0",
            )


def _layer_numbers(patterns: list[str], names: list[str]) -> Iterator[int]:
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    for name in names:
        for expression in expressions:
            if found := re.match(expression, name):
                yield int(found[1])


def _check_token_indices(wanted: Any, model: Any) -> None:
    """Raise where an id of `trainable_token_indices` has no row in the embedding."""
    if not wanted:
        return
    names = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    if isinstance(wanted, Mapping):
        _check("trainable_token_indices", wanted, list(names), _ends)
        chosen = {entry: [names[name] for name in names if _ends(entry, name)] for entry in wanted}
    else:
        wanted, chosen = {"": wanted}, {"": [model.get_input_embeddings()]}
    for entry, ids in wanted.items():
        number = chosen[entry][0].num_embeddings
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < number:
                raise GlmtuneError(
                    f"`peft_config` does not fit the model: `trainable_token_indices` has `{token_id}`, and the "
                    f"model's embedding has the ids 0 to {number - 1:,}",
                    where="peft_config.trainable_token_indices",
                    fix="give ids of the tokenizer; a model that is to have more of them must be resized first",
                )
