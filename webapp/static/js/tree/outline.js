// The tree as indented rows: its accessible form, beside the canvas always. Rows exist only near the window.
import { make } from "../core/dom.js";
import { number, signed } from "../core/format.js";
import { probeWords, spoken, times, verdictGlyph, withoutCredit } from "./signals.js";
import { nameOf, outlineRows } from "./walk.js";

const ROW = 28;
const AROUND = 12;
/** Deeper rows are not moved further in: the place belongs to their names. */
const DEEPEST_INDENT = 6;
const NAME_PARTS = 4;
/** Browsers draw nothing beyond some tens of millions of pixels; of a longer list the scroll bar runs faster than the rows. */
const MOST_PIXELS = 8_000_000;

/** `…2.1.3.1`: of a long name the end, which tells neighbours apart. @param {string} name @param {number} depth */
const shortened = (name, depth) => (depth > DEEPEST_INDENT ? `…${name.split(".").slice(-NAME_PARTS).join(".")}` : name);

export class Outline {
  head = make("div", { class: "outline-row outline-head", "aria-hidden": "true" }, ...["Node", "V", "A", "Entropy", "Verdict", "Tokens", "Text"].map((word) => make("span", { class: ["V", "A", "Entropy", "Tokens"].includes(word) ? "num" : null }, word)));
  element = make("div", { class: "outline-tree", role: "tree", tabindex: 0, "aria-label": "Nodes of the tree" });
  #inside = make("div", { class: "outline-inside", role: "presentation" });
  /** @type {Set<number>} */ #closed = new Set();
  #selected = 0;
  #scene;
  #correct;
  #answers;
  #hooks;
  #rows;
  /** Row of each node, -1 while it is hidden in a closed one. */ #rowOf;

  /** @param {Scene} scene @param {Int32Array} correct right answers below each node @param {Int32Array} answers all of them @param {{onSelect: (node: number) => void}} hooks */
  constructor(scene, correct, answers, hooks) {
    this.#scene = scene;
    this.#correct = correct;
    this.#answers = answers;
    this.#hooks = hooks;
    this.#rows = outlineRows(scene.layout, this.#closed);
    this.#rowOf = new Int32Array(scene.layout.n);
    this.element.append(this.#inside);
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("scroll", () => this.#fill());
    this.element.addEventListener("click", (event) => this.#click(/** @type {Element} */ (event.target)));
    new ResizeObserver(() => this.#fill()).observe(this.element);
    this.#reindex();
  }

  /** Other texts, other things found. @param {Scene} scene */
  show(scene) {
    this.#scene = scene;
    this.#fill();
  }

  /** @param {number} node */
  select(node) {
    this.#selected = node;
    // What is selected is always there to be seen.
    let opened = false;
    for (let up = /** @type {number} */ (this.#scene.layout.parent[node]); up >= 0; up = /** @type {number} */ (this.#scene.layout.parent[up])) opened = this.#closed.delete(up) || opened;
    if (opened) this.#reindex();
    const row = /** @type {number} */ (this.#rowOf[node]);
    const first = this.#firstRow();
    const shown = this.element.clientHeight / ROW;
    if (row < first) this.#scrollTo(row);
    else if (row + 1 > first + shown) this.#scrollTo(row + 1 - shown);
    this.#fill();
  }

  /** How many pixels of rows one pixel of the scroll bar stands for. */
  #speed() {
    const room = this.element.clientHeight;
    const all = this.#rows.length * ROW;
    return all <= MOST_PIXELS ? 1 : (all - room) / (MOST_PIXELS - room);
  }

  /** The row at the upper edge, with its fraction. */
  #firstRow() {
    return (this.element.scrollTop * this.#speed()) / ROW;
  }

  /** @param {number} row */
  #scrollTo(row) {
    this.element.scrollTop = (row * ROW) / this.#speed();
  }

  #reindex() {
    this.#rows = outlineRows(this.#scene.layout, this.#closed);
    this.#rowOf.fill(-1);
    for (let row = 0; row < this.#rows.length; row++) this.#rowOf[/** @type {number} */ (this.#rows[row])] = row;
    this.#inside.style.height = `${Math.min(MOST_PIXELS, this.#rows.length * ROW)}px`;
    this.#fill();
  }

  #fill() {
    const first = this.#firstRow();
    const top = Math.floor(first);
    const shown = Math.ceil(this.element.clientHeight / ROW);
    const row = Math.max(0, /** @type {number} */ (this.#rowOf[this.#selected]));
    const wanted = new Set();
    for (let i = Math.max(0, top - AROUND); i < Math.min(this.#rows.length, top + shown + AROUND); i++) wanted.add(i);
    // The selected row is there even when it is scrolled away: `aria-activedescendant` names it.
    for (let i = Math.max(0, row - 2); i < Math.min(this.#rows.length, row + 3); i++) wanted.add(i);
    const shift = this.element.scrollTop - first * ROW;
    const height = Math.min(MOST_PIXELS, this.#rows.length * ROW);
    this.#inside.replaceChildren(...[...wanted].sort((a, b) => a - b).map((i) => this.#row(i, Math.min(height - ROW, Math.max(0, i * ROW + shift)))));
    this.element.setAttribute("aria-activedescendant", `outline-${this.#selected}`);
  }

  /** @param {number} row @param {number} top pixels */
  #row(row, top) {
    const { columns, layout, textOf, hits } = this.#scene;
    const node = /** @type {number} */ (this.#rows[row]);
    const parent = /** @type {number} */ (layout.parent[node]);
    const children = /** @type {number} */ (layout.nChildren[node]);
    const depth = /** @type {number} */ (layout.depth[node]);
    const name = nameOf(layout, node);
    const advantage = /** @type {number} */ (columns.advantage[node]);
    const verdict = columns.labels.verdict[/** @type {number} */ (columns.verdict[node])] ?? "";
    const toggle = make("span", { class: "toggle", "aria-hidden": "true", "data-toggle": children > 0 }, children ? (this.#closed.has(node) ? "▸" : "▾") : "");
    const probes = this.#scene.probed?.get(node)?.length;
    const first = make("span", { class: "outline-name mono" }, toggle, [shortened(name, depth), times(columns, node)].filter(Boolean).join(" "));
    if (probes) first.append(" ", make("span", { class: "outline-probes", title: "Continuations that were sampled by hand: no part of the tree, counted nowhere" }, `◇ ${probeWords(probes)}`));
    first.style.paddingLeft = `${4 + 14 * Math.min(depth, DEEPEST_INDENT)}px`;
    const element = make("div", {
      id: `outline-${node}`, class: `outline-row${hits?.has(node) ? " outline-found" : ""}`, role: "treeitem", "data-node": node,
      "aria-level": depth + 1,
      "aria-posinset": node === 0 ? 1 : node - /** @type {number} */ (layout.firstChild[parent]) + 1,
      "aria-setsize": node === 0 ? 1 : /** @type {number} */ (layout.nChildren[parent]),
      "aria-expanded": children ? String(!this.#closed.has(node)) : null,
      "aria-selected": String(node === this.#selected),
      "aria-label": spoken(columns, node, name, /** @type {number} */ (this.#correct[node]), /** @type {number} */ (this.#answers[node])),
    },
      first,
      make("span", { class: "num" }, number(columns.value[node], 2)),
      make("span", { class: "num", title: node > 0 && Number.isNaN(advantage) ? withoutCredit(columns, node) : null }, Number.isNaN(advantage) ? "—" : signed(advantage, 2)),
      make("span", { class: "num" }, number(columns.entropy[node], 2)),
      make("span", { class: `verdict verdict-${verdict}` }, verdict === "none" ? "" : `${verdictGlyph(verdict)} ${verdict}`),
      make("span", { class: "num" }, number(columns.tokens[node], 0)),
      make("span", { class: "text-start" }, textOf(node)),
    );
    element.style.top = `${top}px`;
    return element;
  }

  /** @param {Element} target */
  #click(target) {
    const row = target.closest("[data-node]");
    if (!(row instanceof HTMLElement)) return;
    const node = Number(row.dataset.node);
    if (target.closest("[data-toggle]")) this.#toggle(node);
    else this.#hooks.onSelect(node);
  }

  /** @param {number} node */
  #toggle(node) {
    if (!this.#closed.delete(node)) this.#closed.add(node);
    this.#reindex();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { layout } = this.#scene;
    const node = this.#selected;
    const row = /** @type {number} */ (this.#rowOf[node]);
    const at = (/** @type {number} */ place) => /** @type {number} */ (this.#rows[Math.min(this.#rows.length - 1, Math.max(0, place))]);
    const children = /** @type {number} */ (layout.nChildren[node]);
    const open = children > 0 && !this.#closed.has(node);
    /** @type {number | null} */
    let next = null;
    switch (event.key) {
      case "ArrowDown": next = at(row + 1); break;
      case "ArrowUp": next = at(row - 1); break;
      case "Home": next = 0; break;
      case "End": next = at(this.#rows.length - 1); break;
      case "ArrowRight":
        // In the outline children stand in sampling order, whatever order the picture has.
        if (open) next = /** @type {number} */ (layout.firstChild[node]);
        else if (children) this.#toggle(node);
        break;
      case "ArrowLeft":
        if (open) this.#toggle(node);
        else if (node > 0) next = /** @type {number} */ (layout.parent[node]);
        break;
      default: return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (next !== null) this.#hooks.onSelect(next);
  }
}
