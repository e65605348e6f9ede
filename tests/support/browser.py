"""Open a page in a real browser, and return its elements, its console, and the requests that it sends."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    *("--v=0", "--window-size=1500,4000", "--virtual-time-budget=15000", "--dump-dom"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True)
class Visit:
    """A page after its scripts have run."""

    dom: str
    console: list[str]
    requests: list[str]  # URLs of other machines that the page requested.

    def charts(self) -> list[str]:
        """Return the SVG of each Vega chart."""
        return re.findall(r"<svg[^>]*class=\"marks\".*?</svg>", self.dom, re.DOTALL)


def visit(page: Path | str, folder: Path) -> Visit:
    """Open `page`, a file or a URL, in chromium. The test is skipped if chromium is not installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed; run `apt-get install chromium`")
    log = folder / "net.json"
    url = page if isinstance(page, str) else page.resolve().as_uri()
    own = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", url]
    result = subprocess.run([chromium, *FLAGS, *own], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    text = log.read_text(encoding="utf-8")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # The browser ended before it closed the list.
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # Requests of the browser itself have no page as their initiator.
    requests = [
        of["url"]
        for of in asked
        if of["url"].startswith("http") and of.get("initiator", "not an origin") != "not an origin"
    ]
    return Visit(result.stdout, [line for line in result.stderr.splitlines() if ":CONSOLE" in line], requests)
