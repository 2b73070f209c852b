"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // ---- theme: the system's, or the reader's own choice, kept where the browser allows it
  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("posttrain-theme"); } catch { return null; } };
  const toggle = document.querySelector("[data-theme-toggle]");
  const setTheme = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
    toggle.dataset.now = theme;
    toggle.querySelector("span").textContent = theme[0].toUpperCase() + theme.slice(1);
    toggle.setAttribute("aria-label", `Theme: ${theme}. Change`);
  };
  const asked = new URLSearchParams(location.search).get("theme") || stored();
  setTheme(themes.includes(asked) ? asked : "auto");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(toggle.dataset.now) + 1) % themes.length];
    setTheme(next);
    try { localStorage.setItem("posttrain-theme", next); } catch { /* kept for this page only */ }
  });

  // ---- curves: what the values are under the pointer
  const written = (value, unit) => {
    if (unit === "share") return `${(100 * value).toFixed(1)}\u202f%`;
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("-", "\u2212");
    const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
    return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits }).replace("-", "\u2212").replaceAll(",", "\u202f");
  };
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (steps[middle] < step) low = middle; else high = middle; }
    return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
  };
  const made = (tag, name, parent, text = "") => {
    const element = document.createElement(tag);
    element.className = name;
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const place = (value, [low, high, log]) =>
    log ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low);

  const reader = (figure) => {
    const data = JSON.parse(figure.dataset.readout);
    const plot = figure.querySelector(".plot");
    const steps = [...new Set(data.series.flatMap((series) => series.x))].sort((a, b) => a - b);
    let shown = [], current = -1;
    const clear = () => { shown.forEach((element) => element.remove()); shown = []; };
    const show = (index) => {
      clear();
      current = clamp(index, 0, steps.length - 1);
      const step = steps[current];
      const left = place(step, data.x);
      const cross = made("div", "cross", plot);
      cross.style.left = `${100 * left}%`;
      const epoch = data.epochs_per_step ? `, epoch ${(step * data.epochs_per_step).toFixed(2)}` : "";
      const tip = made("div", "tip", plot);
      made("b", "", tip, `step ${step.toLocaleString("en").replaceAll(",", "\u202f")}${epoch}`);
      shown.push(cross, tip);
      for (const series of data.series) {
        const at = nearest(series.x, step);
        const own = series.x[at], value = series.y[at];
        const row = made("span", `c-${series.colour}`, tip, own === step ? series.label : `${series.label} (step ${own})`);
        made("em", "", row, written(value, data.unit));
        const dot = made("div", `cross-dot c-${series.colour}`, plot);
        dot.style.left = `${100 * place(own, data.x)}%`;
        const edge = series.at ? series.at[at] : value;  // a layer's dot stands on its upper edge
        dot.style.top = `${100 * (1 - clamp(place(edge, data.y), 0, 1))}%`;
        shown.push(dot);
      }
      const room = plot.clientWidth, width = tip.offsetWidth, x = left * room;
      tip.style.left = `${x + 14 + width > room ? Math.max(x - 14 - width, -40) : x + 14}px`;
    };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const share = clamp((event.clientX - box.left) / box.width, 0, 1);
      show(nearest(steps, data.x[0] + share * (data.x[1] - data.x[0])));
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(current < 0 ? (move > 0 ? 0 : steps.length - 1) : current + move);
    });
  };
  all("figure[data-readout]").forEach(reader);

  const FIRST_ANSWERS = 8;
  // ---- answers: search, suite, changed scores only
  const filters = document.querySelector("[data-filters]");
  if (filters) {
    const search = filters.querySelector("[data-search]");
    const suite = filters.querySelector("[data-suite]");
    const moved = filters.querySelector("[data-moved]");
    const cards = all("[data-suite-name]").map((card) => ({
      card, more: card.querySelector("[data-more]"), open: false, rows: all("[data-answer]", card).map((row) => ({ row, text: row.textContent.toLowerCase() })),
    }));
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0, total = 0;
      const filtered = words.length > 0 || moved.checked;
      for (const each of cards) {
        const { card, rows, more } = each;
        const wanted = !suite || !suite.value || card.dataset.suiteName === suite.value;
        let left = 0;
        for (const { row, text } of rows) {
          const fits = wanted && words.every((word) => text.includes(word)) && (!moved.checked || "hasMoved" in row.dataset);
          left += fits;
          row.hidden = !fits || (!filtered && !each.open && left > FIRST_ANSWERS);
        }
        more.hidden = filtered || each.open || left <= FIRST_ANSWERS;
        card.hidden = left === 0;
        count += left;
        total += rows.length;
      }
      filters.querySelector("[data-shown]").textContent = count === total ? "" : `${count} of ${total} shown`;
    };
    for (const each of cards) each.more.addEventListener("click", () => { each.open = true; apply(); });
    filters.hidden = false;
    apply();
    filters.addEventListener("input", apply);
    filters.addEventListener("change", apply);
  }

  // ---- copying
  const copyText = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* older browsers, or a file opened from disk */ }
    const area = made("textarea", "unseen", document.body, text);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const button of all("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async (event) => {
      event.preventDefault();
      const done = await copyText(button.closest(".code").querySelector("pre").textContent);
      button.textContent = done ? "Copied" : "Select and copy by hand";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  // ---- paper shows what is folded, for it cannot be opened there
  addEventListener("beforeprint", () => all("details").forEach((fold) => { fold.open = true; }));
})();
