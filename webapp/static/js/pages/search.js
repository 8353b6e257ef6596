// Search in nodes. The page is the server's; here the counts are fetched after the first matches, so that nobody waits
// for them, and the keyboard walks the matches.
import { byId, revealScripted, setText } from "../core/dom.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

async function count() {
  const counts = document.getElementById("counts");
  if (!counts || "done" in counts.dataset || !document.getElementById("counting")) return;
  try {
    if (!(await load(counts.dataset.url ?? "", ["counts"]))) return;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    setText(document.getElementById("counting"), `The matches could not be counted. ${error.message}`);
    return;
  }
  revealScripted(byId("counts"));
  revealHidden(byId("counts"));
}
void count();

// What is behind catches up while somebody looks.
const behind = setInterval(async () => {
  if (document.hidden) return;
  if (!byId("behind").textContent?.trim()) return clearInterval(behind);
  try {
    await load(byId("search-page").dataset.empty ?? "", ["behind"]);
  } catch (error) {
    if (!(error instanceof Error)) throw error; // the next look may succeed
  }
}, 8000);

// Who came by keyboard goes on by keyboard.
document.addEventListener("click", (event) => {
  if (event.detail === 0 && /** @type {Element} */ (event.target).closest(".hit-link")) sessionStorage.setItem("focus-picture", "1");
});

/** @param {number} by */
function walk(by) {
  const links = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(".hit-link")]);
  const at = links.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  links[at === -1 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}
onKeys({
  j: () => walk(1),
  k: () => walk(-1),
});
