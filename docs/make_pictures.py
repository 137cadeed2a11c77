"""Makes the pictures of README.md and docs/walkthrough.md from the last sweep of a store. It needs Chromium and tmux.

python docs/make_pictures.py STORE
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tyro
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from sgan.evaluation.grid import unlabelled
from sgan.store.local import Store
from sweeps.mlflow_view.connection import default_uri, pages
from sweeps.planning import manifest

PICTURES = Path(__file__).with_name("pictures")
COLUMNS, LINES = 100, 44


def terminal(browser: Browser, command: str, name: str, seconds: float = 600.0) -> None:
    """A picture of a terminal when a command has ended, or after some seconds."""
    tmux, end = ["tmux", "-L", "pictures"], "[pictures end]"
    script = f"PATH={Path(sys.executable).parent}:$PATH; clear; echo '$ {command}'; {command}; printf '{end}'; cat"
    size, until = ["-x", str(COLUMNS), "-y", str(LINES)], time.monotonic() + seconds
    subprocess.run([*tmux, "new-session", "-d", *size, script], check=True)
    screen = ""
    while end not in screen and time.monotonic() < until:
        time.sleep(1)
        capture = [*tmux, "capture-pane", "-e", "-p"]
        screen = subprocess.run(capture, check=True, capture_output=True, text=True).stdout
    subprocess.run([*tmux, "kill-server"], check=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    plain = screen.replace(end, "").replace(str(Path.cwd()), "/path/to/checkout")
    console.print(Text.from_ansi(plain.rstrip()))
    opened = browser.new_page(viewport={"width": 1000, "height": 800})
    opened.set_content(f"<body style='margin: 0'>{console.export_svg(title='')}")
    opened.locator("svg").first.screenshot(path=PICTURES / f"{name}.png")


def page(browser: Browser, url: str, width: int, height: int, ready: str) -> Page:
    """A page once something is to be seen on it."""
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.goto(url)
    opened.wait_for_selector(ready, timeout=120_000)
    return opened


@contextmanager
def serving(command: list[str], pattern: str) -> Iterator[str]:
    """Run a server; yields the part of its output that matches."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        yield next(found[0] for line in process.stdout if (found := re.search(pattern, line)))
    finally:
        process.terminate()
        process.wait()


def main(store: Positional[Path]) -> None:
    """Make the pictures of a store."""
    opened = Store(store)
    key = manifest.keys(opened)[-1]
    record = manifest.read(opened, key)
    winner = next(trial["name"] for trial in record["trials"] if trial["variant"] == "sgan")
    shutil.copyfile(opened.file(winner, "figures/classes.png"), PICTURES / "classes.png")
    unlabelled(opened.file(winner, "figures/classes.png")).save(PICTURES.with_name("samples-digits.png"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        turing = [sys.executable, "-m", "sgan.turing_test", winner, "--store", str(store), "--port", "0"]
        with serving(turing, r"http://[\d.:]+/") as address:
            quiz = page(browser, address, 700, 1020, "img")
            for key_pressed in "rgrg":
                quiz.keyboard.press(key_pressed)
                quiz.wait_for_timeout(500)
            quiz.screenshot(path=PICTURES / "turing.png")
        command, _, link = pages(default_uri(opened), key).partition("\nand then ")
        with serving([sys.executable, *shlex.split(command)[1:]], "Uvicorn running"):
            mlflow = page(browser, link, 1300, 560, ".ag-row")
            mlflow.locator("button[aria-label='Close']").click()  # of MLflow's assistant
            mlflow.wait_for_timeout(3000)
            mlflow.screenshot(path=PICTURES / "mlflow.png")
        report = page(browser, (manifest.folder(opened, key) / "report.html").as_uri(), 1000, 1300, "table")
        report.screenshot(path=PICTURES / "report.png")
        command = f"{record['command']} --store {shlex.quote(str(store))}"
        terminal(browser, command, "terminal")
        terminal(browser, f"{command} --seeds 4", "live", 70.0)  # a seed more, in the middle of its training
        browser.close()


if __name__ == "__main__":
    tyro.cli(main)
