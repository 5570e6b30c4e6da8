"""What is installed: bounds and pins, the note for what is newer than tested, and what a wheel holds."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import command_line

from glmtune import tested_versions
from glmtune.files import shipped

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = ["constraints.txt", "constraints-lowest.txt"]
TOOLS = {
    *("pytest", "pytest-cov", "pytest-xdist", "hypothesis", "uv", "ruff", "mypy", "types-pyyaml", "langchain-openai"),
    *("mkdocs", "mkdocs-material", "mkdocs-static-i18n", "nbclient", "pytest-timeout"),
    *("playwright", "anthropic", "langchain-tests", "litellm", "lm-eval", "openai-agents", "pydantic-ai-slim"),
}
"""Of development: no run of a user's meets them."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds() -> dict[str, str]:
    """Return what pyproject.toml says behind the name of every library that a run may meet."""
    listed = PYPROJECT.split("\ndependencies = [")[1].split("\n[project.scripts]")[0]
    found = re.findall(r'"([A-Za-z][\w-]*)(?:\[\w+\])?((?:[<>]=?[\d.]+,?)+)', listed)
    return {normal(name): bound for name, bound in found if normal(name) not in TOOLS}


def pins(name: str) -> list[tuple[str, str, str]]:
    """Return name, version and marker of every line."""
    lines = [line.partition("  #")[0] for line in (REPOSITORY / ".ci" / name).read_text(encoding="utf-8").splitlines()]
    parts = [re.fullmatch(r"([\w.-]+)==([\w.]+)(?: ; (.+))?", line) for line in lines if not line.startswith("#")]
    assert all(parts), lines
    return [(normal(part[1]), part[2], part[3] or "") for part in parts if part]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in [*version.split("."), "0"][:2])


def test_every_bound_is_the_newest_tested_version() -> None:
    uppers = {name: bound.partition("<")[2] for name, bound in bounds().items()}
    tested = {normal(name): f"{major}.{minor + 1}" for name, (major, minor) in tested_versions.NEWEST_TESTED.items()}
    assert uppers == tested


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_nothing_is_pinned_that_torch_chooses_for_itself(name: str) -> None:
    chosen = {
        normal(re.match(r"[\w.-]+", line)[0])
        for line in importlib.metadata.requires("torch") or ()
        if "==" in line.partition(";")[0]
    }
    pinned = {package for package, _, _ in pins(name)}
    assert not pinned & chosen
    assert not [package for package in pinned if re.match(r"(nvidia|cuda|cudnn|triton|pytorch-triton)\b", package)]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_package_is_pinned_once_for_every_python(name: str) -> None:
    from packaging.markers import Marker

    for minor in range(10, 14):
        environment = {
            "python_version": f"3.{minor}",
            "python_full_version": f"3.{minor}.1",
            "sys_platform": "linux",
            "platform_machine": "x86_64",
        }
        held = [package for package, _, marker in pins(name) if not marker or Marker(marker).evaluate(environment)]
        assert len(held) == len(set(held))
        assert "torch" in held
        if name == "constraints.txt":
            assert not set(bounds()) - {"swanlab"} - set(held)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_pins_lie_within_the_bounds(name: str) -> None:
    from packaging.specifiers import SpecifierSet

    outside = [
        (package, version)
        for package, version, _ in pins(name)
        if package in bounds() and not SpecifierSet(bounds()[package]).contains(version)
    ]
    assert not outside


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    lowest = {package: version for package, version, _ in pins("constraints-lowest.txt")}
    asked = {name: re.match(r">=([\d.]+)", bound)[1] for name, bound in bounds().items()}
    # torch: the oldest that CI can install without CUDA; matplotlib has two lines; the others have none yet.
    differing = {name for name in asked if numbers(lowest.get(name, "0.0")) != numbers(asked[name])}
    known = {"torch", "matplotlib", "numpy", "psutil", "filelock", "liger-kernel", "swanlab", "modelscope"}
    assert differing <= known


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Put a package of another version before the installed one, as far as its metadata goes."""

    def add(package: str, version: str) -> None:
        folder = tmp_path / "site" / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")

    monkeypatch.syspath_prepend(tmp_path / "site")
    tested_versions.note_untested_versions.cache_clear()
    yield add
    tested_versions.note_untested_versions.cache_clear()


@pytest.mark.parametrize("package", tested_versions.NEWEST_TESTED)
def test_a_patch_of_a_tested_version_is_not_named(package: str, installed: object) -> None:
    major, minor = tested_versions.NEWEST_TESTED[package]
    installed(package, f"{major}.{minor}.9")
    assert tested_versions.untested_versions() == []


@pytest.mark.parametrize("package", tested_versions.NEWEST_TESTED)
@pytest.mark.parametrize("step", ["minor", "minor pre-release", "major"])
def test_a_library_newer_than_tested_is_named(package: str, step: str, installed: object) -> None:
    major, minor = tested_versions.NEWEST_TESTED[package]
    version = {
        "minor": f"{major}.{minor + 1}.0",
        "minor pre-release": f"{major}.{minor + 1}.0.dev20270101+cpu",
        "major": f"{major + 1}",
    }[step]
    installed(package, version)
    assert tested_versions.untested_versions() == [f"{package} {version} (up to {major}.{minor})"]


def test_it_is_told_once_in_one_line(installed: object, capsys: pytest.CaptureFixture[str]) -> None:
    installed("transformers", "5.99.1")
    installed("torch", "3.0.0+cu132")
    tested_versions.note_untested_versions()
    tested_versions.note_untested_versions()
    torch_tested, transformers_tested = (
        "{}.{}".format(*tested_versions.NEWEST_TESTED[name]) for name in ("torch", "transformers")
    )
    assert capsys.readouterr().err == (
        f"note: newer than glmtune was tested with: torch 3.0.0+cu132 (up to {torch_tested}), "
        f"transformers 5.99.1 (up to {transformers_tested})\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["train", "data/demo", "demo", "configs/lora.yaml", "--set", "no_such_key=1"],
        ["estimate", "demo", "configs/lora.yaml", "--set", "no_such_key=1"],
        ["infer", "demo", "--prompt", "hi", "--max-new-tokens", "1"],
    ],
    ids=lambda command: command[0],
)
def test_every_verb_tells_it_at_its_start(command: list[str], installed: object) -> None:
    installed("transformers", "5.99.1")
    done = command_line(*command, cwd=REPOSITORY)
    assert done.stderr.count("newer than glmtune was tested with: transformers 5.99.1") == 1


def test_every_package_of_the_source_is_in_the_wheel() -> None:
    listed = set(re.findall(r'"(glmtune[\w.]*)"', PYPROJECT.split("\npackages = [")[1].split("]")[0]))
    source = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in (REPOSITORY / "glmtune").rglob("*.py")}
    assert listed == source | {"glmtune.configs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build a wheel as `pip wheel .` does, with the setuptools that is here: tests have no network."""
    pytest.importorskip("setuptools", minversion="77")
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(source)], check=True, capture_output=True
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), "."],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_a_wheel_holds_the_configurations_the_license_and_the_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {f"glmtune/configs/{path.name}" for path in (REPOSITORY / "configs").iterdir()} <= names
    assert "glmtune/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_from_a_wheel_the_advice_names_a_file_that_is_there(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wheel.extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    (work / "empty.yaml").write_text("")
    (work / "mine.yaml").write_text(
        "data_config: {train_file: train.jsonl}\nmax_input_length: 64\nmax_output_length: 64\n"
        "peft_config: null\ntraining_args: {deepspeed: ds_zero2.json}\n"
    )
    code = (
        "from glmtune import load_config, GlmtuneError\n"
        "for name in ('empty.yaml', 'configs/lora.yaml'):\n"
        "    try: load_config(name)\n"
        "    except GlmtuneError as error: print(error.fix)\n"
        "config = load_config('mine.yaml')\n"
        "print(config.training_args['deepspeed'])\n"
        "print(*config.notices)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    configs = site / "glmtune" / "configs"
    assert done.stdout.splitlines() == [
        f"start from a copy of `{configs / 'lora.yaml'}`",
        f"glmtune brings one along: `{configs / 'lora.yaml'}`",
        str(configs / "ds_zero2.json"),
        "`training_args.deepspeed`: there is no `ds_zero2.json` here; took the one that comes along, "
        f"`{configs / 'ds_zero2.json'}`",
    ]


def test_in_a_clone_the_advice_names_the_file_as_the_clone_has_it() -> None:
    assert shipped.shipped_name("lora.yaml") == "configs/lora.yaml"
    assert (shipped.shipped_folder() / "lora.yaml").is_file()
