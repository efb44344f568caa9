"""The built site in a browser: ``make browser-test``. It needs Debian's chromium, and is skipped without it.

Every page is opened on a screen of 1,400 and of 390 pixels. Screenshots are kept in ``docs/_build/screenshots``.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

SITE = Path(__file__).parent / "_build" / "html"
SCREENSHOTS = SITE.parent / "screenshots"
SOURCES = ("_modules", "_static", "_sources", "_downloads")
WIDTHS = (1400, 390)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

playwright = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install ".[browser]"')
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(not SITE.is_dir(), reason="no site: make docs"),
]

ABORTED = "net::ERR_ABORTED"  # the next page was opened while an icon was loading

PAGES = sorted(path for path in SITE.rglob("*.html") if path.relative_to(SITE).parts[0] not in SOURCES)

# what can be scrolled is not cut off; what is only read aloud may be outside
CUT_OFF = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  const scrolls = e => { for (let p = e; p && p !== document.body; p = p.parentElement) {
    if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return true; } return false; };
  if (document.documentElement.scrollWidth > wide + 1) found.push(`page: ${document.documentElement.scrollWidth} px`);
  for (const e of document.querySelectorAll("main *")) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === "hidden" || e.closest(".sr-only, .visually-hidden")) continue;
    if (e.closest("math")) continue;
    const text = `${e.tagName} ${e.className}: ${e.textContent.slice(0, 60)}`;
    if ((box.right > wide + 1 || box.left < -1) && !scrolls(e)) found.push(text);
    if (style.overflowX === "hidden" && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1)
      found.push(`hidden ${text}`);
  }
  if (wide > 1000) for (const e of document.querySelectorAll("main pre")) {  // a phone may scroll code
    if (e.scrollWidth > e.clientWidth + 1 && !e.closest(".cell_output"))
      found.push(`code: ${e.textContent.slice(0, 60)}`);
  }
  for (const e of document.querySelectorAll(".bd-sidebar-primary nav a")) {
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth) found.push(`side bar: ${e.textContent}`);
  }
  return found.slice(0, 5);
}"""
IMAGES = """() => [...document.images].filter(e => !e.naturalWidth || !(e.alt || "").trim())
  .map(e => e.getAttribute("src").slice(0, 80))"""
CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number), found = new Set();
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => { const [r, g, b] = c.slice(0, 3).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (let p = e; p; p = p.parentElement) { const c = rgb(getComputedStyle(p).backgroundColor);
    if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
  const texts = "main :is(p, li, a, td, th, dt, summary, pre span), nav a";
  for (const e of document.querySelectorAll(texts)) {
    if (!e.textContent.trim() || !e.getClientRects().length || e.matches(".headerlink")) continue;
    const a = luminance(rgb(getComputedStyle(e).color)), b = luminance(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.add(`${e.tagName}.${e.className} ${ratio.toFixed(1)}: ${e.textContent.trim().slice(0, 30)}`);
  }
  return [...found].slice(0, 5);
}"""
LINKS = """() => ({links: [...document.querySelectorAll("a[href]")].map(e => e.href),
  ids: [...document.querySelectorAll("[id], [name]")].map(e => e.id || e.getAttribute("name"))})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def listen(tab: Any, address: str) -> list[str]:
    """A list to which the errors of a tab are added: of its console, of its scripts, and of what it cannot load."""
    complaints: list[str] = []

    def request(asked: Any) -> None:
        if not asked.url.startswith((address, "data:", "blob:")):
            complaints.append(f"needs a network: {asked.url}")

    def failed(asked: Any) -> None:
        if asked.failure != ABORTED:
            complaints.append(f"not loaded: {asked.url}")

    def message(text: Any) -> None:
        if text.type == "error":
            complaints.append(text.text)

    tab.on("request", request)
    tab.on("requestfailed", failed)
    tab.on("console", message)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@pytest.fixture(scope="module")
def visits(browser: Any, address: str) -> dict[str, dict[str, Any]]:
    """What the browser finds on every page, by the name of the page."""
    found: dict[str, dict[str, Any]] = {str(path.relative_to(SITE)): {} for path in PAGES}
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    for width in WIDTHS:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        complaints = listen(tab, address)
        for name, here in found.items():
            complaints.clear()
            tab.goto(address + name, wait_until="load")
            here[width] = {"complaints": list(complaints), "cut off": tab.evaluate(CUT_OFF)}
            if width == WIDTHS[0]:
                here |= tab.evaluate(LINKS) | {"images": tab.evaluate(IMAGES), "contrast": tab.evaluate(CONTRAST)}
            if not name.startswith("api/"):
                file = SCREENSHOTS / str(width) / f"{name.removesuffix('.html').replace('/', '.')}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                tab.screenshot(path=file, full_page=True)
        tab.close()
    (SCREENSHOTS / "report.json").write_text(json.dumps(found, indent=1))
    return found


def test_pages_load_without_errors_and_without_a_network(visits):
    found = {(name, width): visits[name][width]["complaints"] for name in visits for width in WIDTHS}
    assert not {page: complaints for page, complaints in found.items() if complaints}


def test_nothing_is_cut_off(visits):
    found = {(name, width): visits[name][width]["cut off"] for name in visits for width in WIDTHS}
    assert not {page: elements for page, elements in found.items() if elements}


def test_images_load_and_have_a_text(visits):
    assert not {name: here["images"] for name, here in visits.items() if here["images"]}


def test_text_has_contrast(visits):
    assert not {name: here["contrast"] for name, here in visits.items() if here["contrast"]}


def test_links_within_the_site_resolve(visits, address):
    broken = set()
    for name, here in visits.items():
        for link in here["links"]:
            target, anchor = urldefrag(urljoin(address + name, link))
            if not target.startswith(address):
                continue
            path = unquote(urlparse(target).path).lstrip("/") or "index.html"
            known = visits.get(path, {}).get("ids")
            if not (SITE / path).is_file() or (anchor and known is not None and unquote(anchor) not in known):
                broken.add((name, link.removeprefix(address)))
    assert not broken


def test_the_search_finds_a_function(browser, address):
    tab = browser.new_page()
    tab.goto(f"{address}search.html?q=bin_value")
    tab.wait_for_selector("#search-results li a", timeout=20_000)
    tab.wait_for_timeout(1000)
    found = tab.eval_on_selector_all("#search-results li a", "found => found.map(e => e.href)")
    assert any("pp.bin_value" in link for link in found), found
