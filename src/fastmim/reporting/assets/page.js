"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("fastmim-report").textContent);
  const galleries = JSON.parse(document.getElementById("fastmim-pictures").textContent);
  root.classList.add("js");
  let busy = 0; // when the reader last changed something: the page does not reload under their hands

  // Theme: the system's, until the button is pressed.
  const theme = document.getElementById("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // Pictures: a slider over the steps.
  for (const gallery of document.querySelectorAll("[data-gallery]")) {
    const found = galleries[gallery.dataset.gallery];
    const slider = gallery.querySelector("input");
    if (!slider) continue;
    const label = gallery.querySelector("output");
    const rows = [...gallery.querySelectorAll("[data-row]")].map((row) => [...row.querySelectorAll("img")]);
    slider.addEventListener("input", () => {
      busy = Date.now();
      const frame = found.frames[slider.value];
      rows.forEach((images, row) => images.forEach((image, column) => {
        const picture = frame[row] && frame[row][column];
        if (picture !== undefined) image.src = found.pictures[picture];
      }));
      label.textContent = "step " + found.steps[slider.value].toLocaleString("en");
      slider.setAttribute("aria-valuetext", label.textContent);
    });
  }

  // Charts: values under the pointer, and zooming by dragging along the steps.
  const svgNS = "http://www.w3.org/2000/svg";
  const element = (name, attributes, parent) => {
    const made = document.createElementNS(svgNS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.appendChild(made);
    return made;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 0.001) return value.toExponential(2).replace(/\.?0+e/, "e");
    if (size >= 1e9) return +(value / 1e9).toPrecision(4) + "G";
    if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
    return (size < 1000 ? +value.toPrecision(4) : Math.round(value)).toLocaleString("en", { maximumFractionDigits: 6 });
  };
  const ticks = (low, high, most) => {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    for (const factor of [1, 2, 5, 10, 20, 50]) {
      const width = factor * power;
      const first = Math.ceil(low / width - 1e-9);
      const last = Math.floor(high / width + 1e-9);
      if (last - first + 1 > most) continue;
      return Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * width).toPrecision(12));
    }
    return [];
  };

  const TOP = 16, BOTTOM = 26, UNITS = 1000;
  const charts = [...document.querySelectorAll(".chart.steps")].map((svg) => {
    const { name, scale, low, high, log, last } = svg.dataset;
    const lines = data.runs.filter((run) => run.metrics[name]).map((run) => ({ run, ...run.metrics[name] }));
    const bounds = log === "1" ? [Math.log10(low), Math.log10(high)] : [+low, +high];
    const height = svg.getAttribute("height") - TOP - BOTTOM;
    const value = svg.closest("figure").querySelector(".value");
    return {
      svg, lines, bounds, height, value, scale: +scale, log: log === "1", last: +last, usual: value.textContent,
      plot: svg.querySelector(".plot"), range: [0, +last],
    };
  });
  const transform = (chart, value) => (chart.log ? Math.log10(Math.max(value, 1e-300)) : value);

  const visibleBounds = (chart) => {
    const [from, to] = chart.range;
    if (from === 0 && to === chart.last) return chart.bounds;
    let low = Infinity, high = -Infinity;
    for (const line of chart.lines) line.steps.forEach((step, i) => {
      if (step < from || step > to) return;
      const value = transform(chart, line.values[i] * chart.scale);
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
    if (!(low < high)) return chart.bounds;
    const margin = 0.06 * (high - low);
    return [low - margin, high + margin];
  };

  const redraw = (chart) => {
    const { svg, plot, height, range: [from, to], bounds: [low, high] } = chart;
    const [bottom, top] = visibleBounds(chart);
    const y = UNITS * (1 - (top - low) / (high - low));
    plot.setAttribute("viewBox", [from, y, to - from, (UNITS * (top - bottom)) / (high - low)].join(" "));
    svg.parentElement.querySelectorAll(".tick, .grid").forEach((old) => old.remove());
    const values = svg.previousElementSibling;
    for (const tick of ticks(bottom, top, 4)) {
      if (chart.log && tick !== Math.round(tick)) continue;
      const place = TOP + height * (1 - (tick - bottom) / (top - bottom));
      svg.prepend(element("line", { class: "grid", x1: 0, x2: "100%", y1: place, y2: place }, svg));
      element("text", { class: "tick end", x: 38, y: place + 4 }, values).textContent = short(chart.log ? 10 ** tick : tick);
    }
    for (const tick of ticks(from, to, 6)) {
      const share = (tick - from) / (to - from);
      const anchor = share < 0.03 ? "start" : share > 0.97 ? "end" : "middle";
      const place = { class: "tick step " + anchor, x: 100 * share + "%", y: TOP + height + 18 };
      element("text", place, svg).textContent = short(tick);
    }
    for (const mark of svg.querySelectorAll(".mark")) {
      const share = (mark.dataset.step - from) / (to - from);
      mark.setAttribute("visibility", share >= 0 && share <= 1 ? "visible" : "hidden");
      for (const key of ["x1", "x2"]) mark.setAttribute(key, 100 * Math.min(Math.max(share, 0), 1) + "%");
    }
  };

  const zoom = (from, to) => {
    busy = Date.now();
    const whole = from === undefined;
    document.body.classList.toggle("zoomed", !whole);
    for (const chart of charts) {
      chart.range = whole ? [0, chart.last] : [from, to];
      redraw(chart);
    }
  };

  const nearest = (steps, step) => {
    let first = 0, last = steps.length - 1;
    while (last - first > 1) {
      const middle = (first + last) >> 1;
      if (steps[middle] < step) first = middle; else last = middle;
    }
    return Math.abs(steps[first] - step) <= Math.abs(steps[last] - step) ? first : last;
  };

  for (const chart of charts) {
    const { svg, lines } = chart;
    let cursor, selection, start;
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      return { share, step: chart.range[0] + share * (chart.range[1] - chart.range[0]) };
    };
    const leave = () => {
      if (cursor) cursor.remove();
      cursor = undefined;
      chart.value.textContent = chart.usual;
    };
    svg.addEventListener("pointermove", (event) => {
      const { share, step } = at(event);
      cursor = cursor || element("line", { class: "cursor", y1: TOP, y2: TOP + chart.height }, svg);
      for (const key of ["x1", "x2"]) cursor.setAttribute(key, 100 * share + "%");
      const shown = lines.slice(0, 3).map((line) => short(line.values[nearest(line.steps, step)] * chart.scale));
      chart.value.textContent = shown.join(" · ") + (lines.length > 3 ? " …" : "") + " at step " + short(Math.round(step));
      if (selection) {
        selection.setAttribute("x", 100 * Math.min(start.share, share) + "%");
        selection.setAttribute("width", 100 * Math.abs(share - start.share) + "%");
      }
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0) return;
      event.preventDefault();
      start = at(event);
      svg.setPointerCapture(event.pointerId);
      selection = element("rect", { class: "selection", y: TOP, height: chart.height, x: 0, width: 0 }, svg);
    });
    svg.addEventListener("pointerup", (event) => {
      if (!selection) return;
      selection.remove();
      selection = undefined;
      const end = at(event);
      if (Math.abs(end.share - start.share) > 0.02) {
        zoom(Math.min(start.step, end.step), Math.max(start.step, end.step));
      }
    });
    svg.addEventListener("dblclick", () => zoom());
  }
  const reset = document.getElementById("reset");
  if (reset) reset.addEventListener("click", () => zoom());
  addEventListener("keydown", (event) => { if (event.key === "Escape" && charts.length) zoom(); });

  // Live: the page is written again while the run goes on.
  const seconds = +root.dataset.reload;
  if (seconds) setInterval(() => {
    if (Date.now() - busy > 30000 && !document.body.classList.contains("zoomed")) location.reload();
  }, 1000 * seconds);
})();
