(() => {
  const samples = all(".one"), here = find("#here"), first = DATA.first;
  const near = 64; /* pixels from the top of the window, below the bar */
  let last = -1;
  /* The number of the sample at the top of the window; at the end of the page, the last one that was asked for. */
  const at = () => {
    let found = -1;
    samples.forEach((sample, i) => { if (sample.getBoundingClientRect().top <= near) found = i; });
    return scrollY > 0 && innerHeight + scrollY >= document.body.scrollHeight - 2 ? Math.max(found, last) : found;
  };
  const write = () => { here.textContent = at() < 0 ? `${samples.length} samples` : `sample ${first + at()}`; };
  const go = place => {
    if (!samples.length) return;
    last = Math.max(0, Math.min(samples.length - 1, place));
    samples[last].scrollIntoView({ behavior: "instant", block: "start" });
    samples[last].focus({ preventScroll: true });
    write();
  };
  find("#before").addEventListener("click", () => go(at() - 1));
  find("#after").addEventListener("click", () => go(at() + 1));
  addEventListener("scroll", write, { passive: true });
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "j") go(at() + 1);
    else if (event.key === "k") go(at() - 1);
    else return;
    event.preventDefault();
  });
  write();
})();
