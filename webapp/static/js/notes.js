// `a` opens the form beside the node that is shown, wherever the page is; Escape closes it. What was typed is there again
// when the reader comes back to the node.
import { onKeys } from "./core/keys.js";

/** By node, while the page is open. @type {Map<string, string>} */
const drafts = new Map();
/** @type {Element | null} */
let before = null;

const nodeOf = (/** @type {HTMLTextAreaElement} */ field) => new FormData(/** @type {HTMLFormElement} */ (field.form)).get("n")?.toString() ?? "";

onKeys({
  a: () => {
    const form = document.getElementById("note-add");
    if (!(form instanceof HTMLDetailsElement)) return;
    before = document.activeElement;
    form.open = true;
    form.scrollIntoView({ block: "nearest" });
    document.getElementById("note-text")?.focus();
  },
});

document.addEventListener("keydown", (event) => {
  const form = document.getElementById("note-add");
  if (event.key !== "Escape" || !(form instanceof HTMLDetailsElement) || !form.contains(document.activeElement)) return;
  form.open = false;
  const place = before instanceof HTMLElement && before.isConnected && before !== document.body ? before : form.querySelector("summary");
  place?.focus({ preventScroll: true });
});

document.addEventListener("input", ({ target }) => {
  if (target instanceof HTMLTextAreaElement && target.id === "note-text") drafts.set(nodeOf(target), target.value);
});
document.addEventListener("toggle", () => {
  const field = document.getElementById("note-text");
  if (field instanceof HTMLTextAreaElement) field.value ||= drafts.get(nodeOf(field)) ?? "";
}, true);
