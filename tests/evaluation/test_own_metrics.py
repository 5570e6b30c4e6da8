"""Metrics of a user's own file: run where it is named, and told with file and line where they fail."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, command_line

from glmtune.errors import GlmtuneError
from glmtune.evaluation.own_metrics import MetricsFailed, OwnMetrics, describe_metrics, load_metrics

EXACT = """
def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
    same = sum(written == wanted for written, wanted in zip(predictions, references))
    return {"exact-match": 100 * same / len(references), "characters": sum(map(len, predictions))}
"""
SHAPE = "`def compute(predictions: list[str], references: list[str]) -> dict[str, float]`"


def written(folder: Path, code: str) -> Path:
    path = folder / "my_metrics.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_the_function_gets_all_answers_with_their_references(tmp_path: Path) -> None:
    metrics = load_metrics(written(tmp_path, EXACT))
    assert metrics.values(["甲", "乙丙"], ["甲", "乙"]) == {"exact-match": 50.0, "characters": 3.0}
    assert metrics.names == ("exact-match", "characters")


def test_numbers_of_other_libraries_become_plain_ones(tmp_path: Path) -> None:
    metrics = OwnMetrics(
        tmp_path / "m.py", lambda written, wanted: {"a": np.float32(0.5), "b": np.int64(2), "c": Fraction(1, 4)}
    )
    found = metrics.values([], [])
    assert [type(value) for value in found.values()] == [float, float, float]
    assert found == {"a": 0.5, "b": 2.0, "c": 0.25}


@pytest.mark.parametrize(
    ("body", "what", "line"),
    [
        ("    return {'a': 1 / 0}", "`compute` fails with ZeroDivisionError: division by zero", ":2"),
        ("    import json\n\n    return json.dumps(b'')",
         "`compute` fails with TypeError: Object of type bytes is not JSON serializable", ":4"),
        ("    raise SystemExit(3)", "`compute` fails with SystemExit: 3", ":2"),
        ("    return 1.0", "`compute` returns a value of type `float`; expected a dictionary of numbers", ""),
        ("    return {'a': '1.0'}", "`compute` returns '1.0' for 'a'; expected a number for a name", ""),
        ("    return {'a': True}", "`compute` returns 'True' for 'a'; expected a number for a name", ""),
        ("    return {'a': 10**400}",
         "`compute` returns a number for `a` that is too large; expected a finite one", ""),
        ("    return {'a': 10**5000}",
         "`compute` returns a number for `a` that is too large; expected a finite one", ""),
        ("    return {'a': 1.0, 'b': float('nan')}", "`compute` returns nan for `b`; expected a finite number", ""),
        ("    return {'a': -float('inf')}", "`compute` returns -inf for `a`; expected a finite number", ""),
        ("    return {'a': [10**5000]}",
         "`compute` returns 'a value of type list' for 'a'; expected a number for a name", ""),
        ("    return {'a\\nb': 1}",
         "`compute` names a metric 'a\\nb'; expected characters that can be seen, without a blank around them", ""),
        ("    return {' a': 1}",
         "`compute` names a metric ' a'; expected characters that can be seen, without a blank around them", ""),
        ("    return {3: 1}", "`compute` returns '1' for '3'; expected a number for a name", ""),
        ("    return {'loss': 1.0}", "`compute` returns `loss`, which an evaluation measures itself", ""),
        ("    return {'BLEU-4': 1.0}", "`compute` returns `BLEU-4`, which an evaluation measures itself", ""),
        ("    return {'rouge-l': 1.0}", "`compute` returns `rouge-l`, which an evaluation measures itself", ""),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_it_is_told_with_its_line(body: str, what: str, line: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"def compute(predictions, references):\n{body}\n")
    metrics = load_metrics(path)
    with pytest.raises(MetricsFailed) as caught:
        metrics.values(["a"], ["b"])
    assert (caught.value.what, caught.value.where) == (what, f"{path}{line}")


@pytest.mark.parametrize(
    ("code", "what", "line"),
    [
        ("def compute(:\n", "`my_metrics.py` cannot be read: invalid syntax", ":1"),
        ("\nimport no_such\n", "`my_metrics.py` fails with ModuleNotFoundError: No module named 'no_such'", ":2"),
        ("def score(a, b):\n    pass\n", "`my_metrics.py` has no function `compute`", ""),
        ("compute = 1\n", "`my_metrics.py` has no function `compute`", ""),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_before_anything_is_loaded(
    code: str, what: str, line: str, tmp_path: Path
) -> None:
    path = written(tmp_path, code)
    with pytest.raises(GlmtuneError) as caught:
        load_metrics(path)
    assert (caught.value.what, caught.value.where) == (what, f"{path}{line}")


def test_a_file_that_is_not_there_is_told_with_one_of_a_like_name(tmp_path: Path) -> None:
    path = written(tmp_path, EXACT)
    with pytest.raises(GlmtuneError) as caught:
        load_metrics(tmp_path / "my_metric.py")
    assert (
        caught.value.what
        == f"the file of metrics `{tmp_path / 'my_metric.py'}` does not exist (did you mean `{path}`?)"
    )


def test_a_file_is_known_by_its_name_and_its_hash(tmp_path: Path) -> None:
    path = written(tmp_path, EXACT)
    before = describe_metrics(str(path))
    assert before.startswith("my_metrics.py (sha256 ")
    (tmp_path / "elsewhere").mkdir()
    assert describe_metrics(str(written(tmp_path / "elsewhere", EXACT))) == before
    assert describe_metrics(str(written(tmp_path, EXACT + "\n"))) != before
    assert describe_metrics(str(tmp_path / "gone.py")) == "gone.py (not there)"


def evaluated(metrics: Path, data: Path) -> Done[str]:
    """Score two rows with a file of metrics, in its folder."""
    short = ("--limit", "2", "--max-new-tokens", "3")
    return command_line("eval", "demo", data / "dev.jsonl", *short, "--metrics", metrics, cwd=metrics.parent)


def test_eval_prints_them_beside_the_others_and_nothing_else_on_stdout(tmp_path: Path, demo_data: Path) -> None:
    path = written(tmp_path, "print('loaded')\n" + EXACT.replace("    return", "    print('called')\n    return"))
    done = evaluated(path, demo_data)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert {"bleu-4", "exact-match", "characters"} <= scores.keys()
    assert scores["exact-match"] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "predictions-dev.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores["characters"] == sum(len(line["prediction"]) for line in lines)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (
            "predictions['a']",
            "`compute` fails with TypeError: list indices must be integers or slices, not str\n"
            "  --> {path}:2\nhint: correct it in that file\n",
        ),
        (
            "{'a': 10**400}",
            "`compute` returns a number for `a` that is too large; expected a finite one\n"
            "  --> {path}\nhint: divide it, or leave the metric out where it has no value\n",
        ),
    ],
)
def test_eval_keeps_what_was_measured_where_they_fail(
    returned: str, told: str, tmp_path: Path, demo_data: Path
) -> None:
    path = written(tmp_path, f"def compute(predictions, references):\n    return {returned}\n")
    done = evaluated(path, demo_data)
    assert done.returncode == 2
    assert "bleu-4" in json.loads(done.stdout)
    assert (tmp_path / "predictions-dev.jsonl").is_file()
    assert done.stderr.endswith(f"error: {told.format(path=path)}")
