"""Tokens, keys and passwords: known by the name that they stand under, and hidden in all that is shown or written.

A value that was met under such a name is remembered for as long as the process lives, so that it is hidden, too, where
another library quotes it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"

SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:tokens?|secrets?|passwords?|passwds?|pwd|passphrase|passcode|credentials?|authorization|bearer"
    r"|(?:smtp|mail|user|db|database|proxy|redis|mysql|postgres)[_\- ]?pass|cookies?"
    r"|(?:web|lark|feishu|slack|ding|dingtalk|discord|teams)[_\- ]?hooks?(?:[_\- ](?:ur[il]s?|address|endpoint))?"
    r"|dsn|conn(?:ection)?[_\- ]?str(?:ing)?s?"
    r"|(?:api|access|secret|private|encryption|hub|signing|account|storage|auth|client|master|shared|ssh|license)"
    r"[_\- ]?keys?(?:[_\- ]id)?)$",
    re.IGNORECASE,
)
"""What the name of a secret ends with."""
VOCABULARY = re.compile(
    r"(?:^|[^a-z])(?:pad|eos|bos|unk|sep|cls|mask|image|video|audio|vision|stop|end|start|special|new|virtual|input"
    r"|output|max|min|num|per|extra|added|control|role|prompt|completion|decoder|encoder|all|in|thinking)_?tokens?$",
    re.IGNORECASE,
)
"""Tokens of another kind."""
MISTYPED = ("hub_token", "api_key", "access_token", "password")
"""Names that are known with a slip in them, too: the value is as secret, and its error would quote it."""
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

ASSIGNED = re.compile(r"""(?<![\w.\-])([\w.\-]+)["']?[ \t]*[:=][ \t]*(?=\S)""")
"""A name in a text, and behind it what it is set to."""
IN_URL = re.compile(r"(?<=://)[^\s/'\"`]+(?=@)")
"""Name and password of a user in an address."""
IN_QUERY = re.compile(r"([?&]([\w.\-]+)=)[^&#\s'\"`]+")
IN_QUERY_ALONE = re.compile(r"(?:x-(?:amz|goog|oss)-)?(?:sig|sign|signature|key)", re.IGNORECASE)
"""What is secret in an address, and elsewhere is not."""
HOOK = re.compile(
    r"(://(?:hooks\.slack\.com|[^\s'\"`/]+\.webhook\.office\.com|[^\s'\"`]+?/(?:web_?hooks?|hook))/)[^\s'\"`]+",
    re.IGNORECASE,
)
"""An address that whoever knows it may write to: of Slack, Teams, Discord, Feishu and Lark, WeCom."""
BEARER = re.compile(r"(?i)\b((?:bearer|basic) )[\w.~+/=\-]{6,}")

SHORTEST = 6
"""Characters that a value has to have to be looked for where no name stands before it: no `true`, `false`, `null`."""
FOLDERS = ("PWD", "OLDPWD")
"""Variables of a shell that are no passwords."""
WORDS = re.compile(r"[^\s,{}\[\]'\"*&!|>#]+")

_known: set[str] = set()


def is_secret(name: Any) -> bool:
    """Whether what stands under a name, its last part where it is dotted, is nobody's business."""
    if not isinstance(name, str):
        return False
    last = CAMEL_CASE.sub("_", name.strip().strip("'\"").rpartition(".")[2].strip())
    if VOCABULARY.search(last):
        return False
    return bool(SECRET_NAME.search(last) or difflib.get_close_matches(last.lower(), MISTYPED, n=1, cutoff=0.85))


def remember(value: Any) -> None:
    """Hide this value, and all that a mapping or list of them holds, wherever it is met from here on."""
    if isinstance(value, Mapping):
        for each in value.values():
            remember(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            remember(each)
    elif isinstance(value, str) and len(value.strip()) >= SHORTEST:
        _known.add(value.strip())


def remember_all(values: Any) -> None:
    """Remember what stands under the names of secrets in nested keys and values."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            remember(value) if is_secret(name) else remember_all(value)
    elif isinstance(values, (list, tuple)):
        for each in values:
            remember_all(each)


def remember_text(text: str) -> None:
    """Remember what stands behind the names of secrets in a text of keys and values, whether it can be read or not."""
    for found in ASSIGNED.finditer(text):
        if is_secret(found[1]):
            line = text[found.end() :].partition("\n")[0]
            for word in WORDS.findall(line.partition(" #")[0]):
                remember(word)


def without_secrets(values: Any) -> Any:
    """Return nested keys and values without those that are secret, and without passwords in addresses."""
    if isinstance(values, Mapping):
        return {name: without_secrets(value) for name, value in values.items() if not is_secret(name)}
    if isinstance(values, (list, tuple)):
        return [without_secrets(each) for each in values]
    return _without_addresses(values) if isinstance(values, str) else values


def hidden(values: Any) -> Any:
    """Return nested keys and values with the secret ones hidden; those that say nothing stay."""
    if isinstance(values, Mapping):
        return {
            name: HIDDEN if is_secret(name) and value not in (None, "", False) else hidden(value)
            for name, value in values.items()
        }
    if isinstance(values, (list, tuple)):
        return [hidden(each) for each in values]
    return masked(values) if isinstance(values, str) else values


def masked(text: str) -> str:
    """Return a text for others' eyes: without known secrets, those of the environment, and passwords in addresses."""
    for secret in sorted({*_known, *_of_environment()}, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return _without_addresses(text)


def masked_argument(argument: str) -> str:
    """Return an argument such as `a.b=value` with what it gives to a secret hidden; the rest of it goes along."""
    for found in ASSIGNED.finditer(argument):
        if is_secret(found[1]):
            return masked(argument[: found.end()].rstrip() + HIDDEN)
    return masked(argument)


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line for others' eyes; `--api-key VALUE` in two words is known by the first."""
    shown: list[str] = []
    is_value = False
    for argument in arguments:
        shown.append(HIDDEN if is_value else masked_argument(argument))
        is_value = argument.startswith("-") and "=" not in argument and is_secret(argument.lstrip("-"))
    return shown


def _of_environment() -> list[str]:
    return [
        value.strip()
        for name, value in os.environ.items()
        if name not in FOLDERS and is_secret(name) and len(value.strip()) >= SHORTEST
    ]


def _is_secret_in_query(name: str) -> bool:
    return IN_QUERY_ALONE.fullmatch(name) is not None or is_secret(name)


def _without_addresses(text: str) -> str:
    if "://" in text:
        text = IN_URL.sub(HIDDEN, text)
        text = HOOK.sub(rf"\1{HIDDEN}", text)
        text = IN_QUERY.sub(lambda found: f"{found[1]}{HIDDEN}" if _is_secret_in_query(found[2]) else found[0], text)
    return BEARER.sub(rf"\1{HIDDEN}", text) if "earer " in text.lower() or "asic " in text.lower() else text
