"""The dashboard in a browser (Chromium) while trials are being added: studies, history, importances."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalogue import ROOT
from orchestrator.store import Store
from orchestrator.studies import counts, storage
from tests.postgres import apt_install, free_port
from tests.studies_child import NAMES
from tests.test_tune import SPACE

PAUSE_S = 0.5
WAIT_S = 40
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1600,2400",
)  # fmt: skip


def programs() -> tuple[str, str]:
    """Chromium and its driver; skips the test, with the reason, where they are missing."""
    names = ("chromium", "chromedriver")
    why = "" if all(map(shutil.which, names)) else apt_install("chromium", "chromium-driver")
    found = [shutil.which(name) for name in names]
    if None in found:
        pytest.skip(f"chromium and chromium-driver are not installed ({why})")
    return str(found[0]), str(found[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results folder in which a process tunes two studies, each with 10 finished trials at least."""
    folder = tmp_path_factory.mktemp("results")
    words = [sys.executable, "tests/studies_child.py", str(folder), "-", "random", "10000", "2"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    quick = subprocess.Popen([*words, "0"], cwd=ROOT, env=env)
    wait_for(lambda: trials(folder, 10), 60)
    quick.kill()
    quick.wait()
    running = subprocess.Popen([*words, str(PAUSE_S)], cwd=ROOT, env=env)
    yield folder
    running.kill()
    running.wait()


def trials(folder: Path, at_least: int) -> bool:
    if not (folder / "tuning" / "journal.log").is_file():
        return False
    found = counts(storage(Store.open(str(folder)), write=False))
    return len(found) == 2 and all(study.complete >= at_least for study in found)


def wait_for(done: Callable[[], Any], seconds: float) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := done():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {done}")


@pytest.fixture(scope="module")
def site(tuning: Path) -> Iterator[str]:
    port = free_port()
    words = ["-m", "orchestrator", "dashboard", "--results", str(tuning), "--port", str(port)]
    running = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stdout=-1, text=True
    )
    assert running.stdout is not None
    yield running.stdout.readline().split()[0]
    running.kill()
    running.wait()


class Page:
    """What a reader of the dashboard's pages sees."""

    def __init__(self, browser: Any, site: str) -> None:
        self.browser, self.site = browser, site

    def open(self, path: str = "") -> None:
        self.browser.get(f"{self.site}{path}")

    def text(self) -> str:
        return str(self.browser.execute_script("return document.body.innerText"))

    def sees(self, *words: str) -> None:
        wait_for(lambda: all(word in self.text() for word in words), WAIT_S)

    def shown(self, selector: str) -> list[str]:
        """The texts of the elements of a graph, in the order of the page."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return list(self.browser.execute_script(script, selector))

    def gets_more_than(self, points: int) -> None:
        """A new trial is in the history after the page is loaded again."""
        self.browser.refresh()
        wait_for(lambda: len(self.shown(HISTORY)) > points, WAIT_S)

    def no_errors(self) -> None:
        severe = [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == [] and self.shown(".notistack-Snackbar, [role=alert]") == []


HISTORY = "#plot-history .point"
IMPORTANCE = "#graph-hyperparameter-importances"


@pytest.mark.long
def test_a_browser_sees_studies_history_and_importances_while_a_run_goes_on(browser: Any, site: str) -> None:
    page = Page(browser, site)
    page.open()
    page.sees(*NAMES)
    for number, name in enumerate(NAMES):
        page.open(f"dashboard/studies/{number}")
        page.sees(name, "History", "Hyperparameter Importance", "Best Trial")
        first = len(wait_for(lambda: page.shown(HISTORY), WAIT_S))
        assert first >= 10
        wait_for(lambda: len(page.shown(f"{IMPORTANCE} .bars .point")) == len(SPACE), WAIT_S)
        assert set(page.shown(f"{IMPORTANCE} .ytick text")) == set(SPACE)
        shares = [float(text) for text in page.shown(f"{IMPORTANCE} .bars .point text")]
        assert abs(sum(shares) - 1) < 0.02
        if number == 0:  # the studies of the child are tuned one after the other
            page.gets_more_than(first)
        page.no_errors()
