"""`glmtune env`: parses, calls one function and prints. Works where torch does not."""

from __future__ import annotations

from typing import Annotated

import typer

from glmtune.console import put_json
from glmtune.errors import shown
from glmtune.text.plain_json import plain_json
from glmtune.text.visible_text import ANSWER_KEEPS


def env(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, sizes in bytes.")] = False) -> None:
    """Show versions, devices and memory: what a bug report needs. No secrets are in it, and no user's name."""
    from glmtune.environment import as_text, environment

    found = environment()
    if as_json:
        put_json(plain_json(found, indent=2))
    else:
        print(shown(as_text(found), ANSWER_KEEPS))
