(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const host = document.getElementById("plot");
  if (!host || data.points.length === 0) return;
  const detail = document.getElementById("plot-detail");
  const chooser = document.getElementById("plot-x");
  const bars = document.getElementById("plot-bars");
  const SVG = "http://www.w3.org/2000/svg";
  let chosen = Math.max(0, data.points.findIndex((point) => point.mark === "best"));

  const CAPTIONS = {
    best: "the result: fits",
    trial: "fits the budget",
    missed: "misses a limit",
    int8: "int8 only",
    baseline: "baseline",
  };

  function svg(name, attributes, ...children) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function html(name, className, ...children) {
    const node = document.createElement(name);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }

  function niceTicks(low, high, count) {
    const span = high - low || Math.abs(high) || 1;
    const raw = span / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high * (1 + 1e-12) + 1e-12; n += 1) ticks.push(n * step);
    return ticks;
  }

  function unitOf(axis, high) {
    if (axis.unit === "bytes") return high >= 1048576 ? [1048576, "MiB"] : high >= 1024 ? [1024, "KiB"] : [1, "B"];
    if (axis.unit === "count") return high >= 1e9 ? [1e9, "G"] : high >= 1e6 ? [1e6, "M"] : high >= 1e3 ? [1e3, "k"] : [1, ""];
    if (axis.unit === "ms") return high >= 2000 ? [1000, "s"] : high < 1 ? [0.001, "µs"] : [1, "ms"];
    return high < 1 ? [0.001, "µJ"] : [1, axis.unit];
  }

  function plain(value) {
    return String(Number(value.toPrecision(6)));
  }

  const SHAPES = {
    best: (r) => {
      const corners = [];
      for (let k = 0; k < 10; k += 1) {
        const radius = (k % 2 === 0 ? 1.75 : 0.75) * r;
        const angle = (Math.PI / 5) * k - Math.PI / 2;
        corners.push(`${(radius * Math.cos(angle)).toFixed(2)},${(radius * Math.sin(angle)).toFixed(2)}`);
      }
      return svg("polygon", { points: corners.join(" "), class: "shape" });
    },
    int8: (r) => svg("path", { d: `M0 ${-r * 1.3}L${r * 1.3} 0L0 ${r * 1.3}L${-r * 1.3} 0Z`, class: "shape" }),
    baseline: (r) => svg("rect", { x: -r, y: -r, width: 2 * r, height: 2 * r, class: "shape" }),
    trial: (r) => svg("circle", { r: r, class: "shape" }),
    missed: (r) => svg("circle", { r: r * 0.9, class: "shape" }),
  };

  function range(points, key) {
    const highs = points.map((p) => p.values[key].high);
    return Math.max(...highs);
  }

  function accuracyRange(points) {
    const lows = points.map((p) => (p.accuracy.low === null ? p.accuracy.value : p.accuracy.low));
    const highs = points.map((p) => (p.accuracy.high === null ? p.accuracy.value : p.accuracy.high));
    if (data.floor !== null) { lows.push(data.floor); highs.push(data.floor); }
    const low = Math.min(...lows);
    const high = Math.max(...highs);
    const margin = Math.max((high - low) * 0.08, 0.003);
    return [Math.max(0, low - margin), Math.min(1.005, high + margin)];
  }

  function staircase(points, key) {
    const sorted = points
      .filter((p) => p.mark === "trial" || p.mark === "best")
      .sort((a, b) => a.values[key].value - b.values[key].value || b.accuracy.value - a.accuracy.value);
    const front = [];
    for (const point of sorted) {
      if (front.length === 0 || point.accuracy.value > front[front.length - 1].accuracy.value) front.push(point);
    }
    return front;
  }

  function describe(point) {
    const facts = html("dl");
    for (const [name, text] of point.facts) facts.append(html("dt", "", name), html("dd", "", text));
    const parts = [html("h3", "", point.caption), facts];
    if (point.recipe.length > 0) {
      const steps = html("dl");
      for (const [name, text] of point.recipe) steps.append(html("dt", "", name), html("dd", "", text || "defaults"));
      parts.push(html("div", "recipe", steps));
    }
    for (const note of point.notes) parts.push(html("p", "detail", note));
    detail.replaceChildren(...parts);
  }

  function choose(index, focus) {
    chosen = index;
    describe(data.points[index]);
    for (const node of host.querySelectorAll(".point")) {
      const isIt = Number(node.dataset.index) === index;
      node.classList.toggle("chosen", isIt);
      node.setAttribute("tabindex", isIt ? "0" : "-1");
      if (isIt && focus) node.focus();
    }
  }

  function draw() {
    const axis = data.axes.find((a) => a.key === chooser.value);
    const points = data.points.filter((p) => p.values[axis.key] && p.accuracy.value !== null);
    const width = Math.max(300, host.clientWidth);
    const height = Math.round(Math.min(430, Math.max(280, width * 0.62)));
    const box = { left: 54, right: 14, top: 22, bottom: 44 };
    let xHigh = range(points, axis.key);
    if (axis.limit !== null && axis.limit < xHigh * 3) xHigh = Math.max(xHigh, axis.limit);
    xHigh *= 1.05;
    const [yLow, yHigh] = accuracyRange(points);
    const x = (v) => box.left + (v / xHigh) * (width - box.left - box.right);
    const y = (v) => height - box.bottom - ((v - yLow) / (yHigh - yLow)) * (height - box.top - box.bottom);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `accuracy against ${axis.label}` });
    const [factor, unit] = unitOf(axis, xHigh);
    const isLimited = axis.limit !== null && axis.limit <= xHigh;

    for (const tick of niceTicks(0, xHigh / factor, width / 110)) {
      const at = x(tick * factor);
      root.append(svg("line", { x1: at, x2: at, y1: box.top, y2: height - box.bottom, class: "grid-line" }));
      root.append(svg("text", { x: at, y: height - box.bottom + 17, "text-anchor": "middle", class: "plot-text" }, plain(tick)));
    }
    for (const tick of niceTicks(yLow * 100, Math.min(yHigh, 1) * 100, height / 60)) {
      const at = y(tick / 100);
      root.append(svg("line", { x1: box.left, x2: width - box.right, y1: at, y2: at, class: "grid-line" }));
      root.append(svg("text", { x: box.left - 8, y: at + 4, "text-anchor": "end", class: "plot-text" }, plain(tick)));
    }
    root.append(svg("text", { x: width - box.right, y: height - 8, "text-anchor": "end", class: "plot-text" }, `${axis.label}${unit ? `, ${unit}` : ""}`));
    root.append(svg("text", { x: 4, y: 12, class: "plot-text" }, "Accuracy, %"));

    const right = isLimited ? x(axis.limit) : width - box.right;
    const bottom = data.floor !== null ? y(Math.max(yLow, data.floor)) : height - box.bottom;
    if (isLimited || data.floor !== null) {
      root.append(svg("rect", { x: box.left, y: box.top, width: Math.max(0, right - box.left), height: Math.max(0, bottom - box.top), class: "feasible" }));
    }
    if (isLimited) {
      root.append(svg("line", { x1: right, x2: right, y1: box.top, y2: height - box.bottom, class: "limit-line" }));
      const flip = right > width - 110;
      root.append(svg("text", { x: right + (flip ? -6 : 6), y: box.top + 11, "text-anchor": flip ? "end" : "start", class: "limit-text" }, axis.limit_text));
    }
    if (data.floor !== null) {
      root.append(svg("line", { x1: box.left, x2: width - box.right, y1: bottom, y2: bottom, class: "limit-line" }));
      root.append(svg("text", { x: width - box.right - 4, y: bottom - 6, "text-anchor": "end", class: "limit-text" }, data.floor_text));
    }
    const front = staircase(points, axis.key);
    if (front.length > 1) {
      const path = front.map((p, k) => {
        const px = x(p.values[axis.key].value);
        const py = y(p.accuracy.value);
        return k === 0 ? `M${px} ${py}` : `H${px}V${py}`;
      });
      root.append(svg("path", { d: path.join(""), class: "front-line" }));
    }

    const order = points.slice().sort((a, b) => a.values[axis.key].value - b.values[axis.key].value);
    for (const point of order.slice().sort((a, b) => (a.mark === "best") - (b.mark === "best"))) {
      const index = data.points.indexOf(point);
      const value = point.values[axis.key];
      const group = svg("g", {
        class: `point mark-${point.mark}${point.is_measured ? "" : " screened"}`, transform: `translate(${x(value.value)} ${y(point.accuracy.value)})`,
        role: "img", tabindex: index === chosen ? "0" : "-1", "data-index": index,
        "aria-label": `${point.caption}: ${point.facts.map((f) => f.join(" ")).join(", ")}`,
      });
      if (bars.checked) {
        const middle = x(value.value);
        if (value.high > value.low) {
          group.append(svg("line", { x1: x(value.low) - middle, x2: x(value.high) - middle, y1: 0, y2: 0, class: "error-bar" }));
        }
        if (point.accuracy.low !== null) {
          const centre = y(point.accuracy.value);
          group.append(svg("line", { x1: 0, x2: 0, y1: y(Math.max(yLow, point.accuracy.low)) - centre, y2: y(point.accuracy.high) - centre, class: "error-bar" }));
        }
      }
      group.append(svg("circle", { r: 11, class: "halo" }));
      group.append(svg("circle", { r: 14, fill: "transparent" }));
      group.append(SHAPES[point.mark](6));
      group.addEventListener("mouseenter", () => choose(index, false));
      group.addEventListener("focus", () => { if (chosen !== index) choose(index, false); });
      group.addEventListener("click", () => choose(index, true));
      group.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = order[(order.indexOf(point) + step + order.length) % order.length];
        choose(data.points.indexOf(next), true);
      });
      root.append(group);
    }
    host.replaceChildren(root);
    choose(points.includes(data.points[chosen]) ? chosen : data.points.indexOf(points[0]), false);
  }

  function drawLegend() {
    const legend = document.getElementById("plot-legend");
    for (const mark of Object.keys(CAPTIONS)) {
      if (!data.points.some((p) => p.mark === mark)) continue;
      const icon = svg("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true", class: `mark-${mark}` });
      icon.append(SHAPES[mark](5));
      legend.append(html("span", "", icon, CAPTIONS[mark]));
    }
    if (data.points.some((p) => !p.is_measured && p.accuracy.value !== null)) {
      legend.append(html("span", "", "paler: judged on the selection set, not on the evaluation set"));
    }
  }

  const axes = data.axes.filter((axis) => data.points.some((p) => p.values[axis.key] && p.accuracy.value !== null));
  if (axes.length === 0) {
    host.append(html("p", "section-lead", "No accuracy is known for any trial, so there is nothing to plot."));
    return;
  }
  for (const axis of axes) {
    const option = html("option", "", axis.label);
    option.value = axis.key;
    chooser.append(option);
  }
  const limited = axes.find((axis) => axis.key === "latency") || axes[0];
  chooser.value = limited.key;
  chooser.addEventListener("change", draw);
  bars.addEventListener("change", draw);
  let lastWidth = 0;
  new ResizeObserver(() => {
    if (Math.abs(host.clientWidth - lastWidth) < 1) return;
    lastWidth = host.clientWidth;
    draw();
  }).observe(host);
  drawLegend();
  lastWidth = host.clientWidth;
  draw();
})();
