"""The report in a real browser: `make test-browser`."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser_page import CONTRASTS, browser, requests, take_screenshot
from fastmim.reporting import writing
from report.made_up import PRETRAIN, START, add_pictures, add_start, make_run

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&</title></script></style>\u202e\x1b[2J"
)
SCREENSHOTS = os.environ.get("SCREENSHOTS")


def full_run(path: Path, **options: Any) -> Path:
    """A run with everything that a page shows."""
    run = make_run(
        path,
        num_lines=400,
        noise=0.004,
        probe_mim_loss=lambda t: 0.06 + 0.1 * np.exp(-5 * t),
        probe_knn=lambda t: 0.3 + 0.3 * t,
        probe_effective_rank=lambda t: 20 + 30 * t,
        data_wait_share=lambda t: 0.05 + 0.03 * np.abs(np.sin(90 * t)),
        **options,
    )
    add_start(run, step=1500, hours=3, total_steps=4000)
    add_pictures(run, range(400, 4001, 400), rows=6, titles=("image", "masked image", "target", "prediction"))
    per_class = {f"class {n}": {"accuracy": 0.4 + 0.05 * n, "images": 90 - n} for n in range(9)}
    (run / "evaluation.json").write_text(json.dumps({"step": 4000, "val_top1": 0.83, "per_class": per_class}))
    (run / "bad_images.txt").write_text("a.jpg\tnot an image\n")
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of a page of one run, of three runs, and of one whose names are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    one = full_run(folder / "photos")
    two = make_run(folder / "diverging", loss=lambda t: 0.05 + 0.1 * np.exp(-9 * t) + 0.3 * np.maximum(t - 0.6, 0))
    settings = PRETRAIN | {"data": HOSTILE, "backbone": HOSTILE, HOSTILE: HOSTILE, "lr": 0.01}
    hostile = full_run(folder / "<img src=x onerror=window.hacked=1>", settings=settings, **{HOSTILE: lambda t: t})
    add_start(hostile, command=HOSTILE, step=10, time=HOSTILE, stages=[0, {"size": HOSTILE, "start": 300}])
    (hostile / "bad_images.txt").write_text(f"{HOSTILE}\t{HOSTILE}\n")
    (hostile / "evaluation.json").write_text(json.dumps({HOSTILE: 1, "per_class": {HOSTILE: {HOSTILE: HOSTILE}}}))
    add_pictures(hostile, range(100, 301, 100), titles=(HOSTILE, "b"))
    out = {name: folder / f"{name}.html" for name in ("one", "three", "hostile")}
    writing.write([one], out=out["one"], hourly_rate=2.5)
    writing.write([one, two, hostile], out=out["three"])
    writing.write([hostile], out=out["hostile"])
    return {name: path.as_uri() for name, path in out.items()}


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["one", "three", "hostile"])
def test_pages(pages: dict[str, str], name: str, width: int, dark: bool) -> None:
    """No message, no request, no script of others, nothing wider than the screen, and text that can be read."""
    with browser(width=width, dark=dark) as driver:
        driver.get(pages[name])
        asked = [url for url in requests(driver) if not url.startswith("data:image/")]
        assert asked == [pages[name]]
        assert driver.get_log("browser") == []
        assert driver.execute_script("return window.hacked === undefined")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        contrasts = driver.execute_script(CONTRASTS)
        assert len(contrasts) > 50 and [pair for pair in contrasts if pair[1] < 4.5] == []
        if SCREENSHOTS and name != "hostile":
            take_screenshot(
                driver, Path(SCREENSHOTS) / f"{name}-{width}-{'dark' if dark else 'light'}.png", width=width
            )


def test_names_of_controls_and_pictures(pages: dict[str, str]) -> None:
    with browser() as driver:
        driver.get(pages["one"])
        unnamed = """return [...document.querySelectorAll('img, input, button, svg[role=img]')].filter((e) =>
            !(e.alt || e.getAttribute('aria-label') || e.textContent.trim())).length"""
        assert driver.execute_script(unnamed) == 0
        levels = driver.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((e) => +e.tagName[1])")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
        assert driver.execute_script("return document.documentElement.lang") == "en"
        assert driver.execute_script("return document.querySelectorAll('main, header, footer').length") == 3


def test_the_slider_changes_the_pictures(pages: dict[str, str]) -> None:
    with browser() as driver:
        driver.get(pages["one"])
        move = """const s = document.querySelector('[data-gallery=step] input'); s.value = arguments[0];
            s.dispatchEvent(new Event('input'));
            return [document.querySelector('[data-gallery=step] output').textContent,
                ...[0, 3].map((row) => document.querySelector(`[data-row="${row}"] img`).src)]"""
        last, first = (driver.execute_script(move, place) for place in (9, 0))
        assert (first[0], last[0]) == ("step 400", "step 4,000")
        assert first[1] == last[1] and first[2] != last[2]  # the image stays, the prediction does not
        assert driver.execute_script(move, 9) == last


def test_the_theme_switches(pages: dict[str, str]) -> None:
    with browser() as driver:
        driver.get(pages["one"])
        background = "return getComputedStyle(document.body).backgroundColor"
        button = driver.find_element("id", "theme")
        assert button.text == "Dark" and driver.execute_script(background) == "rgb(252, 252, 251)"
        button.click()
        assert button.text == "Light" and driver.execute_script(background) == "rgb(21, 23, 26)"
        button.click()
        assert driver.execute_script(background) == "rgb(252, 252, 251)"


def test_dragging_zooms_every_chart_and_the_button_undoes_it(pages: dict[str, str]) -> None:
    from selenium.webdriver import ActionChains

    with browser() as driver:
        driver.get(pages["one"])
        boxes = "return [...document.querySelectorAll('.plot')].map((e) => e.getAttribute('viewBox'))"
        ticks = "return [...document.querySelectorAll('.chart')].map((e) => e.querySelectorAll('.step').length)"
        before = driver.execute_script(boxes)
        chart = driver.find_element("css selector", ".chart")
        driver.execute_script("arguments[0].scrollIntoView()", chart)
        width = chart.size["width"]
        ActionChains(driver).move_to_element(chart).perform()
        value = driver.find_element("css selector", "figure .value")
        assert "at step 2" in value.text
        actions = ActionChains(driver).move_to_element_with_offset(chart, -width / 4, 0).click_and_hold()
        actions.move_by_offset(round(width / 4), 0).release().perform()
        zoomed = driver.execute_script(boxes)
        assert all(abs(float(box.split()[0]) - 1000) < 20 for box in zoomed)
        assert all(abs(float(box.split()[2]) - 1000) < 20 for box in zoomed)
        assert all(1 <= count <= 6 for count in driver.execute_script(ticks))
        driver.find_element("id", "reset").click()
        reset = driver.execute_script(boxes)
        numbers = [[float(n) for n in box.split()] for box in (*before, *reset)]
        assert np.allclose(numbers[: len(before)], numbers[len(before) :], atol=1e-6)
        assert driver.get_log("browser") == []


def test_without_scripts_all_but_zoom_and_slider_is_there(pages: dict[str, str]) -> None:
    with browser(scripts=False) as driver:
        driver.get(pages["one"])
        text = driver.find_element("tag name", "body").text
        assert "Learning." in text and "Loss" in text and "Go on from here" in text
        assert "Drag across" not in text and not driver.find_element("id", "theme").is_displayed()
        assert not driver.find_element("css selector", ".slider").is_displayed()
        assert all(image.size["width"] > 50 for image in driver.find_elements("css selector", ".strip img"))


def test_print_is_light_and_shows_everything(pages: dict[str, str]) -> None:
    with browser(dark=True) as driver:
        driver.get(pages["one"])
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not driver.find_element("id", "theme").is_displayed()
        assert len(driver.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 50_000


def test_an_open_page_loads_itself_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", total=5000, finished=False)
    monkeypatch.setattr("fastmim.reporting.reading.STALE_SECONDS", 1e12)
    monkeypatch.setattr(writing, "RELOAD_SECONDS", 1)
    path, goes_on = writing.write([run], watched=True)
    assert goes_on and START
    with browser() as driver:
        driver.get(path.as_uri())
        driver.execute_script("window.old = true")
        path.write_text(path.read_text().replace("<h1>run</h1>", "<h1>written again</h1>"))
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(driver, 20).until(lambda d: d.find_element("tag name", "h1").text == "written again")
        assert not driver.execute_script("return window.old")
