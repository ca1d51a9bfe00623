// The sample completions of one prompt, of the untrained policy and the trials, with differences.
const { prompts, policies } = report.samples;
const MAX_WORD_PAIRS = 1_000_000;

function scoreLine([, , reward, kl, cut], base) {
  const parts = [];
  if (reward !== null) {
    const gain = base && base[2] !== null ? reward - base[2] : null;
    parts.push(`reward ${shown(reward)}${gain === null ? "" : ` (${gain < 0 ? "\u2212" : "+"}${shown(Math.abs(gain))})`}`);
  }
  if (kl !== null) parts.push(`KL ${kl.toFixed(2)}`);
  if (cut) parts.push("cut off");
  return parts.join(" · ");
}

// Words, each with the spaces after it.
const wordsOf = (text) => text.match(/\s*\S+\s*$|\s*\S+/g) ?? [];

// The words of `text` that are not in the longest common subsequence with `base`.
function isNew(words, base) {
  const same = (one, other) => one.trim() === other.trim();
  const flags = words.map(() => false);
  let start = 0;
  while (start < words.length && start < base.length && same(words[start], base[start])) start += 1;
  let [end, baseEnd] = [words.length, base.length];
  while (end > start && baseEnd > start && same(words[end - 1], base[baseEnd - 1])) [end, baseEnd] = [end - 1, baseEnd - 1];
  const [rows, columns] = [end - start, baseEnd - start];
  if (rows * columns > MAX_WORD_PAIRS) return flags.map((_, index) => index >= start && index < end);
  const width = columns + 1;
  const common = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      common[i * width + j] = same(words[start + i], base[start + j])
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows; ) {
    if (j < columns && same(words[start + i], base[start + j])) [i, j] = [i + 1, j + 1];
    else if (j < columns && common[i * width + j + 1] > common[(i + 1) * width + j]) j += 1;
    else flags[start + i++] = true;
  }
  return flags;
}

function marked(text, base) {
  const words = wordsOf(text);
  const flags = isNew(words, wordsOf(base));
  const parts = [];
  words.forEach((word, index) => {
    if (index && flags[index] === flags[index - 1]) parts[parts.length - 1].text += word;
    else parts.push({ text: word, isNew: flags[index] });
  });
  return parts.map((part) => (part.isNew ? make("mark", "", part.text) : document.createTextNode(part.text)));
}

function completionText(text, base) {
  const body = make("p", "text");
  body.dir = "auto";
  const trimmed = text.replace(/^ /, "");
  if (!trimmed) body.textContent = "(empty)";
  else if (base && $("differences").checked) body.append(...marked(trimmed, base[1].replace(/^ /, "")));
  else body.textContent = trimmed;
  return body;
}

function completionCard(policy, samples, baseSamples) {
  const card = make("article", policy.untrained ? "completion untrained" : "completion");
  const facts = policyOf.get(policy.id);
  const head = make("h3");
  head.append(symbol(facts), isolated(facts.name));
  card.append(head);
  samples.forEach((sample, index) => {
    const base = policy.untrained ? null : baseSamples[index];
    card.append(make("p", "score", scoreLine(sample, base)), completionText(sample[1], base));
  });
  return card;
}

function isShown(policy) {
  const which = $("policies").value;
  return policy.untrained || which === "all" || (which === "chosen" ? chosen.has(policy.id) : policy.standout);
}

function showPrompt() {
  const index = $("prompt").selectedIndex;
  const { text, rows } = prompts[index];
  $("prompt-text").textContent = text || "(empty prompt)";
  const samplesOf = (number) => rows.filter((row) => row[0] === number);
  const untrained = policies.findIndex((policy) => policy.untrained);
  const cards = policies.flatMap((policy, number) => {
    const samples = samplesOf(number);
    return samples.length && isShown(policy) ? [completionCard(policy, samples, samplesOf(untrained))] : [];
  });
  $("completions").replaceChildren(...cards);
  // Scrollable elements must be reachable by keyboard.
  for (const body of $("completions").querySelectorAll(".text")) {
    if (body.scrollHeight > body.clientHeight) body.tabIndex = 0;
  }
  $("completions-note").textContent =
    $("policies").value === "chosen" && !chosen.size ? "No trial is chosen: click points in the plots, or check rows of the table." : "";
  $("previous-prompt").disabled = index === 0;
  $("next-prompt").disabled = index === prompts.length - 1;
}

function step(by) {
  $("prompt").selectedIndex += by;
  showPrompt();
}

function followChosenSamples() {
  const select = $("policies");
  if (chosen.size && select.value === "standout") select.value = "chosen";
  if (!chosen.size && select.value === "chosen") select.value = "standout";
  showPrompt();
}

function followSamples() {
  if (!prompts.length) return;
  prompts.forEach(({ text }, index) => {
    const words = [...text.replace(/\s+/g, " ")];
    const label = words.length > 70 ? `${words.slice(0, 70).join("")}…` : words.join("");
    $("prompt").append(make("option", "", `${index + 1}. \u2068${label}\u2069`));
  });
  $("prompt").selectedIndex = 0;
  for (const id of ["prompt", "policies", "differences"]) $(id).addEventListener("change", showPrompt);
  $("previous-prompt").addEventListener("click", () => step(-1));
  $("next-prompt").addEventListener("click", () => step(1));
  onChosen.push(followChosenSamples);
  showPrompt();
}
