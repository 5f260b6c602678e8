"""Take the picture of docs/report.md: ``python docs/images/make_report.py REPORT``. Needs selenium and Chromium.

REPORT is any policy's ``report.html``, for example ``demo-output/rails/policy/report.html``.
"""

# ruff: noqa: INP001 - a script beside the picture that it takes, not a package

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

WIDTH, HEIGHT = 1200, 1320


def main() -> None:
    """Write report.png beside this file."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(Path(sys.argv[1]).resolve().as_uri())
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {})
    browser.quit()
    image = Image.open(io.BytesIO(base64.b64decode(picture["data"])))
    image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        Path(__file__).parent / "report.png", optimize=True
    )


if __name__ == "__main__":
    main()
