"""A model of the hub is held to the same rules as a folder, once it is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_models import INDEX, Damage, index_to
from json_changes import changed

NAME = "acme/glm-tiny"
CODE = f"""
from glmtune.errors import GlmtuneError
from glmtune.generation.generate import generate
try:
    print(generate({NAME!r}, ["a"], max_new_tokens=2))
except GlmtuneError as error:
    print(error.what)
"""

DAMAGES: dict[str, tuple[Damage, str]] = {
    "an index of pickles": (index_to("w.bin"), f"`{INDEX}` names `w.bin`; expected names of `*.safetensors` files"),
    "an index that leads up": (index_to("../w.safetensors"), f"`{INDEX}` names `../w.safetensors`; expected names of"),
    "a pickle by its name": (
        changed("config.json", transformers_weights="adapter_model.bin"), '`transformers_weights` is "adapter_model.bi',
    ),
    "10^6 layers": (changed("config.json", num_hidden_layers=10**6), "`config.json` has `num_hidden_layers: 1,000,000"),
    "10^12 tokens": (changed("generation_config.json", max_new_tokens=10**12), "`generation_config.json` has a wrong"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_hostile_model_of_the_hub_is_one_clear_line(
    damage: Damage, message: str, demo_model: str, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--acme--glm-tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(demo_model, snapshot)
    damage(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(message)
