// The slider: the best reward among the policies whose KL is within the budget. It has a stop at the
// KL of every trial, so that every step changes the set; the number beside it accepts any budget.
const { competing } = report;
const stops = [...new Set(competing.map(({ kl }) => kl))].sort((one, other) => one - other);

// The policy with the highest reward; among equal ones the lowest KL, then the first.
function bestWithin(budget) {
  const within = competing.filter(({ kl }) => kl <= budget);
  return within.reduce((best, each) =>
    best === null || each.reward > best.reward || (each.reward === best.reward && each.kl < best.kl) ? each : best, null);
}

// Rounded up to three digits, so that the trial at a stop is within the budget.
function roundedUp(value) {
  if (value <= 0) return value;
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number((Math.ceil(value / unit) * unit).toPrecision(3));
}

function stopBelow(budget) {
  const above = stops.findIndex((stop) => stop > budget);
  return above < 0 ? stops.length - 1 : Math.max(above - 1, 0);
}

function showBudget(budget) {
  const best = bestWithin(budget);
  const target = $("budget-best");
  if (best === null) {
    target.replaceChildren(make("p", "value", "\u2013"), make("p", "", "No policy is within this budget."));
  } else {
    const name = make("p", "name");
    const button = make("button", "link");
    button.type = "button";
    button.dataset.choose = best.ids;
    button.append(isolated(best.name));
    name.append(best.ids ? button : best.name);
    const stop = competing.find(({ kl }) => kl === stops[stopBelow(budget)]);
    const details = stop.within === undefined ? best.details : [...best.details, stop.within];
    target.replaceChildren(make("p", "value", best.shown), name, ...details.map((line) => make("p", "", line)));
  }
  $("budget-slider").setAttribute("aria-valuetext", `KL of at most ${budget} nats`);
  $("budget-said").textContent = best === null
    ? `No policy within a KL of ${budget} nats`
    : `Within a KL of ${budget} nats: ${best.name}, reward ${best.shown}`;
  markBudget(budget);
}

function markBudget(budget) {
  const plot = plots.find(({ id }) => id === "reward-kl");
  if (!plot) return;
  const line = {
    type: "line", x0: budget, x1: budget, yref: "paper", y0: 0, y1: 1,
    line: { color: colours().soft, width: 1.2, dash: "dot" },
    label: { text: "budget", textposition: "end", textangle: 0, xanchor: "left", yanchor: "top", padding: 4, font: { size: 11 } },
  };
  // No line beyond the last trial, because it would stretch the axis.
  const drawn = budget > 0 && budget <= stops[stops.length - 1] * 1.02;
  Plotly.relayout(plot, { shapes: drawn ? [line] : [] });
}

function followBudget() {
  const slider = $("budget-slider");
  if (!slider) return;
  const field = $("budget-value");
  slider.max = String(stops.length - 1);
  slider.value = String(stopBelow(Number(field.value)));
  slider.addEventListener("input", () => {
    field.value = String(roundedUp(stops[Number(slider.value)]));
    showBudget(Number(field.value));
  });
  field.addEventListener("input", () => {
    if (field.value === "" || !(Number(field.value) >= 0)) return;
    slider.value = String(stopBelow(Number(field.value)));
    showBudget(Number(field.value));
  });
  showBudget(Number(field.value));
}
