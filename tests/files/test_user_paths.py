"""`~` and variables in paths, wherever a person writes one: what they stand for, or an error; never a folder `~`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import command_line

from glmtune import load_config
from glmtune.data.reading.sources import command_line_files, find_data_files
from glmtune.demo.model import cache_folder
from glmtune.errors import GlmtuneError
from glmtune.files.user_paths import expand, user_path
from glmtune.modeling.finding.model_source import find_model

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
CONFIG = "data_config: {train_file: train.jsonl}\ntraining_args: {output_dir: %s, eval_strategy: no}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATA", str(home / "data"))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return home


@pytest.mark.parametrize(
    ("written", "meant"),
    [("~", ""), ("~/runs", "runs"), ("$HOME/runs", "runs"), ("${HOME}/runs", "runs"), ("${DATA}/a", "data/a"),
     ("$HOME/$HOME_NOT", None), ("${HOME:-/tmp}/x", None), ("${}/x", None), ("$NOWHERE/x", None),
     ("~no-such-user/x", None)],
)  # fmt: skip
def test_a_path_means_what_it_means_in_a_shell_or_is_refused(written: str, meant: str | None, home: Path) -> None:
    if meant is None:
        with pytest.raises(GlmtuneError):
            user_path(written)
    else:
        assert user_path(written) == home / meant


@pytest.mark.parametrize("name", ["runs/a", "a~b", "price 5$", "$5", "zai-org/glm-4-9b-chat-hf", "a b", "a$"])
def test_other_names_stay(name: str, home: Path) -> None:
    assert expand(name) == name


@pytest.mark.parametrize("name", ["~x", "$HOME", "a$HOME"])
def test_what_there_is_under_its_own_name_stays(name: str, home: Path) -> None:
    Path(name).touch()
    assert expand(name) == name
    (home / "data" / "$DATA.jsonl").touch()
    assert expand("$DATA.jsonl", home / "data") == "$DATA.jsonl"


def test_refusals_name_the_remedy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GlmtuneError) as caught:
        expand("${NOWHERE}/runs")
    assert str(caught.value) == (
        "the variable `${NOWHERE}` is not set\n  --> ${NOWHERE}/runs\nhint: set `NOWHERE`, or write the whole path"
    )
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    with pytest.raises(GlmtuneError) as caught:
        expand("~/runs")
    assert str(caught.value) == (
        "`~` stands for your home folder, and nothing says where that is: `HOME` is not set\n  --> ~/runs\n"
        "hint: write the whole path"
    )


@pytest.mark.parametrize("key", ["output_dir", "logging_dir"])  # a file in `fsdp_config` is refused
def test_paths_of_a_configuration(key: str, home: Path) -> None:
    from glmtune.config.sections import training_fields

    if key not in training_fields():
        pytest.skip(f"this transformers has no `{key}`")
    Path("c.yaml").write_text(CONFIG % "out" + "")
    assert load_config("c.yaml", [f"training_args.{key}=~/x"]).training_args[key] == str(home / "x")
    config = load_config("c.yaml", [f"training_args.{key}=${{DATA}}/x"])
    assert config.training_args[key] == config.source["training_args"][key] == str(home / "data" / "x")
    with pytest.raises(
        GlmtuneError, match=rf"`training_args\.{key}`: the variable `\$NOWHERE` is not set\n  --> --set"
    ):
        load_config("c.yaml", [f"training_args.{key}=$NOWHERE/x"])


def test_the_deepspeed_file(home: Path) -> None:
    (home / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    Path("c.yaml").write_text(CONFIG % "out")
    assert load_config("c.yaml", ["training_args.deepspeed=$HOME/ds.json"]).training_args["deepspeed"] == str(
        home / "ds.json"
    )


def test_the_configuration_itself(home: Path) -> None:
    (home / "c.yaml").write_text(CONFIG % "~/runs/a")
    assert load_config("~/c.yaml").training_args["output_dir"] == str(home / "runs" / "a")
    with pytest.raises(GlmtuneError, match="there is no configuration"):
        load_config("~/d.yaml")


def test_data_files(home: Path) -> None:
    (expected,) = command_line_files(str(home / "data" / "train.jsonl"))
    assert command_line_files("~/data/train.jsonl") == [expected]
    assert command_line_files("$DATA/*.jsonl") == [expected]
    assert find_data_files(Path(), "~/data/train.jsonl", "train_file") == [expected]
    assert find_data_files(Path(), ["${DATA}/train.jsonl"], "train_file") == [expected]


def test_models(home: Path) -> None:
    with pytest.raises(GlmtuneError, match="neither a model nor a checkpoint"):
        find_model("~/data")
    with pytest.raises(GlmtuneError, match=r"^model `.*/home/no-model` does not exist"):
        find_model("~/no-model")
    with pytest.raises(GlmtuneError, match=r"^the variable `\$NOWHERE` is not set"):
        find_model("$NOWHERE/model")


@pytest.mark.parametrize(("variable", "rest"), [("GLMTUNE_CACHE", ""), ("XDG_CACHE_HOME", "/glmtune")])
def test_the_cache(variable: str, rest: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLMTUNE_CACHE")
    monkeypatch.setenv(variable, "~/kept")
    assert cache_folder() == Path(f"{home}/kept{rest}")


def test_a_cache_without_a_home_names_the_remedy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GLMTUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    with pytest.raises(GlmtuneError) as caught:
        cache_folder()
    assert caught.value.fix == "set `GLMTUNE_CACHE` to a folder that you can write to"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["data", "convert", "~/data/train.jsonl", "~/out.jsonl"], "out.jsonl"),
        (["data", "inspect", "$DATA/train.jsonl", "demo", "--html", "${HOME}/page.html"], "page.html"),
        (["train", "$DATA", "demo", "~/c.yaml", "--set", "training_args.max_steps=1"], "runs/a/run.yaml"),
        (["eval", "demo", "~/data/train.jsonl", "--limit", "1", "--output", "$HOME/p.jsonl"], "p.jsonl"),
        (["infer", "demo", "--input", "$DATA/train.jsonl", "--max-new-tokens", "2"], None),
        (["export", "demo", "~/merged", "--prompts", "~/data/train.jsonl"], "merged/config.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_verbs_write_where_it_is_meant_and_make_no_folder_called_tilde(
    arguments: list[str], written: str | None, home: Path
) -> None:
    (home / "c.yaml").write_text(CONFIG % "~/runs/a")
    done = command_line(*arguments, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert written is None or (home / written).exists()
    assert list(Path.cwd().iterdir()) == []
