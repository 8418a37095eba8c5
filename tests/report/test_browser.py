"""The page in a real browser: it renders, says nothing to the console, asks for nothing, sorts and filters."""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from mtx.analysis.gradients import remember
from mtx.report.page import write_page
from mtx.report.runs import open_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
  "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom", "--window-size=400,900",
)  # fmt: skip
# Stands before all else of the page: what goes wrong later is counted.
WATCH = """<script>
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => wrong.push(event.violatedDirective + " " + event.blockedURI));
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
  """browse(page, script): what the script returns, and lines of the browser's console."""
  browser = next(filter(None, map(shutil.which, BROWSERS)), None)
  if browser is None:
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

  def run(page: str, script: str):
    folder = tmp_path_factory.mktemp("browser")
    body = f"<script>document.body.dataset.found = JSON.stringify((() => {{ {script} }})());</script>"
    file = folder / "page.html"
    file.write_text(page.replace("<title>", WATCH + "<title>").replace("</body>", body + "</body>"))
    options = [*OPTIONS, f"--user-data-dir={folder / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    done = subprocess.run([browser, *options, file.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    written = re.search(r'<body data-found="([^"]*)"', done.stdout)
    assert written, (console, done.stderr[-2000:])
    return json.loads(html.unescape(written[1])), console

  return run


@pytest.fixture(scope="module")
def folders(make_run, tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  return [make_run(root / "a"), make_run(root / "b", skill=(0.6, 0.2, 1.0))]


@pytest.fixture(scope="module")
def page(folders):
  return write_page(open_runs(folders[:1]), folders[0] / "report.html")[0].read_text()


LOOK = """
const shown = () => left().map((row) => row.cells[0].textContent);
const type = (input, text) => { input.value = text; input.dispatchEvent(new Event("input", {bubbles: true})); };
const table = document.querySelector("table.sortable"), box = table.closest(".filtered") ?? document;
const click = (column) => table.tHead.rows[0].cells[column].querySelector("button").click();
const left = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const column = (i) => left().map((row) => Number(row.cells[i].dataset.v));
"""


@pytest.mark.parametrize("several", [False, True])
def test_it_renders_without_an_error_or_a_request(browse, folders, page, several):
  if several:
    page = write_page(open_runs(folders), folders[0] / "both.html")[0].read_text()
  found, console = browse(
    page,
    """const drawings = [...document.querySelectorAll("svg")];
    return {wrong, asked: performance.getEntriesByType("resource").length, drawn: drawings.length,
      wide: document.documentElement.scrollWidth, mode: document.compatMode,
      flat: drawings.filter((each) => each.checkVisibility() && !each.getBoundingClientRect().height).length,
      tools: [...document.querySelectorAll(".tools")].every((each) => !each.hidden)};""",
  )
  assert console == []
  assert (found["wrong"], found["asked"], found["flat"], found["mode"], found["tools"]) == (
    [],
    0,
    0,
    "CSS1Compat",
    True,
  )
  assert found["drawn"] >= 5
  assert found["wide"] <= 500  # of a phone's window: nothing but what scrolls by itself is wider


def test_no_name_stands_out_of_its_drawing(browse, make_run, tmp_path):
  """Names as long as those of Super-NaturalInstructions, in every figure."""
  categories = {f"task{i:03}_winogrande_question_modification_of_person_{i}": f"Category {i % 9}" for i in range(26)}
  folder = make_run(tmp_path / "long", categories=categories, items=2)
  remember(folder / "route" / "gradients.jsonl", 20, list(categories), np.eye(len(categories)))
  page = write_page(open_runs([folder]), folder / "report.html")[0].read_text()
  found, console = browse(
    page,
    """document.querySelectorAll("details").forEach((each) => { each.open = true; });
    const outside = (text, svg) => text.width && (text.left < svg.left - 1 || text.right > svg.right + 1);
    const texts = [...document.querySelectorAll("svg")].flatMap((svg) => [...svg.querySelectorAll("text")].map((text) =>
      [text.textContent, outside(text.getBoundingClientRect(), svg.getBoundingClientRect())]));
    return {many: texts.length, out: texts.filter((each) => each[1]).map((each) => each[0])};""",
  )
  assert console == [] and found["out"] == [] and found["many"] > 100


def test_a_click_sorts_a_second_turns_round_and_a_third_undoes(browse, page):
  found, console = browse(
    page,
    LOOK
    + """
    const names = [shown()], values = [];
    for (let i = 0; i < 3; i++) { click(3); names.push(shown()); values.push(column(3)); }
    click(0); names.push(shown());
    return {names, values, sorted: table.tHead.rows[0].cells[0].getAttribute("aria-sort")};""",
  )
  assert console == []
  start, falling, rising, again, alphabet = found["names"]
  assert start == ["lists", *[f"lists_{i}" for i in range(3)], "strings", *[f"strings_{i}" for i in range(3)]]
  assert len(falling) == 6 and set(falling) < set(start)
  assert found["values"][0] == sorted(found["values"][0], reverse=True) and len(set(found["values"][0])) > 1
  assert found["values"][1] == sorted(found["values"][1])
  assert sorted(rising) == sorted(falling) and again == start
  assert alphabet == sorted(falling) and found["sorted"] == "ascending"


def test_a_filter_leaves_what_fits_and_its_mean(browse, page):
  found, console = browse(
    page,
    LOOK
    + """
    const search = box.querySelector("input");
    const foot = () => [...table.tFoot.rows[0].cells].map((cell) => cell.textContent);
    const whole = foot();
    type(search, "STRINGS 1"); const one = shown();
    type(search, "strings"); const some = shown(), mean = foot(), values = column(2);
    type(search, ""); return {one, some, mean, values, whole, after: foot(), all: shown().length};""",
  )
  assert console == []
  assert found["one"] == ["strings_1"] and found["some"] == ["strings_0", "strings_1", "strings_2"]
  assert found["mean"][0] == "mean of 3 shown"
  assert float(found["mean"][2]) == pytest.approx(sum(found["values"]) / 3, abs=0.051)
  assert found["after"] == found["whole"] and found["all"] == 8


def test_examples_are_filtered_by_word_and_by_right_and_wrong(browse, page):
  found, console = browse(
    page,
    LOOK
    + """
    const group = document.querySelector(".examples"), [search, wrong, differs] = group.querySelectorAll("input");
    const open = () => [...group.querySelectorAll("article")].filter((each) => !each.hidden);
    const more = group.querySelector(".more"), said = () => group.querySelector("output").textContent;
    const first = [open().length, said()];
    const all = () => { while (!more.hidden) more.click(); return open().length; };
    const counts = [all()];
    wrong.click(); const again = open().length;
    counts.push(all()); const onlyWrong = open().every((each) => "wrong" in each.dataset);
    differs.click(); counts.push(all());
    type(search, "lists_2"); const names = open().map((each) => each.querySelector("b").textContent);
    return {first, again, counts, onlyWrong, names, said: said()};""",
  )
  assert console == []
  every, wrong, differ = found["counts"]
  assert every > wrong >= differ > 0 and found["onlyWrong"]
  assert found["first"] == [20, f"20 of {every} shown"] and found["again"] == 20
  count = len(found["names"])
  assert set(found["names"]) == {"lists_2"} and found["said"] == f"{count} of {count} shown"


def test_the_watch_sees_errors_and_requests(browse, page):
  found, console = browse(
    page.replace("</h1>", '</h1><img src="https://example.invalid/x.png"><script>undefinedName()</script>'),
    "return wrong",
  )
  assert any("undefinedName" in each for each in found) and any("img-src" in each for each in found)
  assert len(console) >= 2
