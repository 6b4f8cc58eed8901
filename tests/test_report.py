"""The page of a run works in a real browser, wide and narrow, with no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from mpirun import mpirun
from test_figures import assert_refused, image, script

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian package chromium)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=["fig1c", "fig2b"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a short run."""
    folder = tmp_path_factory.mktemp(request.param)
    short = {"fig1c": ["iterations=60"], "fig2b": ["epochs=2", "task.data=stand-in"]}[request.param]
    words = [w for s in short for w in ("--set", s)]
    done = mpirun(2, "run", request.param, *words, "--output", folder / "run.h5")
    assert done.returncode == 0, done.stderr
    done = script("report", folder / "run.h5", "-o", folder / "report.html")
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture(params=[(1440, 900), (390, 844)], ids=["wide", "narrow"])
def page(request: pytest.FixtureRequest, browser, report: Path) -> Iterator:
    """The page, opened; nothing may be fetched and nothing may go wrong in it."""
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    opened.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto(report.as_uri())
    opened.wait_for_selector("#network .scatterlayer .trace")
    yield opened
    assert wrong == []
    opened.close()


def weights_drawn(page) -> list[list]:
    """Ends of all edges that have weight, by their trace."""
    return page.evaluate("document.getElementById('network').data.map((trace) => trace.x)")[:-1]


def test_a_page_is_small_drawn_and_as_wide_as_the_window(page, report: Path, tmp_path: Path):
    assert report.stat().st_size < 15 * MEGABYTE
    page.screenshot(path=tmp_path / "page.png")
    assert image.imread(tmp_path / "page.png")[..., :3].std() > 0.05
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(".plot .main-svg").count() > 5


def test_the_slider_moves_the_weights(page):
    last = weights_drawn(page)
    assert sum(map(len, last)) > 0
    page.locator("#network-iteration").evaluate(
        "(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }"
    )
    assert weights_drawn(page) != last
    page.locator("#network-rule").select_option("none")
    assert sum(map(len, weights_drawn(page))) == 0


def test_a_column_sorts_up_and_down(page):
    head = page.locator("table.sortable th").nth(3)
    column = page.locator("table.sortable tbody td:nth-child(4)")
    for down in (False, True):
        head.click()
        values = [float(text) for text in column.all_inner_texts() if text]
        assert len(values) > 10
        assert values == sorted(values, reverse=down)


def test_a_stand_in_is_named_on_the_page(report: Path):
    assert ("<p class='stand-in'>stand-in data</p>" in report.read_text()) == ("fig2b" in str(report))


def test_a_page_says_what_was_checked_or_what_is_wrong(report: Path, tmp_path: Path):
    checked = report.read_text().split("<h2>Checks</h2>")[1].split("</section>")[0]
    assert "whole: " in checked
    assert "numbers checked" in checked
    damaged = tmp_path / "damaged.h5"
    shutil.copy(report.with_name("run.h5"), damaged)
    with h5py.File(damaged, "r+") as file:
        for rule in file["rule"].values():
            rule["loss"][3] = 0.5
            rule["traffic"][0] = 0
    done = script("report", damaged, "-o", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    wrong = (tmp_path / "report.html").read_text().split("<h2>Checks</h2>")[1].split("</section>")[0]
    assert wrong.count("<li>") >= 4
    assert "graph and ranks imply" in wrong


def test_a_page_that_cannot_be_made_is_refused_in_a_line(report: Path, tmp_path: Path):
    run = report.with_name("run.h5")
    assert_refused(script("report", tmp_path / "none.h5"), "none.h5", "no such file")
    assert_refused(script("report", run, "-o", tmp_path / "nowhere" / "report.html"), "nowhere", "cannot be written")
