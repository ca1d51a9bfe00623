"use strict";
// Draws the figures, toggles their lines, sorts the table and shows the sample completions.
// All text of the sweep is set through textContent; nothing is ever read as markup.
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // --- plots ---------------------------------------------------------------------------------

  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
    toImageButtonOptions: { format: "svg" },
  };

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), soft: read("--soft"), paper: read("--paper"), line: read("--line"), grid: read("--grid") };
  }

  function themed() {
    const { ink, soft, paper, line, grid } = colours();
    const theme = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": soft,
      "font.size": 12,
      "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": paper,
      "hoverlabel.bordercolor": line,
      "hoverlabel.font.color": ink,
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": line,
      "modebar.activecolor": soft,
    };
    for (const axis of ["xaxis", "yaxis"]) {
      theme[`${axis}.gridcolor`] = grid;
      theme[`${axis}.linecolor`] = line;
      theme[`${axis}.zerolinecolor`] = line;
    }
    return theme;
  }

  function nested(flat, into) {
    for (const [path, value] of Object.entries(flat)) {
      const keys = path.split(".");
      const last = keys.pop();
      let target = into;
      for (const key of keys) target = target[key] ??= {};
      target[last] = value;
    }
    return into;
  }

  const plots = Object.entries(report.figures).map(([id, figure]) => {
    const layout = nested(themed(), { ...figure.layout });
    // On a touch screen a finger on a plot scrolls the page.
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
    Plotly.newPlot(id, figure.data, layout, config);
    return $(id);
  });
  const repaint = () => plots.forEach((plot) => Plotly.relayout(plot, themed()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  matchMedia("print").addEventListener("change", () => {
    repaint();
    plots.forEach((plot) => Plotly.Plots.resize(plot));
  });

  function show(section, keys, visible) {
    for (const plot of plots.filter((plot) => section.contains(plot))) {
      const traces = plot.data.flatMap((trace, index) => (keys.includes(trace.meta) ? [index] : []));
      if (traces.length) Plotly.restyle(plot, { visible }, traces);
    }
  }

  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  for (const legend of document.querySelectorAll(".legend")) {
    const section = $(legend.dataset.plots);
    legend.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || button.classList.contains("plain")) return;
      const on = !pressed(button);
      const family = button.closest(".family");
      const buttons = button.classList.contains("group") ? [...family.querySelectorAll("button")] : [button];
      buttons.forEach((each) => press(each, on));
      if (family) {
        const lines = [...family.querySelectorAll("[data-key]")];
        press(family.querySelector(".group"), lines.some(pressed));
      }
      show(section, buttons.map((each) => each.dataset.key).filter(Boolean), on);
    });
  }

  for (const button of document.querySelectorAll("[data-scale]")) {
    const { scale, targets } = button.dataset;
    button.addEventListener("click", () => {
      press(button, !pressed(button));
      const changes = { [`${scale}.type`]: pressed(button) ? "log" : "linear", [`${scale}.autorange`]: true };
      plots.filter(({ id }) => targets.split(" ").includes(id)).forEach((plot) => Plotly.relayout(plot, changes));
    });
  }

  // Shows the traces of the chosen key only, with the rows that belong to them.
  for (const select of document.querySelectorAll("select[data-choices]")) {
    const plot = $(select.dataset.choices);
    const choices = report.choices[plot.id];
    const choose = () => {
      const { key, layout } = choices[select.selectedIndex];
      plot.style.minHeight = `${layout.height}px`;
      Plotly.update(plot, { visible: plot.data.map((trace) => trace.meta === key) }, layout);
    };
    select.addEventListener("change", choose);
    // A browser that keeps the choice over a reload has to be followed.
    if (!select.options[select.selectedIndex].defaultSelected) choose();
  }

  // --- table ---------------------------------------------------------------------------------

  function compareCells(one, other) {
    if (one.dataset.value !== undefined && other.dataset.value !== undefined) {
      return Number(one.dataset.value) - Number(other.dataset.value);
    }
    return one.textContent.localeCompare(other.textContent, undefined, { numeric: true });
  }

  function sortBy(table, heading) {
    const column = heading.cellIndex;
    const isNumber = heading.classList.contains("number");
    const first = isNumber ? "descending" : "ascending";
    const second = isNumber ? "ascending" : "descending";
    const direction = heading.getAttribute("aria-sort") === first ? second : first;
    table.querySelectorAll("th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const isEmpty = (row) => isNumber && row.cells[column].dataset.value === undefined;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((one, other) =>
      isEmpty(one) !== isEmpty(other)
        ? Number(isEmpty(one)) - Number(isEmpty(other))
        : sign * compareCells(one.cells[column], other.cells[column]),
    );
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      if (event.target.closest("button")) sortBy(table, event.target.closest("th"));
    });
  }

  // --- sample completions --------------------------------------------------------------------

  const { prompts, policies } = report.samples;

  function score(reward, kl) {
    const parts = [];
    if (reward !== null) parts.push(`reward ${reward.toFixed(3)}`);
    if (kl !== null) parts.push(`KL ${kl.toFixed(2)}`);
    return parts.join(" · ");
  }

  function completionCard(policy, samples) {
    const card = make("article", policy.untrained ? "completion untrained" : "completion");
    card.append(make("h4", "", policy.name));
    for (const [, text, reward, kl, cut] of samples) {
      card.append(make("p", "score", score(reward, kl) + (cut ? " · cut off" : "")));
      const body = make("p", "text", text.replace(/^ /, "") || "(empty)");
      body.dir = "auto";
      card.append(body);
    }
    return card;
  }

  function showPrompt() {
    const index = $("prompt").selectedIndex;
    const { text, rows } = prompts[index];
    $("prompt-text").textContent = text || "(empty prompt)";
    const all = $("policies").value === "all";
    const cards = policies.flatMap((policy, number) => {
      const samples = rows.filter((row) => row[0] === number);
      return samples.length && (all || policy.standout) ? [completionCard(policy, samples)] : [];
    });
    $("completions").replaceChildren(...cards);
    $("previous-prompt").disabled = index === 0;
    $("next-prompt").disabled = index === prompts.length - 1;
  }

  function step(by) {
    $("prompt").selectedIndex += by;
    showPrompt();
  }

  if (prompts.length) {
    prompts.forEach(({ text }, index) => {
      const words = [...text.replace(/\s+/g, " ")];
      const label = words.length > 70 ? `${words.slice(0, 70).join("")}…` : words.join("");
      $("prompt").append(make("option", "", `${index + 1}. ${label}`));
    });
    if (policies.length <= 13 && innerWidth > 760) $("policies").value = "all";
    $("prompt").addEventListener("change", showPrompt);
    $("policies").addEventListener("change", showPrompt);
    $("previous-prompt").addEventListener("click", () => step(-1));
    $("next-prompt").addEventListener("click", () => step(1));
    showPrompt();
  }
})();
