"""Puts realistic mistakes into a copy of the package, one at a time, and runs the tests that must find them.

`make mutants` tries every mistake in `mistakes.txt` and prints those that no test found; `ONLY=loss` tries those in
files whose path holds the word, `LINES='5 9'` those in lines of the list. The libraries are imported once, and a
process is forked for every mistake.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mistakes.txt")
COPIED = ("glmtune", "tests", "configs", "data", "benchmarks", ".ci", "pyproject.toml", "README.md", "Makefile")
LINE_BREAK = "⏎"
SECONDS_PER_MISTAKE = 300
"""A mistake that makes its tests run on for longer than this is found."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One change of one file, and the tests that must fail with it."""

    line: int
    """Of the list."""
    file: str
    tests: tuple[str, ...]
    right: str
    wrong: str
    reason: str = ""
    """Why tests cannot find it; empty where they must."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mistake."""

    mistake: Mistake
    is_found: bool
    seconds: float
    problem: str = ""
    """Why it could not be tried."""


def read_mistakes(text: str) -> list[Mistake]:
    """Return the mistakes of a list; its form is told at its head."""
    mistakes: list[Mistake] = []
    file, tests, right, reason = "", (), "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("== "):
            file, _, names = line.removeprefix("== ").partition(" :: ")
            tests = tuple(names.split())
        elif line.startswith("? "):
            reason = line.removeprefix("? ")
        elif line.startswith("- "):
            right = line.removeprefix("- ").replace(LINE_BREAK, "\n")
        elif line.startswith("+ "):
            wrong = line.removeprefix("+ ").replace(LINE_BREAK, "\n")
            mistakes.append(Mistake(line=number, file=file, tests=tests, right=right, wrong=wrong, reason=reason))
            reason = ""
        elif line and not line.startswith("#"):
            raise ValueError(f"{LIST.name}:{number}: cannot be read: {line}")
    return mistakes


def stale(mistake: Mistake, project: Path) -> str:
    """Return why a mistake no longer fits the project; nothing where it does."""
    path = project / mistake.file
    if not path.is_file():
        return f"there is no `{mistake.file}`"
    count = path.read_text(encoding="utf-8").count(mistake.right)
    if count != 1:
        return f"`{mistake.right}` stands {count} times in `{mistake.file}`"
    missing = [name for name in mistake.tests if not (project / name.partition("::")[0]).exists()]
    return f"there is no `{missing[0]}`" if missing else ""


def main() -> None:
    """Try the mistakes and print what came of them; the exit code is 1 where one escaped or could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a file's path")
    parser.add_argument("--lines", type=int, nargs="*", help="of the list, as they are named where one escapes")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mistakes = [
        each
        for each in read_mistakes(LIST.read_text(encoding="utf-8"))
        if options.only in each.file and (options.lines is None or each.line in options.lines)
    ]
    _import_libraries()
    with tempfile.TemporaryDirectory(prefix="glmtune-mutants-") as folder:
        outcomes = _try_all(mistakes, Path(folder), options.workers)
    sys.exit(_report(outcomes))


def _report(outcomes: Sequence[Outcome]) -> int:
    broken = [each for each in outcomes if each.problem]
    tried = [each for each in outcomes if not each.problem]
    found = [each for each in tried if each.is_found]
    escaped = [each for each in tried if not each.is_found]
    for each in broken:
        print(f"not tried: {LIST.name}:{each.mistake.line}: {each.problem}")
    for each in escaped:
        reason = f"  ({each.mistake.reason})" if each.mistake.reason else ""
        print(f"escaped: {LIST.name}:{each.mistake.line}: {each.mistake.file}{reason}")
        print(f"    - {each.mistake.right}\n    + {each.mistake.wrong}")
    share = 100 * len(found) / max(1, len(tried))
    print(f"{len(found)} of {len(tried)} mistakes found ({share:.1f} %); {len(broken)} could not be tried")
    unexplained = [each for each in escaped if not each.mistake.reason]
    return int(bool(broken or unexplained))


def _import_libraries() -> None:
    """Import what takes long and is not the project's own, as the tests would."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Seq2SeqTrainer  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_warning()
    gc.freeze()


def _try_all(mistakes: Sequence[Mistake], folder: Path, num_workers: int) -> list[Outcome]:
    """Share the mistakes out to some processes, each with a copy of the project of its own."""
    workers = []
    for number in range(num_workers):
        process = os.fork()
        if not process:
            with contextlib.suppress(KeyboardInterrupt):
                _work(mistakes[number::num_workers], folder / str(number))
            os._exit(0)
        workers.append(process)
    try:
        for process in workers:
            os.waitpid(process, 0)
    except KeyboardInterrupt:
        for process in workers:
            os.kill(process, signal.SIGKILL)
        raise
    lines = [line for number in range(num_workers) for line in (folder / f"{number}.jsonl").open(encoding="utf-8")]
    by_line = {each.line: each for each in mistakes}
    records = sorted(map(json.loads, lines), key=lambda record: record["mistake"])
    return [Outcome(**(record | {"mistake": by_line[record["mistake"]]})) for record in records]


def _work(mistakes: Sequence[Mistake], folder: Path) -> None:
    project = folder / "project"
    _copy_project(project)
    with (folder.parent / f"{folder.name}.jsonl").open("w", encoding="utf-8", buffering=1) as results:
        right_ones: dict[tuple[str, ...], int] = {}
        for mistake in mistakes:
            outcome = _try_one(mistake, project, right_ones)
            results.write(json.dumps(asdict(outcome) | {"mistake": mistake.line}) + "\n")
            what = outcome.problem or ("found" if outcome.is_found else "ESCAPED")
            print(f"{LIST.name}:{mistake.line}: {what} ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)


def _copy_project(project: Path) -> None:
    project.mkdir(parents=True)
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, project / name)
    if (PROJECT.parent / "shared").is_dir():  # tests look for real rows beside the project
        (project.parent / "shared").symlink_to(PROJECT.parent / "shared")


def _try_one(mistake: Mistake, project: Path, right_ones: dict[tuple[str, ...], int]) -> Outcome:
    """Make the mistake, run its tests, and put the file right again."""
    started = time.monotonic()
    problem = stale(mistake, project)
    if not problem and mistake.tests not in right_ones:
        right_ones[mistake.tests] = _run_tests(mistake.tests, project)
    if not problem and right_ones[mistake.tests]:
        problem = f"the tests fail without a mistake, too: {' '.join(mistake.tests)}"
    if problem:
        return Outcome(mistake=mistake, is_found=False, seconds=time.monotonic() - started, problem=problem)
    path = project / mistake.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mistake.right, mistake.wrong), encoding="utf-8")
    try:
        code = _run_tests(mistake.tests, project)
    finally:
        path.write_text(text, encoding="utf-8")
    return Outcome(mistake=mistake, is_found=code != 0, seconds=time.monotonic() - started)


def _run_tests(tests: Sequence[str], project: Path) -> int:
    """Return pytest's exit code, in a process of its own."""
    process = os.fork()
    if not process:
        os.setpgid(0, 0)
        os._exit(_pytest(tests, project))
    deadline = time.monotonic() + SECONDS_PER_MISTAKE
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def _pytest(tests: Sequence[str], project: Path) -> int:
    import pytest

    os.chdir(project)
    sys.path[:] = [str(project), str(project / "tests"), *(each for each in sys.path if each != str(PROJECT))]
    os.environ["PYTHONPATH"] = str(project)
    log = os.open(project.parent / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    main()
