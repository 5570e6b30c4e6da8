"""How an adapter begins (`init_lora_weights`), and which beginnings change the base model that it sits on.

PiSSA (Meng et al. 2024) and its like take a part out of the base weights and train that. PEFT takes it out again
each time the adapter is loaded: by random numbers where it is `pissa_niter_N`, so that another model answers than was
trained (a loss of 6.59 at the end of training was 6.68 from the checkpoint), and from the weights that every other
adapter in a server computes with, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_files import read_config
from glmtune.modeling.finding.model_source import ADAPTER_CONFIG

KEY = "init_lora_weights"
KEEP_THE_BASE = ("true", "false", "gaussian", "orthogonal", "mica")
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
DRAWN_ANEW = ("pissa_niter_", "corda", "lora_ga")
"""Those that come out differently at each load, or need the data that they were made with."""


def check_start(peft_config: Mapping[str, Any] | None) -> None:
    """Raise where an adapter would begin in a way that its checkpoint could not give back."""
    start = (peft_config or {}).get(KEY, True)
    name = _name(start)
    if start is None or name in KEEP_THE_BASE:
        return
    if changes_the_base(start):
        why = (
            "changes the base model's weights, and the checkpoint holds the adapter alone: loaded on the base model, "
            "it would not be the model that was trained, and it would change other adapters' answers"
        )
    elif name == "eva":
        why = "is computed from what the base model makes of the data, which is not done here"
    else:
        why = "is no start that is known to leave the base model as it is"
    raise GlmtuneError(
        f"`peft_config.{KEY}: {start}` {why}",
        fix="leave it out, or set one of `true`, `gaussian`, `orthogonal`; for a quicker start raise the learning rate",
    )


def changes_the_base(start: Any) -> bool:
    """Whether an adapter that begins so takes a part of the base weights away."""
    return _name(start).startswith(CHANGE_THE_BASE)


def start_of(folder: Path) -> Any:
    """Return how a saved adapter began, as its configuration says it; PEFT begins so again when it loads it."""
    return read_config(folder / ADAPTER_CONFIG).get(KEY, True)


def check_saved_start(folder: Path, *, is_alone: bool = True) -> None:
    """Raise where loading an adapter would make another model of its base than it was trained on, or of others'.

    Args:
        folder: Of the adapter.
        is_alone: Whether nothing else computes with the base model.
    """
    start = start_of(folder)
    if not changes_the_base(start):
        return
    if _name(start).startswith(DRAWN_ANEW):
        why = "is computed anew when it is loaded, and comes out differently each time"
    elif not is_alone:
        why = "changes the base model, which others answer with, too"
    else:
        return
    raise GlmtuneError(
        f"the adapter's start, `{KEY}: {start}`, {why}",
        where=str(folder / ADAPTER_CONFIG),
        fix="save it as a plain LoRA adapter where it was trained: PEFT's `save_pretrained(FOLDER, "
        "path_initial_model_for_weight_conversion=...)`",
    )


def _name(start: Any) -> str:
    return str(start).lower()
