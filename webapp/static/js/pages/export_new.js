// The choice of an export: every change is shown at once by the server's own preview, and stands in the address.
import { byId, revealScripted, setText, typed } from "../core/dom.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

const PATIENCE_MILLISECONDS = 350;
const form = typed("export-form", HTMLFormElement);

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
form.addEventListener("input", (event) => {
  const isTyped = event.target instanceof HTMLInputElement && event.target.type === "text";
  clearTimeout(timer);
  timer = setTimeout(() => void show(isTyped ? "replace" : "push"), isTyped ? PATIENCE_MILLISECONDS : 0);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  void show("push");
});
addEventListener("popstate", () => location.reload());

/** @param {"push" | "replace"} how whether Back returns to the choice before */
async function show(how) {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (typeof value === "string" && value !== "") query.append(name, value);
  const path = `${location.pathname}?${query}`;
  const kind = new URLSearchParams(location.search).get("kind");
  byId("export-preview").setAttribute("aria-busy", "true");
  try {
    // Another kind has other knobs; those that are being typed into stay.
    const ids = query.get("kind") === kind ? ["export-preview"] : ["export-preview", "export-knobs"];
    if (!(await load(path, ids))) return;
  } catch (error) {
    fail(/** @type {Error} */ (error).message);
    return;
  }
  if (how === "push") history.pushState(null, "", path);
  else history.replaceState(null, "", path);
  for (const id of ["export-preview", "export-knobs"]) {
    revealScripted(byId(id));
    revealHidden(byId(id));
  }
}

/** @param {string} message */
function fail(message) {
  const place = byId("export-preview");
  place.removeAttribute("aria-busy");
  let line = place.querySelector(".banner");
  if (!line) {
    line = document.createElement("p");
    line.className = "banner";
    line.setAttribute("role", "alert");
    place.prepend(line);
  }
  setText(line, message);
}
