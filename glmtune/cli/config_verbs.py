"""The `glmtune config` verbs. Heavy modules are imported inside."""

from __future__ import annotations

import typer

from glmtune.console import put_json
from glmtune.text.plain_json import plain_json

config_app = typer.Typer(
    help="What a configuration may say.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of a configuration. Editors complete and check its keys by it."""
    from glmtune.config.schema import config_schema

    put_json(plain_json(config_schema(), indent=2))
