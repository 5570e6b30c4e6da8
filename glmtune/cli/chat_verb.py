"""`glmtune chat`: parses, calls one function. Heavy modules are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.errors import GlmtuneError
from glmtune.standard_streams import argument_text

from .options import (
    BaseModel,
    Quantization,
    SamplingOptions,
    Schema,
    Seed,
    Thinking,
    TrustRemoteCode,
    check_model,
    with_sampling_options,
)


@with_sampling_options
def chat(
    *,
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint, a model folder, a run, a hub name, `demo` or `demo-sft`; or see --url."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Talk to an OpenAI-compatible server instead, such as http://localhost:8000/v1.")
    ] = None,
    server_model: Annotated[
        str | None, typer.Option("--model", help="Name of the model on the server; its first one by default.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the server's key.", show_default="OPENAI_API_KEY"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="Python module whose functions the model may call, or a JSON file of tool schemas."),
    ] = None,
    tool_timeout: Annotated[float, typer.Option(help="Seconds that a call may take.", min=0.01, max=86400)] = 30.0,
    max_tool_rounds: Annotated[int, typer.Option(help="Rounds of calls before an answer.", min=1)] = 8,
    max_tool_result: Annotated[
        int,
        typer.Option(help="Characters of a function's result; what is beyond is cut off.", min=1),
    ] = 20_000,
    tool_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Let the functions have this variable, although it is named like a key."),
    ] = None,
    schema: Schema = None,
    interpreter: Annotated[
        bool, typer.Option("--interpreter", help="Run what the model writes for `python`, each time after your yes.")
    ] = False,
    interpreter_folder: Annotated[
        Path | None,
        typer.Option(help="Folder that the code runs in, and leaves pictures in.", show_default="interpreter-files"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run it without asking. The code has your rights.")] = False,
    sampling: SamplingOptions,
    thinking: Thinking = None,
    seed: Seed = None,
    quantization: Quantization = None,
    base_model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Chat with a model in the terminal. With --tools its calls are really made."""
    idle = next(
        (flag for flag, is_set in {"--interpreter-folder": interpreter_folder, "--yes": yes}.items() if is_set), None
    )
    if idle and not interpreter:
        raise GlmtuneError(f"`{idle}` is for `--interpreter`", fix="give that, too, or leave it out")
    options: dict[str, Any] = sampling.generation_options()
    local = {
        "--base-model": base_model is not None,
        "--trust-remote-code": trust_remote_code,
        "--quantization": quantization is not None,
    }
    remote = {"--model": server_model is not None, "--api-key-env": api_key_env is not None}
    idle = next((flag for flag, is_set in (local if url else remote).items() if is_set), None)
    if idle:
        where = "a server's model" if url else "a local model"
        raise GlmtuneError(f"`{idle}` has no meaning for {where}", fix="leave it out")

    if model is not None and not url:
        check_model(model, base_model=base_model)
    from glmtune.chat.run import chat as run

    if url:
        options |= {"server_model": server_model, "api_key_env": api_key_env}
    else:
        options |= {"base_model": base_model, "trust_remote_code": trust_remote_code, "quantization": quantization}
    run(
        model,
        url=url,
        system=argument_text(system) if system else system,
        tools=tools,
        tool_timeout_seconds=tool_timeout,
        max_tool_rounds=max_tool_rounds,
        max_tool_result=max_tool_result,
        tool_env=tool_env or (),
        schema=schema,
        interpreter=interpreter,
        interpreter_folder=interpreter_folder,
        asks_before_code=not yes,
        seed=seed,
        thinking=thinking,
        **options,
    )
