"""Writes the pages of `docs/en/reference` and `docs/zh/reference` from the code: `python docs/make_reference.py`.

tests/test_documentation.py fails where a committed page differs from what the code says now. Explanations are written
once, in English, where the thing itself is defined; `docs/chinese.yaml` holds their Chinese.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer
import yaml
from other_tools_page import TOOLS, forms_table, keys_table, left_table
from typer.models import ArgumentInfo, OptionInfo

from glmtune.cli.app import app
from glmtune.cli.verb_examples import EXAMPLES
from glmtune.config.run_config import DERIVED, SECTIONS, DataConfig, RunConfig
from glmtune.config.schema import explanations, json_type
from glmtune.data.formats import FORMATS
from glmtune.data.formats.columns import ANSWER_NAMES, INPUT_NAMES, QUESTION_NAMES

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "glmtune"
LANGUAGES = ("en", "zh")
METAVARS = {Path: "PATH", int: "N", float: "X", str: "TEXT"}

Translate = Callable[[str], str]


def pages(language: str) -> dict[str, str]:
    """Return the text of every generated page of a language, by its name below `reference/`.

    Raises:
        KeyError: `chinese.yaml` lacks an explanation, or its English has changed.
    """
    chinese = yaml.safe_load((DOCS / "chinese.yaml").read_text(encoding="utf-8"))
    say: Translate = (lambda text: text) if language == "en" else chinese.__getitem__
    return {
        "command-line.md": command_line(say),
        "configuration.md": configuration(say),
        "exit-codes.md": exit_codes(say),
        "formats.md": formats(say),
        "modules.md": modules(say),
        "other-tools.md": other_tools(say),
    }


def unused_translations() -> set[str]:
    """Return English texts of `chinese.yaml` that no page has any more."""
    chinese = yaml.safe_load((DOCS / "chinese.yaml").read_text(encoding="utf-8"))
    asked: set[str] = set()

    def say(text: str) -> str:
        asked.add(text)
        return text

    for write in PAGES:
        write(say)
    return set(chinese) - asked


class Parameter(NamedTuple):
    """An argument or an option of a verb."""

    names: list[str]
    value: str
    is_required: bool
    default: str
    help: str


class Verb(NamedTuple):
    """A command, with what may stand behind it."""

    name: str
    help: str
    arguments: list[Parameter]
    options: list[Parameter]


def verbs(group: typer.Typer = app, prefix: str = "glmtune") -> Iterator[Verb]:
    """Yield every verb in the order of `glmtune --help`."""
    for command in group.registered_commands:
        assert command.callback is not None
        name = f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}"
        yield _verb(name, command.callback)
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from verbs(below.typer_instance, f"{prefix} {below.name}")


def _verb(name: str, callback: Callable[..., Any]) -> Verb:
    arguments, options = [], []
    types = get_type_hints(callback, include_extras=True)
    for parameter, signature in inspect.signature(callback).parameters.items():
        annotated = _annotated(types[parameter])
        info = next(each for each in annotated.__metadata__ if isinstance(each, (ArgumentInfo, OptionInfo)))
        is_required = signature.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            arguments.append(Parameter([parameter.upper()], "", is_required, "", info.help or ""))
            continue
        kind = _bare(annotated.__origin__)
        value = "" if kind is bool else info.metavar or METAVARS[kind]
        default = info.show_default if isinstance(info.show_default, str) else _shown(signature.default)
        options.append(Parameter(_names(parameter, info, kind), value, is_required, default, info.help or ""))
    return Verb(name, _first_paragraph(callback), arguments, options)


def _names(parameter: str, info: OptionInfo, kind: type) -> list[str]:
    # Inside of `Annotated`, the first name that is given stands where a default would.
    given = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    name = parameter.replace("_", "-")
    return given or ([f"--{name}/--no-{name}"] if kind is bool else [f"--{name}"])


def _annotated(hint: Any) -> Any:
    """Return the `Annotated` of a parameter, which Python 3.10 wraps in an `Optional` where its default is None."""
    return hint if get_origin(hint) is Annotated else next(each for each in get_args(hint) if each is not type(None))


def _bare(annotation: Any) -> Any:
    """Return the type inside of `list[str] | None` and the like."""
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return _bare(inner[0]) if inner else annotation


def _shown(default: Any) -> str:
    return "" if default in (None, False, "") else str(default)


def _first_paragraph(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def command_line(say: Translate) -> str:
    """Return the page of all verbs with their arguments and options."""
    lines = [f"# {say('Command line')}", "", say(COMMAND_LINE)]
    for verb in verbs():
        behind = " ".join(each.names[0] if each.is_required else f"[{each.names[0]}]" for each in verb.arguments)
        lines += ["", f"## {verb.name}", "", say(verb.help), "", "```text", f"{verb.name} {behind}".rstrip(), "```"]
        if verb.arguments:
            rows = [[f"`{each.names[0]}`", say(each.help)] for each in verb.arguments]
            lines += ["", *_table([say("argument"), say("meaning")], rows)]
        if verb.options:
            rows = [[_option(each), say(each.help), _code(each.default)] for each in verb.options]
            lines += ["", *_table([say("option"), say("meaning"), say("default")], rows)]
        lines += ["", "```text", *EXAMPLES[verb.name.removeprefix("glmtune ")], "```"]
    return _page(lines)


def _option(option: Parameter) -> str:
    names = [part for name in option.names for part in name.split("/")]
    return ", ".join(f"`{f'{name} {option.value}'.strip()}`" for name in names)


def configuration(say: Translate) -> str:
    """Return the page of the keys of a configuration."""
    explained = explanations(RunConfig)
    rows = [
        *_key_rows(DataConfig, "data_config.", say),
        *(row for row in _key_rows(RunConfig, "", say) if row[0].strip("`") not in SECTIONS),
        ["`training_args`", "`{}`", say(explained["training_args"])],
        ["`training_args.generation_config`", "`{}`", say(explained["generation_config"])],
        ["`peft_config`", "`null`", say(explained["peft_config"])],
    ]
    table = _table([say("key"), say("default"), say("meaning")], rows)
    return _page([f"# {say('Keys of a configuration')}", "", say(CONFIGURATION), "", *table, "", say(EDITORS)])


def _key_rows(cls: type, section: str, say: Translate) -> Iterator[list[str]]:
    explained = explanations(cls)
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name in DERIVED or each.name in SECTIONS:
            continue
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        shown = say("required") if default is MISSING else f"`{_yaml(default)}`"
        values = json_type(get_type_hints(cls)[each.name])
        enum = next((one["enum"] for one in values.get("anyOf", [values]) if "enum" in one), [])
        choices = f" ({', '.join(map(_code, enum))})" if enum else ""
        yield [f"`{section}{each.name}`", shown, f"{say(explained[each.name])}{choices}"]


def _yaml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)


def exit_codes(say: Translate) -> str:
    """Return the page of the exit codes, from the constants of `glmtune/errors.py` and what stands below them."""
    body = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8")).body
    rows = [["0", say("Done.")]]
    for constant, below in itertools.pairwise(body):
        if not isinstance(constant, ast.Assign) or not isinstance(constant.targets[0], ast.Name):
            continue
        if constant.targets[0].id.startswith("EXIT_"):
            assert isinstance(below, ast.Expr), f"{constant.targets[0].id} has no docstring"
            rows.append([str(ast.literal_eval(constant.value)), say(" ".join(ast.literal_eval(below.value).split()))])
    table = _table([say("exit code"), say("meaning")], rows)
    return _page([f"# {say('Exit codes')}", "", say(EXIT_CODES), "", *table])


def formats(say: Translate) -> str:
    """Return the page of the formats of rows."""
    rows = []
    for name, each in FORMATS.items():
        needed = f" {say('or')} ".join(" + ".join(map(_code, keys)) for keys in (each.keys, *each.other_keys))
        rows.append([_code(name), say(each.summary), needed, ", ".join(map(_code, each.more_keys))])
    heads = [say("format"), say("what it is"), say("keys that tell it"), say("other keys that are read")]
    known = (("instruction", QUESTION_NAMES), ("output", ANSWER_NAMES), ("input", INPUT_NAMES))
    return _page(
        [
            f"# {say('Formats of rows')}",
            "",
            say(FORMAT_PAGE),
            "",
            *_table(heads, rows),
            "",
            f"## {say('Columns known by their names')}",
            "",
            say(KNOWN_COLUMNS),
            "",
            *_table(
                [say("read as"), say("names")], [[_code(key), ", ".join(map(_code, names))] for key, names in known]
            ),
        ]
    )


def modules(say: Translate) -> str:
    """Return the page of the modules: every file with the first line of its docstring, from the ground up."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from test_architecture import ROOMS, module_name, room_of

    described = {path: _first_line(path) for path in PACKAGE.rglob("*.py")}
    order = {path: ROOMS.index(room) for path in described if (room := room_of(module_name(path))) is not None}
    folders: dict[Path, list[Path]] = {}
    for path in sorted(order, key=lambda path: (order[path], str(path))):
        if path.name != "__init__.py":
            folders.setdefault(path.parent, []).append(path)
    lines = [f"# {say('Modules')}", "", say(MODULES)]
    for folder in sorted(folders, key=lambda folder: min(order[path] for path in folders[folder])):
        about = described[folder / "__init__.py"]
        lines += ["", f"## {folder.relative_to(PACKAGE.parent).as_posix()}/", "", about, ""]
        rows = [[_code(path.name), described[path]] for path in folders[folder]]
        lines += _table([say("file"), say("what it does")], rows)
    return _page(lines)


def other_tools(say: Translate) -> str:
    """Return the page of other tools: which forms of rows are read, and where their keys stand here."""
    lines = [
        f"# {say('Other tools')}",
        "",
        say(OTHER_TOOLS),
        "",
        f"## {say('Forms of rows')}",
        "",
        say(FORMS_OF_ROWS),
        "",
    ]
    lines += _table(*forms_table(say))
    for tool in TOOLS:
        lines += ["", f"## {tool}", "", *_table(*keys_table(tool, say)), "", *_table(*left_table(tool, say))]
    return _page(lines)


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |".replace("  |", " |") for row in (heads, ["---"] * len(heads), *body)]


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


COMMAND_LINE = (
    "`glmtune --help` (or `-h`) lists the verbs, `glmtune VERB --help` the options of one; `python -m glmtune` is the "
    "same command. `--version` shows the version, and `--debug`, before or behind a verb, the traceback of an error. "
    "`glmtune --install-completion` has your shell complete verbs and options by the Tab key. "
    "Results go to stdout, everything else to stderr."
)
CONFIGURATION = (
    "All keys that a YAML file may have. Those of `training_args` are the fields of "
    "[`transformers.Seq2SeqTrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer), those "
    "of `generation_config` the fields of "
    "[`transformers.GenerationConfig`](https://huggingface.co/docs/transformers/main_classes/text_generation), those "
    "of `peft_config` the fields of the method's class in [PEFT](https://huggingface.co/docs/peft), in the installed "
    "versions. What glmtune sets otherwise than they do, and why, stands under "
    "[Configuration](../concepts/configuration.md)."
)
EDITORS = (
    "`glmtune config schema` prints all of it as JSON Schema, the keys of the installed transformers and PEFT among "
    "them: [an editor that completes keys](../concepts/configuration.md#in-an-editor)."
)
EXIT_CODES = (
    "What a command ends with. How messages are built: [Errors](../concepts/errors.md); what a signal does to a run: "
    "[Stopping](../concepts/resume.md#stopping-and-exit-codes)."
)
KNOWN_COLUMNS = (
    "Where the first rows of a file are in none of these formats, their columns are read by what they are called, in "
    "upper or lower case, and a note says so. A row needs a question and one answer; of several answers none is "
    "taken. `--column KEY=NAME` (`columns` in a configuration) says otherwise."
)
FORMAT_PAGE = (
    "The format of a row is found out by its keys. Where a row has the keys of two formats, the one that stands first "
    "here is taken. Every format with an example: [Rows and files](../concepts/data-format.md)."
)
MODULES = (
    "Every file of the package with the first line of its docstring. The folders stand in the order in which they "
    "build on each other: a module imports only from its own folder and from those before it, which "
    "`tests/test_architecture.py` checks."
)


OTHER_TOOLS = (
    "What `glmtune init --from FILE` makes of a configuration, and what of the rows of other tools is read. How to "
    "come from one: [the guide](../guides/from-other-tools.md). Arguments of transformers, which LLaMA-Factory and "
    "ms-swift take under their own names, keep them in `training_args`; what no run honours of them is listed with the "
    "reason, too."
)
FORMS_OF_ROWS = (
    "One small example of each is kept in `docs/forms.yaml`; this table is what the reader makes of them. What a "
    "format is: [Formats of rows](formats.md)."
)
PAGES = (command_line, configuration, exit_codes, formats, modules, other_tools)


def main() -> None:
    """Write all pages."""
    for language in LANGUAGES:
        folder = DOCS / language / "reference"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(language).items():
            (folder / name).write_text(text, encoding="utf-8")


def texts() -> Mapping[str, None]:
    """Return every English text that `chinese.yaml` has to hold, in the order of the pages."""
    asked: dict[str, None] = {}

    def say(text: str) -> str:
        asked[text] = None
        return text

    for write in PAGES:
        write(say)
    return asked


if __name__ == "__main__":
    main()
