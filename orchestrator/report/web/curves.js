// Smooths the training curves, and shows the values of every plot as a table.
const STEPS_IN_TABLE = 12;

// An exponential moving average, divided by the sum of its weights; gaps remain gaps.
function smoothed(values, weight) {
  let sum = 0;
  let collected = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    collected = weight * collected + (1 - weight);
    return sum / collected;
  });
}

function followSmoothing() {
  const slider = $("smoothing");
  if (!slider) return;
  const smooth = () => {
    const weight = Number(slider.value);
    $("smoothing-value").textContent = weight ? weight.toFixed(2) : "off";
    for (const plot of plots.filter((plot) => $("training").contains(plot))) {
      const raw = report.figures[plot.id].data;
      Plotly.restyle(plot, { y: raw.map((trace) => smoothed(trace.y, weight)) }, raw.map((_, index) => index));
    }
  };
  slider.addEventListener("input", smooth);
  if (Number(slider.value)) smooth();
}

function followTables() {
  for (const details of document.querySelectorAll("details.as-table")) {
    details.addEventListener("toggle", () => {
      details.querySelector(".scroll")?.remove();
      if (details.open) details.append(tableOf($(details.dataset.plot)));
    });
  }
}

function tableOf(plot) {
  const traces = plot.data.filter((trace) => trace.visible !== false && trace.name !== MARKS && trace.hoverinfo !== "skip");
  const box = make("div", "scroll");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `${plot.getAttribute("aria-label")}, as a table`);
  const table = box.appendChild(make("table", "narrow"));
  const head = table.createTHead().insertRow();
  const isBox = traces.some((trace) => trace.type === "box");
  const axis = (name) => plot.layout[name].title?.text || (name === "xaxis" ? "x" : "Reward");
  const values = isBox ? ["low", "lower quartile", "median", "upper quartile", "high"] : [axis("yaxis")];
  for (const title of ["series", isBox ? "beta" : axis("xaxis"), ...values]) {
    const cell = head.appendChild(make("th", "", title));
    cell.scope = "col";
  }
  const body = table.createTBody();
  for (const trace of traces.filter((trace) => !isBox || trace.type === "box")) {
    for (const index of chosenIndices(trace)) body.append(rowOf(trace, index, isBox));
  }
  return box;
}

// At most a dozen points of a long line, including the last one.
function chosenIndices(trace) {
  const last = trace.x.length - 1;
  if (trace.type !== "scatter" || trace.ids || last < STEPS_IN_TABLE) return trace.x.map((_, index) => index);
  return [...Array(STEPS_IN_TABLE)].map((_, index) => Math.round((index * last) / (STEPS_IN_TABLE - 1)));
}

function rowOf(trace, index, isBox) {
  const ids = trace.ids?.[index].split(" ") ?? [];
  const names = ids.map((id) => policyOf.get(id)?.name ?? id);
  const name = names.length > 1 ? `${trace.name}, mean of ${names.length} seeds` : (names[0] ?? trace.name);
  const numbers = isBox
    ? ["lowerfence", "q1", "median", "q3", "upperfence"].map((key) => shown(trace[key][index]))
    : [typeof trace.y[index] === "number" ? shown(trace.y[index]) : "\u2013"];
  const row = make("tr");
  const head = row.appendChild(make("th"));
  head.scope = "row";
  head.append(isolated(name));
  // Points that were moved apart have their true position as text.
  const x = trace.mode === "markers" && trace.text ? trace.text[index] : trace.x[index];
  for (const text of [typeof x === "number" ? shown(x) : x, ...numbers]) row.append(make("td", "number", text));
  return row;
}
