// The frame of a tree's page: panes that fold away, the list of keys, the link to copy.
import { byId, make, typed } from "../core/dom.js";
import { note } from "./note.js";

const KEPT_AS = "tree-panes-closed";

/** @param {TreePage} page */
export function mountFrame({ root, shortcuts }) {
  /** @type {Record<string, string>} */
  const panes = { "toggle-list": "tree-list", "toggle-inspector": "inspector" };
  const closed = new Set((localStorage.getItem(KEPT_AS) ?? "").split(" ").filter(Boolean));
  const show = () => {
    for (const [button, pane] of Object.entries(panes)) {
      byId(button).setAttribute("aria-expanded", String(!closed.has(pane)));
      root.classList.toggle(`without-${pane}`, closed.has(pane));
    }
  };
  const toggle = (/** @type {string} */ pane) => {
    if (!closed.delete(pane)) closed.add(pane);
    localStorage.setItem(KEPT_AS, [...closed].join(" "));
    show();
  };
  for (const [button, pane] of Object.entries(panes)) byId(button).addEventListener("click", () => toggle(pane));
  show();
  shortcuts.add({ "<": () => toggle("tree-list"), ">": () => toggle("inspector") }, "fold the list, the node away");

  shortcuts.add({ y: () => void copyLink() }, "copy a link to just this");
  byId("copy-link").addEventListener("click", () => void copyLink());

  const keys = typed("keys-dialog", HTMLDialogElement);
  const open = () => {
    byId("keys-table").replaceChildren(make("tbody", {}, ...shortcuts.rows()));
    keys.showModal();
  };
  shortcuts.add({ "?": open }, "this list");
  shortcuts.note(["a"], "add a note");
  shortcuts.note(["t"], "theme");
  byId("show-keys").addEventListener("click", open);
}

/** The address says everything: the tree by its number, which no later step changes, the node, and how it is looked at. */
async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    note("The link to this view is copied.");
  } catch {
    // Browsers allow it on secure origins alone; the address bar has the same link.
    note("This browser did not allow copying. The address bar has the link to this view.");
  }
}
