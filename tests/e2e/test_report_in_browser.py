"""`report.html` in a real browser: no errors, no network, and what it shows is what the result says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import results
from tightfit import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page from disk, with all that went wrong on it."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    opened: list[tuple[Opened, str]] = []
    contexts: list[Any] = []

    def show(result: results.Result, *, width: int = 1200, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(render_report(result), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        shown = Opened(context.new_page(), path)
        opened.append((shown, path.as_uri()))
        return shown

    yield show
    for shown, address in opened:
        assert shown.problems == []
        assert shown.requests == [address]
    for context in contexts:
        context.close()


def test_the_verdict_and_the_table_have_the_figures(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    assert page.locator("h1").inner_text() == "Fits nucleo-h7a3zi-q"
    row = page.locator("table.comparison tr", has_text="Latency")
    assert [text.split("\n")[0].strip() for text in row.locator("td").all_inner_texts()] == [
        "✗58.0 ms",
        "✗36.2 ms",
        "✓15.9 ms",
        "≤ 18.0 ms",
    ]
    assert page.locator("tr.best th").inner_text() == "#8"


def test_hovering_a_point_shows_its_recipe(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    detail = page.locator("#plot-detail")
    assert "best: trial #8" in detail.inner_text()
    page.locator("#plot .point[aria-label^='trial #4']").hover()
    text = detail.inner_text()
    assert "trial #4" in text
    assert "86.90 %" in text
    assert "channels kept: block1_conv1" in text
    assert "distillation weight 0.9" in text
    assert "number format int8" in text


def test_points_of_the_selection_set_are_paler(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    assert page.locator("#plot .point.screened").count() == 6
    assert page.locator("#plot .point.mark-best.screened").count() == 0
    opacity = "node => getComputedStyle(node).fillOpacity"
    pale = page.locator("#plot .point.screened .shape").first.evaluate(opacity)
    assert float(pale) < float(page.locator("#plot .mark-best .shape").evaluate(opacity))
    assert "judged on the selection set" in page.locator("#plot-legend").inner_text()


def test_the_keyboard_reaches_every_point(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    points = page.locator("#plot .point")
    assert points.count() == 9
    assert page.locator("#plot .point[tabindex='0']").count() == 1
    page.locator("#plot .point[tabindex='0']").focus()
    seen = set()
    for _ in range(points.count()):
        page.keyboard.press("ArrowRight")
        seen.add(page.locator("#plot-detail h3").inner_text())
    assert len(seen) == points.count()


def test_the_axis_can_be_chosen_and_limits_are_drawn(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    assert page.locator("#plot .limit-text").all_text_contents() == ["≤ 18.0 ms", "≥ 90.03 %"]
    page.select_option("#plot-x", "ram")
    assert page.locator("#plot .limit-text").first.text_content() == "≤ 128 KiB"
    assert "Peak RAM, KiB" in page.locator("#plot svg").text_content()
    page.select_option("#plot-x", "energy")
    assert page.locator("#plot .limit-text").all_text_contents() == ["≥ 90.03 %"]
    bars = page.locator("#plot .error-bar")
    assert bars.count() > 0
    page.locator("#plot-bars").uncheck()
    assert bars.count() == 0


def test_layers_notes_and_course_are_there(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded()).page
    layers = page.locator("table.layers tbody tr")
    assert layers.count() == len(results.NODES)
    assert "16 → 11" in layers.nth(1).inner_text()
    notes = page.locator("#notes").inner_text()
    assert "its 10 channels are the model's output" in notes
    assert page.locator("table.trials tbody tr").count() == 10
    assert page.locator(".stages .stage").count() == 9
    assert "failed: out of memory" in page.locator("#trial-9").inner_text()


def test_an_infeasible_job_is_explained(show: Callable[..., Opened]) -> None:
    page = show(results.infeasible()).page
    section = page.locator("#infeasible").inner_text()
    assert "Binding: latency accuracy" in " ".join(section.split())
    assert "--max-latency 40.6ms" in section
    assert "no known model meets the others" in section
    assert "closest trial" in page.locator("table.comparison thead").inner_text()


@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (660, "light"), (768, "dark"), (1000, "light")]
)
def test_nothing_runs_over_the_edge(show: Callable[..., Opened], width: int, scheme: str) -> None:
    page = show(results.succeeded(), width=width, color_scheme=scheme).page
    over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert over <= 0


def test_names_from_a_model_never_become_markup(show: Callable[..., Opened]) -> None:
    hostile = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    result = results.succeeded()
    result["model"]["file"] = hostile
    result["layers"][0]["node"] = hostile
    result["notes"][0]["message"] = hostile
    result["trials"][8]["notes"] = [hostile]
    result["best"]["notes"] = [hostile]
    result["trials"][8]["recipe"]["steps"][0]["parameters"]["keep"] = {hostile: [1]}
    result["events"][2]["stage"] = hostile
    page = show(result).page
    assert page.locator("img").count() == 0
    assert hostile in page.locator("#plot-detail").inner_text()
    assert page.locator("table.layers .node").first.inner_text() == hostile


def test_without_script_the_tables_still_speak(show: Callable[..., Opened]) -> None:
    page = show(results.succeeded(), java_script_enabled=False).page
    assert "15.9 ms" in page.locator("table.comparison").inner_text()
    assert "needs JavaScript" in page.locator("#pareto").inner_text()
