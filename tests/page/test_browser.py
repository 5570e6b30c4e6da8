"""The page in Chromium: both languages, light and dark, wide and narrow; a real run watched, stopped and found again.

Errors of the page, messages in its console, and requests to anywhere else fail a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.reports.run_status import STATUS_FILE, RunStatus, read_status, status_text

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: `pip install 'glmtune[web-test]'`"
)

REPOSITORY = Path(__file__).parents[2]
KEY = "a-key-of-the-test-000"
STATUS = RunStatus(
    phase="training", step=150, total_steps=400, host="elsewhere", pid=7, started=1.0, memory_bytes=10**9
)
PRESS = [("en-US", "light", 1280), ("en-US", "dark", 390), ("zh-CN", "light", 390), ("zh-CN", "dark", 1280)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Yield Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens an address; whatever goes wrong in the page fails the test at its end."""
    with contextlib.ExitStack() as contexts:
        wrong: list[str] = []

        def start(url: str, **options: Any) -> Any:
            context = browser.new_context(locale=options.pop("locale", "en-US"), **options)
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(30_000)
            own = re.match(r"https?://[^/]+/", url)
            assert own is not None
            page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            page.on(
                "console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None
            )
            page.on("request", lambda request: None if request.url.startswith(own[0]) else wrong.append(request.url))
            page.goto(url)
            return page

        yield start
        # What the browser says of an answer that is no 200: a server that is away, a key that is wrong.
        assert [each for each in wrong if "Failed to load resource" not in each] == []


@pytest.fixture
def serve_page(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a function that starts `glmtune web` and returns the address that it prints."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, port: int = 0, *options: str) -> str:
        command = [sys.executable, "-m", "glmtune", "web", str(folder), "--port", str(port), *options]
        environment = os.environ | {"GLMTUNE_WEB_KEY": KEY}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
        started.append(process)
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        start.process = process  # type: ignore[attr-defined]
        return found[0]

    yield start
    for process in started:
        process.kill()
        process.wait()


def write_run(folder: Path, status: RunStatus | None = STATUS, *, steps: int = 150) -> Path:
    """Write the folder of a run, as one would."""
    (folder / "predictions").mkdir(parents=True)
    config = {"peft_config": {"peft_type": "LORA"}}
    (folder / "run.yaml").write_text(yaml.safe_dump({"asked": {"model": "demo", "config": config}}), "utf-8")
    if status is not None:
        (folder / STATUS_FILE).write_text(status_text(replace(status, updated=time.time())), "utf-8")
    lines = [
        {"step": n, "loss": 3 / (1 + n / 30), "epoch": n / 100, "time": 1e9 + n, "tokens_per_second": 5000.0}
        for n in range(1, steps + 1)
    ]
    lines += [{"step": steps, "eval_loss": 0.9, "eval_rouge-l": 55.0, "epoch": steps / 100, "time": 1e9 + steps}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    rows = [
        {
            "where": "dev.jsonl:1",
            "turn": 0,
            "prompt": "<|user|>问",
            "reference": "红色的裙",
            "prediction": "红色<script>的裙",
        },
        {"where": "dev.jsonl:2", "turn": 0, "prompt": "p", "reference": "a", "prediction": "a", "tool_call": "no call"},
    ]
    (folder / "predictions" / "step-150.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.mark.parametrize(("locale", "scheme", "width"), PRESS)
def test_every_screen(locale: str, scheme: Any, width: int, open_page, serve_page, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "<b>one & two")
    failed = replace(
        STATUS, phase="ended", outcome="failed", error={"what": "损失变成了 nan", "where": None, "fix": None}
    )
    write_run(tmp_path / "runs" / "failed", failed)
    write_run(tmp_path / "runs" / "old", None)
    url = serve_page(tmp_path / "runs")
    page = open_page(url, locale=locale, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect = sync_api.expect
    words = {"en-US": ("All runs", "tokens/s", "Curves"), "zh-CN": ("全部运行", "词元/秒", "曲线")}[locale]
    expect(page.locator(".card")).to_have_count(3)
    assert "key" not in page.url
    expect(page.get_by_text("损失变成了 nan")).to_be_visible()
    expect_no_overflow(page)
    page.get_by_role("link", name="<b>one & two").click()
    expect(page.get_by_text(words[0])).to_be_visible()
    expect(page.get_by_text(words[1])).to_be_visible()
    expect(page.locator(".chart canvas")).to_be_visible()
    assert is_drawn(page)
    expect(page.get_by_text("红色<script>的裙")).to_be_visible()
    expect(page.locator("mark")).to_have_text("<script>")
    expect_no_overflow(page)
    page.reload()  # the address is the state
    expect(page.get_by_role("heading", name=words[2])).to_be_visible()
    page.get_by_role("button", name="中文" if locale == "en-US" else "English").click()
    other = {"en-US": "全部运行", "zh-CN": "All runs"}[locale]
    expect(page.get_by_text(other)).to_be_visible()


def is_drawn(page: Any) -> bool:
    """Whether a line's colour is somewhere in the picture: axes and grid are grey."""
    return bool(
        page.evaluate(
            """() => {
                const canvas = document.querySelector(".chart canvas");
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                for (let i = 0; i < data.length; i += 4)
                    if (data[i + 3] > 200 && Math.abs(data[i] - data[i + 2]) > 60) return true;
                return false;
            }"""
        )
    )


def expect_no_overflow(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_curves_figures_and_the_table(open_page, serve_page, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name)
    page = open_page(serve_page(tmp_path))
    expect = sync_api.expect
    for name in ("a", "b"):
        page.get_by_label(f"choose {name}").check()
    page.get_by_role("link", name="Curves of the chosen (2)").click()
    expect(page.locator(".u-legend")).to_contain_text("b")
    page.get_by_label("Figure").select_option("eval_rouge-l")
    page.get_by_label("Axis").select_option("epoch")
    assert "figure=eval_rouge-l" in page.url
    page.get_by_text("as a table").click()
    expect(page.get_by_role("row", name="1.5 55 55")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Figure")).to_have_value("eval_rouge-l")


def test_a_real_run_is_watched_stopped_and_found_again(open_page, serve_page, tmp_path: Path) -> None:
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 64,
        "max_output_length": 64,
        "peft_config": {"peft_type": "LORA", "r": 4},
        "training_args": {"output_dir": str(tmp_path / "runs" / "real"), "max_steps": 5000, "logging_steps": 5},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (tmp_path / "runs").mkdir()
    url = serve_page(tmp_path / "runs")
    page = open_page(url)
    expect = sync_api.expect
    expect(page.get_by_text("No run yet below")).to_be_visible()
    command = [
        sys.executable,
        "-m",
        "glmtune",
        "train",
        str(REPOSITORY / "data" / "demo"),
        "demo",
        str(tmp_path / "c.yaml"),
    ]
    with (tmp_path / "log").open("w") as log:
        training = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        page.get_by_role("link", name="real").click(timeout=120_000)
        expect(page.locator(".chart canvas")).to_be_visible(timeout=120_000)
        seen = page.locator(".numbers dd").first
        before = seen.text_content()
        expect(seen).not_to_have_text(before or "")  # it goes on by itself
        serve_page.process.kill()  # the page's server; the run does not know of it
        serve_page.process.wait()
        expect(page.get_by_text("Trying again")).to_be_visible()
        port = int(re.search(r":(\d+)/", url)[1])  # type: ignore[index]
        serve_page(tmp_path / "runs", port)
        expect(page.get_by_text("Trying again")).to_have_count(0)
        assert training.poll() is None
        page.get_by_role("button", name="Stop and save").click()
        page.get_by_role("button", name="Yes, stop").click()
        expect(page.get_by_text("stopped", exact=True)).to_be_visible(timeout=60_000)
        assert training.wait(60) == 75
    finally:
        training.kill()
    status = read_status(tmp_path / "runs" / "real")
    assert status is not None
    assert status.outcome == "stopped"
    expect(page.locator(".command code")).to_have_text(f"glmtune resume {tmp_path / 'runs' / 'real'}")


def test_a_wrong_key_asks_for_the_right_one(open_page, serve_page, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    address = serve_page(tmp_path).partition("#")[0]
    page = open_page(f"{address}#key=wrong-wrong-wrong-1")
    expect = sync_api.expect
    expect(page.get_by_text("This page needs its key")).to_be_visible()
    page.get_by_label("Key").fill(f"{address}#key={KEY}")
    page.get_by_role("button", name="Open").click()
    expect(page.locator(".card")).to_have_count(1)


def test_nothing_can_be_stopped_where_it_is_read_only(open_page, serve_page, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    page = open_page(serve_page(tmp_path, 0, "--read-only"))
    page.get_by_role("link", name="a", exact=True).click()
    sync_api.expect(page.locator(".chart canvas")).to_be_visible()
    assert page.get_by_role("button", name="Stop and save").count() == 0


def test_by_keyboard_alone(open_page, serve_page, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    page = open_page(serve_page(tmp_path))
    sync_api.expect(page.locator(".card")).to_have_count(1)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "a":
            break
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".chart canvas")).to_be_visible()
