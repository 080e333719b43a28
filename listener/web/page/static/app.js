/* Theme, times in the reader's zone, keyboard, ticks, and charts. Without this file all works but the live updates. */
"use strict";

(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Theme: "system" unless the reader has chosen. Set before the first paint.
  const THEMES = ["system", "light", "dark"];
  const stored = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  let theme = THEMES.includes(stored()) ? stored() : "system";
  const applyTheme = () => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const name = document.querySelector("[data-theme-name]");
    if (name) name.textContent = theme;
    document.dispatchEvent(new Event("themed"));
  };
  applyTheme();
  dark.addEventListener("change", applyTheme);

  // Times: the server writes UTC, which stays in the title.
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const year = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
  const localTime = (at) => {
    const now = new Date();
    if (at.toDateString() === now.toDateString()) return clock.format(at);
    return `${(at.getFullYear() === now.getFullYear() ? day : year).format(at)}, ${clock.format(at)}`;
  };
  const localize = (part) => {
    for (const time of part.querySelectorAll("time[datetime]")) {
      const text = localTime(new Date(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // Charts.
  const WINDOW = 15 * 60;
  const AWAY = 30; // seconds without points after which the whole series is read again
  const CHARTS = {
    accepted: { unit: "rate", lines: (data) => [["accepted", data.accepted, 1]] },
    failed: { unit: "rate", lines: (data) => Object.keys(data.failed).map((code, index) => [code, data.failed[code], index + 2 > 6 ? 6 : index + 2]) },
    oldest_due: { unit: "time", lines: (data) => [["oldest due", data.oldest_due, 3]] },
    latency: { unit: "time", lines: (data) => [["p50", data.p50, 5], ["p99", data.p99, 4]] },
  };
  const digits = (value) => (value >= 100 ? Math.round(value).toLocaleString() : Number(value.toFixed(value >= 10 ? 1 : 2)).toString());
  const FORMATS = {
    rate: (value) => `${digits(value)}/s`,
    time: (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : value < 60 ? `${digits(value)} s` : value < 3600 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`),
  };
  const TIME_STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const plots = new Map();
  let series = null;

  function colour(name) {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }
  const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  const options = (figure, chart, lines) => ({
    width: figure.querySelector(".plot").clientWidth,
    height: 126,
    padding: [8, 18, 0, 0],
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false }, sync: { key: "overview" } },
    legend: { live: true, isolate: false },
    scales: {
      x: { time: true, range: (_, least, most) => [most - WINDOW, most] },
      y: { range: (_, least, most) => [0, most > 0 ? most * 1.15 : chart.unit === "time" ? 1 : 1] },
    },
    axes: [
      { stroke: colour("--soft"), font: FONT, grid: { show: false }, ticks: { show: false }, size: 22, space: 70, values: (_, ticks) => ticks.map((at) => clock.format(at * 1000).slice(0, 5)) },
      { stroke: colour("--soft"), font: FONT, grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, size: 48, gap: 6, space: 32, values: (_, ticks) => ticks.map(chart.unit === "rate" ? digits : FORMATS.time), ...(chart.unit === "time" ? { incrs: TIME_STEPS } : {}) },
    ],
    series: [
      { label: "time", class: "unseen", value: () => "" },
      ...lines.map(([label, , hue]) => ({ label, stroke: colour(`--chart-${hue}`), width: 1.5, spanGaps: false, points: { show: false }, value: (_, value) => (value == null ? "–" : FORMATS[chart.unit](value)) })),
    ],
  });
  const describe = (name, chart, lines) => lines.map(([label, values]) => {
    const last = values.findLast((value) => value != null);
    return `${label} ${last == null ? "unknown" : FORMATS[chart.unit](last)}`;
  }).join(", ");

  function draw() {
    if (!series || !window.uPlot) return;
    for (const figure of document.querySelectorAll("[data-chart]")) {
      const chart = CHARTS[figure.dataset.chart];
      const lines = chart.lines(series);
      const data = [series.at, ...lines.map(([, values]) => values)];
      const labels = lines.map(([label]) => label).join();
      let plot = plots.get(figure);
      if (plot && plot.labels !== labels) { plot.destroy(); plots.delete(figure); plot = null; }
      const holder = figure.querySelector(".plot");
      if (!lines.length || !series.at.length) {
        if (plot) { plot.destroy(); plots.delete(figure); }
        holder.textContent = series.at.length ? "None in this time." : "No figures yet.";
        holder.classList.add("nothing");
        continue;
      }
      if (!plot) {
        holder.replaceChildren();
        holder.classList.remove("nothing");
        plot = new uPlot(options(figure, chart, lines), data, holder);
        plot.labels = labels;
        plots.set(figure, plot);
      } else {
        plot.setData(data);
      }
      if (plot.cursor.idx == null) plot.setLegend({ idx: series.at.length - 1 });
      figure.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent.trim()}: ${describe(figure.dataset.chart, chart, lines)}`);
    }
  }
  function redraw() {
    for (const plot of plots.values()) plot.destroy();
    plots.clear();
    draw();
  }
  function extend(tail) {
    if (!tail.at.length) return;
    const kept = series.at.findIndex((at) => at >= tail.at[0]);
    const end = kept < 0 ? series.at.length : kept;
    const start = Math.max(series.at.findIndex((at) => at >= tail.at.at(-1) - WINDOW), 0);
    const join = (old, more) => [...old.slice(start, end), ...more];
    series = {
      at: join(series.at, tail.at),
      accepted: join(series.accepted, tail.accepted),
      failed: Object.fromEntries(Object.keys(tail.failed).map((code) => [code, join(series.failed[code], tail.failed[code])])),
      oldest_due: join(series.oldest_due, tail.oldest_due),
      p50: join(series.p50, tail.p50),
      p99: join(series.p99, tail.p99),
    };
  }
  async function reread(live) {
    try {
      const answer = await fetch(live.dataset.series, { headers: { Accept: "application/json" } });
      if (answer.ok) { series = await answer.json(); draw(); }
    } catch { /* the next event tries again */ }
  }

  // Live updates.
  let heard = 0; // when the last figures came, by performance.now()
  let level = null;
  function contact() {
    const label = document.querySelector("[data-contact]");
    if (!label || !document.getElementById("live")) return;
    const silent = (performance.now() - heard) / 1000;
    const lost = !document.hidden && silent > 6;
    document.body.classList.toggle("is-stale", lost);
    if (document.getElementById("lost").hidden === lost) {
      document.getElementById("lost").hidden = !lost;
      document.title = lost ? "No contact · push-listener" : titleOf(level);
    }
    label.dataset.contact = lost ? "lost" : heard ? "live" : "";
    const text = lost ? (heard ? `No contact for ${Math.round(silent)} s: what you see is old` : "No contact with the listener") : heard ? "Live" : "Connecting";
    if (label.textContent !== text) label.textContent = text;
  }
  function onFigures(event) {
    const live = event.target;
    heard = performance.now();
    contact();
    const kind = event.detail.message.event;
    if (kind) event.preventDefault();
    if (kind !== "series") return;
    const tail = JSON.parse(event.detail.message.data);
    if (!series || !tail.at.length) return;
    const last = series.at.at(-1);
    // The codes that have their own line depend on the window, and so do the codes in "other".
    const hasOthers = Object.keys(tail.failed).sort().join() !== Object.keys(series.failed).sort().join();
    if (last === undefined || tail.at[0] - last > AWAY || hasOthers) reread(live);
    else { extend(tail); draw(); }
  }
  const titleOf = (found) => `${{ ok: "Sending", attention: "Attention", trouble: "Trouble" }[found]} · push-listener`;
  function onVerdict() {
    const now = document.querySelector("#verdict [data-level]");
    if (!now || now.dataset.level === level) return;
    if (level !== null) document.getElementById("spoken").textContent = document.querySelector("#verdict .sentence").textContent;
    level = now.dataset.level;
    document.title = titleOf(level);
  }
  const isHeld = (part) => part?.closest?.("[data-hold]") && (part.closest("[data-hold]").contains(document.activeElement) || (matchMedia("(hover: hover)").matches && part.closest("[data-hold]").matches(":hover")));
  function complain(text) {
    const problem = document.getElementById("problem");
    problem.textContent = text;
    problem.hidden = !text;
  }

  document.addEventListener("htmx:config:request", (event) => {
    const source = event.detail.ctx.sourceElement;
    if (source.matches("[data-poll]") && document.hidden) event.preventDefault();
  });
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx, tasks } = event.detail;
    for (let index = tasks.length - 1; index >= 0; index -= 1) {
      const { target, fragment } = tasks[index];
      if (isHeld(target)) tasks.splice(index, 1);
      else localize(fragment);
    }
    if (ctx.sourceElement.matches("[data-poll]")) complain("");
  });
  document.addEventListener("htmx:after:swap", (event) => {
    onVerdict();
    document.querySelector("[data-focus]")?.focus();
    if (event.detail.ctx.sourceElement?.id === "run") localize(document);
  });
  const WORDS = { 401: "You are signed out. Reload the page to sign in.", 403: "You may not do that.", 404: "It is not there any more.", 503: "The database does not answer, or the search took too long." };
  document.addEventListener("htmx:response:error", (event) => {
    const { ctx } = event.detail;
    if (ctx.sourceElement.id === "live") again(ctx.sourceElement);
    else complain(WORDS[ctx.response.status] ?? `The listener answered ${ctx.response.status}.`);
  });
  document.addEventListener("htmx:error", (event) => {
    const source = event.detail.ctx?.sourceElement;
    if (source?.id === "live") again(source);
    else if (source) complain("The listener does not answer.");
  });
  document.addEventListener("htmx:sse:before:message", onFigures);
  document.addEventListener("htmx:sse:error", (event) => { if (event.detail.status === 401) location.reload(); });
  document.addEventListener("htmx:sse:close", (event) => { if (event.target.id === "live") again(event.target); });
  const again = (live) => setTimeout(() => window.htmx.trigger(live, "again"), 3000);

  // Rows, ticks and keys.
  const rows = () => [...document.querySelectorAll("tr[data-row]")].filter((row) => row.querySelector("a, input"));
  const rowOf = (part) => part?.closest?.("tr[data-row]");
  function step(by) {
    const all = rows();
    const at = all.indexOf(rowOf(document.activeElement));
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
    const link = next?.querySelector(".title a") ?? next?.querySelector("a, input");
    link?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }
  function countTicks() {
    const form = document.querySelector("[data-ticks]");
    if (!form) return;
    const boxes = [...form.querySelectorAll("tbody .tick input")];
    const ticked = boxes.filter((box) => box.checked).length;
    const all = form.querySelector("[data-tick-all]");
    if (all) { all.checked = ticked > 0 && ticked === boxes.length; all.indeterminate = ticked > 0 && ticked < boxes.length; }
    for (const label of form.querySelectorAll("[data-ticked]")) label.textContent = ticked;
    for (const button of form.querySelectorAll("[data-needs-tick]")) button.disabled = !ticked;
  }
  const PAGES = { o: "/", p: "/pushes", w: "/workers", a: "/actions" };
  let pending = "";
  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea") || document.querySelector("dialog[open]")) return;
    const { key } = event;
    const before = pending;
    pending = "";
    if (before === "g" && PAGES[key]) { location.href = document.body.dataset.prefix + PAGES[key]; return; }
    if (key === "g") { pending = "g"; return; }
    if (key === "/") document.getElementById("q")?.focus();
    else if (key === "j") step(1);
    else if (key === "k") step(-1);
    else if (key === "x") rowOf(document.activeElement)?.querySelector(".tick input")?.click();
    else if (key === "r") document.querySelector("[data-needs-tick][value=requeue]:enabled, [data-do=requeue]")?.click();
    else if (key === "?") document.getElementById("help")?.showModal();
    else return;
    event.preventDefault();
  }

  document.addEventListener("DOMContentLoaded", () => {
    applyTheme();
    localize(document);
    onVerdict();
    countTicks();
    const held = document.getElementById("series");
    if (held) series = JSON.parse(held.textContent);
    draw();
    if (document.getElementById("live")) { contact(); setInterval(contact, 1000); }
    for (const button of document.querySelectorAll("[data-theme-switch], [data-help]")) button.hidden = false;
    document.addEventListener("change", (event) => {
      if (event.target.matches("[data-tick-all]")) {
        for (const box of event.target.form.querySelectorAll("tbody .tick input")) box.checked = event.target.checked;
      }
      countTicks();
    });
    document.addEventListener("click", (event) => {
      if (event.target.closest("[data-help]")) document.getElementById("help").showModal();
      if (event.target.closest("[data-theme-switch]")) {
        theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
        try { localStorage.setItem("theme", theme); } catch { /* then the theme holds for this page only */ }
        applyTheme();
      }
    });
    document.addEventListener("keydown", onKey);
    document.addEventListener("themed", redraw);
    let width = innerWidth;
    addEventListener("resize", () => { if (width !== innerWidth) { width = innerWidth; redraw(); } });
    addEventListener("pageshow", countTicks);
  });
})();
