// Reader and inspector on a page, with the keys and buttons that belong to them.
import { byId, setText } from "../core/dom.js";
import { announce } from "../core/announce.js";
import { Inspector } from "./inspector.js";
import { besideAt, swapped } from "./paths.js";
import { colourSegments, interceptNodeLinks, Reader } from "./reader.js";
import { nameOf } from "./walk.js";

/** Which node `d` has marked, while this tab is open. */
const MARK = "diff-mark";

/** On the page of a tree, where one selection moves all. @param {TreePage} page @param {() => void} onShown a node's HTML is in place */
export function mountTreeReading({ treeId, selection, colouring, layout, shortcuts }, onShown) {
  const { reader, commands } = mountReading({ treeId, nodeName: () => selection.name });
  const paint = () => colourSegments(byId("reader"), colouring.fillOf);
  const inspector = new Inspector(treeId, () => {
    paint();
    void reader.show();
    onShown();
  });
  inspector.arrange();
  selection.subscribe(({ name }) => inspector.show(name));
  colouring.subscribe(paint);
  interceptNodeLinks((name) => selection.chooseName(name));
  document.addEventListener("click", (event) => {
    const link = /** @type {Element} */ (event.target).closest("a[data-swap]");
    if (!(link instanceof HTMLElement) || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    selection.choose(swapped(layout, selection.node, link.dataset.swap ?? "0"));
  });
  document.addEventListener("keydown", (event) => {
    const level = /** @type {HTMLElement} */ (event.target).closest?.("[data-level]")?.getAttribute("data-level");
    const step = event.key === "ArrowLeft" ? -1 : event.key === "ArrowRight" ? 1 : 0;
    if (level == null || !step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const beside = besideAt(layout, selection.node, Number(level), step);
    if (beside > 0) selection.choose(swapped(layout, selection.node, nameOf(layout, beside)));
  });
  for (const [key, words] of /** @type {[string, string][]} */ ([
    ["e", "next shading of tokens"],
    ["m", "mathematics on, off"],
    ["w", "where did it go wrong: the largest value cliff"],
    ["s", "siblings beside each other"],
    ["d", "mark a node, then see how another one differs"],
  ])) shortcuts.add({ [key]: /** @type {() => void} */ (commands[key]) }, words);
  paint();
  onShown();
}

/**
 * @param {{treeId: string, nodeName: () => string}} page
 * @returns {{reader: Reader, commands: Record<string, () => void>}} `commands`: single keys
 */
export function mountReading({ treeId, nodeName }) {
  const reader = new Reader(treeId);
  void reader.show();
  tellMark(treeId);
  document.addEventListener("click", (event) => {
    const button = /** @type {Element} */ (event.target).closest("[data-copy], [data-mark]");
    if (!(button instanceof HTMLElement)) return;
    if (button.dataset.copy) void copy(button, button.dataset.copy === "id" ? (button.dataset.text ?? "") : reader.pathText());
    else markForDiff(treeId, nodeName());
  });
  return {
    reader,
    commands: {
      e: () => reader.cycleShade(),
      m: () => reader.toggleMath(),
      s: () => location.assign(`/t/${treeId}/siblings?n=${nodeName()}`),
      d: () => markForDiff(treeId, nodeName()),
      w: () => toCliff(reader),
    },
  };
}

/** To the edge that explains the failures, or why there is none. @param {Reader} reader */
function toCliff(reader) {
  const link = document.getElementById("cliff-link");
  if (!link) {
    const none = byId("no-cliff");
    none.scrollIntoView({ block: "nearest" });
    none.classList.remove("noticed");
    requestAnimationFrame(() => none.classList.add("noticed"));
    announce(none.textContent ?? "");
    return;
  }
  reader.goTo(link.dataset.go ?? "0");
  link.click();
}

/** The first call marks a node, the second compares it with another one; on the same node the mark is taken away. @param {string} treeId @param {string} name */
function markForDiff(treeId, name) {
  const marked = markOf(treeId);
  if (marked === null) sessionStorage.setItem(MARK, JSON.stringify({ treeId, name }));
  else {
    sessionStorage.removeItem(MARK);
    if (marked !== name) {
      location.assign(`/t/${treeId}/diff?a=${marked}&b=${name}`);
      return;
    }
  }
  tellMark(treeId);
}

/** @param {string} treeId @returns {string | null} */
function markOf(treeId) {
  const kept = JSON.parse(sessionStorage.getItem(MARK) ?? "null");
  return kept?.treeId === treeId ? kept.name : null;
}

/** @param {string} treeId */
function tellMark(treeId) {
  const marked = markOf(treeId);
  setText(byId("mark-note"), marked === null ? "" : `${marked} is marked: go to another node and press d to see how they differ.`);
}

/** @param {HTMLElement} button @param {string} text */
async function copy(button, text) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied");
  } catch {
    button.textContent = "Not allowed to copy";
  }
  setTimeout(() => (button.textContent = words), 1500);
}
