"""The rows of a run: several files, weights, a split, and what `run.yaml` remembers of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from glmtune import resume, train
from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import RunConfig, load_config
from glmtune.encoded.mixing import weighted_indices
from glmtune.encoded.splitting import row_digest
from glmtune.encoded.store import file_hash
from glmtune.errors import GlmtuneError
from glmtune.family import GLM
from glmtune.training.setup.run_data import find_run_files, load_data


def line(question: str, answer: str = "B") -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    for name, count in (("a", 10), ("b", 6), ("more/c", 4), ("more/d", 3)):
        lines = [line(f"{name}{number}") for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def config_of(tmp_path: Path) -> Any:
    def read(**data_config: Any) -> RunConfig:
        path = tmp_path / "config.yaml"
        top = {
            "data_config": {"train_file": "a.jsonl"} | data_config,
            "max_input_length": 64,
            "max_output_length": 64,
            "training_args": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
            "peft_config": None,
        }
        path.write_text(yaml.safe_dump(top), encoding="utf-8")
        return load_config(path)

    return read


@pytest.fixture
def load(folder: Path, config_of, demo_tokenizer) -> Any:
    def load(**data_config: Any) -> SimpleNamespace:
        config = config_of(**data_config)
        files = find_run_files(folder, config)
        return SimpleNamespace(files=files, rows=load_data(files, config, Encoder(demo_tokenizer, GLM)))

    return load


def places(data: Any, folder: Path) -> list[str]:
    return [where.removeprefix(f"{folder}/") for where in data.dataset["where"][:]]


def test_what_is_not_read_is_told_once_at_every_start_over_all_files(
    folder: Path, load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.loads(line("q")) | {"score": 1, "id": 7}
    rejected = json.loads(line("r")) | {"rejected_response": "C"}
    for name in ("scored", "val"):
        text = "".join(f"{json.dumps(each)}\n" for each in (row, rejected))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    told = [
        "note: keys that are not read: `score` (2 rows)",
        "note: 2 rows have two answers: the chosen one is trained, the rejected answer is not used",
    ]
    for _ in range(2):  # the second time from the encoded rows that are kept
        load(train_file=["a.jsonl", "scored.jsonl"], val_file="val.jsonl")
        lines = capsys.readouterr().err.splitlines()
        assert [each for each in lines if "not read" in each or "rejected answer" in each] == told
    monkeypatch.setenv("RANK", "1")
    load(train_file=["a.jsonl", "scored.jsonl"], val_file="val.jsonl")
    assert capsys.readouterr().err == ""


def test_the_files_of_a_list_come_one_after_the_other(load, folder: Path) -> None:
    data = load(train_file=["b.jsonl", "more/d.jsonl", "a.jsonl"])
    expected = [
        f"{name}.jsonl:{row}" for name, count in (("b", 6), ("more/d", 3), ("a", 10)) for row in range(1, count + 1)
    ]
    assert places(data.rows["train"], folder) == expected
    assert data.rows["train"].numbers("row").tolist() == list(range(19))
    assert [file.as_record() for file in data.files["train"]] == [
        {"path": str(folder / name), "sha256": file_hash(folder / name), "weight": 1.0}
        for name in ("b.jsonl", "more/d.jsonl", "a.jsonl")
    ]


def test_a_folder_gives_its_files_in_order(load, folder: Path) -> None:
    data = load(train_file="more")
    assert places(data.rows["train"], folder) == [
        *(f"more/c.jsonl:{row}" for row in range(1, 5)), *(f"more/d.jsonl:{row}" for row in range(1, 4)),
    ]  # fmt: skip


def test_weights_say_how_often_an_epoch_shows_the_rows_of_a_file(load, folder: Path) -> None:
    entries = ["more/d.jsonl", {"path": "b.jsonl", "weight": 2}, {"path": "a.jsonl", "weight": 0.5}]
    shown = Counter(places(load(train_file=entries).rows["train"], folder))
    assert {place: times for place, times in shown.items() if place.startswith("more/d")} == {
        f"more/d.jsonl:{row}": 1 for row in range(1, 4)
    }
    assert {place: times for place, times in shown.items() if place.startswith("b")} == {
        f"b.jsonl:{row}": 2 for row in range(1, 7)
    }
    half = {place: times for place, times in shown.items() if place.startswith("a")}
    assert len(half) == 5
    assert set(half.values()) == {1}
    assert Counter(places(load(train_file=entries).rows["train"], folder)) == shown


def test_each_split_has_its_own_files(load, folder: Path) -> None:
    data = load(train_file="a.jsonl", val_file=["b.jsonl"], test_file="more/d.jsonl")
    assert {split: len(rows.dataset) for split, rows in data.rows.items()} == {"train": 10, "val": 6, "test": 3}
    assert list(data.files) == ["train", "val", "test"]


@pytest.mark.parametrize(("val_size", "count"), [(4, 4), (0.2, 4), (1, 1)])
def test_the_rows_with_the_smallest_digests_are_evaluated_on(load, folder: Path, val_size: float, count: int) -> None:
    files = ["a.jsonl", "b.jsonl", "more/c.jsonl"]
    data = load(train_file=files, val_size=val_size)
    lines = {
        f"{name}:{number}": row_digest(text)
        for name in files
        for number, text in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), start=1)
    }
    smallest = sorted(lines, key=lines.__getitem__)[:count]
    assert sorted(places(data.rows["val"], folder)) == sorted(smallest)
    assert places(data.rows["train"], folder) == [place for place in lines if place not in smallest]
    assert list(data.files) == ["train"]


@pytest.mark.parametrize("weights", [(1, 1), (2, 0.5), (0.5, 1.5), (3, 0.25)])
@pytest.mark.parametrize("val_size", [2, 0.3])
def test_no_row_is_trained_and_evaluated_whatever_the_weights(
    load, folder: Path, weights: tuple[float, float], val_size: float
) -> None:
    # Rows of one file stand in the other, too, in another place.
    lines = (folder / "a.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "b.jsonl").write_text("\n".join([line("b"), *lines[::-2], line("c")]), encoding="utf-8")
    entries = [{"path": name, "weight": weight} for name, weight in zip(("a.jsonl", "b.jsonl"), weights)]
    data = load(train_file=entries, val_size=val_size)
    train_rows, val_rows = data.rows["train"], data.rows["val"]
    assert set(train_rows.numbers("digest")).isdisjoint(val_rows.numbers("digest"))
    assert len(set(places(val_rows, folder))) == len(val_rows.dataset) > 0
    together = load(train_file=entries)
    shown = set(places(together.rows["train"], folder))
    assert set(places(train_rows, folder)) | set(places(val_rows, folder)) == shown
    again = load(train_file=entries, val_size=val_size)
    for split in ("train", "val"):
        assert again.rows[split].dataset.to_list() == data.rows[split].dataset.to_list()


def test_the_same_rows_are_evaluated_on_in_another_order_of_files(load, folder: Path) -> None:
    one = load(train_file=["a.jsonl", "b.jsonl"], val_size=5).rows["val"]
    other = load(train_file=["b.jsonl", "a.jsonl"], val_size=5).rows["val"]
    assert sorted(places(one, folder)) == sorted(places(other, folder))


def test_what_was_left_out_belongs_to_the_training_rows(load, folder: Path) -> None:
    with (folder / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n{")
    data = load(val_size=3)
    assert [reject.where for reject in data.rows["train"].rejects] == [f"{folder / 'a.jsonl'}:11"]
    assert data.rows["val"].rejects == ()


def test_a_start_says_what_came_of_each_split(load, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(train_file=["a.jsonl", "b.jsonl"], val_size=4)
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith(("train:", "val:"))]
    names = f"{folder / 'a.jsonl'}, {folder / 'b.jsonl'}"
    assert [each.split(" rows,")[0] for each in lines] == [f"train: {names}: 12", f"val: {names}: 4"]


# Resuming.


@pytest.fixture
def stopped(folder: Path, write_config) -> Path:
    """A run over weighted files that can go on."""
    entries = ["b.jsonl", {"path": "a.jsonl", "weight": 2}, "more"]
    config = write_config(
        max_steps=2, save_steps=1, eval_strategy="no", top={"data_config": {"train_file": entries, "val_size": 2}}
    )
    run = train(folder, "demo", config)
    for path in sorted((run / "checkpoint-2").iterdir()):
        path.unlink()
    (run / "checkpoint-2").rmdir()
    return run


def refusal(run: Path) -> str:
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    return str(caught.value)


def test_run_yaml_names_every_file_with_its_hash_and_weight(stopped: Path, folder: Path) -> None:
    record = yaml.safe_load((stopped / "run.yaml").read_text(encoding="utf-8"))
    assert record["data"] == {
        "train": [
            {"path": str(folder / name), "sha256": file_hash(folder / name), "weight": weight}
            for name, weight in (("b.jsonl", 1.0), ("a.jsonl", 2.0), ("more/c.jsonl", 1.0), ("more/d.jsonl", 1.0))
        ]
    }


def test_a_run_over_the_same_files_goes_on(stopped: Path) -> None:
    assert resume(stopped) == stopped
    assert (stopped / "checkpoint-2").is_dir()


@pytest.mark.parametrize("name", ["b.jsonl", "a.jsonl", "more/d.jsonl"])
def test_a_changed_file_of_several_is_named(stopped: Path, folder: Path, name: str) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write("\n" + line("new"))
    assert f"changed since it began:\n  - `{folder / name}` has changed\n  --> {stopped}\n" in refusal(stopped)


WEIGHTS = {"a.jsonl": 2}


def listed(folder: Path, *names: str) -> str:
    return ", ".join(f"`{folder / name}` (weight {WEIGHTS.get(name, 1)})" for name in names)


@pytest.mark.parametrize("change", ["removed", "added"])
def test_a_folder_with_other_files_is_told(stopped: Path, folder: Path, change: str) -> None:
    names = ["b.jsonl", "a.jsonl", "more/c.jsonl"]
    if change == "removed":
        (folder / "more" / "d.jsonl").unlink()
    else:
        names += ["more/d.jsonl", "more/e.jsonl"]
        (folder / "more" / "e.jsonl").write_text(line("new"), encoding="utf-8")
    began_with = ("b.jsonl", "a.jsonl", "more/c.jsonl", "more/d.jsonl")
    assert (
        f"  - the train rows come from {listed(folder, *names)}, they came from {listed(folder, *began_with)}\n"
        in refusal(stopped)
    )


def test_another_weight_is_told(stopped: Path, folder: Path) -> None:
    text = (stopped / "run.yaml").read_text(encoding="utf-8")
    record = yaml.safe_load(text)
    record["asked"]["config"]["data_config"]["train_file"][1]["weight"] = 3
    (stopped / "run.yaml").write_text(yaml.safe_dump(record, allow_unicode=True), encoding="utf-8")
    told = refusal(stopped)
    assert f"the train rows come from `{folder / 'b.jsonl'}` (weight 1), `{folder / 'a.jsonl'}` (weight 3)" in told
    assert "  - `data_config.train_file` is " in told


def test_a_missing_file_is_told(stopped: Path, folder: Path) -> None:
    (folder / "a.jsonl").unlink()
    assert "a.jsonl" in refusal(stopped)
    assert "data_config.train_file" in refusal(stopped)


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [({}, 42), ({"seed": 7}, 7), ({"seed": 7, "data_seed": 3}, 3), ({"seed": 7, "data_seed": 0}, 0), ({"seed": 0}, 0)],
)
def test_the_order_of_rows_depends_on_data_seed_where_it_is_given(
    arguments: dict[str, int], seed: int, folder: Path, config_of, demo_tokenizer
) -> None:
    config = config_of(train_file=[{"path": "a.jsonl", "weight": 0.5}])
    config = replace(config, training_args={**config.training_args, **arguments})
    encoder = Encoder.from_config(demo_tokenizer, GLM, config)
    rows = load_data(find_run_files(folder, config), config, encoder)["train"].numbers("row").tolist()
    assert rows == weighted_indices([10], [0.5], seed).tolist()
