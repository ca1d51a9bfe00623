// Sorts and filters the table of all trials.
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

const COMPARISONS = {
  "<": (one, other) => one < other,
  "<=": (one, other) => one <= other,
  ">": (one, other) => one > other,
  ">=": (one, other) => one >= other,
  "=": (one, other) => one === other,
};

// One word of the filter -> a test of rows; throws an error with a message for the reader.
function testOf(word, headings) {
  const [, name, sign, value] = word.match(/^([\w.]+)(<=|>=|<|>|=)(.+)$/) ?? [];
  if (name === undefined) {
    const wanted = word.toLowerCase();
    return (row) =>
      (wanted === "chosen" && row.classList.contains("chosen")) ||
      row.cells[0].textContent.toLowerCase().includes(wanted) || row.dataset.status.includes(wanted);
  }
  const exact = headings.find(({ dataset }) => dataset.name === name.toLowerCase());
  const heading = exact ?? headings.find(({ dataset }) => dataset.name.startsWith(name.toLowerCase()));
  if (!heading) throw new Error(`no column ${name}; the columns are ${headings.map(({ dataset }) => dataset.name).join(", ")}`);
  const wanted = Number(value);
  if (!Number.isFinite(wanted)) throw new Error(`${word}: ${value} is not a number`);
  return (row) => {
    const cell = row.cells[heading.cellIndex].dataset.value;
    return cell !== undefined && COMPARISONS[sign](Number(cell), wanted);
  };
}

function filterRows(table, text) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const trials = rows.filter((row) => row.dataset.trial !== undefined);
  let tests;
  try {
    tests = text.split(/\s+/).filter(Boolean).map((word) => testOf(word, headings));
  } catch (error) {
    $("filter-count").textContent = error.message;
    return;
  }
  for (const row of rows) row.hidden = !tests.every((test) => test(row));
  const num = trials.filter((row) => !row.hidden).length;
  $("filter-count").textContent = tests.length ? `${num} of ${trials.length} trials` : "";
}

function followTable() {
  const table = $("trial-table");
  if (!table) return;
  table.tHead.addEventListener("click", (event) => {
    if (event.target.closest("button")) sortBy(table, event.target.closest("th"));
  });
  const filter = () => filterRows(table, $("filter").value);
  $("filter").addEventListener("input", filter);
  onChosen.push(() => $("filter").value.includes("chosen") && filter());
  if ($("filter").value) filter();
}
