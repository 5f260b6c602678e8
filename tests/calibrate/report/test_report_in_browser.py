"""The report in a real browser: the slider, the snippet, the keyboard, the phone, and nothing that leaves the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.evaluate.rows import ScoredRows
from calibrate.report.explorer import Explorer
from calibrate.report.page import write_report
from ctd_guardrail.config.section import parse_section
from ctd_guardrail.policy.budget import Guarantee, certify
from ctd_guardrail.policy.store import Policy

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
LEFT, RIGHT, HOME, END, SPACE, TAB = "\ue012", "\ue014", "\ue011", "\ue010", " ", "\ue004"


def shown(explorer: Explorer, guarantee: str, index: int) -> dict[str, str]:
    return {name: texts[index] for name, texts in explorer.fields[guarantee].items()}


def test_the_page_starts_at_the_policys_budget(open_page: Open, explorer: Explorer) -> None:
    fields = open_page().fields()
    assert fields.items() <= shown(explorer, "exact", explorer.start).items()
    assert {"alpha", "lambda", "rate", "calls", "cost", "ctd_accuracy", "ctd_auroc", "ctd_missed_harm"} <= set(fields)


def test_keys_on_the_slider_change_the_numbers_to_those_of_python(
    open_page: Open, explorer: Explorer, policy: Policy
) -> None:
    page = open_page()
    before = page.fields()
    page.press("#budget", RIGHT, RIGHT, RIGHT)
    index = explorer.start + 3
    after = page.fields()
    assert after.items() <= shown(explorer, "exact", index).items()
    changed = {"alpha", "lambda", "k", "rate", "calls", "cost", "ctd_rate", "alpha_yaml"}
    assert all(before[name] != after[name] for name in changed)
    certificate = certify(policy.calibration.d, explorer.alphas[index], 0.1)
    assert after["lambda"] == f"{certificate.threshold:.4f}"
    assert after["k"] == str(certificate.k)
    assert after["rate"] == f"{100 * certificate.mean_rate:.1f}%"
    assert page.find("#budget").get_attribute("aria-valuetext").startswith(f"{after['alpha']}: about {after['calls']}")
    page.press("#budget", END)
    assert page.fields().items() <= shown(explorer, "exact", len(explorer.alphas) - 1).items()


def test_an_alpha_that_is_chosen_after_looking_is_certified_for_that(
    open_page: Open, explorer: Explorer, policy: Policy
) -> None:
    page = open_page()
    page.press("input[value=exact]", RIGHT)
    fields = page.fields()
    assert fields.items() <= shown(explorer, "simultaneous", explorer.start).items()
    certificate = certify(policy.calibration.d, 0.2, 0.1, guarantee=Guarantee.SIMULTANEOUS)
    assert fields["lambda"] == f"{certificate.threshold:.4f}"
    assert fields["guarantee_yaml"] == "simultaneous"


def test_the_snippet_parses_and_loads_at_every_position(open_page: Open, explorer: Explorer) -> None:
    page = open_page()
    for keys, alpha in (((), 0.2), ((LEFT, LEFT), explorer.alphas[explorer.start - 2])):
        page.press("#budget", *keys)
        content = yaml.safe_load(page.run("return document.getElementById('snippet').textContent"))
        config = parse_section(content["custom_data"]["ctd"])
        assert (config.alpha, config.delta, config.guarantee) == (alpha, 0.1, Guarantee.EXACT)
        assert content["rails"]["input"]["flows"] == ["ctd check input"]


def test_copying_gives_the_snippet(open_page: Open) -> None:
    page = open_page()
    page.press("#copy", SPACE)
    told = page.run(
        "return new Promise(done => setTimeout(() => done(document.getElementById('copied').textContent), 200))"
    )
    code = page.run("return document.getElementById('snippet').textContent")
    if told == "Copied.":
        page.browser.execute_cdp_cmd(
            "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        )
        assert page.run("return navigator.clipboard.readText()") == code
    else:
        assert "Ctrl+C" in told
        assert page.run("return getSelection().toString()").split() == code.split()


def test_a_budget_without_a_certificate_says_so_and_offers_nothing(
    open_page: Open, make_policy: Callable[..., Policy], tested: ScoredRows, tmp_path: Path
) -> None:
    page = open_page(write_report(tmp_path, make_policy(40), tested))
    assert not page.find(".problem").is_displayed()
    page.press("#budget", HOME)
    assert "40 calibration rows cannot certify 0.5%" in page.find(".problem").text
    assert not page.find("#snippet").is_displayed()
    assert not page.find(".tiles").is_displayed()
    page.press("#budget", *[RIGHT] * 40)
    assert page.find("#snippet").is_displayed()


@pytest.mark.parametrize("figure", ["accuracy", "auroc", "missed_harm", "false_alarms", "rate"])
def test_every_figure_is_drawn_with_a_marker_that_moves(open_page: Open, figure: str) -> None:
    page = open_page()
    page.run("document.querySelector(`input[value=${arguments[0]}]`).click()", figure)
    marker = "return document.querySelector('#chart .marker').getAttribute('d')"
    before = page.run(marker)
    page.press("#budget", RIGHT)
    assert page.run(marker) != before
    drawn = page.run("return [...document.querySelectorAll('#chart .line')].map(e => e.getAttribute('d'))")
    assert len(drawn) >= 3
    assert not any("NaN" in path or "undefined" in path for path in drawn)
    shown_legends = page.run("return [...document.querySelectorAll('[data-legend]:not([hidden])')].length")
    assert shown_legends == 1


def test_a_press_on_the_chart_moves_the_budget(open_page: Open) -> None:
    page = open_page()
    page.run(
        "const chart = document.getElementById('chart'), box = chart.getBoundingClientRect();"
        "const middle = {clientX: box.left + box.width / 2, clientY: box.top + 9};"
        "chart.dispatchEvent(new PointerEvent('pointerdown', middle))"
    )
    assert 40 < float(page.fields()["alpha"].rstrip("%")) < 60


def test_names_from_data_are_text(open_page: Open, explorer: Explorer) -> None:
    page = open_page()
    assert page.browser.title == "What the budget buys"
    assert page.run("return document.scripts.length") == 2
    assert page.run("return document.images.length") == 0
    names = page.run("return [...document.querySelectorAll('.groups th')].map(e => e.textContent)")
    assert names == list(explorer.groups)


def test_nothing_leaves_the_page(open_page: Open) -> None:
    page = open_page()
    assert page.run("return performance.getEntriesByType('resource').map(e => e.name)") == []
    blocked = page.browser.execute_async_script(
        "const done = arguments[0], seen = [];"
        "document.addEventListener('securitypolicyviolation', e => seen.push(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
        "new Image().src = 'http://127.0.0.1:9/x.png';"
        "const style = document.createElement('style'); style.textContent = 'p{}'; document.head.append(style);"
        "setTimeout(() => done(seen), 300)"
    )
    assert {"connect-src", "img-src", "style-src-elem"} <= set(blocked)
    page.browser.get_log("browser")  # the refusals that were provoked here


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_no_window_scrolls_sideways(open_page: Open, width: int) -> None:
    page = open_page(width=width)
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_every_control_is_reached_by_tab_and_has_a_name(open_page: Open) -> None:
    page = open_page(width=360)
    controls = page.run(
        "return [...document.querySelectorAll('input, button, summary, [tabindex]')]"
        ".filter(e => e.type !== 'radio' || e.checked)"
    )
    assert len(controls) > 8
    reached = []
    for _ in range(len(controls) + 1):
        page.browser.switch_to.active_element.send_keys(TAB)
        reached.append(page.browser.switch_to.active_element)
    assert [control for control in controls if control not in reached] == []
    for control in page.browser.find_elements("css selector", "input, button, summary, [tabindex], meter, svg[role]"):
        assert control.accessible_name, control.get_attribute("outerHTML")


# WCAG 2.2, 1.4.3: 4.5, or 3 for large text.
CONTRAST = """
const luminance = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const parse = text => text.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } };
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
  if (['SCRIPT', 'NOSCRIPT', 'text'].includes(e.tagName)) continue;
  const style = getComputedStyle(e), size = parseFloat(style.fontSize), bold = style.fontWeight >= 600;
  const pair = [luminance(parse(style.color).slice(0, 3)), luminance(ground(e))].sort((a, b) => b - a);
  const ratio = (pair[0] + .05) / (pair[1] + .05);
  if (ratio < (size >= 24 || (bold && size >= 18.7) ? 3 : 4.5)) poor.push([e.textContent.trim().slice(0, 30), ratio]);
}
return poor;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    page = open_page(is_dark=scheme == "dark")
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.run(CONTRAST) == []
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
