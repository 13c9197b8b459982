(() => {
  const RUNS = DATA.curves, host = find("#panels");
  if (!RUNS.length || !host) return;
  const toneOf = run => tone(RUNS[run].run);
  const longest = Math.max(...RUNS.map(run => run.step.length));
  const state = { smoothing: longest > 1000 ? 0.95 : longest > 200 ? 0.9 : 0.6, along: "step", log: true, at: null };
  const unpack = (series, n) => (Array.isArray(series) ? series : Array.from({ length: n }, (_, i) => (i >= series.first && i <= series.last ? series.value : null)));
  const series = (run, name) => {
    const found = RUNS[run].series[name];
    return found ? unpack(found, RUNS[run].step.length) : null;
  };
  const names = [...new Set(RUNS.flatMap(run => Object.keys(run.series)))];
  const depth = name => name.split("/").length;
  const terms = names.filter(name => name.startsWith("terms/") && depth(name) === 2).sort((a, b) => (b === "terms/next_token") - (a === "terms/next_token"));
  const metrics = names.filter(name => name.startsWith("terms/") && depth(name) > 2);
  const chanceOf = name => name.replace("terms/", "chance/");
  const DASHES = [null, "8 4", "2 3", "12 3 2 3", "4 2"];

  /* A mean over the last points that begins again with each stage. */
  const smooth = (values, stage, weight) => {
    let mean = 0, n = 0, before = -1;
    return values.map((value, i) => {
      if (stage[i] !== before) { mean = 0; n = 0; before = stage[i]; }
      if (value === null) return null;
      n += 1;
      mean = weight * mean + (1 - weight) * value;
      return mean / (1 - weight ** n);
    });
  };
  const lines = name => RUNS.map((_, run) => ({ run, values: series(run, name) })).filter(line => line.values);

  const panels = [];
  const compared = terms.filter(name => RUNS.slice(0, 2).some((_, run) => series(run, chanceOf(name))));
  const relative = compared.flatMap((name, k) => RUNS.slice(0, 2).map((_, run) => {
    const values = series(run, name), chance = series(run, chanceOf(name));
    if (!values || !chance) return null;
    return { run, label: name.slice(6), dash: DASHES[k % DASHES.length], values: values.map((v, i) => (v === null || !chance[i] ? null : v / chance[i])) };
  })).filter(Boolean);
  if (relative.length > 1) panels.push({ title: `All terms, each as a share of its chance level${RUNS.length > 2 ? " (the first two runs)" : ""}`, wide: true, loss: true, share: true, lines: relative });
  const add = (title, name, more) => {
    const found = lines(name);
    if (!found.length) return;
    const run = RUNS.findIndex((_, i) => name.startsWith("terms/") && series(i, chanceOf(name)));
    panels.push({ title, lines: found, chance: run < 0 ? null : series(run, chanceOf(name)), chanceRun: run, ...more });
  };
  for (const name of terms) add(name.slice(6), name, { loss: true });
  for (const name of metrics) add(name.slice(6).replace("/", ", "), name, { share: lines(name).every(line => line.values.every(v => v === null || (v >= 0 && v <= 1))), metric: true });
  for (const name of names.filter(each => each.startsWith("val/"))) add(`validation: ${name.slice(4)}`, name, { sparse: true });
  if (RUNS.length === 1 && terms.length > 1) add("loss, the weighted sum", "loss", { loss: true });
  add("gradient norm", "grad_norm", { loss: true, flags: true });
  add("learning rate", "lr", { raw: true });
  add("tokens a second", "tokens_per_second", {});

  const WIDTH_OF_LABELS = 168;
  for (const panel of panels) {
    panel.read = make("div", { class: "read" });
    panel.chart = draw("svg", { class: "chart", role: "img", tabindex: "0" });
    host.append(make("figure", { class: `panel${panel.wide ? " wide" : ""}` }, make("span", { class: "title" }, panel.title), panel.read, panel.chart));
  }

  const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  const roundTicks = (low, high, n) => {
    const raw = (high - low) / n || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw), found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9 * step; v += step) found.push(+v.toPrecision(12));
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) for (const m of [1, 2, 5]) found.push(m * 10 ** e);
    const inside = found.filter(v => v >= low && v <= high);
    if (inside.length < 3) return roundTicks(low, high, 4);
    return inside.length > 6 ? inside.filter(v => /^1/.test(v.toExponential())) : inside;
  };
  const tick = v => {
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
    if (size >= 1e3) return `${+(v / 1e3).toPrecision(3)}k`;
    return size >= 1e-3 ? String(+v.toPrecision(3)) : v.toExponential(0).replace("-", "−");
  };
  const path = (xs, ys, x, y, joined) => {
    let d = "", down = false, last = -9;
    for (let i = 0; i < xs.length; i += 1) {
      if (ys[i] === null) { if (!joined) down = false; continue; }
      const at = x(xs[i]);
      if (down && at - last < 0.6 && i < xs.length - 1) continue;
      d += `${down ? "L" : "M"}${at.toFixed(1)} ${y(ys[i]).toFixed(1)}`;
      down = true;
      last = at;
    }
    return d;
  };
  /* From the least to the most of each pixel and a half. */
  const band = (xs, ys, x, y) => {
    const bins = new Map();
    xs.forEach((at, i) => {
      if (ys[i] === null) return;
      const bin = Math.round(x(at) / 1.5), value = y(ys[i]), found = bins.get(bin);
      bins.set(bin, found ? [Math.min(found[0], value), Math.max(found[1], value)] : [value, value]);
    });
    const keys = [...bins.keys()].sort((a, b) => a - b);
    if (!keys.length) return "";
    const upper = keys.map(k => `${k * 1.5} ${(bins.get(k)[0] - 0.5).toFixed(1)}`), lower = keys.reverse().map(k => `${k * 1.5} ${(bins.get(k)[1] + 0.5).toFixed(1)}`);
    return `M${upper.join("L")}L${lower.join("L")}Z`;
  };
  const UNITS = { step: "steps", tokens: "tokens", minutes: "minutes" };

  const paint = (panel, number) => {
    const width = Math.max(240, panel.chart.parentNode.clientWidth), height = panel.wide ? 280 : 190;
    const labels = panel.wide && width > 700, left = 48, right = labels ? WIDTH_OF_LABELS : 10, top = 20, bottom = 22;
    const log = state.log && panel.loss, xs = RUNS.map(run => run[state.along]);
    panel.chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    panel.chart.replaceChildren();
    for (const line of panel.lines) line.mean = panel.raw || panel.sparse ? line.values : smooth(line.values, RUNS[line.run].stage, state.smoothing);
    const usable = values => values.filter(v => v !== null && (!log || v > 0)).sort((a, b) => a - b);
    const means = usable(panel.lines.flatMap(line => line.mean)), raw = usable(panel.lines.flatMap(line => line.values));
    const chance = usable(panel.chance || []);
    const ends = [...means.slice(0, 1), ...means.slice(-1), ...chance.slice(0, 1), ...chance.slice(-1)];
    if (!panel.wide && raw.length) ends.push(quantile(raw, 0.01), quantile(raw, 0.995));
    if (panel.wide) ends.push(1);
    if (panel.flags && raw.length) ends.push(raw[raw.length - 1]);
    let low = Math.min(...ends), high = Math.max(...ends);
    if (!ends.length) { low = 0; high = 1; }
    if (panel.share && panel.metric) { low = 0; high = 1; } else if (log) { low /= 1.15; high *= 1.15; } else { low = Math.min(0, low); high = high * 1.05 || 1; }
    const most = Math.max(...xs.map(x => x[x.length - 1])) || 1;
    const x = v => left + (width - left - right) * v / most;
    const part = log ? v => (Math.log(Math.max(v, low * 1e-3)) - Math.log(low)) / (Math.log(high) - Math.log(low)) : v => (v - low) / (high - low);
    const y = v => top + (height - top - bottom) * (1 - part(v));
    const clip = `clip${number}`, add = (...elements) => panel.chart.append(...elements);
    add(draw("clipPath", { id: clip }, draw("rect", { x: left, y: top - 2, width: width - left - right, height: height - top - bottom + 4 })));
    const ticks = panel.share && panel.metric ? [0, 0.25, 0.5, 0.75, 1] : log ? logTicks(low, high) : roundTicks(low, high, 5);
    for (const v of ticks) add(draw("line", { class: "rule", x1: left, x2: width - right, y1: y(v), y2: y(v) }), draw("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, panel.share ? `${+(100 * v).toPrecision(4)} %` : tick(v)));
    const unit = draw("text", { x: width - right, y: height - 4, "text-anchor": "end" }, UNITS[state.along]);
    for (const v of roundTicks(0, most, width > 600 ? 8 : 4)) if (x(v) < width - right - 56) add(draw("text", { x: x(v), y: height - 4, "text-anchor": "middle" }, tick(v)));
    add(unit);
    const stageRuns = state.along === "step" ? [0] : RUNS.map((_, run) => run);
    for (const run of stageRuns) RUNS[run].stages.forEach((stage, j) => {
      const first = RUNS[run].stage.indexOf(j), at = x(j ? xs[run][first] : 0);
      if (j) add(draw("line", { class: stageRuns.length > 1 ? `stage ${toneOf(run)}` : "stage", x1: at, x2: at, y1: top - 14, y2: height - bottom }));
      if (run === stageRuns[0]) add(draw("text", { x: at + (j ? 5 : 0), y: top - 7 }, stage));
    });
    const inside = draw("g", { "clip-path": `url(#${clip})` });
    add(inside);
    if (panel.wide) inside.append(draw("line", { class: "chance", x1: left, x2: width - right, y1: y(1), y2: y(1) }));
    if (panel.chance) inside.append(draw("path", { class: "chance", d: path(xs[panel.chanceRun], smooth(panel.chance, RUNS[panel.chanceRun].stage, state.smoothing), x, y) }));
    if (!panel.wide && !panel.raw && !panel.sparse) for (const line of panel.lines) inside.append(draw("path", { class: `band ${toneOf(line.run)}`, d: band(xs[line.run], line.values, x, y) }));
    for (const line of panel.lines) {
      inside.append(draw("path", { class: `mean ${toneOf(line.run)}`, d: path(xs[line.run], line.mean, x, y, panel.sparse), "stroke-dasharray": line.dash || null }));
      if (panel.sparse) line.mean.forEach((v, i) => { if (v !== null) inside.append(draw("circle", { class: `dot ${toneOf(line.run)}`, r: 3, cx: x(xs[line.run][i]), cy: y(v) })); });
    }
    if (panel.flags) RUNS.forEach((run, i) => run.flagged.forEach(flag => {
      const place = run.step.findIndex(step => step >= flag.step), line = panel.lines.find(each => each.run === i);
      if (place < 0 || !line || line.values[place] === null) return;
      add(draw("path", { class: `flag ${toneOf(i)}`, d: `M${x(xs[i][place])} ${y(line.values[place]) - 6}l5 8h-10z` }, draw("title", {}, `${run.name}, step ${flag.step}: ${flag.kind}, ${flag.of.join(", ")}`)));
    }));
    if (labels) labelled(panel, { x, y, xs, width, right, height, bottom, add });
    panel.cursor = draw("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    add(panel.cursor);
    Object.assign(panel, { x, xs, most, left, right, width });
    tell(panel);
  };

  /* Names at the ends of lines, pushed apart. */
  const labelled = (panel, at) => {
    const found = panel.lines.map(line => {
      let i = line.mean.length - 1;
      while (i > 0 && line.mean[i] === null) i -= 1;
      const name = `${line.label}${RUNS.length > 1 ? ` · ${RUNS[line.run].name}` : ""}`;
      return { name: name.length > 25 ? `${name.slice(0, 24)}…` : name, x: at.x(at.xs[line.run][i]), y: at.y(line.mean[i]), end: i === line.mean.length - 1 };
    });
    const end = [...found.filter(label => label.end), { name: "chance", chance: true, y: at.y(1), end: true }].sort((a, b) => a.y - b.y);
    for (let i = 1; i < end.length; i += 1) end[i].y = Math.max(end[i].y, end[i - 1].y + 14);
    for (let i = end.length - 1, lowest = at.height - at.bottom + 4; i >= 0; i -= 1) { end[i].y = Math.min(end[i].y, lowest); lowest = end[i].y - 14; }
    for (const label of [...found.filter(each => !each.end), ...end]) at.add(draw("text", { class: label.chance ? null : "label", x: label.end ? at.width - at.right + 6 : label.x + 6, y: label.y + 4 }, label.name));
  };

  /* Writes the values at the place that is read, or at the end, into the heads of a panel. */
  const show = (panel, value) => (panel.share ? inPercent(value ?? null) : inDigits(value));
  const lastKnown = values => { for (let i = values.length - 1; i >= 0; i -= 1) if (values[i] !== null) return values[i]; return null; };
  const valueAt = (values, xs, at) => {
    if (at === null) return lastKnown(values);
    if (at > xs[xs.length - 1]) return null;
    let low = 0, high = xs.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < at) low = middle + 1; else high = middle; }
    return values[low];
  };
  const tell = panel => {
    panel.read.replaceChildren(...panel.lines.map(line => {
      const value = make("b", {}, show(panel, valueAt(line.mean, panel.xs[line.run], state.at)));
      if (!panel.wide) return make("span", {}, runKey(RUNS[line.run].run), value);
      const sample = draw("svg", { class: "sample", "aria-hidden": "true" }, draw("path", { class: `mean ${toneOf(line.run)}`, d: "M0 5H24", "stroke-dasharray": line.dash }));
      return make("span", {}, sample, `${line.label}\u2002`, value);
    }));
    if (panel.chance) panel.read.append(make("span", {}, draw("svg", { class: "sample", "aria-hidden": "true" }, draw("path", { class: "chance", d: "M0 5H22" })), show(panel, valueAt(panel.chance, panel.xs[panel.chanceRun], state.at))));
    if (state.at === null) {
      panel.cursor.setAttribute("visibility", "hidden");
      const ends = panel.lines.map(line => `${line.label ? `${line.label}, ` : ""}${RUNS[line.run].name} ${show(panel, lastKnown(line.mean))}`);
      panel.chart.setAttribute("aria-label", `${panel.title}. At the end: ${ends.join("; ")}${panel.chance ? `; chance ${show(panel, lastKnown(panel.chance))}` : ""}`);
    } else {
      panel.cursor.setAttribute("x1", panel.x(state.at));
      panel.cursor.setAttribute("x2", panel.x(state.at));
      panel.cursor.setAttribute("visibility", "visible");
    }
  };
  const read = at => {
    state.at = at;
    panels.forEach(tell);
    find("#where").textContent = at === null ? "" : state.along === "minutes" ? `at ${at.toFixed(1)} minutes` : `at ${state.along === "step" ? "step" : "token"} ${grouped(Math.round(at))}`;
  };
  const inRange = (panel, at) => Math.max(0, Math.min(panel.most, at));
  for (const panel of panels) {
    panel.chart.addEventListener("pointermove", event => {
      const box = panel.chart.getBoundingClientRect(), at = (event.clientX - box.left) * panel.width / box.width;
      read(inRange(panel, panel.most * (at - panel.left) / (panel.width - panel.left - panel.right)));
    });
    panel.chart.addEventListener("pointerleave", () => read(null));
    panel.chart.addEventListener("blur", () => read(null));
    panel.chart.addEventListener("keydown", event => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") read(null);
      if (!way) return;
      event.preventDefault();
      read(inRange(panel, (state.at ?? panel.most) + way * panel.most / (event.shiftKey ? 10 : 100)));
    });
  }
  const repaint = () => panels.forEach(paint);
  find("#smooth").addEventListener("input", event => { state.smoothing = +event.target.value; find("#smooth-value").textContent = state.smoothing.toFixed(2); repaint(); });
  find("#along").addEventListener("change", event => { state.along = event.target.value; state.at = null; repaint(); });
  find("#log").addEventListener("change", event => { state.log = event.target.checked; repaint(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; repaint(); } });
  find("#smooth").value = state.smoothing;
  find("#smooth-value").textContent = state.smoothing.toFixed(2);
  repaint();
})();
