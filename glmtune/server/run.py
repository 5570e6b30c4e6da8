"""`glmtune serve`: a checkpoint behind OpenAI's API, on this machine unless told otherwise."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from glmtune.console import notice, quiet_libraries, say
from glmtune.errors import GlmtuneError, require
from glmtune.files.user_paths import user_path
from glmtune.generation.prefix_store import PrefixStore, free_bytes
from glmtune.modeling.finding.model_source import find_model
from glmtune.tested_versions import note_untested_versions

from .models import ServedModels, find_adapters, load_models, model_name
from .vllm import run_vllm, takes_vllm, vllm_command

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = ("127.0.0.1", "::1", "localhost")
API_KEY_VARIABLE = "GLMTUNE_API_KEY"
BATCH_TOKENS = 65536
"""Keys and values of GLM-4-9B take 40 kB a token in bfloat16: 2.7 GB."""
PREFIX_TOKENS = 65536
SHARE_FOR_PREFIXES = 0.1
"""Of the memory that is free once the model is there, where the user has not said how many tokens to keep."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server takes on."""

    max_length: int | None = None
    """Tokens of a prompt and its answer together; the model's own limit by default."""
    max_rows: int = 64
    """Answers that are written at once, for each adapter."""
    max_batch_tokens: int | None = None
    """Rows times tokens in memory, for each adapter."""
    prefix_cache_tokens: int | None = None
    """Tokens of earlier texts whose keys and values are kept, for all adapters together; 0 keeps none. By default
    65,536, as far as a tenth of the free memory holds them."""
    max_waiting: int = 256
    """Answers that may wait for their turn."""
    max_request_bytes: int = 4 * 1024 * 1024
    shutdown_seconds: int = 30
    """From a signal to the end: answers may still be written meanwhile, but for the last seconds."""
    strict_fields: bool = False
    """Whether a field of a request that nothing reads is an error; otherwise a note tells of it, once."""


def serve(
    checkpoint: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    adapters: Sequence[str] = (),
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    log_requests: bool = True,
    allow_adapter_changes: str | Path | None = None,
    backend: str = "auto",
    vllm_args: str = "",
    limits: Limits | None = None,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> None:
    """Answer requests until a signal ends it: Ctrl-C in a program, the stop button in a notebook's cell.

    In another thread than the main one, which gets no signals, it goes on until the program ends.

    Args:
        checkpoint: A checkpoint, model folder, run folder, hub name or `demo`.
        host: The address to listen at; others than this machine can reach all but loopback ones.
        port: 0 takes a free one.
        name: What requests call the model.
        adapters: `NAME=PATH` of others on the same base model.
        api_key: What clients must send; `$GLMTUNE_API_KEY` by default.
        allowed_hosts: Names and addresses that clients may call this server by, beside `host` and those of loopback.
        cors_origins: Origins whose pages may ask from a browser.
        log_requests: Print a line for each request.
        allow_adapter_changes: A folder; whoever may ask can have adapters below it loaded and unloaded.
        backend: `transformers`, `vllm`, or `auto`.
        vllm_args: More options for vLLM, written as in a shell.
        limits: What the server takes on.
        base_model: Where the base model of an adapter is now, if it has moved.
        trust_remote_code: Run code that the model brings along.
        quantization: `4bit` or `8bit` rounds the base model's weights while they are loaded.
    """
    for package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
        require(package, extra="serve")
    from .middleware.hosts import guard, read_origins
    from .middleware.request_log import logged

    origins = read_origins(cors_origins)
    guarded = guard(host=host, allowed_hosts=allowed_hosts, origins=origins)
    api_key = api_key or os.environ.get(API_KEY_VARIABLE) or None
    adapter_folder = _adapter_folder(allow_adapter_changes)
    note_untested_versions()
    source = find_model(checkpoint, base_model=base_model)
    own_name = name or model_name(checkpoint)
    others = find_adapters(list(adapters), source)
    limits = limits or Limits()
    if host not in LOOPBACK and api_key is None:
        notice(f"everybody who can reach `{host}` may use the model; `--api-key` or `${API_KEY_VARIABLE}` ends that")
    if takes_vllm(backend, [source, *others.values()], is_quantized=quantization is not None):
        command = vllm_command(
            source,
            own_name,
            others,
            host=host,
            port=port,
            max_length=limits.max_length,
            max_rows=limits.max_rows,
            origins=origins,
            trust_remote_code=trust_remote_code,
            more=_split(vllm_args),
        )
        if allowed_hosts:
            notice("`--allowed-host` is left out: vLLM answers to any name")
        if adapter_folder is not None:
            notice("`--allow-adapter-changes` is left out: vLLM's own way is `VLLM_ALLOW_RUNTIME_LORA_UPDATING`")
        run_vllm(command, api_key)
    if vllm_args:
        raise GlmtuneError(
            "`--vllm-args` is for vLLM, which does not serve here", fix="`--backend vllm` says why; or leave it out"
        )
    # Before the model is loaded, which takes minutes: the address may be taken.
    listener = _listen(host, port)
    with listener:
        options: Any = {"trust_remote_code": trust_remote_code, "quantization": quantization}
        application, engine = _load(
            partial(load_models, source, own_name, others, **options), api_key, limits, adapter_folder
        )
        # Python looks through all objects now and then, those of torch and the model, too: no answer went on for 0.8 s.
        # Before anybody is told where to ask: it takes as long.
        gc.collect()
        gc.freeze()
        address = f"[{host}]" if ":" in host else host
        say(f"serving {', '.join(f'`{model}`' for model in [own_name, *others])}")
        say(f"listening at http://{address}:{listener.getsockname()[1]}/v1 (Ctrl-C ends it)")
        with logged(guarded(application), is_on=log_requests) as application:
            _run(application, engine, listener, limits)


def _adapter_folder(path: str | Path | None) -> Path | None:
    folder = None if path is None else user_path(path)
    if folder is not None and not folder.is_dir():
        raise GlmtuneError(f"`--allow-adapter-changes` is `{path}`, which is no folder")
    return folder


def _split(options: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as error:
        raise GlmtuneError(f"`--vllm-args` cannot be read as words of a shell: {error}") from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        socket.getaddrinfo(host, None)  # whose error tells of a name that leads nowhere
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # What is accepted inherits it: else the end of an answer waits 40 ms for the client to confirm its beginning.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = _reason(error)
        raise GlmtuneError(
            f"cannot listen at {host}:{port}: {reason}", fix="choose another `--port`, or end what listens there"
        ) from None


def _reason(error: OSError | OverflowError) -> str:
    """Return the system's words; the error's own say the address once more."""
    if isinstance(error, socket.gaierror):  # a name that leads nowhere, which has numbers of its own
        return str(error.strerror)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


@quiet_libraries()
def _load(
    loaded: Callable[[], ServedModels],
    api_key: str | None,
    limits: Limits,
    adapter_folder: Path | None,
) -> tuple[Any, Any]:
    """Return the application and the engine behind it, which answers by the models that are to be loaded."""
    from glmtune.constrained.compiling import is_installed

    from .api import create_app
    from .engine import Engine
    from .service import Service

    models = loaded()
    max_length = limits.max_length or models.max_tokens
    if max_length > models.max_tokens:
        raise GlmtuneError(f"`--max-length` is {max_length}; the model was made for {models.max_tokens} tokens")
    engine = Engine(
        models.lanes,
        models.base.generation_config.eos_token_id,
        max_rows=limits.max_rows,
        max_batch_tokens=max(limits.max_batch_tokens or BATCH_TOKENS, max_length),
        max_waiting=limits.max_waiting,
        keeps_last_logits=models.keeps_last_logits,
        prefixes=_prefix_store(limits.prefix_cache_tokens, models.base.device),
    )
    service = Service(models, engine, max_length=max_length)
    if is_installed():  # else it is told to whoever asks for what needs it
        service.compiler.read_vocabulary()
    application = create_app(
        service,
        api_key=api_key,
        max_request_bytes=limits.max_request_bytes,
        created=int(time.time()),
        is_strict=limits.strict_fields,
        adapter_folder=adapter_folder,
    )
    return application, engine


def _prefix_store(num_tokens: int | None, device: Any) -> PrefixStore:
    if num_tokens is not None:
        return PrefixStore(num_tokens)
    return PrefixStore(PREFIX_TOKENS, SHARE_FOR_PREFIXES * free_bytes(device))


def _run(application: Any, engine: Any, listener: socket.socket, limits: Limits) -> None:
    """Serve until a signal comes; answers that are being written get some time to end."""
    import uvicorn

    from .ending import Ending, signals_taken
    from .middleware.connections import server_settings
    from .middleware.request_log import takes_more

    is_beside_loop = _is_in_loop()
    ending = Ending(engine.end, seconds=limits.shutdown_seconds, may_exit=not is_beside_loop)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End when all answers are written, or when their time is over: the rest is told so."""
            self.should_exit = True
            ending.begin(sig)

    server = Server(server_settings(application, timeout_graceful_shutdown=limits.shutdown_seconds))
    engine.start()
    # In a thread that dies with the program nothing below is reached: torch would abort the process.
    atexit.register(engine.stop)
    with signals_taken(server.handle_exit):
        try:
            if is_beside_loop:
                _run_beside_loop(server, listener)
            else:
                server.run(sockets=[listener])
        finally:
            gc.unfreeze()
            engine.stop()
            atexit.unregister(engine.stop)
            ending.over()
    if ending.signal is not None and ending.may_exit:
        # Python looks through all objects once more when it ends, which takes seconds where torch is in memory.
        gc.freeze()
    if takes_more():  # a full pipe would hold up the end
        say("the server has ended")
    if ending.signal == signal.SIGINT:
        signal.raise_signal(signal.SIGINT)  # whoever called has a way of its own to end at it


def _is_in_loop() -> bool:
    """Whether this thread runs an event loop already, as a notebook's does: no second one can run in it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_beside_loop(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve in another thread, and wait; signals come to this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="server") as threads:
        threads.submit(server.run, sockets=[listener]).result()
