"""Adapters that come and go while the server runs, by the paths that vLLM has for them; answers go on meanwhile.

Whoever may ask for it can have any adapter below one folder loaded, and nothing else: of safetensors alone, since other
files of weights may run code.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS

from .api_errors import ApiError
from .engine import Ended
from .models import add_adapter, check_new_adapter
from .service import Service

MAX_MODELS = 100
Name = Annotated[str, Field(min_length=1, max_length=200)]


class LoadRequest(BaseModel):
    """`/v1/load_lora_adapter`."""

    model_config = ConfigDict(extra="forbid")
    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadRequest(BaseModel):
    """`/v1/unload_lora_adapter`."""

    model_config = ConfigDict(extra="forbid")
    lora_name: Name
    lora_int_id: Any = None
    """vLLM's number of it, which nothing here has."""


class AdapterChanges:
    """Loads and unloads adapters, one at a time."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Allow adapters in this folder, and below it."""
        self.service = service
        self.folder = folder.resolve()
        self.checkpoint = next(iter(service.models.lanes))
        self._lock = asyncio.Lock()

    async def load(self, request: LoadRequest) -> str:
        """Load an adapter; requests may ask for it from then on."""
        name = request.lora_name
        folder = await asyncio.to_thread(self._folder_of, request.lora_path)
        async with self._lock:
            models, engine = self.service.models, self.service.engine
            if name in models.lanes or name in engine.lanes:
                raise ApiError(f"the model `{name}` is there already, or is still being unloaded", param="lora_name")
            if len(models.lanes) >= MAX_MODELS:
                raise ApiError(f"{MAX_MODELS} models are served already: unload one", param="lora_name")

            await self._checked(folder)

            def act() -> None:
                lane = add_adapter(models, folder)
                engine.add_lane(name, lane)
                models.lanes[name] = lane

            await self._between_passes(act)
        return f"Success: LoRA adapter '{name}' added successfully."

    async def unload(self, request: UnloadRequest) -> str:
        """Take an adapter away; its answers that are being written, or that wait, are written to their end."""
        name = request.lora_name
        async with self._lock:
            self.service.check_model(name)
            if name == self.checkpoint:
                raise ApiError(f"`{name}` is the checkpoint that is served, which stays", param="lora_name")

            def act() -> None:
                lane = self.service.models.lanes.pop(name)
                self.service.engine.remove_lane(name, lane.remove)

            await self._between_passes(act)
        return f"Success: LoRA adapter '{name}' removed successfully."

    async def _checked(self, folder: Path) -> None:
        """Read all of an adapter in a thread: what is left to be done between two passes is short then."""
        try:
            await asyncio.to_thread(check_new_adapter, self.service.models, folder)
        except GlmtuneError as error:
            raise ApiError(error.what, param="lora_path") from None

    async def _between_passes(self, act: Any) -> None:
        try:
            await asyncio.wrap_future(self.service.engine.between_passes(act))
        except Ended:
            raise ApiError("the server is shutting down", status=503) from None
        except GlmtuneError as error:
            raise ApiError(error.what, param="lora_path") from None

    def _folder_of(self, path: str) -> Path:
        """Return the folder of an adapter, which has to be a whole one in the folder that is allowed."""
        try:
            folder = (self.folder / path).resolve()
            files = [(folder / name).resolve() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
            # Before anything is looked for: what lies elsewhere is nobody's business.
            if not all(each.is_relative_to(self.folder) for each in (folder, *files)):
                raise ApiError("adapters are loaded only from the folder of `--allow-adapter-changes`", status=403)
            missing = [name for name, file in zip((ADAPTER_CONFIG, ADAPTER_WEIGHTS), files) if not file.is_file()]
        except (OSError, ValueError):
            raise ApiError("`lora_path` is no path", param="lora_path") from None
        if missing:
            raise ApiError(f"`lora_path` has no `{missing[0]}`", param="lora_path", status=404)
        return folder
