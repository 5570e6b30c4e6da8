"""What comes of a configuration while its keys are gone through: our keys, where they came from, and what was left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glmtune.compat import CHECKPOINTING
from glmtune.config.run_config import METHODS, problems_of
from glmtune.text.secret_values import HIDDEN, is_secret, masked, without_secrets

SECTIONS = ("data_config", "", "training_args", "peft_config")
"""In the order of a file; the empty one holds the keys at the top."""
NO_DATA = "no data set was named: put the name of your file here"
MOST_ROUNDS = 10
"""Times that keys which our own configuration refuses are taken out: taking one out may show another."""


class Untranslated(NamedTuple):
    """A key of the source that has no place in the configuration."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A configuration of another tool in our keys."""

    tool: str
    config: dict[str, Any]
    """As a YAML file of ours holds it; `load_config` takes it."""
    comments: dict[str, str]
    """By dotted key: what it was called, or where its value comes from."""
    model: str | None
    """Which model is trained, as it was named there."""
    data_dir: str
    """The folder that the names of the files are relative to."""
    untranslated: list[Untranslated]

    @property
    def method(self) -> str:
        """`sft`, `lora`, or PEFT's name of another method in lower case, as `RunConfig.method`."""
        peft = self.config.get("peft_config")
        return METHODS.get(peft["peft_type"], peft["peft_type"].lower()) if peft else "sft"

    @property
    def data_files(self) -> list[str]:
        """The names of the files of training rows."""
        entries = self.config["data_config"]["train_file"]
        entries = entries if isinstance(entries, list) else [entries]
        return [each["path"] if isinstance(each, dict) else each for each in entries]


@dataclass(kw_only=True)
class Draft:
    """A translation in the making."""

    tool: str
    source: Mapping[str, Any]
    """What the other tool's file says."""
    file: Path
    """Where it stands; names in it may be relative to its folder."""
    values: dict[str, Any] = field(default_factory=dict)
    """Of our keys, by their dotted names."""
    origins: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """By our key, the one that it comes of, and what that said."""
    comments: dict[str, str] = field(default_factory=dict)
    untranslated: list[Untranslated] = field(default_factory=list)
    model: str | None = None
    data_dir: str = "."

    def put(self, place: str, value: Any, key: str, note: str = "") -> None:
        """Set a key of ours to what a key of the source says."""
        written = self.source.get(key)
        before, _ = self.origins.get(place, (key, None))
        if before != key:
            self.leave(before, f"`{key}` says it, too")
        self.values[place] = value
        self.origins[place] = key, written
        is_same = place.rpartition(".")[2] == key and value == written
        self.comments.pop(place, None)
        if note or not is_same:
            said = HIDDEN if is_secret(key) else masked(shown(written))
            self.comments[place] = "; ".join(filter(None, (f"was `{key}: {said}`", note)))

    def default(self, place: str, value: Any, note: str = "") -> None:
        """Set a key of ours to what the tool does where nothing is said, unless something is."""
        if place not in self.values:
            self.values[place] = value
            self.comments[place] = note or f"the default of {self.tool}"

    def leave(self, key: str, reason: str, value: Any = None) -> None:
        """List a key of the source with the reason why it has no place here."""
        item = Untranslated(key, self.source.get(key) if value is None else value, reason)
        if item not in self.untranslated:
            self.untranslated.append(item)

    def finish(self) -> Translation:
        """Return the translation, without what our own configuration refuses: that is listed."""
        self.default("data_config.train_file", "train.jsonl", NO_DATA)
        for _ in range(MOST_ROUNDS):
            problems = problems_of(_nested(self.values))
            if not problems:
                break
            for problem in problems:
                self._take_out(problem.key, f"{problem.message}{f'; {problem.fix}' if problem.fix else ''}")
        return Translation(
            tool=self.tool,
            config=_nested(self.values),
            comments={place: text for place, text in self.comments.items() if place in self.values},
            model=self.model,
            data_dir=self.data_dir,
            untranslated=[each._replace(value=_masked(each)) for each in self.untranslated],
        )

    def _take_out(self, key: str, reason: str) -> None:
        """Take out the key of ours that a problem is with, or those below it, and list what it came of."""
        keys = [key, *(key.replace(new, old) for old, new in CHECKPOINTING.items() if new in key)]
        places = [place for place in self.values for key in keys if place == key or place.startswith(f"{key}.")]
        places = places or [place for place in self.values for key in keys if key.startswith(f"{place}.")]
        for place in dict.fromkeys(places):
            name, written = self.origins.get(place, (place, self.values[place]))
            del self.values[place]
            if name in self.source:
                self.untranslated.append(Untranslated(name, written, reason))


@dataclass(frozen=True)
class Key:
    """What a key of another tool is here."""

    place: str
    """For a reader: our key, or the argument of the command."""
    read: Callable[[Draft, str, Any], None] | None = None
    """What puts it there; None where the value is taken as it is, and our own configuration says whether it fits."""
    takes: tuple[type, ...] = ()
    """Beside texts and numbers: `list` of them, `dict`."""

    def translate(self, draft: Draft, key: str) -> None:
        """Put the key where it belongs, or list it."""
        value = draft.source[key]
        if value is None:
            draft.leave(key, EMPTY)
        elif self.read is None:
            draft.put(self.place, value, key)
        elif not self._takes(value):
            draft.leave(key, f"expected a text or a number{', or a list of them' if list in self.takes else ''}")
        else:
            self.read(draft, key, value)

    def _takes(self, value: Any) -> bool:
        if isinstance(value, list) and dict not in self.takes:
            return list in self.takes and all(isinstance(each, PLAIN) for each in value)
        return isinstance(value, (*PLAIN, *self.takes))


EMPTY = "says nothing"
PLAIN = (str, int, float)
NO_TEXT = "expected a text"


def names_in(value: Any) -> dict[str, str]:
    """Return the names that stand under keys; those of another type, which name nothing, are left out."""
    return {key: each for key, each in value.items() if isinstance(each, str)} if isinstance(value, dict) else {}


def texts_in(draft: Draft, key: str, value: Any) -> dict[str, str]:
    """Return the names that stand under keys, as above; what names nothing is listed."""
    for part, each in value.items() if isinstance(value, dict) else ():
        if each is not None and not isinstance(each, str):
            draft.leave(f"{key}.{part}", NO_TEXT, each)
    return names_in(value)


def shown(value: Any) -> str:
    """Return a value as a comment has it, on one line."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    else:
        text = "null" if value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _masked(item: Untranslated) -> Any:
    return without_secrets({item.key: item.value}).get(item.key, "...")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as sections, in the order of a file."""
    config: dict[str, Any] = {}
    ordered = sorted(values, key=lambda place: SECTIONS.index(place.split(".")[0] if "." in place else ""))
    for place in ordered:
        *sections, name = place.split(".")
        inner = config
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = values[place]
    return config
