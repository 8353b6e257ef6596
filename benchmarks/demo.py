"""How long `make demo` takes: cold to the first live curve point, warm to the first tree on a screen.

    python -m benchmarks.demo

Everything is as a person has it: the command, its login link, a headless Chromium. Cold means an empty data
folder and an environment that is set up; warm is the second start on the same folder. Wall seconds from the
command's start, so they hang on the load that is printed first. Ends with 1 if a stop left anything behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from webapp.embedded.folder import DataFolder
from webapp.embedded.smoke import what_is_left

REPOSITORY = Path(__file__).resolve().parents[1]
LOG_IN = re.compile(r"http://127\.0\.0\.1:\d+/\S+")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def main() -> None:
    if CHROMIUM is None:
        sys.exit("This needs a Chromium.")
    folder = Path(tempfile.mkdtemp(prefix="arborist-bench-demo-"))
    folder.chmod(0o711)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    try:
        for word, look in (("cold", _first_point), ("warm", _first_tree)):
            link, shown = _start(folder, look)
            print(f"{word}: login link after {link:.1f} s, {look.__doc__} after {shown:.1f} s", flush=True)
            if left := what_is_left(DataFolder.at(folder)):
                sys.exit(f"left behind: {', '.join(left)}")
        print("left behind: nothing, either time")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, look: Callable[[Page], None]) -> tuple[float, float]:
    """Seconds to the login link, and until `look` saw what it looks for; then Ctrl-C."""
    env = os.environ | {
        "ARBORIST_DATA_DIR": str(folder),
        "ARBORIST_DATABASE_URL": "",
        "ARBORIST_BROKER_URL": "",
    }
    log = folder / "demo.log"
    began = time.monotonic()
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "manage.py", "demo"], cwd=REPOSITORY, env=env, stdout=output, stderr=output
        )
    try:
        while not (found := LOG_IN.search(log.read_text(errors="replace").partition("Log in")[2])):
            if demo.poll() is not None or time.monotonic() - began > 300:
                sys.exit(log.read_text(errors="replace"))
            time.sleep(0.05)
        link = time.monotonic() - began
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(found[0])
            page.get_by_role("button", name="Log in").click()
            page.goto(re.sub(r"(:\d+)/.*", r"\1/r/1/", found[0]))
            look(page)
            shown = time.monotonic() - began
            browser.close()
        return link, shown
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)


def _first_point(page: Page) -> None:
    """first live curve point"""
    card = page.locator('[data-panel="reward/mean"]')
    card.hover(timeout=120_000)
    card.get_by_role("button", name="Table").click()
    card.locator(".chart-table tbody tr").first.wait_for(timeout=120_000)


def _first_tree(page: Page) -> None:
    """first tree on screen"""
    page.goto(page.url + "trees")
    page.locator('a[href^="/t/"]').first.click(timeout=60_000)
    page.locator("canvas").first.wait_for(timeout=60_000)
    page.locator("[role=tree] [role=treeitem]").first.wait_for(timeout=60_000)


if __name__ == "__main__":
    main()
