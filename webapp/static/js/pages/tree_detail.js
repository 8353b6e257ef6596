// One tree. Selection is one thing: canvas, outline, reader, inspector and the address always show the same node.
import { request } from "../core/api.js";
import { byId, setText, typed } from "../core/dom.js";
import { number } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { onTheme, theme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../live/head.js";
import { TreeCanvas } from "../tree/canvas.js";
import { decodeColumns } from "../tree/columns.js";
import { Inspector } from "../tree/inspector.js";
import { layout } from "../tree/layout.js";
import { drawLegend } from "../tree/legend.js";
import { Outline } from "../tree/outline.js";
import { colourSegments, interceptNodeLinks } from "../tree/reader.js";
import { advantageWords, look, SIGNALS, signalOf, spoken, times, visitWords, withoutCredit } from "../tree/signals.js";
import { countBelow, move, nameOf, nextAlike, nodeNamed } from "../tree/walk.js";

const root = byId("tree-layout");
const treeId = root.dataset.tree ?? "";
const PUSH_AFTER_MILLISECONDS = 1500;

// Starts of texts come with the server's outline, which is replaced by the living one.
const textStarts = new Map([...document.querySelectorAll("#outline tbody tr")].map((row) => [/** @type {HTMLElement} */ (row).dataset.node ?? "", row.querySelector(".text-start")?.textContent ?? ""]));

try {
  await open();
} catch (error) {
  if (!(error instanceof Error)) throw error;
  // The outline and the node below are the server's and stay as they are.
  const banner = byId("tree-problem");
  byId("icicle").hidden = true;
  banner.hidden = false;
  setText(banner, `The picture of this tree cannot be drawn. ${error.message}`);
}

async function open() {
  const columns = decodeColumns(await (await request(`/trees/${treeId}/columns?v=2`)).arrayBuffer());
  const tree = layout(columns.parent, columns.copies);
  const correct = countBelow(tree, columns.verdict, columns.labels.verdict.indexOf("correct"));
  // What a search gave up is no answer.
  const givenUp = countBelow(tree, columns.finish, columns.labels.finish.indexOf("pruned"));
  const answers = tree.leaves.map((all, node) => all - /** @type {number} */ (givenUp[node]));
  let signal = signalOf(columns, signalNamed(root.dataset.colour), theme());
  let selected = Math.max(0, nodeNamed(tree, root.dataset.node ?? "0"));
  let view = root.dataset.view === "outline" ? "outline" : "icicle";
  let pushedAt = -Infinity;

  const inWords = (/** @type {number} */ node) => spoken(columns, node, nameOf(tree, node), /** @type {number} */ (correct[node]), /** @type {number} */ (answers[node]));
  const scene = () => ({ columns, layout: tree, signal, textOf: (/** @type {number} */ node) => textStarts.get(nameOf(tree, node)) ?? "" });
  const canvasElement = typed("icicle", HTMLCanvasElement);
  const canvas = new TreeCanvas(canvasElement, { onSelect: (node) => choose(node), onHover: hint });
  const outline = new Outline(scene(), correct, answers, { onSelect: (node) => choose(node) });
  const inspector = new Inspector(treeId, decorate);

  byId("outline-box").replaceChildren(head(), outline.element);
  canvas.show(scene(), false);
  show(view);
  mark();
  decorate();

  // ---- selection

  /** @param {number} node @param {boolean} [fromAddress] */
  function choose(node, fromAddress = false) {
    if (node === selected) return;
    selected = node;
    const name = nameOf(tree, node);
    if (!fromAddress) {
      // Back returns to where the reader rested, not through every key press.
      const rested = performance.now() - pushedAt > PUSH_AFTER_MILLISECONDS;
      pushedAt = performance.now();
      write({ n: node === 0 ? null : name }, rested ? "push" : "replace");
    }
    mark();
    inspector.show(name);
    announce(inWords(node));
  }

  function mark() {
    canvas.select(selected);
    outline.select(selected);
    drawLegend(byId("colour-legend"), signal, /** @type {number} */ (signal.values[selected]), looks());
    document.title = document.title.replace(/node \S+/, `node ${nameOf(tree, selected)}`);
    root.dataset.node = nameOf(tree, selected);
    canvasElement.setAttribute("aria-description", inWords(selected));
    hint(-1);
  }

  /** How the nodes without a number are drawn, in a word each; the prompt needs no legend. */
  function looks() {
    /** @type {Map<Look, string>} */
    const found = new Map();
    for (let node = 1; node < columns.n; node++) {
      const kind = look(columns, signal, node);
      if (!found.has(kind)) found.set(kind, kind !== "hatched" ? withoutCredit(columns, node) : signal.signal === "advantage" ? "no credit" : "nothing scored");
    }
    return found;
  }

  function decorate() {
    colourSegments(byId("reader"), (name) => {
      const node = nodeNamed(tree, name);
      const kind = node < 0 ? "context" : look(columns, signal, node);
      if (kind !== "credit") return kind === "hatched" ? null : "transparent";
      return signal.scale.fill(signal.scale.level(/** @type {number} */ (signal.values[node])));
    });
  }

  window.addEventListener("popstate", () => choose(Math.max(0, nodeNamed(tree, read("n") ?? "0")), true));
  interceptNodeLinks((name) => {
    const node = nodeNamed(tree, name);
    if (node >= 0) choose(node);
  });

  /** What the pointer is on; the selected node when it is on nothing. @param {number} node */
  function hint(node) {
    const at = node < 0 ? selected : node;
    const name = nameOf(tree, at);
    const words = [name, times(columns, at), `V ${number(columns.value[at], 3)}`, `${correct[at]}/${answers[at]} ✓`];
    if (at > 0) words.push(advantageWords(columns, at));
    words.push(`${columns.tokens[at]} tok`);
    words.push(visitWords(columns, at), textStarts.get(name) ?? "");
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
    outline.select(selected);
  }
  /** @param {Signal} next */
  function colourBy(next) {
    signal = signalOf(columns, next, theme());
    choice.value = next;
    canvas.show(scene(), true);
    mark();
    decorate();
    write({ color: next === root.dataset.usualColour ? null : next });
  }
  const choice = typed("colour-choice", HTMLSelectElement);
  choice.value = signal.signal;
  choice.addEventListener("change", () => colourBy(signalNamed(choice.value)));
  byId("view-choice").addEventListener("change", (event) => show(/** @type {HTMLInputElement} */ (event.target).value));
  byId("fit-tree").addEventListener("click", () => canvas.fit());
  onTheme(() => colourBy(signal.signal));

  // ---- keyboard

  const go = (/** @type {Parameters<typeof move>[2]} */ direction) => choose(move(tree, selected, direction));
  onKeys(
    {
      ArrowUp: () => go("up"),
      ArrowDown: () => go("down"),
      ArrowLeft: () => go("left"),
      ArrowRight: () => go("right"),
      Home: () => go("first"),
      End: () => go("last"),
      Enter: () => canvas.zoomTo(selected),
      Backspace: () => canvas.fit(),
      0: () => canvas.fit(),
      n: () => choose(nextAlike(tree, columns.verdict, selected, 1)),
      N: () => choose(nextAlike(tree, columns.verdict, selected, -1)),
      PageDown: () => otherTree(1),
      PageUp: () => otherTree(-1),
    },
    canvasElement,
  );
  onKeys({
    1: () => show("icicle"),
    3: () => show("outline"),
    v: () => colourBy(/** @type {Signal} */ (SIGNALS[(SIGNALS.indexOf(signal.signal) + 1) % SIGNALS.length])),
  });

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
  root.dataset.ready = "";
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

/** @param {string | undefined} name @returns {Signal} */
function signalNamed(name) {
  return SIGNALS.find((signal) => signal === name) ?? "advantage";
}

// The list shows this tree, without scrolling the page.
const pane = document.querySelector(".tree-list-pane");
const here = pane?.querySelector("[aria-current]");
if (pane instanceof HTMLElement && here instanceof HTMLElement) pane.scrollTop = Math.max(0, here.offsetTop - pane.clientHeight / 2);
