"""The pages of a run and of a sweep work in a real browser, wide and narrow, with no network."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from mpirun import mpirun
from test_figures import assert_refused, image, script
from test_resilience import SWEEP, relative

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
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Width and height of a window."""
    return request.param


@contextmanager
def opened(browser, path: Path, size: tuple[int, int], drawn: str) -> Iterator:
    """A page, when the selector `drawn` is there; nothing may be fetched and nothing may go wrong in it."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.wait_for_selector(drawn)
    yield page
    assert wrong == []
    page.close()


@pytest.fixture
def page(size: tuple[int, int], browser, report: Path) -> Iterator:
    """The page of a run."""
    with opened(browser, report, size, "#network .scatterlayer .trace") as found:
        yield found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small sweep, with one cell that is said to have failed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.toml").write_text(SWEEP.replace("count = [0, 20]", "count = [0, 10, 20]"))
    done = mpirun(2, "sweep", folder / "small.toml", "--output", folder / "cells")
    assert done.returncode == 0, done.stderr
    index = folder / "cells" / "index.csv"
    lines = index.read_text().splitlines()
    lines[-1] = lines[-1].replace(",done,", ",failed,") + "OSError: <no> space"
    index.write_text("\n".join(lines) + "\n")
    done = script("report", folder / "cells", "-o", folder / "report.html", "--verify", "2")
    assert done.returncode == 0, done.stderr
    return folder / "cells"


@pytest.fixture
def arena(size: tuple[int, int], browser, sweep: Path) -> Iterator:
    """The page of a sweep."""
    with opened(browser, sweep.with_name("report.html"), size, "#map .heatmaplayer image") as found:
        yield found


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


def heat_map(page) -> dict:
    """What the heat map shows."""
    trace, x, y = "document.getElementById('map').data[0]", "x", "y"
    return {name: page.evaluate(f"{trace}.{name}") for name in (x, y, "z", "text", "customdata")}


def rows(page, table: str) -> list[list[str]]:
    """The text of the cells of a table's body."""
    cells = (
        f"[...document.querySelector('{table}').tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    return page.evaluate(cells)


def test_the_page_of_a_sweep_is_small_drawn_and_as_wide_as_the_window(arena, sweep: Path, tmp_path: Path):
    assert sweep.with_name("report.html").stat().st_size < 15 * MEGABYTE
    arena.screenshot(path=tmp_path / "page.png")
    assert image.imread(tmp_path / "page.png")[..., :3].std() > 0.05
    assert arena.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert arena.locator(".plot .main-svg").count() > 3


def test_measure_and_attackers_change_the_heat_map(arena, sweep: Path):
    first = heat_map(arena)
    assert first["x"][0] == "no attack"
    assert set(first["x"][1:]) == {"uniform", "null-space"}
    assert set(first["y"]) == {"average", "loss"}
    arena.get_by_role("button", name="20 attackers").click()
    second = heat_map(arena)
    assert second["z"] != first["z"]
    arena.locator("#measure").select_option("true risk")
    third = heat_map(arena)
    assert third["z"] != second["z"]
    said = third["customdata"][third["y"].index("average")][third["x"].index("uniform")]
    both = [relative(sweep / f"uniform-20-seed{seed}.h5", "average", "risk_after") for seed in (0, 1)]
    mean = (both[0] * both[1]) ** 0.5
    assert f"ratio {mean:.3g} (seeds: {min(both):.3g} to {max(both):.3g})" in said
    assert "uniform, 20 of 100 Byzantine" in said


def test_curves_of_rules_are_shown_and_hidden(arena):
    shown = "document.getElementById('breakdown').data.filter((t) => t.visible).map((t) => t.name)"
    assert arena.evaluate(shown) == ["none", "average", "loss"]
    arena.locator("#legend button", has_text="average").click()
    assert arena.evaluate(shown) == ["none", "loss"]
    points = arena.evaluate("document.getElementById('breakdown').data[0].x")
    assert points == [0, 10, 20]
    before = arena.evaluate("document.getElementById('breakdown').data[2].y")
    arena.locator("#attack").select_option("null-space")
    assert arena.evaluate("document.getElementById('breakdown').data[2].y") != before
    assert arena.evaluate(shown) == ["none", "loss"]


def test_ranking_and_cells_sort_up_and_down(arena):
    for table, column in (("#ranking", 2), ("#ranking", 1), ("#cells", 4), ("#cells", 3)):
        head = arena.locator(f"{table} th").nth(column)
        for down in (False, True):
            head.click()
            found = [row[column] for row in rows(arena, table)]
            numbers = [float(text) for text in found] if column in (2, 4) else found
            assert len(found) >= 2
            assert numbers == sorted(numbers, reverse=down)


def test_cells_are_found_by_words_and_by_a_click_in_the_heat_map(arena, sweep: Path):
    with open(sweep / "index.csv", newline="") as file:
        done = [row["file"] for row in csv.DictReader(file) if row["state"] == "done"]
    assert len(rows(arena, "#cells")) == 3 * len(done)
    arena.locator("#filter").fill("loss uniform 20")
    found = rows(arena, "#cells")
    assert [row[-1] for row in found] == ["uniform-20-seed0.h5", "uniform-20-seed1.h5"]
    for row in found:
        assert float(row[5]) == pytest.approx(relative(sweep / row[-1], "loss", "msd"), rel=1e-3)
    arena.locator("#map .nsewdrag").click()
    assert len({(row[0], row[1], row[3]) for row in rows(arena, "#cells")}) == 1


def test_the_page_of_a_sweep_says_what_it_is_and_what_is_missing(sweep: Path):
    text = sweep.with_name("report.html").read_text()
    assert "9 of 10 cells done" in text
    missing = text.split("<h2>1 cell not done</h2>")[1].split("</section>")[0]
    assert "null-space-20-seed1" in missing
    assert "OSError: &lt;no&gt; space" in missing
    assert "target-localization" in text.split("<h2>The sweep</h2>")[1]
    assert "2 of 9 finished cells checked, 0 with something wrong" in text
    assert "numpy" in text.split("<h2>Environment</h2>")[1]


def test_a_sweep_that_no_page_can_be_made_of_is_refused_in_a_line(sweep: Path, tmp_path: Path):
    copy = tmp_path / "cells"
    shutil.copytree(sweep, copy)
    assert_refused(script("report", tmp_path), str(tmp_path), "not the folder of a sweep")
    (copy / "sweep.toml").unlink()
    assert_refused(script("report", copy), "not the folder of a sweep", "sweep.toml")
    shutil.copy(sweep / "sweep.toml", copy)
    with h5py.File(copy / "uniform-20-seed0.h5", "r+") as file:
        file.attrs["schema"] = "mpi-resmtl/9"
    assert_refused(script("report", copy), "uniform-20-seed0.h5", "has schema 'mpi-resmtl/9'")
    index = (copy / "index.csv").read_text()
    (copy / "index.csv").write_text(index.replace(",done,", ",waiting,"))
    assert_refused(script("report", copy), "index.csv", "no cell is done (9 waiting, 1 failed)")
    (copy / "index.csv").write_text(index.replace("0,20,uniform", "0,many,uniform"))
    assert_refused(script("report", copy), "index.csv", "no cell")
