"""A policy with the scores of a small world, test rows in hostile groups, and a browser to read the report with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.config.file import PriceConfig
from calibrate.evaluate.rows import ScoredRows
from calibrate.report.explorer import Explorer
from calibrate.report.page import explore_policy, write_report
from ctd_guardrail.policy.manifest import DataRecord
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</script><img src=x onerror=\"document.title = 'owned'\">",
    "\"' onmouseover='document.title = 1' x=\"",
    "{{ 7 * 7 }} {% raw %}",
    "]]> --> ${document.title} `x` | y\nz",
    "_plain_ **bold** [link](javascript:alert(1)) # 1",
)
PRICES = PriceConfig(expert_call=0.002, currency="<b>EUR</b>")


def world(n: int, seed: int) -> ScoredRows:
    """Rows on which the expert is better than the probe, and d knows half of v."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(float)
    sign = 2 * label - 1
    p = 1 / (1 + np.exp(-1.2 * (0.7 * sign + rng.normal(size=n))))
    expert = 1 / (1 + np.exp(-2.5 * (0.9 * sign + 0.7 * rng.normal(size=n))))
    d = 0.5 * sign * (expert - p) + 0.2 * rng.normal(size=n)
    return ScoredRows(p, d, expert, label, rng.choice(HOSTILE, n).tolist(), rng.integers(0, n // 2, n))


def scores_of(rows: ScoredRows) -> CalibrationScores:
    return CalibrationScores.from_rows(d=rows.d, p=rows.p, expert=rows.expert, label=rows.label)


@pytest.fixture(scope="session")
def make_policy(rail_policy: Path) -> Callable[..., Policy]:
    """A policy that was calibrated on so many rows of the world; other arguments change its manifest."""
    written = read_policy(rail_policy)

    def make(n: int = 200, **changes: Any) -> Policy:
        training = {"seed": 0, "rows": 600, "safety": {"C": 0.1, "alternatives": [{"C": 0.01}, {"C": 0.1}]}}
        manifest = written.manifest.model_copy(
            update={
                "calibration": written.manifest.calibration.model_copy(update={"rows": n}),
                "data": [DataRecord(file="<i>rows<b>|.jsonl", sha256="ab" * 32, rows=1000)],
                "training": training,
                **changes,
            }
        )
        return replace(written, manifest=manifest, calibration=scores_of(world(n, 0)))

    return make


@pytest.fixture(scope="session")
def tested() -> ScoredRows:
    return world(300, 1)


@pytest.fixture(scope="session")
def policy(make_policy: Callable[..., Policy]) -> Policy:
    return make_policy()


@pytest.fixture(scope="session")
def explorer(policy: Policy, tested: ScoredRows) -> Explorer:
    return explore_policy(policy, tested, PRICES)


@pytest.fixture(scope="session")
def report(policy: Policy, tested: ScoredRows, explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("policy"), policy, tested, prices=PRICES, explorer=explorer)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; tests are skipped where it is not installed, and fail where it does not start."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    os.environ["SE_AVOID_STATS"] = "true"
    from selenium import webdriver  # noqa: PLC0415  # only tests with a browser pay for it

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync disable-dev-shm-usage"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """The report in a browser, as a reader meets it."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1200, is_dark: bool = False) -> None:
        self.browser = browser
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get_log("browser")  # what earlier pages said
        browser.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def press(self, selector: str, *keys: str) -> None:
        self.find(selector).send_keys(*keys)

    def fields(self) -> dict[str, str]:
        """Return the text of every live field."""
        found: dict[str, str] = self.run(
            "const live = [...document.querySelectorAll('[data-field]')];"
            "return Object.fromEntries(live.map(e => [e.dataset.field, e.textContent]))"
        )
        return found


@pytest.fixture
def open_page(chromium: Any, report: Path) -> Iterator[Callable[..., Page]]:
    """Open the report, or another file, in a window of a width and a colour scheme."""
    yield lambda path=report, **window: Page(chromium, path, **window)
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
