(() => {
  let kept = null;
  try { kept = localStorage.getItem("lmmkit-theme"); } catch (error) { /* a file may have no storage */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
