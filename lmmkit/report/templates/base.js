const DATA = JSON.parse(find("#data").textContent);
const tone = run => `c${run < 6 ? run : "x"}`;
const SHAPES = [
  "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1 -5 0Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-5.5 5.5 4.5H-5.5Z", "M0-6 6 0 0 6-6 0Z",
  "M0 5.5 5.5-4.5H-5.5Z", "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z",
];
const runKey = run => draw("svg", { class: `key ${tone(run)}`, viewBox: "-6 -6 12 12", "aria-hidden": "true" }, draw("path", { d: SHAPES[run % 6] }));
const inPercent = value => (value === null ? "–" : `${(100 * value).toFixed(1)} %`.replace("-", "−"));
const grouped = n => n.toLocaleString("en");
function inDigits(value) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size >= 1000 ? grouped(Math.round(value)) : size < 1e-3 ? value.toExponential(1) : value.toFixed(size < 10 ? 3 : 1);
  return text.replace("-", "−");
}

(() => {
  document.documentElement.classList.add("js");

  const links = all(".bar nav a"), sections = links.map(link => find(link.hash));
  const mark = () => {
    let here = 0;
    sections.forEach((section, i) => { if (section.getBoundingClientRect().top < 140) here = i; });
    if (innerHeight + scrollY >= document.body.scrollHeight - 2) here = sections.length - 1;
    links.forEach((link, i) => (i === here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  const folds = all("details");
  let open = [];
  addEventListener("beforeprint", () => { open = folds.map(fold => fold.open); folds.forEach(fold => { fold.open = true; }); });
  addEventListener("afterprint", () => folds.forEach((fold, i) => { fold.open = open[i]; }));

  const copy = find("#copy");
  if (copy) copy.addEventListener("click", async () => {
    const commands = find("#commands");
    let done = "Copied";
    try { await navigator.clipboard.writeText(commands.textContent); } catch (error) {
      const range = document.createRange();
      range.selectNodeContents(commands);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = "Selected";
    }
    copy.textContent = done;
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
})();
