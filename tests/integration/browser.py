"""A headless Chromium of the system, and the report's page in it as a reader has it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DEADLINE_MS = 120_000
"""Longest wait for anything in a page, on a machine that is busy with other things."""


def chromium() -> str | None:
    """The path of a Chromium, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """The browser, closed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Shown:
    """A page that is drawn, and everything it should not have done."""

    page: Page
    problems: list[str] = field(default_factory=list[str])

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def value(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def point(self, plot: str, trial_id: str) -> tuple[float, float]:
        """Where in the window a trial's point is."""
        self.page.locator(f"#{plot}").scroll_into_view_if_needed()
        x, y = self.value(
            """([id, trial]) => {
              const plot = document.getElementById(id);
              const trace = plot.data.find((trace) => trace.ids?.includes(trial));
              const at = trace.ids.indexOf(trial);
              const { xaxis, yaxis } = plot._fullLayout;
              const box = plot.getBoundingClientRect();
              return [box.x + xaxis._offset + xaxis.d2p(trace.x[at]),
                      box.y + yaxis._offset + yaxis.d2p(trace.y[at])];
            }""",
            [plot, trial_id],
        )
        return x, y

    def click_point(self, plot: str, trial_id: str) -> None:
        x, y = self.point(plot, trial_id)
        self.page.mouse.move(x - 3, y)
        self.page.mouse.move(x, y)
        # Plotly looks at the pointer at intervals, and a click is on what it saw last
        self.page.wait_for_function(
            """([id, trial]) => (document.getElementById(id)._hoverdata ?? [])
              .some((point) => point.data.ids?.[point.pointNumber] === trial)""",
            arg=[plot, trial_id],
        )
        self.page.mouse.click(x, y)


@contextmanager
def opened(
    browser: Browser, file: Path, *, width: int = 1200, dark: bool = False
) -> Iterator[Shown]:
    """The page, drawn. Requests, dialogs, errors and messages on the console are problems."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    shown = Shown(page)
    own = file.as_uri()
    page.on("console", lambda message: shown.problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: shown.problems.append(f"error: {error}"))

    def on_dialog(dialog: Dialog) -> None:
        shown.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_request(request: Request) -> None:
        if request.url != own and not request.url.startswith(("data:", "blob:")):
            shown.problems.append(f"request: {request.url}")

    page.on("dialog", on_dialog)
    page.on("request", on_request)
    try:
        page.goto(own)
        page.locator("html[data-ready=true]").wait_for(state="attached")
        yield shown
    finally:
        context.close()
