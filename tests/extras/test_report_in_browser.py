"""The page of `src.report --html` in a real Chromium: narrow and wide, light and dark, without script."""

import base64
import itertools
import json
import shutil

import pytest
from browser import browser, console_of, look, requests_of
from test_evaluation_page import evaluation  # noqa: F401
from test_report_page import RL, rollout, run, sweep, write_csv  # noqa: F401

from search_r3.report import main

SIZES = [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")]


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


def value(driver, expression: str) -> object:
    """What an expression of JavaScript gives."""
    return driver.execute_script(f"return {expression}")


def show(driver, page: str, width: int, scheme: str = "light") -> None:
    """Opens a page; what it asked for and what the console said of the one before is forgotten."""
    look(driver, width, scheme=scheme)
    console_of(driver), requests_of(driver)
    driver.get(page)


@pytest.fixture
def page(run, sweep, evaluation, tmp_path):  # noqa: F811
    """One page of a run that was interrupted, a sweep and an evaluation, with long and hostile texts."""
    write_csv(run, 3000, RL)
    text = (
        "a_long_name_without_a_blank_" * 30
        + "<script>document.title = 'broken'</script> "
        + "words and " * 60
    )
    lines = [rollout(step, f"{'q' * 300}{n}", 0.5, text) for step in (0, 9) for n in range(8)]
    (run / "completions.jsonl").write_text("".join(lines))
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "error": None}))
    folder = shutil.copytree(evaluation, tmp_path / ("evaluation_of_a_long_name_" * 6))
    file = tmp_path / "page.html"
    assert main([str(run), str(sweep), str(folder), "--html", str(file)]) == 0
    return file.as_uri()


WIDER = """[...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.right > innerWidth + 1 && !each.closest(".scroll") && !each.closest("svg");
}).map((each) => each.outerHTML.slice(0, 120))"""
CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const light = (colour) => {
    canvas.fillStyle = "#000"; canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (each) => {
    for (let node = each; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "white";
  };
  const named = "p, dt, dd, h1, h2, h3, h4, td, th, a, code, li, summary, text, .state, .better, .worse";
  return [...document.querySelectorAll(named)]
    .filter((each) => each.textContent.trim()).map((each) => {
      const style = getComputedStyle(each);
      const [a, b] = [light(each.tagName === "text" ? style.fill : style.color), light(behind(each))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML.slice(0, 90)];
    }).sort((one, other) => one[0] - other[0])[0];
})()"""
TICKS = """[...document.querySelectorAll("svg.chart")].map((chart) =>
  [...chart.querySelectorAll("text")].map((each) => {
    const box = each.getBoundingClientRect();
    return [each.textContent, box.left, box.right, box.top, box.bottom];
  }))"""


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_fits_its_width_and_is_readable(chromium, page, width, scheme):
    show(chromium, page, width, scheme)

    assert console_of(chromium) == []
    assert {each["url"] for each in requests_of(chromium)} == {page}
    assert value(chromium, "document.documentElement.scrollWidth") <= width
    assert value(chromium, WIDER) == []
    least, where = value(chromium, CONTRASTS)
    assert least >= 4.5, where  # WCAG 2.2, level AA
    background = value(chromium, "getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 60) == (scheme == "dark")
    assert value(chromium, "document.querySelectorAll('svg.chart').length") >= 10


@pytest.mark.parametrize("width", [400, 1400])
def test_numbers_and_names_of_a_chart_do_not_lie_on_each_other(chromium, page, width):
    show(chromium, page, width)

    charts = value(chromium, TICKS)
    assert sum(map(len, charts)) > 50
    for texts in charts:
        for one, other in itertools.combinations(texts, 2):
            apart = (
                min(one[2], other[2]) - max(one[1], other[1]),
                min(one[4], other[4]) - max(one[3], other[3]),
            )
            assert min(apart) <= 3, (one[0], other[0])  # boxes have a little air around their letters


def test_a_table_is_sorted_and_a_list_is_filtered(chromium, page):
    show(chromium, page, 1400)
    table = "document.querySelector('[aria-label=results] table')"

    def column(name: str) -> list[str]:
        place = value(
            chromium, f"[...{table}.tHead.rows[0].cells].findIndex((c) => c.textContent === '{name}')"
        )
        return value(chromium, f"[...{table}.tBodies[0].rows].map((row) => row.cells[{place}].textContent)")

    before, scores = column("mode"), [float(each) for each in column("nDCG@10")]
    press = f"[...{table}.querySelectorAll('th button')].find((b) => b.textContent === 'nDCG@10').click()"
    value(chromium, press)
    assert [float(each) for each in column("nDCG@10")] == sorted(scores, reverse=True)
    value(chromium, press)
    assert [float(each) for each in column("nDCG@10")] == sorted(scores)
    assert sorted(column("mode")) == sorted(before)

    articles = "[...document.querySelectorAll('.filtered article')]"
    n_shown = value(chromium, f"{articles}.filter((each) => !each.hidden).length")
    (word,) = [value(chromium, "document.querySelector('.filtered .id').textContent.slice(-1)")]
    value(
        chromium,
        f"(() => {{ const input = document.querySelector('.filter input'); input.value = 'q{word}';"
        " input.dispatchEvent(new Event('input')); })()",
    )
    assert 1 <= value(chromium, f"{articles}.filter((each) => !each.hidden).length") < n_shown


def test_texts_run_nothing_and_all_is_there_without_script(chromium, page):
    show(chromium, page, 1400)
    assert value(chromium, "document.title") != "broken"
    assert value(chromium, "document.scripts.length") == 1
    with_script = value(chromium, "document.querySelector('main').innerText.length")

    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(chromium, page, 1400)
        tree = chromium.execute_cdp_cmd("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
        found = chromium.execute_cdp_cmd("DOM.querySelector", {"nodeId": tree, "selector": "main"})
        text = chromium.execute_cdp_cmd("DOM.getOuterHTML", found)["outerHTML"]
        assert "<button" not in text  # only what can be used is there
        assert text.count("<table") >= 5
        assert len(text) > with_script
        printed = chromium.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert base64.b64decode(printed).startswith(b"%PDF")
        assert len(printed) > 10_000
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
