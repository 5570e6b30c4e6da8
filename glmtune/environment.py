"""What a report of a mistake needs to say of the machine: versions, devices, memory. No secrets, no user's name.

It has to work where nothing else does: torch is asked in a process of its own, and what cannot be found out is left out
or says why.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import locale
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from glmtune import __version__
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import cache_folder
from glmtune.processes.own_path import path_for_children
from glmtune.tested_versions import NEWEST_TESTED, untested_versions
from glmtune.text.secret_values import is_secret, masked

OTHER_PACKAGES = ("huggingface-hub", "tokenizers", "safetensors", "modelscope-hub", "vllm", "flash-attn", "triton")
"""Beyond those that were tested: what often decides how a run goes, or fails."""

VARIABLES = re.compile(
    r"(GLMTUNE|HF|HUGGINGFACE|MODELSCOPE|TRANSFORMERS|CUDA|NVIDIA|NCCL|GLOO|OMP|MKL|TORCH|PYTORCH|DS|XDG_CACHE)_\w+"
    r"|LANG|LANGUAGE|LC_\w+|PYTHON(UTF8|IOENCODING|PATH)|RANK|WORLD_SIZE|LOCAL_RANK|SLURM_(JOB_ID|NTASKS)"
    r"|CONDA_DEFAULT_ENV|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|TERM|NO_COLOR|COLUMNS"
)
"""Of the environment: those that change what glmtune or its libraries do."""

MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container."""
NO_LIMIT = 1 << 60

SECONDS_FOR_TORCH = 120
"""Its first import on a cold disk of a cluster."""
SECONDS_FOR_DRIVER = 15

PROBE = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
         "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "devices": []}
if torch.cuda.is_available():
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    for number in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(number)
        found["devices"].append({"name": seen.name, "bytes": seen.total_memory,
                                 "capability": f"{seen.major}.{seen.minor}"})
elif torch.backends.mps.is_available():
    found["devices"].append({"name": "mps"})
print(json.dumps(found))
"""


def environment() -> dict[str, Any]:
    """Return what there is, in parts, as plain values; sizes are in bytes."""
    torch = _torch()
    return {
        "glmtune": {"version": __version__, "folder": _private(Path(__file__).parent)},
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "program": _private(Path(sys.executable)),
        },
        "packages": _packages(),
        "newer than tested": untested_versions(),
        "torch": {name: value for name, value in torch.items() if name != "devices"},
        "devices": torch.get("devices", []),
        "driver": _driver(),
        "machine": _machine(),
        "locale": {
            "encoding of stdout": getattr(sys.stdout, "encoding", None),
            "encoding of files": sys.getfilesystemencoding(),
            "preferred": locale.getpreferredencoding(False),
        },
        "cache": _cache(),
        "variables": _variables(os.environ),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Return the parts as lines that can be pasted into a report."""
    lines: list[str] = []
    for name, part in found.items():
        if not part:
            lines.append(f"{name}: none")
        elif isinstance(part, Mapping):
            lines += [f"{name}:", *(f"  {key}: {_shown(value)}" for key, value in part.items() if value is not None)]
        else:
            lines += [f"{name}:", *(f"  {_shown(each)}" for each in part)]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(each)}" if key != "name" else str(each) for key, each in value.items())
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20:
        return f"{value / 1e9:,.1f} GB"
    return str(value)


def _packages() -> dict[str, str]:
    """Return the version of each package that is installed, and up to which one glmtune was tested."""
    versions: dict[str, str] = {}
    for name in (*NEWEST_TESTED, *OTHER_PACKAGES):
        tested = NEWEST_TESTED.get(name)
        with suppress(importlib.metadata.PackageNotFoundError):
            installed = importlib.metadata.version(name)
            versions[name] = installed if tested is None else f"{installed} (tested up to {tested[0]}.{tested[1]})"
    return versions


def _torch() -> dict[str, Any]:
    """Return what torch says of itself and of its devices, or why it says nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env={**os.environ, **path_for_children()},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_FOR_TORCH,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": masked(str(error))}
    told = [line for line in done.stderr.splitlines() if line.strip()]
    with suppress(ValueError, IndexError):
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        # Where a driver is too old, torch warns of it, and sees no device.
        return found | ({"warning": _private_text(told[0])} if told and not found["devices"] else {})
    return {"error": _private_text(told[-1]) if told else f"the process ended with {done.returncode}"}


def _driver() -> list[str]:
    """Return a line of each GPU that NVIDIA's own tool knows: also where torch cannot see it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,driver_version,memory.total,memory.used"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_FOR_DRIVER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi: {error}"]
    return [line for line in (done.stdout if done.returncode == 0 else done.stderr or done.stdout).splitlines() if line]


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count()
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": _distribution(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores of this process": cores,
    }
    with suppress(ImportError, OSError):
        import psutil

        memory = psutil.virtual_memory()
        machine |= {"memory": memory.total, "memory available": memory.available}
    for path in MEMORY_LIMITS:
        with suppress(OSError, ValueError):
            limit = int(Path(path).read_text(encoding="ascii"))
            machine["memory of the container"] = limit if limit < NO_LIMIT else None
    return {name: value for name, value in machine.items() if value is not None}


def _distribution() -> str | None:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return platform.mac_ver()[0] or None


def _processor() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _cache() -> dict[str, Any]:
    """Return where the cache is, and whether there is room."""
    try:
        folder = cache_folder()
    except GlmtuneError as error:
        return {"error": error.what}
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path())
    found: dict[str, Any] = {"folder": _private(folder), "can be written": os.access(there, os.W_OK)}
    with suppress(OSError):
        found["room"] = shutil.disk_usage(there).free
    return found


def _variables(values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that matter; of those that hold a secret, that they are set."""
    return {
        name: "(set)" if is_secret(name) else _private_text(value)
        for name, value in sorted(values.items())
        if VARIABLES.fullmatch(name)
    }


def _private(path: Path) -> str:
    return _private_text(str(path))


def _private_text(text: str) -> str:
    """Return a text without secrets, its home folder as `~`, and the user's name, where a folder has it, as `USER`."""
    with suppress(RuntimeError):
        home = str(Path.home())
        if home != os.sep:
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    # KeyError, ImportError: neither a variable nor the system's list of users has a name.
    with suppress(OSError, KeyError, ImportError):
        text = re.sub(rf"(?<=[\\/]){re.escape(getpass.getuser())}(?![\w.-])", "USER", text)
    return masked(text)
