// The chosen trials: one set, which plots, table, chips and sample completions show.
const chosen = new Set();
const onChosen = [];

function toggleChosen(ids) {
  const known = ids.filter((id) => policyOf.has(id) && !policyOf.get(id).untrained);
  if (!known.length) return;
  const remove = known.every((id) => chosen.has(id));
  known.forEach((id) => (remove ? chosen.delete(id) : chosen.add(id)));
  const names = known.map((id) => policyOf.get(id).name).join(", ");
  say(`${names} ${remove ? "no longer chosen" : "chosen"}; ${chosen.size} in all`);
  showChosen();
}

function clearChosen() {
  chosen.clear();
  say("no trial is chosen");
  showChosen();
}

function showChosen() {
  markPlots();
  showChips();
  for (const element of document.querySelectorAll("[data-choose]")) {
    const on = element.dataset.choose.split(" ").every((id) => chosen.has(id));
    if (element.type === "checkbox") element.checked = on;
    else if (element.hasAttribute("aria-pressed")) press(element, on);
  }
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.classList.toggle("chosen", chosen.has(row.dataset.trial));
  }
  onChosen.forEach((follow) => follow());
}

function showChips() {
  const chips = [...chosen].map((id) => {
    const policy = policyOf.get(id);
    const chip = make("button", "chip");
    chip.type = "button";
    chip.dataset.choose = id;
    chip.setAttribute("aria-label", `No longer choose ${policy.name}`);
    chip.append(symbol(policy), isolated(policy.name), make("span", "cross", "×"));
    return chip;
  });
  document.querySelector("#chosen .chips").replaceChildren(...chips);
  $("chosen").hidden = !chosen.size;
}

// Draws rings around the points of chosen trials, and their curves in front of the others, which fade.
function markPlots() {
  for (const plot of plots) {
    const marks = plot.data.findIndex((trace) => trace.name === MARKS);
    if (marks >= 0) markPoints(plot, marks);
    else if (plot.data.some((trace) => String(trace.meta).startsWith("trial:"))) markCurves(plot);
  }
}

function markPoints(plot, marks) {
  const x = [];
  const y = [];
  for (const trace of plot.data.filter((trace) => trace.ids && trace.visible !== false)) {
    trace.ids.forEach((id, index) => {
      if (!chosen.has(id)) return;
      x.push(trace.x[index]);
      y.push(trace.y[index]);
    });
  }
  if (x.length || plot.data[marks].x.length) Plotly.restyle(plot, { x: [x], y: [y] }, [marks]);
}

function markCurves(plot) {
  const mine = plot.data.map((trace) => chosen.has(trace.meta.slice("trial:".length)));
  const any = mine.some(Boolean);
  if (!any && !plot.marked) return;
  plot.marked = any;
  Plotly.restyle(plot, {
    opacity: mine.map((on) => (on || !any ? 1 : 0.22)),
    "line.width": mine.map((on) => (on ? 3 : 1.6)),
  }, mine.map((_, index) => index));
}

function idsAt({ data, pointIndex, pointNumber }) {
  if (data.ids) return data.ids[pointIndex ?? pointNumber].split(" ");
  const meta = String(data.meta);
  return meta.startsWith("trial:") ? [meta.slice("trial:".length)] : [];
}

function followPoints() {
  for (const plot of plots) {
    plot.on("plotly_click", ({ points }) => points.length && toggleChosen(idsAt(points[0])));
  }
}

function followChoosers() {
  document.addEventListener("click", (event) => {
    const element = event.target.closest("button[data-choose]");
    if (element) toggleChosen(element.dataset.choose.split(" "));
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("input[data-choose]")) toggleChosen([event.target.dataset.choose]);
  });
  $("clear-chosen").addEventListener("click", clearChosen);
  for (const box of document.querySelectorAll("input[data-choose]")) box.checked = false;
}
