"""The dashboard in a browser (Chromium) while trials are being added: studies, history, importances."""

from __future__ import annotations

import shutil
import sys
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalogue import ROOT
from orchestrator.store import Store
from orchestrator.studies import counts, storage
from tests.postgres import apt_install, free_port

PAUSE_S = 0.5
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1600,2400",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
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
    words = [sys.executable, "tests/studies_child.py", str(folder), "-", "random", "10000"]
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
    import time

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


@pytest.mark.long
def test_a_browser_sees_studies_history_and_importances_while_a_run_goes_on(browser: Any, site: str) -> None:
    def text() -> str:
        return str(browser.execute_script("return document.body.innerText"))

    def graph(name: str) -> str:
        """The text of the Plotly graph in the element of that id, once it is drawn."""
        return str(browser.execute_script(
            "const g = document.querySelector(arguments[0] + ' .main-svg'); return g ? g.parentNode.textContent : ''",
            name,
        ))  # fmt: skip

    browser.get(site)
    wait_for(lambda: "neggrad_plus · toy" in text() and "salun · toy" in text(), 30)
    open("/tmp/dash_list.png", "wb").write(browser.get_screenshot_as_png())
    browser.get(f"{site}dashboard/studies/0")
    wait_for(lambda: "neggrad_plus · toy" in text(), 30)
    import time
    time.sleep(6)
    open("/tmp/dash_study.png", "wb").write(browser.get_screenshot_as_png())
    open("/tmp/dash_study.html", "w").write(browser.page_source)
    print(text()); print(browser.get_log("browser"))
