"""`glmtune serve`: its options."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import BaseModel, Quantization, TrustRemoteCode, check_model


def serve(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a model folder, a run, a hub name, `demo` or `demo-sft`.")
    ],
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="The default lets in programs of this machine only.")] = "127.0.0.1",
    name: Annotated[str | None, typer.Option(help="What requests call the model; its folder by default.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Serve this adapter on the same base model, too.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="What clients must send. Other users of this machine see it in the list of processes; "
            "`GLMTUNE_API_KEY` in the environment is not seen."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer to this name or address, too; 421 to others."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin ask from a browser: http://localhost:3000."),
    ] = None,
    request_log: Annotated[
        bool,
        typer.Option(
            "--request-log/--no-request-log",
            help="Print a line for each request: its path, status, time and tokens, nothing of its contents.",
        ),
    ] = True,
    allow_adapter_changes: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Let clients load and unload adapters below this folder while it runs."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="`vllm`, `transformers`, or `auto`: vLLM where it is installed and there is a GPU.")
    ] = "auto",
    vllm_args: Annotated[
        str, typer.Option(help="More options for vLLM, in one string: `--vllm-args '--tensor-parallel-size 8'`.")
    ] = "",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together; the model's limit by default.", min=2)
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Answers that are written at once.", min=1)] = 64,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of all of them that may be in memory; 65536 by default.", min=1)
    ] = None,
    prefix_cache_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of earlier conversations that need not be read again; 65536 by default, as far as a tenth of "
            "the free memory holds them, and 0 keeps none.",
            min=0,
        ),
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Answers that may wait; 429 beyond.", min=0)] = 256,
    max_request_bytes: Annotated[int, typer.Option(help="Longest request; 413 beyond.", min=1)] = 4 * 1024 * 1024,
    shutdown_seconds: Annotated[
        int, typer.Option(help="From a signal to the end; answers go on meanwhile.", min=0)
    ] = 30,
    strict_fields: Annotated[
        bool,
        typer.Option("--strict-fields", help="Refuse requests with fields that nothing reads, not just tell once."),
    ] = False,
    quantization: Quantization = None,
    base_model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a model by OpenAI's API: chat, tools, streams, adapters."""
    check_model(checkpoint, base_model=base_model)
    from glmtune.server.run import Limits
    from glmtune.server.run import serve as run_server

    run_server(
        checkpoint,
        host=host,
        port=port,
        name=name,
        adapters=adapter or (),
        api_key=api_key,
        allowed_hosts=allowed_host or (),
        cors_origins=cors_origin or (),
        log_requests=request_log,
        allow_adapter_changes=allow_adapter_changes,
        backend=backend,
        vllm_args=vllm_args,
        limits=Limits(
            max_length=max_length,
            max_rows=max_batch,
            max_batch_tokens=max_batch_tokens,
            prefix_cache_tokens=prefix_cache_tokens,
            max_waiting=max_queue,
            max_request_bytes=max_request_bytes,
            shutdown_seconds=shutdown_seconds,
            strict_fields=strict_fields,
        ),
        base_model=base_model,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
    )
