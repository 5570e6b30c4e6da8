"""Configurations of strangers: each is one clear line, soon, whatever its YAML unfolds to."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from pathlib import Path

import pytest
from torch import nn

from glmtune import load_config
from glmtune.errors import GlmtuneError
from glmtune.modeling.adapting.adapter_names import check_adapter_names

PLAIN = "data_config: {train_file: a.jsonl}\npeft_config: null\n"
SECONDS = 5.0
"""In which each has to be refused; it takes a hundredth of it."""


def repeated(form: str, joined: str) -> str:
    """Return nine levels, each of which names the one before nine times."""
    names = "abcdefghi"
    lines = [f"a: &a {joined}"]
    lines += [f"{name}: &{name} {form % ','.join(9 * [f'*{before}'])}" for before, name in itertools.pairwise(names)]
    return "\n".join(lines)


BROKEN = {
    "aliases of aliases": (repeated("[%s]", "[1,1,1,1,1,1,1,1,1]"), "more than 200,000 values stand here"),
    "merged aliases": (repeated("{<<: [%s]}", "{x: 1, y: 2, z: 3}"), "more than 200,000 values stand here"),
    "a million brackets": ("a: " + 1_000_000 * "[", "nested too deeply"),
    "a thousand keys": (1_000 * "{a: ", "nested too deeply"),
    "dashes": ("- " * 20_000, "nested too deeply"),
    "fifty levels": (f"a: {50 * '['}{50 * ']'}", "nested too deeply"),
    "levels by aliases": (
        "\n".join([f"a0: &a0 {20 * '['}{20 * ']'}", f"a1: &a1 {20 * '['}*a0{20 * ']'}"]), "nested too deeply"
    ),
    "an alias of itself": ("a: &a [*a]", "an alias contains itself"),
    "a number of 100,000 digits": (f"seed: {100_000 * '9'}", "the number `999999999999...` is too large"),
    "a hexadecimal one": (f"seed: 0x{100_000 * 'f'}", "the number `0xffffffffff...` is too large"),
    "a binary one": (f"seed: 0b{100_000 * '1'}", "the number `0b1111111111...` is too large"),
    "a number by sixties": (f"seed: 1{100_000 * ':1'}", "the number `1:1:1:1:1:1:...` is too large"),
    "a fraction by sixties": (f"seed: 1{1_000 * ':1'}.5", "the number `1:1:1:1:1:1:...` is too large"),
    "more than 64 bits": ("training_args: {max_steps: 9223372036854775808}", "`9223372036854775808` is too large"),
    "a tag of Python": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
    "a tag that lies": ("a: !!bool x", "a value is not what its tag says"),
    "an empty number": ("a: !!int ''", "a value is not what its tag says"),
    "no date": ("a: !!timestamp x", "could not determine a constructor for the tag"),
    "a set": ("a: !!set {x, y}", "could not determine a constructor for the tag"),
    "bytes": ("a: !!binary aGk=", "could not determine a constructor for the tag"),
    "a list as a key": ("? [a]\n: 1", "found unhashable key"),
    "a NUL": ("a: \0", "special characters are not allowed"),
    "no end of a text": ('a: "' + 10_000 * "x", "found unexpected end of stream"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BROKEN.values(), ids=BROKEN)
def test_hostile_yaml_is_one_line_soon(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(GlmtuneError) as caught:
        load_config(path)
    assert time.monotonic() - started < SECONDS
    assert told in caught.value.what
    assert caught.value.what.startswith("broken YAML: ")
    assert caught.value.where.startswith(f"{path}:")


@pytest.mark.parametrize("name", ["a million brackets", "fifty levels", "a hexadecimal one", "a tag that lies"])
def test_hostile_overrides_are_one_line_soon(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN, encoding="utf-8")
    text, told = BROKEN[name]
    started = time.monotonic()
    with pytest.raises(GlmtuneError) as caught:
        load_config(path, [f"training_args={text.partition(': ')[2]}"])
    assert time.monotonic() - started < SECONDS
    assert told in str(caught.value)


NO_UTF_8 = {
    "gbk": ("数据: 1".encode("gbk"), "GBK"),
    "utf-16": ("a: 1".encode("utf-16"), "UTF-16"),
    "latin": (b"a: \xff\xfe", ""),
}


@pytest.mark.parametrize(("content", "encoding"), NO_UTF_8.values(), ids=NO_UTF_8)
def test_yaml_that_is_no_utf_8_is_one_line(content: bytes, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(GlmtuneError, match="the file is not UTF-8") as caught:
        load_config(path)
    assert encoding in str(caught.value)


def test_a_huge_configuration_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(GlmtuneError, match="the file is larger than 1 MiB"):
        load_config(path)


@pytest.mark.parametrize("value", ["1e300", "1e19", "-1e19"])
def test_a_whole_number_in_the_form_of_a_fraction_is_bounded_too(value: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{PLAIN}training_args: {{max_steps: {value}}}\n", encoding="utf-8")
    with pytest.raises(GlmtuneError, match="expected a whole number"):
        load_config(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)  # a path of a socket has 108 bytes at most


IRREGULAR = {
    "a pipe": (pipe, "is a pipe; expected a file"),
    "a socket": (bound_socket, "is a socket; expected a file"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "is a link to `nowhere`, which does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "which does not exist|Too many levels of symbolic"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a file"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="other systems have neither pipes nor devices by name")
@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("place", ["configuration", "deepspeed", "rows", "tools", "model"])
def test_what_is_no_file_is_named_for_what_it_is(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glmtune.chat.functions import load_tools
    from glmtune.data.reading.sources import command_line_files
    from glmtune.modeling.finding.model_source import find_model

    monkeypatch.chdir(tmp_path)
    make, told = IRREGULAR[kind]
    path = tmp_path / "it.json"
    make(path)
    (tmp_path / "plain.yaml").write_text(PLAIN, encoding="utf-8")
    read = {
        "configuration": lambda: load_config(path),
        "deepspeed": lambda: load_config("plain.yaml", [f"training_args.deepspeed={path}"]),
        "rows": lambda: command_line_files(str(path)),
        "tools": lambda: load_tools(path),
        "model": lambda: find_model(str(path)),
    }[place]
    with pytest.raises(GlmtuneError) as caught:
        read()
    expected = told if place != "deepspeed" else "there is no file"
    assert re.search(expected, str(caught.value))


DEEPSPEED = {
    "depth": (100_000 * "[", "nested too deeply"),
    "a number": (f'{{"a": {5_000 * "9"}}}', "a number is too large"),
    "not JSON": ("{", "broken JSON"),
    "a list": ("[]", "expected an object"),
}


@pytest.mark.parametrize(("text", "told"), DEEPSPEED.values(), ids=DEEPSPEED)
def test_hostile_deepspeed_files_are_one_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{PLAIN}training_args: {{deepspeed: ds.json}}\n", encoding="utf-8")
    (tmp_path / "ds.json").write_text(text, encoding="utf-8")
    with pytest.raises(GlmtuneError, match=told):
        load_config(tmp_path / "c.yaml")


class Layers(nn.Module):
    """Layers whose names take an expression long."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(40 * "a", nn.Linear(1, 1))


ENDLESS = {
    "target_modules": {"target_modules": "(a+)+b"},
    "exclude_modules": {"exclude_modules": "(a|aa)+b"},
    "rank_pattern": {"rank_pattern": {"(a*)*b": 4}},
    "alpha_pattern": {"alpha_pattern": {"(a|a)+b": 4}},
    "modules_to_save": {"modules_to_save": ["(a+)+b"]},
}


@pytest.mark.parametrize("settings", ENDLESS.values(), ids=ENDLESS)
def test_an_expression_that_never_ends_is_given_up(settings: dict[str, object], monkeypatch) -> None:
    monkeypatch.setattr("glmtune.modeling.adapting.name_patterns.SECONDS", 0.5)
    with pytest.raises(GlmtuneError, match=r"takes more than 0\.5 s on the names"):
        check_adapter_names(settings, Layers())
