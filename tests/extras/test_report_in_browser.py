"""The page of `src.report --html` in a real Chromium: narrow and wide, light and dark, without script."""

import base64
import itertools
import json
import shutil

import pytest
from browser import Browser
from test_report_page import RL, evaluation, rollout, run, sweep, write_csv  # noqa: F401

from search_r3.report import main

SIZES = [(400, False), (400, True), (1400, False), (1400, True)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


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


@pytest.mark.parametrize(("width", "is_dark"), SIZES)
def test_the_page_fits_its_width_and_is_readable(browser, page, width, is_dark):
    browser.show(page, width, is_dark=is_dark)

    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(WIDER) == []
    least, where = browser.value(CONTRASTS)
    assert least >= 4.5, where  # WCAG 2.2, level AA
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 60) == is_dark
    assert browser.value("document.querySelectorAll('svg.chart').length") >= 10


@pytest.mark.parametrize("width", [400, 1400])
def test_numbers_and_names_of_a_chart_do_not_lie_on_each_other(browser, page, width):
    browser.show(page, width)

    charts = browser.value(TICKS)
    assert sum(map(len, charts)) > 50
    for texts in charts:
        for one, other in itertools.combinations(texts, 2):
            apart = (
                min(one[2], other[2]) - max(one[1], other[1]),
                min(one[4], other[4]) - max(one[3], other[3]),
            )
            assert min(apart) <= 3, (one[0], other[0])  # boxes have a little air around their letters


def test_a_table_is_sorted_and_a_list_is_filtered(browser, page):
    browser.show(page, 1400)
    table = "document.querySelector('[aria-label=results] table')"

    def column(name: str) -> list[str]:
        place = browser.value(
            f"[...{table}.tHead.rows[0].cells].findIndex((c) => c.textContent === '{name}')"
        )
        return browser.value(f"[...{table}.tBodies[0].rows].map((row) => row.cells[{place}].textContent)")

    before, scores = column("mode"), [float(each) for each in column("nDCG@10")]
    press = f"[...{table}.querySelectorAll('th button')].find((b) => b.textContent === 'nDCG@10').click()"
    browser.value(press)
    assert [float(each) for each in column("nDCG@10")] == sorted(scores, reverse=True)
    browser.value(press)
    assert [float(each) for each in column("nDCG@10")] == sorted(scores)
    assert sorted(column("mode")) == sorted(before)

    articles = "[...document.querySelectorAll('.filtered article')]"
    n_shown = browser.value(f"{articles}.filter((each) => !each.hidden).length")
    (word,) = [browser.value("document.querySelector('.filtered .id').textContent.slice(-1)")]
    browser.value(
        f"(() => {{ const input = document.querySelector('.filter input'); input.value = 'q{word}';"
        " input.dispatchEvent(new Event('input')); })()"
    )
    assert 1 <= browser.value(f"{articles}.filter((each) => !each.hidden).length") < n_shown


def test_texts_run_nothing_and_all_is_there_without_script(browser, page):
    browser.show(page, 1400)
    assert browser.value("document.title") != "broken"
    assert browser.value("document.scripts.length") == 1
    with_script = browser.value("document.querySelector('main').innerText.length")

    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(page, 1400)
        tree = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        main_node = browser.call("DOM.querySelector", nodeId=tree, selector="main")["nodeId"]
        text = browser.call("DOM.getOuterHTML", nodeId=main_node)["outerHTML"]
        assert "<button" not in text  # only what can be used is there
        assert text.count("<table") >= 5
        assert len(text) > with_script
        assert len(base64.b64decode(browser.call("Page.printToPDF")["data"])) > 10_000
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
