"""`RESULTS.md`: every benchmark writes a section of its own and leaves the others as they are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_section(name: str, text: str) -> None:
    """Put the text between the marks of the section, and print it."""
    print(text)
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    page = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Benchmarks: what was measured\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    page = pattern.sub(lambda _: section, page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}\n"
    RESULTS.write_text(page, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(*packages: str) -> str:
    """Name the day, the machine and the versions that the figures depend on."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{date.today()}, {processor()}, {cores} cores, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """Name the processor and what it has for bfloat16."""
    return f"{_processor()}{_half_instructions()}"


def processor_name() -> str:
    """Return a name for the processor that a section of its own can bear: `amd-epyc-avx2`."""
    import torch

    words = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower().replace("(r)", "")).strip("-")


def _processor() -> str:
    """Return the model of the CPU where the system tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _half_instructions() -> str:
    """Tell what the processor has for bfloat16: virtual machines call those with and without it by one name."""
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()
    found = [name for flag, name in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX-BF16")) if flag in flags]
    return f" with {' and '.join(found)}" if found else " without instructions for bfloat16" if flags else ""
