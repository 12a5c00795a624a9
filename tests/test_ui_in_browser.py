"""`mt5-crs ui` as a person sees it: Debian's Chromium clicks through the demo's graph, runs, pictures and checks.

With MT5_CRS_SCREENSHOTS=folder the README's pictures are written there (`make pictures`).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from mt5_crs_pipeline.adapters.lake import TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.core.feature_rows import feature_schema
from mt5_crs_pipeline.definitions import defs
from mt5_crs_pipeline.defs.partitions import MONTHS
from tests.commands import comes_true
from tests.receiver import Receiver, receiving
from tests.ui import ASSETS, Ui, running_ui

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

# Read here, as no test sees what the developer has set.
PICTURES = os.environ.get("MT5_CRS_SCREENSHOTS")
# On a busy machine.
TIMEOUT_S, RUN_TIMEOUT_S = 60, 300
NEWEST_LABELS = "2013-02"
LOOK_AHEAD = "training_features_were_known_at_the_close"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    program = shutil.which("chromium")
    if program is None or find_spec("playwright") is None:
        pytest.skip("SKIPPED LOUDLY: no chromium, or no playwright to drive it, is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Where root runs the tests, Chromium's own sandbox cannot be.
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def ui(browser: "Browser", demo_home: Path, demo_folder: Path, receiver: Receiver) -> Iterator[Ui]:
    """The UI of a copy of the demo's state folder, for all tests in their order."""
    home = Path(shutil.copytree(demo_home, demo_folder / "seen"))
    with running_ui(home, ALERT_URLS=receiver.url) as running:
        if PICTURES:  # months without bars would be grey
            months = MONTHS.get_partition_keys()
            running.launch("market_data_backfill", months[0], months[-1])
            assert comes_true(running.has_settled, RUN_TIMEOUT_S), running.runs()
        yield running
        running.process.terminate()
        running.process.wait(TIMEOUT_S)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def verdict(first_demo: "subprocess.CompletedProcess[str]") -> str:
    """What the demo said in the terminal."""
    return next(line.strip() for line in first_demo.stdout.splitlines() if "edge was shown" in line)


@pytest.fixture
def page(browser: "Browser", ui: Ui) -> "Iterator[Page]":
    sharpness = 1.5 if PICTURES else 1
    size: Any = {"width": 1280, "height": 1120}
    with browser.new_page(base_url=ui.address, viewport=size, device_scale_factor=sharpness) as page:
        page.set_default_timeout(TIMEOUT_S * 1000)
        yield page


def test_the_graph_shows_every_asset_and_what_it_depends_on(page: "Page") -> None:
    # So wide that every node has room for its name.
    open_graph(page, width=4300, height=900)
    for name in ASSETS:
        sees(page.get_by_text(name, exact=True))
    graph = defs.resolve_asset_graph()
    arrows = [(parent, asset) for asset in graph.get_all_asset_keys() for parent in graph.get(asset).parent_keys]
    drawn = page.locator("svg path[marker-end]")
    drawn.nth(len(arrows) - 1).wait_for(state="attached")
    assert drawn.count() == len(arrows)


def test_materialize_all_starts_a_run_that_succeeds(page: "Page", ui: Ui) -> None:
    page.goto("/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_placeholder("ex: 2000-01").fill(NEWEST_LABELS)
    dialog.get_by_placeholder("ex: 2000-01").press("Enter")
    dialog.get_by_role("button", name="Launch 1 run").click()
    toast = page.get_by_role("listitem").filter(has_text="Launched run")
    toast.get_by_text("View").click()
    page.wait_for_url("**/runs/*")
    sees(page.get_by_text("Success", exact=True), RUN_TIMEOUT_S)
    assert ui.materialized(page.url.rpartition("/")[2]) == ASSETS
    if PICTURES:
        open_graph(page, width=1600, height=600)
        page.get_by_role("button", name="Hide navigation").click()
        closed = page.get_by_role("button").filter(has=page.get_by_role("img", name="arrow_drop_down"))
        for group in (2, 1, 0):
            closed.nth(group).click()
        sees(page.get_by_text("xgboost_model", exact=True).first)
        page.mouse.move(800, 560)
        save(page, "asset_graph")


def test_the_page_of_the_evaluation_shows_its_verdict_and_its_pictures(page: "Page", verdict: str) -> None:
    page.goto("/assets/model_evaluation")
    sees(page.get_by_text(verdict))
    page.get_by_text("verdict", exact=True).evaluate("key => key.scrollIntoView()")  # for the picture
    links = page.get_by_text("[Show Markdown]")
    shown = []
    for link in links.all():
        link.click()
        dialog = page.get_by_role("dialog")
        shown.append(sees_picture(dialog.locator("img[src^='data:image/png']")))
        if len(shown) == 1:
            save(page, "model_evaluation")
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="detached")
    assert shown == [
        "log-wealth and the threshold",
        "accuracy by year with intervals",
        "reliability of the probabilities",
        "what a simple rule would have earned",
        "confusion matrix",
    ]


def test_the_report_is_a_page_of_its_own_with_all_its_pictures(page: "Page", ui: Ui, verdict: str) -> None:
    (report,) = (ui.home / "reports" / "D1").glob("*.html")
    page.set_viewport_size({"width": 1040, "height": 1500})
    page.goto(report.as_uri())
    sees(page.get_by_text(verdict).first)
    images = page.get_by_role("img").all()
    assert images
    for image in images:
        sees_picture(image)
    save(page, "report", scale="css")


def test_schedule_and_sensor_are_switched_on_and_tick(page: "Page") -> None:
    page.goto("/automation")
    page.get_by_role("link", name="daily_retrain_schedule").click()
    switch(page, on=True)
    sees(row(page, "Next tick").filter(has_text="12:30:00 AM UTC"))
    page.get_by_role("button", name="Preview tick result").click()
    page.get_by_role("dialog").get_by_role("button", name="Continue").click()
    # Whether the bars of the demo's stocks count as news depends on when the demo ran.
    sees(page.get_by_role("dialog").get_by_text(re.compile("1 run requests|no market has closed|skipped", re.I)).first)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    switch(page, on=False)

    page.goto("/automation")
    page.get_by_role("link", name="market_data_revision_sensor").click()
    ticked = row(page, "Latest tick").filter(has_text="requested")
    sees(ticked)
    switch(page, on=False)
    before = tick(page)
    switch(page, on=True)
    sees(ticked.filter(has_not_text=before))
    sees(page.get_by_role("row").filter(has_text="View logs").filter(has_text=tick(page)))


def test_a_failing_blocking_check_is_red_and_says_why_and_who_has_to_know_is_told(
    page: "Page", ui: Ui, receiver: Receiver
) -> None:
    assert comes_true(ui.has_settled, RUN_TIMEOUT_S), ui.runs()  # nothing is at work that would repair it
    nudge(Lake(ui.home / "lake" / "D1"), "rsi_14")
    page.goto("/assets/training_set")
    page.get_by_role("button", name="Materialize").first.click()
    sees(page.get_by_text("Launched run"))
    page.get_by_role("tab", name="Checks").click()
    page.get_by_title(LOOK_AHEAD).click()
    sees(page.get_by_text("This is a blocking asset check."))
    sees(row(page, "first difference").filter(has_text=f"rsi_14 of AAPL at {NEWEST_LABELS}-28"), RUN_TIMEOUT_S)
    failed = page.get_by_text("Failed", exact=True).nth(1)  # the first is in the list of checks
    sees(failed)
    red, green, blue = (int(part) for part in re.findall(r"\d+", failed.evaluate("e => getComputedStyle(e).color")))
    assert red > 2 * max(green, blue)
    assert comes_true(lambda: receiver.messages, 2 * TIMEOUT_S), "the daemon told nobody"
    (told,) = receiver.messages
    assert told["title"].endswith(" failed") and LOOK_AHEAD in told["message"], told


def open_graph(page: "Page", width: int, height: int) -> None:
    """Show the global asset graph with all groups expanded."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto("/asset-groups")
    page.locator("#zoom-slider-container").get_by_role("button", name="settings").click()
    page.get_by_role("menuitem", name="Expand all groups").click()
    sees(page.get_by_role("menuitem", name="Collapse all groups"))
    page.mouse.click(width // 2, height - 40)  # outside of the menu


def sees(what: "Locator", timeout_s: float = TIMEOUT_S) -> None:
    what.wait_for(state="visible", timeout=timeout_s * 1000)


def sees_picture(image: "Locator") -> str:
    """Return the text of a picture that has been drawn."""
    sees(image)
    width, text = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.alt])")
    assert width > 0
    return str(text)


def row(page: "Page", name: str) -> "Locator":
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def switch(page: "Page", *, on: bool) -> None:
    """Switch the schedule or sensor of the page on or off."""
    running = row(page, "Running")
    sees(running)
    box = running.get_by_role("checkbox")
    if box.is_checked() != on:
        running.locator("label").click()
        running.get_by_role("checkbox", checked=on).wait_for(state="attached")  # drawn by its label


def tick(page: "Page") -> str:
    """Return the time of the newest tick on the page of a sensor."""
    found = re.search(r"\w+ \d+, [\d:]+ [AP]M", row(page, "Latest tick").inner_text())
    assert found
    return found.group()


def nudge(lake: Lake, feature: str) -> None:
    """Change a feature of the newest labelled month by the last bit, in a file that is valid otherwise."""
    table = lake.read(TECHNICAL_FEATURES, [NEWEST_LABELS], feature_schema())
    at = table.schema.get_field_index(feature)
    values = pa.array(np.nextafter(table.column(at).to_numpy(), np.inf))
    assert lake.write(TECHNICAL_FEATURES, NEWEST_LABELS, table.set_column(at, table.schema.field(at), values))


def save(page: "Page", name: str, **options: Any) -> None:
    """Take a picture for the README when it is asked for."""
    if PICTURES:
        page.wait_for_load_state("networkidle")
        page.screenshot(path=f"{PICTURES}/{name}.png", animations="disabled", **options)
