"""What is found out about rows: their files, columns and lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.reading.sources import DataFile
from glmtune.errors import GlmtuneError
from glmtune.family import family_of
from glmtune.starting.row_facts import NUM_ROWS_ENCODED, Files, find_columns, find_files, look_at

ROW = json.dumps({"instruction": "还有货吗？", "output": "有的。"}, ensure_ascii=False) + "\n"


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(ROW, encoding="utf-8")


def of_csv(folder: Path, header: str, *records: str) -> list[DataFile]:
    (folder / "a.csv").write_text("\n".join([header, *records]) + "\n", encoding="utf-8")
    return [DataFile(path=folder / "a.csv")]


def of(train: list[DataFile], val: list[DataFile] | None = None) -> Files:
    return Files(folder=Path(), names={}, train=train, val=val or [])


FOLDERS = {
    "a train file alone": (["train.jsonl"], {"train_file": "train.jsonl"}),
    "all three": (
        ["train.jsonl", "dev.json", "test.jsonl"],
        {"train_file": "train.jsonl", "val_file": "dev.json", "test_file": "test.jsonl"},
    ),
    "other words": (["Train.jsonl", "Valid.jsonl"], {"train_file": "Train.jsonl", "val_file": "Valid.jsonl"}),
    "no such names": (["a.jsonl", "b.jsonl"], {"train_file": ["a.jsonl", "b.jsonl"]}),
    "a test file among others": (["a.jsonl", "test.jsonl"], {"train_file": "a.jsonl", "test_file": "test.jsonl"}),
}


@pytest.mark.parametrize(("names", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_files_of_a_folder_are_known_by_their_names(
    names: Sequence[str], expected: dict[str, str | list[str]], tmp_path: Path
) -> None:
    write(tmp_path, *names)
    found = find_files(str(tmp_path))
    assert (found.folder, found.names) == (tmp_path, expected)
    train = expected["train_file"]
    assert [Path(file.path).name for file in found.train] == ([train] if isinstance(train, str) else train)


def test_files_beside_a_train_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "train.jsonl", "more.jsonl")
    assert find_files(str(tmp_path)).names == {"train_file": "train.jsonl"}
    assert capsys.readouterr().err == "note: not trained on: `more.jsonl` beside `train.jsonl`\n"


def test_a_folder_without_training_rows_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "test.jsonl")
    with pytest.raises(GlmtuneError, match=r"holds no file to train on, only `test\.jsonl`"):
        find_files(str(tmp_path))


def test_one_file_a_pattern_and_a_data_set_of_a_hub(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.jsonl")
    assert find_files(str(tmp_path / "a.jsonl")).names == {"train_file": "a.jsonl"}
    assert find_files(str(tmp_path / "*.jsonl")).names == {"train_file": ["a.jsonl", "b.jsonl"]}
    assert find_files("hub:owner/name:train").names == {"train_file": "hub:owner/name:train"}


def test_a_pattern_over_several_folders_has_what_is_above_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "x.jsonl")
    found = find_files(str(tmp_path / "*" / "x.jsonl"))
    assert (found.folder, found.names) == (tmp_path, {"train_file": ["a/x.jsonl", "b/x.jsonl"]})


HEADERS = {
    "known to a format": ("instruction,output", {}),
    "Chinese": ("问题,回答", {"instruction": "问题", "output": "回答"}),
    "English": ("question,answer", {"instruction": "question", "output": "answer"}),
    "with what the question is about": (
        "Instruction,Input,Output",
        {"instruction": "Instruction", "input": "Input", "output": "Output"},
    ),
    "the same in Chinese": ("指令,输入,输出", {"instruction": "指令", "input": "输入", "output": "输出"}),
    "with a passage": ("question,passage,answer", {"instruction": "question", "input": "passage", "output": "answer"}),
    "beside an id": ("id,Question,Answer", {"instruction": "Question", "output": "Answer"}),
}


@pytest.mark.parametrize(("header", "expected"), HEADERS.values(), ids=HEADERS)
def test_columns_are_found_by_their_names(header: str, expected: dict[str, str], tmp_path: Path) -> None:
    cells = ",".join(f"x{number}" for number in range(header.count(",") + 1))
    assert find_columns(of_csv(tmp_path, header, cells), {}) == expected


def test_columns_that_are_given_are_taken(tmp_path: Path) -> None:
    assert find_columns(of_csv(tmp_path, "问题,回答", "a,b"), {"output": "回答"}) == {"output": "回答"}


def test_of_two_columns_that_may_be_the_answer_none_is_taken(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match="unknown row format"):
        find_columns(of_csv(tmp_path, "problem,solution,answer", "a,b,c"), {})


def test_what_of_the_rows_is_not_used_is_told(demo_tokenizer, tmp_path: Path) -> None:
    files = of_csv(tmp_path, "question,A,B,answer", "Which?,x,y,A", "What?,z,w,B")
    facts = look_at(of(files), Encoder(demo_tokenizer, family_of("glm4")), find_columns(files, {}))
    assert list(facts.unread) == ["keys that are not read: `A` (2 rows), `B` (2 rows)"]


def test_columns_whose_names_say_nothing_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match=r"--column instruction=标题 --column output=正文"):
        find_columns(of_csv(tmp_path, "标题,正文", "a,b"), {})


def test_rows_are_counted_and_measured_as_the_model_reads_them(demo_tokenizer, tmp_path: Path) -> None:
    encoder = Encoder(demo_tokenizer, family_of("glm4"))
    files = of_csv(tmp_path, "instruction,output", *(f"{number}还有货吗？,有的。" for number in range(5)), "a,b,c")
    facts = look_at(of(files), encoder, {})
    assert (facts.num_rows, facts.num_rejected, dict(facts.formats)) == (5, 1, {"alpaca": 5, "": 1})
    assert facts.first_problem == (f"{files[0].path}:7", "the record has 3 cells; expected 2, as in the header")
    for prompt, answer, whole in zip(facts.prompt_tokens, facts.answer_tokens, facts.row_tokens):
        assert prompt + answer == whole


def test_the_rest_of_a_large_file_is_counted_by_what_its_first_rows_are(demo_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((ROW + "{}\n") * NUM_ROWS_ENCODED, encoding="utf-8")
    facts = look_at(of([DataFile(path=path)], [DataFile(path=path)]), Encoder(demo_tokenizer, family_of("glm4")), {})
    assert facts.num_val_rows == 2 * NUM_ROWS_ENCODED
    assert facts.num_rows == NUM_ROWS_ENCODED
    assert len(facts.row_tokens) == NUM_ROWS_ENCODED // 2


def test_rows_of_which_none_can_be_trained_on_are_an_error_with_the_first(demo_tokenizer, tmp_path: Path) -> None:
    files = of_csv(tmp_path, "instruction,output", "a,b,c")
    with pytest.raises(GlmtuneError, match="no row can be trained on; the first: the record has 3 cells") as caught:
        look_at(of(files), Encoder(demo_tokenizer, family_of("glm4")), {})
    assert caught.value.where == f"{files[0].path}:2"
