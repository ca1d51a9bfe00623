// Functions that the other scripts share. Texts of the sweep are set through textContent, so they
// are never parsed as markup.
const report = JSON.parse(document.getElementById("report-data").textContent);
const policyOf = new Map(report.policies.map((policy) => [policy.id, policy]));
const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A right-to-left name does not change the direction of the text around it.
const isolated = (text) => make("bdi", "", text);

function symbol({ path, colour }) {
  const svg = $("symbol").content.firstElementChild.cloneNode(true);
  svg.firstElementChild.setAttribute("d", path);
  svg.firstElementChild.setAttribute("fill", colour);
  return svg;
}

// About four digits, as elsewhere on the page.
function shown(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size > 0 && size < 0.0005) return value.toExponential(1);
  const decimals = size < 9.9995 ? 3 : size < 99.995 ? 2 : size < 999.95 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button, on) => button.setAttribute("aria-pressed", String(on));

// Announces a text to screen readers.
function say(text) {
  $("said").textContent = text;
}
