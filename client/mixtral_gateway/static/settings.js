// The sampling controls, the colours, and whether the panel is open.

const byId = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 60rem)");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

/** The request's fields, or null when one is out of range; the browser then says which and why. */
export function samplingFields() {
  const form = byId("sampling");
  if (!form.checkValidity()) {
    openPanel(true);
    form.reportValidity();
    return null;
  }
  const fields = {
    temperature: Number(byId("temperature").value),
    top_p: Number(byId("top-p").value),
    max_tokens: Number(byId("max-tokens").value),
  };
  if (byId("seed").value !== "") fields.seed = Number(byId("seed").value);
  return fields;
}

/** The system message as a list of no or one message. */
export function systemMessages() {
  const content = byId("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}

export function setUp() {
  for (const id of ["temperature", "top-p"]) {
    byId(id).addEventListener("input", () => { byId(`${id}-value`).value = byId(id).value; });
  }
  byId("sampling").addEventListener("submit", (event) => event.preventDefault());
  byId("settings-toggle").addEventListener("click", () => openPanel(byId("settings").hidden));
  byId("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  narrow.addEventListener("change", () => openPanel(!narrow.matches));
  prefersDark.addEventListener("change", labelTheme);
  openPanel(!narrow.matches);
  setTheme(sessionStorage.getItem("theme"));
}

/** On a narrow page the panel covers the conversation. Returns whether it was open there, and closes it. */
export function closeCovering() {
  const covers = narrow.matches && !byId("settings").hidden;
  if (covers) {
    openPanel(false);
    byId("settings-toggle").focus();
  }
  return covers;
}

function openPanel(open) {
  byId("settings").hidden = !open;
  byId("settings-toggle").setAttribute("aria-expanded", String(open));
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : prefersDark.matches;
}

function setTheme(theme) {
  if (theme) {
    document.documentElement.dataset.theme = theme;
    sessionStorage.setItem("theme", theme);
  }
  labelTheme();
}

function labelTheme() {
  byId("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
}
