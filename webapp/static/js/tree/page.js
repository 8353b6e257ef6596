// What all parts of a tree's page share: the tree's columns, where its nodes lie, the selection, the colours, the keys.
import { request } from "../core/api.js";
import { typed } from "../core/dom.js";
import { onTheme, theme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../live/head.js";
import { decodeColumns } from "./columns.js";
import { layout } from "./layout.js";
import { Selection } from "./selection.js";
import { Shortcuts } from "./shortcuts.js";
import { look, SIGNALS, signalOf, spoken } from "./signals.js";
import { countBelow, nameOf, nodeNamed } from "./walk.js";

/** @param {HTMLElement} root with `data-tree`, `data-node`, `data-colour` @returns {Promise<TreePage>} */
export async function openTree(root) {
  const treeId = root.dataset.tree ?? "";
  const columns = decodeColumns(await (await request(`/trees/${treeId}/columns?v=2`)).arrayBuffer());
  const tree = layout(columns.parent, columns.copies);
  const selection = new Selection(tree, root.dataset.node ?? "0", { write, now: () => performance.now() });
  const correct = countBelow(tree, columns.verdict, columns.labels.verdict.indexOf("correct"));
  // What a search gave up is no answer.
  const givenUp = countBelow(tree, columns.finish, columns.labels.finish.indexOf("pruned"));
  const answers = tree.leaves.map((all, node) => all - /** @type {number} */ (givenUp[node]));
  // Starts of texts come with the server's outline, which is replaced by the living one.
  const texts = new Map([...document.querySelectorAll("#outline tbody tr")].map((row) => [/** @type {HTMLElement} */ (row).dataset.node ?? "", row.querySelector(".text-start")?.textContent ?? ""]));
  const inWords = (/** @type {number} */ node) => spoken(columns, node, nameOf(tree, node), /** @type {number} */ (correct[node]), /** @type {number} */ (answers[node]));

  selection.subscribe(({ name, node }) => {
    root.dataset.node = name;
    document.title = document.title.replace(/node \S+/, `node ${name}`);
    announce(inWords(node));
  });
  window.addEventListener("popstate", () => selection.follow(read("n")));
  return {
    root, treeId, columns, layout: tree, selection, correct, answers, inWords,
    colouring: new Colouring(columns, tree, root),
    shortcuts: new Shortcuts([typed("icicle", HTMLCanvasElement)]),
    textOf: (node) => texts.get(nameOf(tree, node)) ?? "",
  };
}

/** The signal that colours the tree. */
export class Colouring {
  /** @type {Set<() => void>} */ #listeners = new Set();
  #columns;
  #layout;
  #root;
  #signal;

  /** @param {TreeColumns} columns @param {Layout} tree @param {HTMLElement} root */
  constructor(columns, tree, root) {
    this.#columns = columns;
    this.#layout = tree;
    this.#root = root;
    this.#signal = signalOf(columns, SIGNALS.find((name) => name === root.dataset.colour) ?? "advantage", theme());
    onTheme(() => this.by(this.#signal.signal));
  }

  get signal() {
    return this.#signal;
  }

  /** @param {() => void} listener */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  /** @param {Signal} name */
  by(name) {
    this.#signal = signalOf(this.#columns, name, theme());
    write({ color: name === this.#root.dataset.usualColour ? null : name });
    for (const listener of this.#listeners) listener();
  }

  /** The fill of a node as a colour; null where it is to be hatched. @param {string} name of the node */
  fillOf = (name) => {
    const signal = this.#signal;
    const node = nodeNamed(this.#layout, name);
    const kind = node < 0 ? "context" : look(this.#columns, signal, node);
    if (kind !== "credit") return kind === "hatched" ? null : "transparent";
    return signal.scale.fill(signal.scale.level(/** @type {number} */ (signal.values[node])));
  };
}
