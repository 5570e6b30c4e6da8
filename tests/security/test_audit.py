"""No verb reaches another machine, imports from the current folder, or writes outside the folders that it was given.

Python's audit hook sees every connection, every file that is opened and every name that is changed, in libraries, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

AUDITED = r'''
"""Runs commands one after the other, and writes down what they must not do."""
import json, os, sys

report, allowed, commands = open(sys.argv[1], "a"), json.loads(sys.argv[2]), json.loads(sys.argv[3])
# Numbers of open files, devices, and what threads and locks have in memory.
allowed += ["/dev/", "/proc/"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Which argument is the path, and which the folder that it is relative to, if not the current one.
NAMES = {
    "os.rename": (1, 3), "os.link": (1, 3), "os.symlink": (1, 2), "os.remove": (0, 1), "os.rmdir": (0, 1),
    "os.mkdir": (0, 2), "os.chmod": (0, 2), "os.chown": (0, 3), "os.truncate": (0, None),
}


def hook(event, arguments):
    if event == "socket.connect":
        note(event, arguments[1]) if isinstance(arguments[1], tuple) and arguments[1][0] not in LOOPBACK else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        note(event, arguments[0]) if arguments[0] not in LOOPBACK else None
    elif event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & WRITES:
            check(event, path)
    elif event in NAMES:
        place, folder = NAMES[event]
        check(event, arguments[place], -1 if folder is None else arguments[folder])


LOOPBACK = ("127.0.0.1", "::1", "localhost", None)


def check(event, path, folder=-1):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    beside = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
    whole = os.path.normpath(os.path.join(beside, os.fsdecode(path)))
    is_there = event == "os.mkdir" and os.path.isdir(whole)  # as `exist_ok` asks
    if not whole.startswith(tuple(allowed)) and not is_there:
        note(event, whole)


def note(event, what):
    report.write(f"{event}: {what!r}\n")
    report.flush()


sys.addaudithook(hook)
from glmtune.cli.app import main

for command in commands:
    sys.argv = ["glmtune", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            report.write(f"{command} ended with {end.code}\n")
            report.flush()
'''

DECOYS = ("json", "yaml", "torch", "transformers", "peft", "accelerate", "datasets", "jieba", "nltk", "numpy", "typer")
"""Modules that lie in the current folder, too, as files that leave a mark when they are imported."""


@pytest.fixture
def folder(tmp_path: Path, demo_data: Path) -> Path:
    """Return a folder with rows, a configuration and modules that nobody should import."""
    for name in ("train.jsonl", "dev.jsonl"):
        lines = (demo_data / name).read_text(encoding="utf-8").splitlines()[:6]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in DECOYS:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n", "utf-8")
    config = {
        "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl", "num_proc": 2},
        "max_input_length": 128,
        "max_output_length": 64,
        "training_args": {
            "output_dir": "run", "max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2,
            "eval_strategy": "steps", "eval_steps": 2, "generation_config": {"max_new_tokens": 2},
        },
        "peft_config": {"peft_type": "LORA", "r": 4},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="names of open folders are looked up in /proc")
def test_no_verb_goes_beyond_its_folders_and_this_machine(folder: Path) -> None:
    own = [folder / "cache", folder / "temporary", folder / "home"]
    for each in own:
        each.mkdir()
    written = [
        *map(str, own),
        *(
            str(folder / name)
            for name in ("run", ".run", "out", ".out", "export", ".export", "predictions", ".predictions", "page")
        ),
    ]
    commands = [
        ["data", "check", "train.jsonl", "demo"],
        ["data", "inspect", "train.jsonl", "demo", "--row", "0"],
        ["data", "inspect", "train.jsonl", "demo", "--html", "page.html"],
        ["data", "convert", "train.jsonl", "out.jsonl"],
        ["data", "prepare", ".", "demo", "config.yaml"],
        ["estimate", "demo", "config.yaml"],
        ["train", ".", "demo", "config.yaml"],
        ["resume", "run", "--set", "training_args.max_steps=3", "--accept-changes"],
        ["eval", "run", "dev.jsonl", "--limit", "1", "--max-new-tokens", "2", "--output", "predictions.jsonl"],
        ["infer", "run", "--prompt", "a", "--max-new-tokens", "2"],
        ["export", "run", "export"],
    ]
    environment = os.environ | {
        "GLMTUNE_CACHE": str(own[0]), "TMPDIR": str(own[1]), "HOME": str(own[2]), "XDG_CACHE_HOME": str(own[2]),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it when it is imported, here as well
    program = folder / "home" / "audited.py"
    program.write_text(AUDITED, encoding="utf-8")
    report = folder / "report"
    report.touch()
    done = subprocess.run(
        [sys.executable, program, report, json.dumps(written), json.dumps(commands)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert report.read_text(encoding="utf-8") == "", done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "imported").exists()
    assert (folder / "export" / "adapter_config.json").is_file() or (folder / "export" / "config.json").is_file()
