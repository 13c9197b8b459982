(() => {
  const SAMPLES = DATA.samples, NAMES = DATA.names, CONDITIONS = DATA.conditions;
  if (!SAMPLES.length) return;
  const outcome = find("#f-outcome"), type = find("#f-type"), words = find("#f-text"), list = find("#list"), detail = find("#detail"), count = find("#f-count");
  const OWN = 0, CHUNK = 60, MODES = ["heat", "light", "off"];
  const IMAGE_NAMES = { own: "own image", blank: "blank", black: "black", swapped: "another’s", none: "no image", empty: "empty" };
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const isRight = (sample, run, condition = OWN) => sample.r[run][condition] >= 0.5;
  const imageAt = number => (number === null ? null : DATA.images[number] ?? find(`#u${number}`).getAttribute("href"));

  const outcomes = [["", "any", () => true]];
  NAMES.forEach((name, run) => outcomes.push([`wrong-${run}`, `${name} wrong`, s => !isRight(s, run)]));
  if (NAMES.length > 1) outcomes.push(
    ["differ", `${NAMES[0]} and ${NAMES[1]} answer differently`, s => s.a[0][OWN] !== s.a[1][OWN]],
    ["only-0", `only ${NAMES[0]} right`, s => isRight(s, 0) && NAMES.slice(1).every((_, i) => !isRight(s, i + 1))],
    ["only-1", `only ${NAMES[1]} right`, s => isRight(s, 1) && NAMES.every((_, i) => i === 1 || !isRight(s, i))],
    ["both-right", NAMES.length > 2 ? "all right" : "both right", s => NAMES.every((_, i) => isRight(s, i))],
    ["both-wrong", NAMES.length > 2 ? "all wrong" : "both wrong", s => NAMES.every((_, i) => !isRight(s, i))]);
  for (const control of ["blank", "swapped"]) if (CONDITIONS.includes(control)) NAMES.forEach((name, run) => outcomes.push([`${control}-${run}`, `${name} right with ${control === "blank" ? "a blank" : "another’s"} image`, s => isRight(s, run, CONDITIONS.indexOf(control))]));
  for (const [value, label] of outcomes) outcome.append(make("option", { value }, label));
  for (const name of [...new Set(SAMPLES.flatMap(s => s.t))].sort()) type.append(make("option", { value: name }, name));
  if (type.options.length === 1) type.parentNode.hidden = true;

  const text = SAMPLES.map(s => [s.q, s.g, s.k, ...s.a.flat()].join(" ").toLowerCase());
  let shown = [], at = 0, listed = 0, mode = "heat", ready = false;

  const mark = (sample, run, condition = OWN) => {
    const score = sample.r[run][condition];
    if (score === null) return make("span", { class: "mk", role: "img", "aria-label": "not scored" }, "?");
    const right = isRight(sample, run, condition), partly = score > 0 && score < 1;
    return make("span", { class: `mk ${right ? "ok" : "no"}`, role: "img", "aria-label": partly ? `score ${score.toFixed(2)}` : right ? "right" : "wrong" },
      draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: right ? "M3 8.5 6.5 12 13 4.5" : "M4 4 12 12M12 4 4 12" })));
  };
  const more = () => {
    for (const i of shown.slice(listed, listed + CHUNK)) {
      const sample = SAMPLES[i], place = listed, source = imageAt(sample.p[OWN]);
      const row = make("div", { class: "row", role: "option", id: `row${place}`, "aria-selected": "false", "aria-setsize": shown.length, "aria-posinset": place + 1 },
        source ? make("img", { src: source, alt: "" }) : make("span"), make("span", {}, sample.q, make("small", {}, sample.g)),
        make("span", { class: "marks" }, ...NAMES.slice(0, 2).map((_, run) => make("span", {}, NAMES.length > 1 ? runKey(DATA.runs[run]) : null, mark(sample, run)))));
      row.addEventListener("click", () => go(place, false));
      list.append(row);
      listed += 1;
    }
  };
  list.addEventListener("scroll", () => { if (list.scrollTop + list.clientHeight > list.scrollHeight - 300) more(); }, { passive: true });

  const filter = keep => {
    const fits = outcomes.find(each => each[0] === outcome.value)[2], wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = SAMPLES.map((_, i) => i).filter(i => fits(SAMPLES[i]) && (!type.value || SAMPLES[i].t.includes(type.value)) && wanted.every(word => text[i].includes(word)));
    count.textContent = `${grouped(shown.length)} of ${grouped(SAMPLES.length)}`;
    list.replaceChildren();
    list.scrollTop = 0;
    listed = 0;
    more();
    if (shown.length) { go(Math.max(0, shown.indexOf(keep)), shown.includes(keep)); return; }
    detail.replaceChildren();
    list.removeAttribute("aria-activedescendant");
    list.append(make("p", { class: "empty" }, "No question fits this filter."));
    remember();
  };
  const go = (place, scroll = true) => {
    if (!shown.length) return;
    at = Math.max(0, Math.min(shown.length - 1, place));
    while (listed <= at) more();
    for (const row of all('[aria-selected="true"]', list)) row.setAttribute("aria-selected", "false");
    const row = find(`#row${at}`);
    row.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", row.id);
    if (scroll) {
      if (row.offsetTop < list.scrollTop) list.scrollTop = row.offsetTop;
      else if (row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = row.offsetTop + row.offsetHeight - list.clientHeight;
    }
    remember();
    paint();
  };
  /* The address leads to this question under this filter. */
  const remember = () => {
    if (!ready) return;
    const parts = { outcome: outcome.value, type: type.value, text: words.value, at: shown.length ? SAMPLES[shown[at]].k : "" };
    const query = new URLSearchParams(Object.entries(parts).filter(([, value]) => value));
    try { history.replaceState(null, "", `#samples?${query}`); } catch (error) { /* some browsers refuse for files */ }
  };

  const RAMP = [[20, 11, 53], [114, 31, 129], [205, 64, 113], [251, 135, 97], [252, 253, 191]];
  const heat = v => {
    const place = v * (RAMP.length - 1), i = Math.min(RAMP.length - 2, Math.floor(place));
    return `rgb(${RAMP[i].map((a, k) => Math.round(a + (place - i) * (RAMP[i + 1][k] - a)))})`;
  };
  const overlay = ([map, , , peak, rows, columns]) => {
    const bytes = atob(map), layer = draw("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true", "shape-rendering": "crispEdges" });
    for (let i = 0; i < bytes.length; i += 1) {
      const v = bytes.charCodeAt(i) / 255;
      const look = mode === "heat" ? { fill: heat(v), opacity: (0.08 + 0.8 * v).toFixed(3) } : { fill: "#000", opacity: (0.92 * (1 - v) ** 1.3).toFixed(3) };
      layer.append(draw("rect", { x: i % columns, y: Math.floor(i / columns), width: 1, height: 1, ...look }, draw("title", {}, inPercent(v * peak))));
    }
    return layer;
  };
  const square = (source, alt, fit, more = "") => make("div", { class: `square ${source ? fit : ""} ${more}` }, source ? make("img", { src: source, alt }) : null);
  const rampBar = () => {
    const n = 24, colour = v => (mode === "heat" ? heat(v) : `rgb(${Array(3).fill(Math.round(17 + 221 * v))})`);
    return draw("svg", { viewBox: `0 0 ${n} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...Array.from({ length: n }, (_, i) => draw("rect", { x: i, width: 1.1, height: 1, fill: colour(i / (n - 1)) })));
  };
  const looks = sample => {
    const modes = make("span", { class: "seg", role: "group", "aria-label": "How attention is shown" }, ...MODES.map(each => {
      const button = make("button", { type: "button", "aria-pressed": String(mode === each) }, each);
      button.addEventListener("click", () => { mode = each; paint(); find('.seg [aria-pressed="true"]', detail).focus(); });
      return button;
    }));
    const maps = make("div", { class: `maps ${mode}` }, ...NAMES.map((name, run) => {
      const look = sample.h[run];
      if (!look) return null;
      const box = square(imageAt(sample.p[OWN]), `The image with the attention of ${name}`, DATA.fits[run]);
      if (mode !== "off") box.append(overlay(look));
      return make("figure", {}, box, make("figcaption", {}, make("span", {}, runKey(DATA.runs[run]), `${name}: `, make("b", {}, inPercent(look[1])), " on the image"), make("span", {}, `even ${inPercent(look[2])}, most on one patch ${inPercent(look[3])}`)));
    }));
    return [
      make("div", { class: "sub" }, make("h4", {}, "Attention of the answer, on its own image"), mode === "off" ? null : make("span", { class: "ramp" }, "none", rampBar(), "most"), modes), maps,
      make("p", { class: "note" }, "From each run’s own answer to the patches of the image: the mean over heads, layers and rows of the answer. Each map is scaled to its own largest patch."),
    ];
  };
  const paint = () => {
    const sample = SAMPLES[shown[at]];
    const heads = CONDITIONS.map((name, c) => make("th", { scope: "col" }, square(imageAt(sample.p[c]), IMAGE_NAMES[name], DATA.fits[0], name === "none" || name === "black" ? name : ""), IMAGE_NAMES[name]));
    const rows = NAMES.map((name, run) => make("tr", {}, make("th", { scope: "row" }, runKey(DATA.runs[run]), name), ...sample.a[run].map((answer, c) => make("td", {},
      answer === null ? "–" : make("span", { class: "answer" }, mark(sample, run, c), make("span", {}, answer || make("i", { class: "ci" }, "(nothing)")))))));
    detail.replaceChildren(
      make("h3", {}, sample.q),
      make("p", { class: "facts" }, make("span", {}, "right answer ", make("b", {}, sample.g || "not public")), sample.m === null ? null : make("span", {}, `commonest answer ${sample.m}`), sample.t.length ? make("span", {}, sample.t.join(", ")) : null, make("span", {}, sample.k)),
      make("table", { class: "matrix" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "sr" }, "run")), ...heads)), make("tbody", {}, ...rows)),
      ...(sample.h.some(Boolean) ? looks(sample) : [make("p", { class: "note" }, "Attention was not measured for this question.")]));
  };

  for (const select of [outcome, type]) select.addEventListener("change", () => filter());
  words.addEventListener("input", () => filter());
  find("#filters").addEventListener("submit", event => event.preventDefault());
  const reset = () => {
    const keep = shown[at];
    outcome.value = type.value = words.value = "";
    filter(keep);
  };
  find("#f-reset").addEventListener("click", reset);
  const jump = () => find("#samples").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  for (const button of all("[data-filter-type]")) button.addEventListener("click", () => { type.value = button.dataset.filterType; outcome.value = words.value = ""; filter(); jump(); });
  for (const button of all("[data-filter-outcome]")) button.addEventListener("click", () => { outcome.value = button.dataset.filterOutcome; type.value = words.value = ""; filter(); jump(); });
  const keys = find("#keys");
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    const inList = event.target === list, box = find("#samples").getBoundingClientRect();
    if ("jkax".includes(event.key) && (box.top > innerHeight * 0.8 || box.bottom < 0)) jump();
    if (event.key === "j" || (inList && event.key === "ArrowDown")) go(at + 1);
    else if (event.key === "k" || (inList && event.key === "ArrowUp")) go(at - 1);
    else if (inList && event.key === "Home") go(0);
    else if (inList && event.key === "End") go(shown.length - 1);
    else if (event.key === "/") { jump(); words.focus(); }
    else if (event.key === "x") reset();
    else if (event.key === "a" && shown.length) { mode = MODES[(MODES.indexOf(mode) + 1) % MODES.length]; paint(); }
    else if (event.key === "h" || event.key === "?") keys.showModal();
    else return;
    event.preventDefault();
  });

  const open = () => {
    const [place, query] = location.hash.split("?");
    if (place !== "#samples" || !query) return false;
    const asked = new URLSearchParams(query);
    for (const [name, field] of [["outcome", outcome], ["type", type], ["text", words]]) {
      field.value = asked.get(name) || "";
      if (field.selectedIndex < 0) field.value = "";
    }
    filter(SAMPLES.findIndex(sample => sample.k === asked.get("at")));
    find("#samples").scrollIntoView();
    return true;
  };
  addEventListener("hashchange", open);
  if (!open()) filter();
  ready = true;
})();
