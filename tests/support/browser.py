"""A page in a real headless Chromium, with what it logs and loads, and checks that every page passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (320, 390, 600, 820, 1024, 1280, 1920)
LOW_CONTRAST = """() => {
  const light = c => { const m = c.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * m[0] + .7152 * m[1] + .0722 * m[2] };
  const ground = e => { while (e) { const c = getComputedStyle(e).backgroundColor; if (!/rgba\\(.*, 0\\)|transparent/.test(c)) return c; e = e.parentElement } return getComputedStyle(document.body).backgroundColor };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || /SCRIPT|STYLE|NOSCRIPT|OPTION|title/.test(e.tagName)) continue;
    const svg = e instanceof SVGElement, colour = getComputedStyle(e)[svg ? 'fill' : 'color'];
    if (colour === 'none') continue;
    const a = light(colour), b = light(ground(svg ? e.closest('svg').parentElement : e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push([e.tagName, walk.currentNode.textContent.slice(0, 20), ratio.toFixed(2)]);
  }
  return found;
}"""
SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"
BARE = "[...document.querySelectorAll('button,select,input')].filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
TWICE = "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.filter((id, i) => ids.indexOf(id) !== i) })()"


def opened_chromium() -> Iterator[Any]:
    """Yields a browser; skips the test without playwright or Chromium."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine (apt install chromium)")
    with api.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class OpenPage:
    """A page in the browser, of a file or an address, with the messages and requests that it made."""

    def __init__(self, chromium, file: Path | str, *, width: int = 1280, address: str = "", **options):
        still = {"reduced_motion": "reduce"}  # a click waits until a smooth scroll has ended
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, **still | options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on(
            "request",
            lambda request: None if request.url.startswith("data:") else self.requests.append(request.url),
        )
        self.page.goto((file.as_uri() if isinstance(file, Path) else file) + address)
