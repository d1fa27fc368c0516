"""The page of src.serve in a real browser, before a real server and a real small model."""

import itertools
import json
import threading

import pytest
from browser import browser, console_of, look, requests_of
from conftest import TEXTS
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving import DOCUMENTS, asked, running, until

from search_r3 import SearchR3
from search_r3.shipped import ROOT

QUERY = "sort <script>alert(1)</script> rows by \"a\" & 'b'"
WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")


N_DOCUMENTS = len(DOCUMENTS) + 5


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    """The shipped base, which writes words, over a few documents."""
    folder = tmp_path_factory.mktemp("collection")
    rows = [{"_id": name, "title": title, "text": text} for name, title, text in DOCUMENTS]
    rows += [{"_id": f"text {number}", "text": text} for number, text in enumerate(TEXTS[:5])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ROOT / "experiments" / "nano_base" / "model"
    return SearchR3.load(base, cache_dir=folder / "cache").read(folder, progress=False)


@pytest.fixture(scope="module")
def served(searcher):
    about = {"model": "runs/rl/model", "corpus": "tiny", "n_documents": N_DOCUMENTS}
    with running(searcher, about=about) as server:
        yield server


@pytest.fixture(scope="module")
def port(served):
    return served[0]


@pytest.fixture(scope="module")
def driver():
    with browser() as made:
        yield made


@pytest.fixture
def page(driver, port):
    """The page, newly opened; whatever a test does, the console stays empty and no other server is asked."""
    look(driver, 1400)
    driver.get(f"http://127.0.0.1:{port}/")
    until(lambda: driver.find_element(By.ID, "about").text)
    yield driver
    urls = [request["url"] for request in requests_of(driver)]
    assert urls
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in urls), urls
    assert console_of(driver) == []


def element(page, name):
    return page.find_element(By.ID, name)


def search(page, query=QUERY, limit_s=60):
    """Types a query where the cursor is, by keyboard, and waits for the answer."""
    page.switch_to.active_element.send_keys(query, Keys.ENTER)
    until(lambda: element(page, "thought").get_attribute("data-state") == "done", limit_s)


def hits(page, side):
    return page.find_elements(By.CSS_SELECTOR, f"#{side} .hit")


def inspect(page, rank=2):
    """Opens a document of the reasoned ranking by keyboard."""
    for _ in range(rank):
        page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    document = page.switch_to.active_element.get_attribute("data-id")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: element(page, "inspector-content").is_displayed())
    return document


def test_a_query_is_typed_and_both_rankings_are_those_of_the_api(page, port):
    assert "tiny, 10 documents" in element(page, "about").text
    search(page)
    answer = asked(port, "/api/search", {"query": QUERY})

    sent = [json.loads(r["postData"]) for r in requests_of(page) if r["url"].endswith("/api/stream")]
    assert sent == [{"query": QUERY}]
    assert element(page, "text").text == answer["reasoning"]["reasoning"]
    for side in ("direct", "reasoning"):
        shown = hits(page, side)
        given = answer[side]["hits"]
        assert [row.get_attribute("data-id") for row in shown] == [hit["id"] for hit in given]
        assert [row.find_element(By.CLASS_NAME, "score").text for row in shown] == [
            f"{hit['score']:.3f}" for hit in given
        ]
    page.get(f"http://127.0.0.1:{port}/")  # so that something is asked after the log was read


def test_documents_that_moved_are_marked_with_how_far(page, port):
    search(page)
    answer = asked(port, "/api/search", {"query": QUERY})
    moves = [hit["moved_up"] for hit in answer["reasoning"]["hits"]]
    assert {move > 0 for move in moves if move} == {True, False}  # something moved, both ways

    for row, move in zip(hits(page, "reasoning"), moves, strict=True):
        (told,) = [mark.text for mark in row.find_elements(By.CLASS_NAME, "move")] or [""]
        assert told.split("\n")[0] == ("" if move == 0 else f"{'▲' if move > 0 else '▼'} {abs(move)}")
    ways = [path.get_attribute("class") for path in page.find_elements(By.CSS_SELECTOR, "#links path")]
    by_id = {hit["id"]: hit["moved_up"] for hit in answer["direct"]["hits"]}
    assert ways == ["up" if move > 0 else "down" if move < 0 else "same" for move in by_id.values()]
    assert f"{sum(map(bool, moves))} of 10 moved" in element(page, "moved").text


def test_the_reasoning_is_seen_as_it_is_written(page, port):
    page.execute_script("""
        window.seen = [];
        new MutationObserver((records) => {
          for (const record of records)
            for (const node of record.addedNodes) window.seen.push(node.textContent);
        }).observe(document.getElementById("text"), {childList: true});
    """)
    search(page)

    reasoning = asked(port, "/api/search", {"query": QUERY})["reasoning"]["reasoning"]
    placeholder, *pieces, whole = page.execute_script("return window.seen")
    assert (placeholder, whole) == ("…", reasoning)
    assert len(pieces) > 1
    assert "".join(pieces).strip() == reasoning
    assert element(page, "text").get_attribute("aria-live") == "polite"


def test_while_it_waits_the_page_says_so(page, served):
    held = threading.Event()
    served[1].worker.submit(held.wait)
    page.switch_to.active_element.send_keys(QUERY, Keys.ENTER)
    until(lambda: page.find_elements(By.CLASS_NAME, "hollow"))

    assert element(page, "thought").get_attribute("data-state") == "waiting"
    assert element(page, "reasoning").get_attribute("aria-busy") == "true"
    assert element(page, "status").get_attribute("textContent") == "Searching"
    held.set()
    until(lambda: element(page, "thought").get_attribute("data-state") == "done")
    assert not page.find_elements(By.CLASS_NAME, "hollow")
    assert element(page, "reasoning").get_attribute("aria-busy") is None


def test_the_line_of_the_inspector_has_the_ranks_of_the_api(page, port):
    search(page)
    shown = [row.get_attribute("data-id") for row in hits(page, "reasoning")]
    answers = [asked(port, "/api/inspect", {"query": QUERY, "id": document}) for document in shown]
    lines = [[step["rank"] for step in answer["steps"]] for answer in answers]
    ranks = max(lines, key=lambda line: len(set(line)))
    assert len(set(ranks)) > 1  # the line is not flat
    place = lines.index(ranks)
    answer = answers[place]
    assert inspect(page, place + 1) == shown[place]

    dots = page.find_elements(By.CSS_SELECTOR, "#chart .dot")
    assert [int(dot.get_attribute("data-rank")) for dot in dots] == ranks
    heights = [float(dot.get_attribute("cy")) for dot in dots]
    for (rank, height), (other, its) in itertools.combinations(zip(ranks, heights, strict=True), 2):
        assert (height < its) == (rank < other)  # a better rank is higher up
        assert (height == its) == (rank == other)
    across = [float(dot.get_attribute("cx")) for dot in dots]
    assert across == sorted(across)
    line = page.find_element(By.CSS_SELECTOR, "#chart .line").get_attribute("d")
    points = [tuple(map(float, point.split())) for point in line.removeprefix("M").split("L")]
    assert points == list(zip(across, heights, strict=True))
    table = page.find_elements(By.CSS_SELECTOR, "#steps tbody tr")
    assert [row.text.split()[-2:] for row in table] == [
        [str(step["rank"]), f"{step['score']:.3f}"] for step in answer["steps"]
    ]
    assert f"Direct rank {answer['direct']['rank']}," in element(page, "summary").text


def test_everything_is_reached_by_keyboard(page, port):
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    page.execute_script("document.activeElement.blur()")
    page.find_element(By.TAG_NAME, "body").send_keys("/")
    assert page.switch_to.active_element == element(page, "query")
    search(page)
    document = inspect(page)

    chart = page.find_element(By.CSS_SELECTOR, "#chart svg")
    for _ in range(3):
        if page.switch_to.active_element == chart:
            break
        page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element == chart
    assert outline(page) != "none"
    chart.send_keys(Keys.HOME)
    first = asked(port, "/api/inspect", {"query": QUERY, "id": document})["steps"][0]["rank"]
    assert element(page, "point").text == f"0: before any reasoning, rank {first}"
    chart.send_keys(Keys.ESCAPE)
    until(lambda: not element(page, "inspector").is_displayed())

    row = page.switch_to.active_element  # where it was opened from
    assert row.get_attribute("data-id") == document
    assert outline(page) != "none"
    row.send_keys(Keys.ARROW_LEFT)
    assert page.switch_to.active_element.get_attribute("data-id") == document
    assert page.switch_to.active_element in hits(page, "direct")
    for _ in range(N_DOCUMENTS):
        page.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert page.switch_to.active_element == element(page, "query")


def outline(page):
    return page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")


def test_a_refused_query_is_told_and_the_next_one_is_answered(page, port):
    long = "x " * 40
    error = asked(port, "/api/search", {"query": long}, status=422)["error"]
    page.switch_to.active_element.send_keys(long, Keys.ENTER)
    until(lambda: element(page, "error").is_displayed())

    assert element(page, "error").text == error
    assert element(page, "error").get_attribute("role") == "alert"
    assert element(page, "query").get_attribute("value") == long  # to be shortened, and not lost
    assert not element(page, "results").is_displayed()
    said = console_of(page)
    assert said
    assert all("422" in line for line in said), said  # the browser's own words about the refusal
    element(page, "query").clear()
    element(page, "query").click()
    search(page)
    assert not element(page, "error").is_displayed()
    assert len(hits(page, "reasoning")) == N_DOCUMENTS


def test_a_second_query_takes_the_place_of_the_first(page, served):
    held = threading.Event()
    served[1].worker.submit(held.wait)
    page.switch_to.active_element.send_keys("the first", Keys.ENTER)
    until(lambda: len(served[1].works) == 1)
    element(page, "query").clear()
    element(page, "query").send_keys(QUERY, Keys.ENTER)
    held.set()
    until(lambda: element(page, "thought").get_attribute("data-state") == "done")

    assert page.title == f"{QUERY} – Search-R3"
    until(lambda: not served[1].works)


def test_what_queries_and_documents_say_is_text(page):
    search(page)

    assert element(page, "query").get_attribute("value") == QUERY
    assert page.title == f"{QUERY} – Search-R3"
    texts = " ".join(row.text for row in hits(page, "reasoning"))
    assert "<b>neg</b>" in texts
    assert "<img src=x onerror=alert(2)>" in texts
    for row in hits(page, "reasoning"):
        if row.get_attribute("data-id").startswith('"><script>'):
            row.click()
    until(lambda: element(page, "inspector-content").is_displayed())
    assert element(page, "inspected").text == "<b>neg</b>"
    assert element(page, "inspected-id").text == DOCUMENTS[2][0]
    assert "onerror=alert(2)>" in element(page, "document").text
    assert page.find_elements(By.CSS_SELECTOR, "img, b:not(#summary b), body script") == []
    assert (
        page.execute_script("return document.querySelectorAll('[style], [onclick], [onerror]').length") == 0
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(page, width):
    look(page, width)

    def fits():
        return page.execute_script("return document.documentElement.scrollWidth") <= width

    assert fits()
    search(page)
    assert fits()
    assert element(page, "switch").is_displayed() == (width == 400)
    assert len([row for row in hits(page, "direct") if row.is_displayed()]) == (
        0 if width == 400 else N_DOCUMENTS
    )
    if width == 400:
        page.find_element(By.CSS_SELECTOR, "[data-side=direct]").click()
        assert all(row.is_displayed() for row in hits(page, "direct"))
        page.find_element(By.CSS_SELECTOR, "[data-side=reasoning]").click()
        page.execute_script("document.getElementById('query').focus()")  # the cursor stays at the end
    inspect(page)
    assert fits()
    inside = "const d = document.getElementById('inspector'); return d.scrollWidth <= d.clientWidth"
    assert page.execute_script(inside)
    assert element(page, "inspector").rect["width"] == (400 if width == 400 else 600)


CONTRASTS = """
const parse = (text) => text.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const found = {};
for (const node of document.querySelectorAll("h1, h2, h3, p, span, button, td, th, figcaption, textarea")) {
  if (!node.checkVisibility() || !node.textContent.trim() || node.closest(".unseen")) continue;
  const pair = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
  found[`${node.tagName}.${node.className}#${node.id}`] = (pair[0] + 0.05) / (pair[1] + 0.05);
}
return found;
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_stand_out_from_what_is_behind_them(page, scheme):
    look(page, 1400, scheme=scheme)
    search(page)
    found = dict(page.execute_script(CONTRASTS))
    inspect(page)
    found |= page.execute_script(CONTRASTS)

    assert len(found) > 15
    assert {name: contrast for name, contrast in found.items() if contrast < 4.5} == {}  # WCAG 2.2, AA
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.strip("rgb()").split(",")[0]) > 128) == (scheme == "light")


def test_every_control_has_a_name(page):
    search(page)
    names = [each.accessible_name for each in page.find_elements(By.CSS_SELECTOR, "form *, .hit")]
    inspect(page)
    inside = page.find_elements(By.CSS_SELECTOR, "dialog button, dialog [tabindex]")
    names += [each.accessible_name for each in inside]

    assert len(names) == 3 + 2 * N_DOCUMENTS + 2
    assert all(name.strip() for name in names[1:]), names  # the first is the label itself
    assert names[1] == "Query"


def test_a_server_that_is_gone_is_told(driver, searcher):
    with running(searcher) as (port, _):
        driver.get(f"http://127.0.0.1:{port}/")
        search(driver)
    element(driver, "query").send_keys(Keys.ENTER)
    until(lambda: element(driver, "error").is_displayed())

    assert element(driver, "error").text == "The server does not answer. Is it still running?"
    console_of(driver)
    requests_of(driver)
