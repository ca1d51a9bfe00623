// Starts the page: first what needs no plots, then the rest once the plots are drawn.
function followTheme() {
  const button = $("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => (button.textContent = isDark() ? "Light mode" : "Dark mode");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
    repaint();
  });
  dark.addEventListener("change", name);
  name();
  button.hidden = false;
}

document.documentElement.classList.add("scripted");
followTheme();
followChoosers();
followTable();
followSamples();
followBudget();
drawAll().then(() => {
  followPage();
  document.querySelectorAll(".legend").forEach(followLegend);
  document.querySelectorAll("[data-scale]").forEach(followScale);
  document.querySelectorAll("select[data-choices]").forEach(followChoice);
  followSmoothing();
  followTables();
  followPoints();
  if ($("budget-slider")) markBudget(Number($("budget-value").value));
  showChosen();
  document.documentElement.dataset.ready = "true";
});
