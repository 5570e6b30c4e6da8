"""Results of tool calls and the calls that they are of: others join them by id or by name, GLM-4 by their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import Message

CALL_ID_KEYS = ("id", "call_id", "tool_call_id", "tool_use_id")
"""What the id of a call is called: by OpenAI and in its responses, and by others."""
RESULT_ID_KEYS = ("tool_call_id", "call_id", "tool_use_id")
"""What a result calls the id of its call; its own `id` is that, too, where there is a call of it."""
RESULT_ROLES = frozenset(("tool", "function", "observation", "function_response", "tool_response"))
CALLERS = ("function_call", "tool_call")
"""What stands in ShareGPT's `from`, or ms-swift's `role`, before calls."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A call, or a result."""

    ids: tuple[str, ...]
    name: str
    number: int
    """Of its message."""
    own_id: str = ""
    """The `id` of a result, which may be its own."""


@dataclass(kw_only=True)
class Run:
    """Calls, and the results behind them."""

    calls: list[Part] = field(default_factory=list)
    results: list[Part] = field(default_factory=list)
    is_last: bool = True
    """Whether nothing stands behind it."""


def in_order_of_calls(raw_messages: Sequence[Any], messages: list[Message], first_number: int = 0) -> list[Message]:
    """Return the messages with the results of several calls in the order of the calls.

    Args:
        raw_messages: As the row has them, with `role` or with `from`.
        messages: What they were read as.
        first_number: The number of the first one.
    """
    ranks: dict[int | None, int] = {}
    for run in runs_of(raw_messages, first_number):
        places = _places(run)
        if None not in places and len(run.calls) > 1:
            ranks.update((result.number, place or 0) for result, place in zip(run.results, places))
    ordered: list[Message] = []
    for _, group in groupby(messages, key=lambda message: message.number in ranks):
        ordered.extend(sorted(group, key=lambda message: ranks.get(message.number, 0)))
    return ordered


def doubts_about_calls(raw_messages: Sequence[Any]) -> Iterator[str]:
    """Yield what makes it unsure which call a result is of."""
    runs = list(runs_of(raw_messages))
    known = {each for run in runs for call in run.calls for each in call.ids}
    for run in runs:
        ids = [each for call in run.calls for each in call.ids]
        if len(set(ids)) < len(ids):
            yield "two calls have one id"
        if len(run.results) < len(run.calls) and not run.is_last:
            yield "a call has no result"
        if known:
            yield from _doubts_about_ids(run, known)
        if not any(result.ids for result in run.results):
            yield from _doubts_about_names(run)


def _doubts_about_ids(run: Run, known: set[str]) -> Iterator[str]:
    here = {each for call in run.calls for each in call.ids}
    named = [set(result.ids) for result in run.results if result.ids]
    if any(ids.isdisjoint(known) for ids in named):
        yield "`tool_call_id` names a call that the row does not have"
    elif any(ids.isdisjoint(here) for ids in named):
        yield "a result stands apart from its call"
    places = [place for place in _places_by_id(run) if place is not None]
    if len(set(places)) < len(places):
        yield "two results are of one call"


def _doubts_about_names(run: Run) -> Iterator[str]:
    names = [call.name for call in run.calls]
    if any(result.name and names and result.name not in names for result in run.results):
        yield "the `name` of a result is that of no call before it"
    if 1 < len(names) < len(run.results):
        yield "several calls have more results than there are calls"


def runs_of(raw_messages: Sequence[Any], first_number: int = 0) -> Iterator[Run]:
    """Yield the calls that stand together with the results behind them; results without a call make a run, too."""
    run = Run()
    for number, raw in enumerate(raw_messages, first_number):
        calls, result = _calls_of(raw, number), _result_of(raw, number)
        if result is not None:
            run.results.append(result)
            continue
        if run.results or (run.calls and not calls):
            run.is_last = False
            yield run
            run = Run()
        run.calls += calls
    if run.calls or run.results:
        yield run


def _places(run: Run) -> list[int | None]:
    """Return which call every result is of; all None where it cannot be told, or needs not be."""
    nowhere: list[int | None] = [None] * len(run.results)
    places = _places_by_id(run)
    ids = {each for call in run.calls for each in call.ids}
    if any(result.ids and place is None and ids for result, place in zip(run.results, places)):
        return nowhere
    free = [place for place in range(len(run.calls)) if place not in places]
    for index, result in enumerate(run.results):
        named = [place for place in free if result.name and run.calls[place].name == result.name]
        if places[index] is None and named:
            places[index] = named[0]
            free.remove(named[0])
    if all(place is None for place in places):
        return nowhere
    for index, place in enumerate(places):
        if place is None:
            if not free:
                return nowhere
            places[index] = free.pop(0)
    return places


def _places_by_id(run: Run) -> list[int | None]:
    """Return which call every result names by its id, where only one call has it."""
    places: dict[str, int | None] = {}
    for place, call in enumerate(run.calls):
        for each in call.ids:
            places[each] = None if each in places else place
    found = [[places[each] for each in (*result.ids, result.own_id) if each in places] for result in run.results]
    return [each[0] if each else None for each in found]


def _calls_of(raw: Any, number: int) -> list[Part]:
    """Return the calls of a message, in whichever form it has them; what is no call is refused elsewhere."""
    if not isinstance(raw, dict):
        return []
    calls: Any = raw.get("tool_calls") or raw.get("function_call") or ()
    if raw.get("from") in CALLERS or raw.get("role") in CALLERS:
        calls = raw.get("value" if raw.get("from") in CALLERS else "content")
        calls = json_text.parse_cell(calls) if isinstance(calls, str) else calls
    elif not calls and raw.get("role") == "assistant" and isinstance(raw.get("metadata"), str) and raw["metadata"]:
        calls = {"name": raw["metadata"]}
    elif not calls and isinstance(raw.get("content"), list):
        calls = [_called(part) for part in raw["content"]]
    items = [calls] if isinstance(calls, dict) else calls
    return [_call(item, number) for item in items if isinstance(item, dict)] if isinstance(items, (list, tuple)) else []


def _called(part: Any) -> Any:
    """Return the call that a part of a content is; None for any other part."""
    if not isinstance(part, dict) or part.get("type") != "tool_call":
        return None
    value = part.get("value")
    return json_text.parse_cell(value) if isinstance(value, str) else value


def _call(item: dict[str, Any], number: int) -> Part:
    function = item.get("function")
    name = function.get("name") if isinstance(function, dict) else item.get("name")
    return Part(ids=_ids(item, CALL_ID_KEYS), name=name if isinstance(name, str) else "", number=number)


def _result_of(raw: Any, number: int) -> Part | None:
    if not isinstance(raw, dict):
        return None
    speaker = raw["from"] if raw.get("from") is not None else raw.get("role")
    if not isinstance(speaker, str) or speaker not in RESULT_ROLES:
        return None
    if raw.get("observation") is not None or raw.get("parameters") is not None:
        return None  # ChatGLM3's, which is a call, too
    name = raw.get("name")
    return Part(
        ids=_ids(raw, RESULT_ID_KEYS),
        name=name if isinstance(name, str) else "",
        number=number,
        own_id=next(iter(_ids(raw, ("id",))), ""),
    )


def _ids(item: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of a call or a result as texts: some programs count them, and write 1 or "1"."""
    values = (item[key] for key in keys if key in item)
    return tuple(str(value) for value in values if isinstance(value, (str, int)) and value != "")
