"""Encoded files are kept, found again by what made them, and never read half written."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from chat_layouts import GLM_TOKENS, with_template
from transformers import AddedToken

import glmtune
from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import RowFormat
from glmtune.encoded.dataset import EncodedData, encode_file
from glmtune.encoded.store import DAYS_KEPT, cache_key, encoded_folder, file_hash, remove_unused
from glmtune.errors import GlmtuneError
from glmtune.family import GLM, GLM_MOE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    return encoded_folder()


def row(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(row("A", "B") + "{\n" + row("C", "DFGHJKLMNP") + row("A", "B"), encoding="utf-8")
    return path


class CountingEncoder(Encoder):
    """Counts the rows that it renders; leaves a file for every batch, so that other processes can be counted, too."""

    num_rows = 0
    log: Path | None = None
    seconds = 0.0

    def plan(self, conversations: Any) -> Any:
        self.num_rows += len(conversations)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return super().plan(conversations)


@pytest.fixture
def encoder(demo_tokenizer) -> CountingEncoder:
    return CountingEncoder(demo_tokenizer, GLM, max_length_tokens=12)


def encode(path: Path, encoder: Encoder, **more: Any) -> EncodedData:
    return encode_file(path, encoder, content_hash=file_hash(path), **more)


def entries(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if not entry.name.endswith(".lock"))


def test_a_file_is_encoded_once_and_read_again(path: Path, encoder: CountingEncoder, cache: Path) -> None:
    first = encode(path, encoder)
    assert encoder.num_rows > 0
    encoder.num_rows = 0
    again = encode(path, encoder)
    assert encoder.num_rows == 0
    assert again.dataset.to_list() == first.dataset.to_list()
    assert again.dataset.features == first.dataset.features
    assert (again.rejects, again.cuts, again.summary()) == (first.rejects, first.cuts, first.summary())
    assert len(again.rejects) == len(again.cuts) == 1
    assert len(entries(cache)) == 1


def test_what_is_kept_is_what_is_encoded_without_keeping(path: Path, encoder: CountingEncoder) -> None:
    alone = encode_file(path, encoder)
    for _ in range(2):
        kept = encode(path, encoder)
        assert kept.dataset.to_list() == alone.dataset.to_list()
        assert (kept.rejects, kept.cuts) == (alone.rejects, alone.cuts)


def test_nothing_is_kept_without_a_hash(path: Path, encoder: CountingEncoder, cache: Path) -> None:
    encode_file(path, encoder)
    assert not cache.exists()


def test_the_rows_are_mapped_into_memory_and_not_loaded(path: Path, encoder: CountingEncoder, cache: Path) -> None:
    data = encode(path, encoder)
    [folder] = entries(cache)
    assert [Path(file["filename"]) for file in data.dataset.cache_files] == [cache / folder / "rows.arrow"]


def key(path: Path, tokenizer: Any, row_format: RowFormat | None = None, family: Any = GLM, **settings: Any) -> str:
    settings = {"max_length_tokens": 12} | settings
    encoder = Encoder(tokenizer, family, **settings)
    return cache_key(file_hash(path), str(path), encoder, row_format or RowFormat())


def test_everything_that_decides_the_labels_gives_another_key(path: Path, demo_tokenizer) -> None:
    tokenizer = demo_tokenizer
    other_template, other_token, other_eos = (copy.deepcopy(tokenizer) for _ in range(3))
    other_template.chat_template += "{# the same #}"
    other_token.add_tokens([AddedToken("<|new|>", special=True)], special_tokens=True)
    other_eos.eos_token = "<|user|>"
    before = key(path, tokenizer)
    keys = {
        "as it was": before,
        "chat template": key(path, other_template),
        "special token": key(path, other_token),
        "end token": key(path, other_eos),
        "tokenizer": key(path, with_template(tokenizer.chat_template, GLM_TOKENS)),
        "train_on": key(path, tokenizer, train_on="last"),
        "reasoning": key(path, tokenizer, train_reasoning=False),
        "length": key(path, tokenizer, max_length_tokens=13),
        "no length": key(path, tokenizer, max_length_tokens=None),
        "truncation": key(path, tokenizer, truncation="drop"),
        "family": key(path, tokenizer, family=GLM_MOE),
        "format": key(path, tokenizer, RowFormat(name="messages")),
        "columns": key(path, tokenizer, RowFormat(columns={"messages": "chat"})),
    }
    other_path = path.with_name("other.jsonl")
    other_path.write_bytes(path.read_bytes())
    keys["name"] = key(other_path, tokenizer)
    path.write_text(path.read_text(encoding="utf-8").replace("C", "E"), encoding="utf-8")
    keys["one row"] = key(path, tokenizer)
    assert len(set(keys.values())) == len(keys)
    path.write_text(path.read_text(encoding="utf-8").replace("E", "C"), encoding="utf-8")
    assert key(path, tokenizer) == before


def test_every_setting_of_the_encoder_and_of_the_row_format_is_part_of_the_key(path: Path, demo_tokenizer) -> None:
    others: dict[str, Any] = {
        "train_on": "last", "train_reasoning": False, "max_length_tokens": 13, "truncation": "drop",
    }  # fmt: skip
    before = key(path, demo_tokenizer)
    assert set(others) == set(Encoder(demo_tokenizer, GLM).settings())
    assert set(others) | {"use_skeletons"} == set(inspect.signature(Encoder).parameters) - {"tokenizer", "family"}
    keys = {before, *(key(path, demo_tokenizer, **{name: value}) for name, value in others.items())}
    formats = {"name": "alpaca", "columns": {"instruction": "question"}}
    assert set(formats) == {each.name for each in fields(RowFormat)}
    keys |= {key(path, demo_tokenizer, RowFormat(**{name: value})) for name, value in formats.items()}
    assert len(keys) == 1 + len(others) + len(formats)


@pytest.mark.parametrize("field", [each.name for each in fields(GLM)])
def test_every_fact_about_the_family_is_part_of_the_key(field: str, path: Path, demo_tokenizer) -> None:
    value = getattr(GLM, field)
    changed = not value if isinstance(value, bool) else (*value, "x") if isinstance(value, tuple) else f"{value}x"
    other = copy.copy(GLM)
    object.__setattr__(other, field, changed)
    encoder = Encoder(demo_tokenizer, GLM)
    before = cache_key("content", "where", encoder, RowFormat())
    encoder.family = other
    assert cache_key("content", "where", encoder, RowFormat()) != before


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "jinja2", "datasets"])
def test_another_version_of_a_package_gives_another_key(
    package: str, path: Path, demo_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(path, demo_tokenizer)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + ".1" * (name == package))
    assert key(path, demo_tokenizer) != before


def code_files() -> list[str]:
    package = Path(glmtune.__file__).parent
    rooms = [path for room in ("data", "chatformat", "encoded") for path in sorted((package / room).rglob("*.py"))]
    return ["family.py", *(path.relative_to(package).as_posix() for path in rooms)]


@pytest.mark.parametrize("changed", code_files())
def test_a_change_of_any_file_that_makes_labels_gives_another_key(
    changed: str, path: Path, demo_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "glmtune"
    for name in code_files():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(glmtune.__file__).parent / name, package / name)
    monkeypatch.setattr(glmtune, "__file__", str(package / "__init__.py"))
    before = key(path, demo_tokenizer)
    with (package / changed).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert key(path, demo_tokenizer) != before


@pytest.mark.parametrize("room", ["data/formats", "chatformat", "encoded"])
def test_a_new_file_among_those_that_make_labels_gives_another_key(
    room: str, path: Path, demo_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glmtune" / room).mkdir(parents=True)
    (tmp_path / "glmtune" / "family.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(glmtune, "__file__", str(tmp_path / "glmtune" / "__init__.py"))
    before = key(path, demo_tokenizer)
    (tmp_path / "glmtune" / room / "new.py").write_text("rule = 1\n", encoding="utf-8")
    assert key(path, demo_tokenizer) != before


TOKENIZER_CHANGES = {
    "a merge": lambda tokenizer: change_backend(tokenizer, lambda state: state["model"]["merges"].pop()),
    "a normalizer": lambda tokenizer: change_backend(tokenizer, lambda state: state.update(normalizer={"type": "NFC"})),
    "an added token": lambda tokenizer: tokenizer.add_tokens(["<SKU>"]),
    "an added special token": lambda tokenizer: tokenizer.add_tokens([AddedToken("<SKU>", special=True)]),
    "the end token": lambda tokenizer: setattr(tokenizer, "eos_token", "<|user|>"),
    "the padding token": lambda tokenizer: setattr(tokenizer, "pad_token", "<|user|>"),
    "the chat template": lambda tokenizer: setattr(tokenizer, "chat_template", tokenizer.chat_template + "{##}"),
}


def change_backend(tokenizer: Any, change: Any) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("change", TOKENIZER_CHANGES.values(), ids=TOKENIZER_CHANGES)
def test_each_part_of_the_tokenizer_is_part_of_the_key(change: Any, path: Path, demo_tokenizer) -> None:
    encoder = Encoder(copy.deepcopy(demo_tokenizer), GLM)
    before = cache_key("content", "where", encoder, RowFormat())
    assert cache_key("content", "where", encoder, RowFormat()) == before
    change(encoder.tokenizer)
    assert cache_key("content", "where", encoder, RowFormat()) != before


@pytest.mark.parametrize("at_row", [0, 400, 800])
def test_a_file_that_changes_while_it_is_read_is_an_error_and_not_kept(
    at_row: int, path: Path, demo_tokenizer, cache: Path
) -> None:
    path.write_text("".join(row(f"A{number}", "B") for number in range(801)), encoding="utf-8")

    class Writing(Encoder):
        def plan(self, conversations: Any) -> Any:
            if any(message.content == f"A{at_row}" for each in conversations for message in each.messages):
                with path.open("a", encoding="utf-8") as file:
                    file.write(row("more", "B"))
            return super().plan(conversations)

    with pytest.raises(GlmtuneError) as caught:
        encode(path, Writing(demo_tokenizer, GLM))
    assert str(caught.value) == (
        f"the file changed while it was being read\n  --> {path}\nhint: start again when it is written"
    )
    assert entries(cache) == []


def test_use_leaves_the_key_of_a_tokenizer_as_it_was(path: Path, demo_tokenizer) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    before = key(path, tokenizer)
    data = encode(path, Encoder(tokenizer, GLM, max_length_tokens=12))
    tokenizer("some text", padding="max_length", max_length=9, truncation=True)
    assert key(path, tokenizer) == before
    assert (
        data.dataset.to_list()
        == encode_file(path, Encoder(demo_tokenizer, GLM, max_length_tokens=12)).dataset.to_list()
    )


def test_a_changed_row_is_encoded_anew(path: Path, encoder: CountingEncoder, cache: Path) -> None:
    encode(path, encoder)
    path.write_text(row("A", "B"), encoding="utf-8")
    assert len(encode(path, encoder).dataset) == 1
    assert len(entries(cache)) == 2


class DyingEncoder(CountingEncoder):
    """Dies in the third batch while it is ill."""

    is_ill = True

    def tokenize(self, planned: Any) -> Any:
        if self.is_ill and any("last" in text for text in planned.texts):
            raise KeyboardInterrupt
        return super().tokenize(planned)


def test_what_was_half_written_is_never_read(path: Path, demo_tokenizer, cache: Path) -> None:
    path.write_text(row("A", "B") * 600 + row("A", "last"), encoding="utf-8")
    encoder = DyingEncoder(demo_tokenizer, GLM)
    with pytest.raises(KeyboardInterrupt):
        encode(path, encoder)
    assert entries(cache) == []
    encoder.is_ill = False
    assert len(encode(path, encoder).dataset) == 601


def kill_in_the_middle(path: Path, encoder: Encoder) -> None:
    class Killed(Encoder):
        def tokenize(self, planned: Any) -> Any:
            if any("last" in text for text in planned.texts):
                os._exit(9)
            return super().tokenize(planned)

    encode(path, Killed(encoder.tokenizer, encoder.family))


def test_what_a_killed_process_left_is_never_read(path: Path, demo_tokenizer, cache: Path) -> None:
    path.write_text(row("A", "B") * 600 + row("A", "last"), encoding="utf-8")
    encoder = Encoder(demo_tokenizer, GLM)
    process = multiprocessing.get_context("fork").Process(target=kill_in_the_middle, args=(path, encoder))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    [left] = entries(cache)
    assert left.startswith(".")
    assert len(encode(path, encoder).dataset) == 601
    assert len(entries(cache)) == 2


def test_a_file_that_cannot_be_trained_on_leaves_nothing(path: Path, encoder: Encoder, cache: Path) -> None:
    path.write_text("{\n", encoding="utf-8")
    with pytest.raises(GlmtuneError, match="can be trained on"):
        encode(path, encoder)
    assert entries(cache) == []


def test_strict_fails_at_the_first_rejected_row_of_a_kept_file_too(
    path: Path, encoder: CountingEncoder, cache: Path
) -> None:
    def message() -> str:
        with pytest.raises(GlmtuneError) as caught:
            encode(path, encoder, strict=True)
        return str(caught.value)

    fresh = message()
    assert entries(cache) == [], "nothing behind the bad row is encoded"
    encode(path, encoder)
    encoder.num_rows = 0
    assert message() == fresh
    assert encoder.num_rows == 0
    assert fresh == (
        "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)\n"
        f"  --> {path}:2\n"
        "hint: mend the row; without `--strict` it is left out and listed"
    )


def encode_and_report(path: Path, encoder: Encoder, results: Any) -> None:
    results.put(encode(path, encoder).dataset["input_ids"][:])


def test_of_two_processes_at_once_one_encodes(
    path: Path, encoder: CountingEncoder, tmp_path: Path, cache: Path
) -> None:
    encoder.log, encoder.seconds = tmp_path / "log", 0.3
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=encode_and_report, args=(path, encoder, results)) for _ in range(2)]
    for process in processes:
        process.start()
    one, two = (results.get(timeout=60) for _ in range(2))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert one == two
    assert len(set(encoder.log.read_text(encoding="utf-8").split())) == 1
    assert len(entries(cache)) == 1


def test_files_that_no_run_has_asked_for_are_removed(path: Path, encoder: CountingEncoder, cache: Path) -> None:
    encode(path, encoder)
    [kept] = entries(cache)
    old = time.time() - (DAYS_KEPT + 1) * 86_400
    unused, new = 32 * "a", 32 * "b"
    for name in (unused, f".{unused}-half"):
        (cache / name).mkdir()
        (cache / name / "rows.arrow").write_bytes(b"")
        os.utime(cache / name, (old, old))
    (cache / f"{unused}.lock").write_bytes(b"")
    os.utime(cache / f"{unused}.lock", (old, old))
    os.utime(cache / kept, (old, old))
    encode(path, encoder)  # asked for: its time is renewed
    recent = time.time() - (DAYS_KEPT - 1) * 86_400
    (cache / new).mkdir()
    os.utime(cache / new, (recent, recent))
    remove_unused(cache)
    assert entries(cache) == sorted([kept, new])
    assert not (cache / f"{unused}.lock").exists()


def test_what_another_process_removes_meanwhile_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, unused = (cache / (32 * letter) for letter in "ab")
    unused.mkdir(parents=True)
    os.utime(unused, (0, 0))
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter((gone, unused)))  # as both were listed
    remove_unused(cache)
    assert not unused.exists()


def test_digests_come_back_as_they_were_written(path: Path, encoder: CountingEncoder) -> None:
    path.write_text("".join(row(f"A{number}", "B") for number in range(50)), encoding="utf-8")
    digests = encode(path, encoder).numbers("digest")
    assert digests.dtype == np.uint64
    assert digests.max() > 2**63
