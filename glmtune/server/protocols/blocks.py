"""An answer as the blocks that it is made of, while they come: reasoning, text, calls."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from glmtune.chatformat.replies import Delta, Found, ToolCall
from glmtune.server.service import Choices, Service, Update

REASONING, TEXT, CALL = "reasoning", "text", "call"
BEGIN, MORE, END = "begin", "more", "end"


@dataclass
class Block:
    """A part of an answer."""

    kind: str
    name: str = ""
    """Of the function that is called."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, or the arguments of a call."""
        return "".join(self.parts)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What has become of a block."""

    kind: str
    block: Block
    place: int
    """Of the block in the answer."""
    text: str = ""


class Blocks:
    """Takes what a reader gives out."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._is_open = False

    def add(self, found: Found) -> list[Step]:
        """Return what becomes of the blocks by it."""
        if isinstance(found, Delta):
            return self._more(REASONING if found.is_reasoning else TEXT, found.text)
        if isinstance(found, ToolCall):
            if found.is_streamed:
                return self.close()
            return [*self._begin(CALL, found.name), *self._more(CALL, found.arguments), *self.close()]
        begun = self._begin(CALL, found.name) if found.name is not None else []
        return [*begun, *(self._more(CALL, found.arguments) if found.arguments else [])]

    def close(self) -> list[Step]:
        """End the block that is open, if there is one."""
        if not self._is_open:
            return []
        self._is_open = False
        return [Step(kind=END, block=self.blocks[-1], place=len(self.blocks) - 1)]

    def _begin(self, kind: str, name: str = "") -> list[Step]:
        closed = self.close()
        self.blocks.append(Block(kind, name))
        self._is_open = True
        return [*closed, Step(kind=BEGIN, block=self.blocks[-1], place=len(self.blocks) - 1)]

    def _more(self, kind: str, text: str) -> list[Step]:
        begun = [] if self._is_open and self.blocks[-1].kind == kind else self._begin(kind)
        self.blocks[-1].parts.append(text)
        return [*begun, Step(kind=MORE, block=self.blocks[-1], place=len(self.blocks) - 1, text=text)]


async def steps(service: Service, choices: Choices, blocks: Blocks, updates: list[Update]) -> AsyncIterator[Step]:
    """Yield what becomes of the blocks of the one answer; its last update is put into `updates`."""
    async for update in service.follow(choices):
        for found in update.events:
            for step in blocks.add(found):
                yield step
        if update.finish_reason is not None:
            updates.append(update)
    for step in blocks.close():
        yield step


async def whole(service: Service, choices: Choices) -> tuple[list[Block], Update]:
    """Return the blocks of the one answer once it is written, and its last update."""
    blocks, updates = Blocks(), list[Update]()
    async for _ in steps(service, choices, blocks, updates):
        pass
    return blocks.blocks, updates[-1]
