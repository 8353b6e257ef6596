// The middle of a tree's page: one tree in several views, the choice of view and colour, and the keys that walk in it.
import { byId, setText, typed } from "../core/dom.js";
import { number } from "../core/format.js";
import { write } from "../core/url_state.js";
import { TreeCanvas } from "./canvas.js";
import { drawLegend } from "./legend.js";
import { Outline } from "./outline.js";
import { advantageWords, look, SIGNALS, times, visitWords, withoutCredit } from "./signals.js";
import { move, nameOf, nextAlike } from "./walk.js";

/** @param {TreePage} page */
export function mountStage(page) {
  const { root, columns, layout: tree, selection, colouring, shortcuts, correct, answers, textOf, inWords } = page;
  let view = root.dataset.view === "outline" ? "outline" : "icicle";
  const scene = () => ({ columns, layout: tree, signal: colouring.signal, textOf });
  const canvasElement = typed("icicle", HTMLCanvasElement);
  const choose = (/** @type {number} */ node) => selection.choose(node);
  const canvas = new TreeCanvas(canvasElement, { onSelect: choose, onHover: hint });
  const outline = new Outline(scene(), correct, answers, { onSelect: choose });

  byId("outline-box").replaceChildren(head(), outline.element);
  canvas.show(scene(), false);
  show(view);
  mark();
  selection.subscribe(mark);

  function mark() {
    const selected = selection.node;
    canvas.select(selected);
    outline.select(selected);
    drawLegend(byId("colour-legend"), colouring.signal, /** @type {number} */ (colouring.signal.values[selected]), looks());
    canvasElement.setAttribute("aria-description", inWords(selected));
    hint(-1);
  }

  /** How the nodes without a number are drawn, in a word each; the prompt needs no legend. */
  function looks() {
    const signal = colouring.signal;
    /** @type {Map<Look, string>} */
    const found = new Map();
    for (let node = 1; node < columns.n; node++) {
      const kind = look(columns, signal, node);
      if (!found.has(kind)) found.set(kind, kind !== "hatched" ? withoutCredit(columns, node) : signal.signal === "advantage" ? "no credit" : "nothing scored");
    }
    return found;
  }

  /** What the pointer is on; the selected node when it is on nothing. @param {number} node */
  function hint(node) {
    const at = node < 0 ? selection.node : node;
    const words = [nameOf(tree, at), times(columns, at), `V ${number(columns.value[at], 3)}`, `${correct[at]}/${answers[at]} ✓`];
    if (at > 0) words.push(advantageWords(columns, at));
    words.push(`${columns.tokens[at]} tok`, visitWords(columns, at), textOf(at));
    setText(byId("icicle-hint"), words.filter(Boolean).join("   "));
  }

  // ---- view and colour

  /** @param {string} next */
  function show(next) {
    view = next;
    byId("icicle-box").hidden = view !== "icicle";
    // Never hidden from a screen reader: in the other view it only leaves the screen.
    byId("outline-box").classList.toggle("off-screen-tree", view === "icicle");
    for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("#view-choice input"))) radio.checked = radio.value === view;
    write({ view: view === "icicle" ? null : view });
    outline.select(selection.node);
  }
  const choice = typed("colour-choice", HTMLSelectElement);
  choice.value = colouring.signal.signal;
  choice.addEventListener("change", () => colouring.by(/** @type {Signal} */ (choice.value)));
  colouring.subscribe(() => {
    choice.value = colouring.signal.signal;
    canvas.show(scene(), true);
    mark();
  });
  byId("view-choice").addEventListener("change", (event) => show(/** @type {HTMLInputElement} */ (event.target).value));
  byId("fit-tree").addEventListener("click", () => canvas.fit());

  // ---- keyboard

  const go = (/** @type {Parameters<typeof move>[2]} */ direction) => choose(move(tree, selection.node, direction));
  shortcuts.add({ ArrowUp: () => go("up"), ArrowDown: () => go("down") }, "parent, first child", "canvas");
  shortcuts.add({ ArrowLeft: () => go("left"), ArrowRight: () => go("right") }, "previous, next sibling", "canvas");
  shortcuts.add({ Home: () => go("first"), End: () => go("last") }, "first, last sibling", "canvas");
  shortcuts.add({ PageUp: () => otherTree(-1), PageDown: () => otherTree(1) }, "previous, next tree in the list", "canvas");
  shortcuts.add({ Enter: () => canvas.zoomTo(selection.node), Backspace: () => canvas.fit() }, "zoom in, zoom out", "canvas");
  shortcuts.add({ 0: () => canvas.fit() }, "the whole tree", "canvas");
  shortcuts.add({ n: () => choose(nextAlike(tree, columns.verdict, selection.node, 1)), N: () => choose(nextAlike(tree, columns.verdict, selection.node, -1)) }, "next, previous leaf of the same verdict", "canvas");
  shortcuts.add({ 1: () => show("icicle"), 3: () => show("outline") }, "icicle, outline");
  shortcuts.add({ v: () => colouring.by(/** @type {Signal} */ (SIGNALS[(SIGNALS.indexOf(colouring.signal.signal) + 1) % SIGNALS.length])) }, "next colour");

  /** The next tree of the step, with the same view and colour. @param {number} by */
  function otherTree(by) {
    const links = /** @type {HTMLAnchorElement[]} */ ([...document.querySelectorAll(".tree-list-pane .tree-link")]);
    const at = links.findIndex((link) => link.closest("[aria-current]"));
    const link = links[at + by];
    if (!link) return;
    sessionStorage.setItem("focus-canvas", "1");
    const query = new URLSearchParams(location.search);
    query.delete("n");
    location.assign(`${link.pathname}${query.size ? `?${query}` : ""}`);
  }
  if (sessionStorage.getItem("focus-canvas")) {
    sessionStorage.removeItem("focus-canvas");
    canvasElement.focus({ preventScroll: true });
  }
}

function head() {
  const element = document.createElement("div");
  element.className = "outline-row outline-head";
  element.setAttribute("aria-hidden", "true");
  for (const word of ["Node", "V", "A", "Verdict", "Tokens", "Text"]) {
    const cell = document.createElement("span");
    cell.textContent = word;
    if (["V", "A", "Tokens"].includes(word)) cell.className = "num";
    element.append(cell);
  }
  return element;
}
