"""`python -m tests.benchmarks.picture REPORT.html PICTURE.png`: the frontier of a report, for docs.

Needs a Chromium on the PATH. The picture is the page's own drawing, light, at twice the pixels.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.integration.browser import FLAGS, chromium

WIDTH, HEIGHT, PIXEL_RATIO, MARGIN = 1040, 1600, 2, 14
HIDDEN = ".as-table, .note, .legend .plain, .modebar-container { display: none !important; }"
FRAME = """() => {
  const boxes = ["#compare .legend", "#compare .chart .plot", "#compare .chart figcaption"]
    .map((selector) => document.querySelector(selector).getBoundingClientRect());
  const ends = (side, of) => of(...boxes.map((box) => box[side]));
  const [x, top] = [ends("left", Math.min), ends("top", Math.min)];
  const [width, height] = [ends("right", Math.max) - x, ends("bottom", Math.max) - top];
  return { x, y: top + scrollY, width, height };
}"""


def take(report: Path, picture: Path) -> None:
    """Write the picture of a report's first plot with its legend."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=PIXEL_RATIO
        )
        page.goto(report.resolve().as_uri())
        page.locator("html[data-ready=true]").wait_for(state="attached")
        page.add_style_tag(content=HIDDEN)
        if page.locator("#compare .legend").count() == 0:
            sys.exit(f"{report} has no frontier: no trial has finished with a reward")
        frame = page.evaluate(FRAME)
        page.screenshot(
            path=picture,
            full_page=True,
            clip={
                "x": frame["x"] - MARGIN,
                "y": frame["y"] - MARGIN,
                "width": frame["width"] + 2 * MARGIN,
                "height": frame["height"] + 2 * MARGIN,
            },
        )
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 3 or chromium() is None:
        sys.exit(__doc__)
    take(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size:,} bytes")
