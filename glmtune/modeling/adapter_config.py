"""The settings of a saved adapter, as PEFT reads them."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from glmtune.errors import GlmtuneError, install_hint

from .library_errors import REFUSALS, reason_of
from .model_files import read_config
from .sources import ADAPTER_CONFIG


def adapter_config(folder: Path) -> PeftConfig:
    """Return the settings of a saved adapter.

    Raises:
        GlmtuneError: PEFT does not know such an adapter, refuses its settings, or lacks a package for it.
    """
    where = str(folder / ADAPTER_CONFIG)
    kind = read_config(folder / ADAPTER_CONFIG).get("peft_type")
    if kind not in [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]:
        raise GlmtuneError(
            "the adapter's settings do not say of what kind it is (`peft_type`)"
            if kind is None
            else f"the adapter is of the kind `{kind}`, which PEFT does not know",
            where=where,
            fix="take the adapter's own file" if kind is None else "a newer PEFT may know it: `pip install -U peft`",
        )
    try:
        return PeftConfig.from_pretrained(str(folder))
    except REFUSALS as error:
        raise GlmtuneError(
            f"PEFT cannot use the adapter's settings: {reason_of(error)}", where=where, fix=install_hint(error)
        ) from error
