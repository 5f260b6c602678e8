"use strict";
// Moves the budget. All numbers are texts in the page's data; this script computes only positions on the chart.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("budget");
  const chart = document.getElementById("chart");
  const state = { guarantee: "exact", figure: "accuracy" };
  const DRAWN = { rate: ["budget", "test", "expected"] };
  const METHODS = ["probe", "expert", "oracle", "uncertainty", "ctd"];
  const MARGIN = { top: 18, right: 22, bottom: 42, left: 46 };
  const UNIT = { auroc: "" };

  function show() {
    const index = Number(slider.value);
    const fields = data.fields[state.guarantee];
    for (const element of document.querySelectorAll("[data-field]")) {
      element.textContent = fields[element.dataset.field][index];
    }
    for (const meter of document.querySelectorAll("[data-meter]")) {
      meter.value = parseFloat(fields[meter.dataset.meter][index]) || 0;
    }
    const problem = fields.problem[index];
    for (const element of document.querySelectorAll("[data-when=certified]")) element.hidden = problem !== "";
    for (const element of document.querySelectorAll("[data-field=problem]")) element.hidden = problem === "";
    slider.setAttribute("aria-valuetext", problem || `${fields.alpha[index]}: about ${fields.calls[index]} of 1,000 requests to the expert`);
    draw(index);
  }

  function make(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    chart.append(element);
  }

  // Runs of consecutive points that all have a number.
  function runs(...columns) {
    const found = [];
    let run = [];
    for (let i = 0; i < data.budgets.length; i += 1) {
      if (columns.every((column) => column[i] !== null)) run.push(i);
      else if (run.length) { found.push(run); run = []; }
    }
    if (run.length) found.push(run);
    return found;
  }

  function steps(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
    return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  function draw(index) {
    const lines = data.lines[state.guarantee][state.figure];
    const drawn = DRAWN[state.figure] || METHODS;
    const width = chart.clientWidth, height = chart.clientHeight;
    const values = drawn.flatMap((name) => lines[name]).filter((value) => value !== null);
    const pad = (Math.max(...values) - Math.min(...values)) * 0.06 || 1;
    const low = state.figure === "rate" ? 0 : Math.min(...values) - pad, high = Math.max(...values) + pad;
    const x = (budget) => MARGIN.left + (budget / 100) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const clip = (value) => Math.min(Math.max(value, low), high);
    const place = (column) => (i) => `${x(data.budgets[i]).toFixed(1)} ${y(clip(column[i])).toFixed(1)}`;

    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.replaceChildren();
    const unit = UNIT[state.figure] ?? "%";
    const { ticks, digits } = steps(low, high, 5);
    for (const tick of ticks) {
      make("path", { class: "grid", d: `M${MARGIN.left} ${y(tick)}H${width - MARGIN.right}` });
      make("text", { class: "tick", x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(digits) + unit);
    }
    for (const tick of steps(0, 100, width < 420 ? 5 : 10).ticks) {
      make("text", { class: "tick", x: x(tick), y: height - MARGIN.bottom + 18, "text-anchor": "middle" }, `${tick}%`);
    }
    make("text", { class: "tick", x: x(50), y: height - 6, "text-anchor": "middle" }, "budget alpha");

    for (const run of runs(lines.low, lines.high)) {
      const path = [...run.map(place(lines.high)), ...run.toReversed().map(place(lines.low))];
      make("path", { class: "area", d: `M${path.join("L")}Z` });
    }
    for (const name of drawn) {
      for (const run of runs(lines[name])) make("path", { class: `line ${name}`, d: `M${run.map(place(lines[name])).join("L")}` });
    }
    make("path", { class: "marker", d: `M${x(data.budgets[index])} ${MARGIN.top}V${height - MARGIN.bottom}` });
    for (const name of drawn) {
      const value = lines[name][index];
      if (value !== null) make("circle", { class: `dot ${name}`, cx: x(data.budgets[index]), cy: y(value), r: name === "ctd" || name === "expected" ? 6 : 4 });
    }
  }

  function moveTo(event) {
    const box = chart.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    const distances = data.budgets.map((budget) => Math.abs(budget - 100 * share));
    slider.value = distances.indexOf(Math.min(...distances));
    show();
  }

  async function copy() {
    const code = document.getElementById("snippet");
    const status = document.getElementById("copied");
    try {
      await navigator.clipboard.writeText(code.textContent);
      status.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(code);
      status.textContent = "Selected: copy it with Ctrl+C.";
    }
  }

  slider.addEventListener("input", show);
  for (const radio of document.querySelectorAll("input[name=guarantee]")) {
    radio.addEventListener("change", () => { state.guarantee = radio.value; show(); });
  }
  for (const radio of document.querySelectorAll("input[name=figure]")) {
    radio.addEventListener("change", () => {
      state.figure = radio.value;
      for (const legend of document.querySelectorAll("[data-legend]")) {
        legend.hidden = (legend.dataset.legend === "rate") !== (state.figure === "rate");
      }
      show();
    });
  }
  chart.addEventListener("pointerdown", moveTo);
  chart.addEventListener("pointermove", (event) => { if (event.buttons & 1) moveTo(event); });
  document.getElementById("copy").addEventListener("click", copy);
  new ResizeObserver(() => draw(Number(slider.value))).observe(chart);
  slider.value = data.start;  // browsers restore an old position
  show();
})();
