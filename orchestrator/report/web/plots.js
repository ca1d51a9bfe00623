// Draws the figures one after another, sets their light or dark colours, hides and shows lines.
const plots = [];
const MARKS = "marks of the chosen";

const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
  toImageButtonOptions: { format: "svg" },
};

function colours() {
  const probe = document.body.appendChild(make("span", "unseen"));
  const names = ["ink", "soft", "paper", "line", "grid"];
  const read = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(read);
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

// Plotly parses some HTML in texts; texts of the sweep are escaped.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// The hover text of a point: one trial, or the mean of the trials whose IDs are joined by spaces.
function boxText(ids) {
  const members = ids.split(" ").flatMap((id) => policyOf.get(id) ?? []);
  if (!members.length) return "";
  const [{ name, hover }] = members;
  if (members.length === 1) return [`<b>${plain(name)}</b>`, ...hover.map(plain)].join("<br>");
  const mean = (key) => shown(members.reduce((sum, each) => sum + each[key], 0) / members.length);
  return [`<b>Mean of ${members.length} seeds</b>`, ...members.map((each) => plain(each.name)),
    `reward ${mean("reward")}`, `KL ${mean("kl")} nats`].join("<br>");
}

// A copy, because Plotly changes the data it draws, and smoothing needs the original values.
function prepared(trace) {
  if (!trace.ids) return { ...trace };
  return { ...trace, customdata: trace.ids.map(boxText), hovertemplate: "%{customdata}<extra></extra>" };
}

async function draw(id, figure) {
  const layout = nested(themed(), { ...figure.layout });
  // On a touch screen, dragging on a plot scrolls the page.
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  const data = figure.data.map(prepared);
  if (data.some((trace) => trace.ids)) data.push(marksTrace());
  await Plotly.newPlot(id, data, layout, config);
  plots.push($(id));
}

// Yields to the page between plots. The attribute tells tests and printing that all plots are drawn.
async function drawAll() {
  for (const [id, figure] of Object.entries(report.figures)) {
    await draw(id, figure);
    await new Promise((done) => setTimeout(done, 0));
  }
  document.documentElement.dataset.drawn = "all";
}

function marksTrace() {
  const { ink } = colours();
  return {
    type: "scatter", mode: "markers", name: MARKS, x: [], y: [], hoverinfo: "skip", cliponaxis: false,
    marker: { symbol: "circle-open", size: 19, color: ink, line: { width: 2.5, color: ink } },
  };
}

function repaint() {
  const { ink } = colours();
  for (const plot of plots) {
    const marks = plot.data.findIndex((trace) => trace.name === MARKS);
    const paint = marks < 0 ? {} : { "marker.color": ink, "marker.line.color": ink };
    Plotly.update(plot, paint, themed(), marks < 0 ? [] : [marks]);
  }
}

function followPage() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  matchMedia("print").addEventListener("change", () => {
    repaint();
    plots.forEach((plot) => Plotly.Plots.resize(plot));
  });
}

function show(section, keys, visible) {
  for (const plot of plots.filter((plot) => section.contains(plot))) {
    const traces = plot.data.flatMap((trace, index) => (keys.includes(trace.meta) ? [index] : []));
    if (traces.length) Plotly.restyle(plot, { visible }, traces);
  }
  markPlots();
}

function followLegend(legend) {
  const section = $(legend.dataset.plots);
  const keysOf = (button) => (button.dataset.key ?? "").split(" ").filter(Boolean);
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.classList.contains("plain")) return;
    const on = !pressed(button);
    const family = button.closest(".family");
    const isGroup = button.classList.contains("group");
    const buttons = isGroup ? [...family.querySelectorAll("button")] : [button];
    buttons.forEach((each) => press(each, on));
    if (family && !isGroup) {
      const lines = [...family.querySelectorAll("button:not(.group)")];
      press(family.querySelector(".group"), lines.some(pressed));
    }
    show(section, keysOf(button), on);
  });
}

function followScale(button) {
  const { scale, targets } = button.dataset;
  button.addEventListener("click", () => {
    press(button, !pressed(button));
    const changes = { [`${scale}.type`]: pressed(button) ? "log" : "linear", [`${scale}.autorange`]: true };
    plots.filter(({ id }) => targets.split(" ").includes(id)).forEach((plot) => Plotly.relayout(plot, changes));
  });
}

// Shows only the traces of the selected key, and their table rows.
function followChoice(select) {
  const plot = $(select.dataset.choices);
  const choices = report.choices[plot.id];
  const choose = () => {
    const { key, layout } = choices[select.selectedIndex];
    plot.style.minHeight = `${layout.height}px`;
    Plotly.update(plot, { visible: plot.data.map((trace) => trace.name === MARKS || trace.meta === key) }, layout);
    markPlots();
  };
  select.addEventListener("change", choose);
  // Some browsers keep the selection over a reload.
  if (!select.options[select.selectedIndex].defaultSelected) choose();
}
