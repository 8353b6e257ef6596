// The one selection of a tree's page: list, canvas, graph, outline, reader, inspector and address all listen to it and
// ask it to change. Pure but for the address, which is handed in.
import { nameOf, nodeNamed } from "./walk.js";

/** Someone who walks with the arrow keys leaves one entry behind where they rested, not one for every key press. */
export const REST_MILLISECONDS = 1500;

export class Selection {
  /** @type {Set<(selection: Selection) => void>} */ #listeners = new Set();
  #tree;
  #node;
  #write;
  #now;
  #changedAt = -Infinity;

  /**
   * @param {Layout} tree
   * @param {string} start name of the node in the address; the root where there is no such node
   * @param {{write: (changes: Record<string, string | null>, how: "push" | "replace") => void, now: () => number}} address
   */
  constructor(tree, start, { write, now }) {
    this.#tree = tree;
    this.#node = Math.max(0, nodeNamed(tree, start));
    this.#write = write;
    this.#now = now;
  }

  /** Its index, breadth-first; the root is 0. */
  get node() {
    return this.#node;
  }

  /** `2.1.3`. */
  get name() {
    return nameOf(this.#tree, this.#node);
  }

  /**
   * Hear of every change from now on. @param {(selection: Selection) => void} listener
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Select a node, and say so in the address. @param {number} node */
  choose(node) {
    if (node === this.#node || !(node >= 0 && node < this.#tree.n)) return;
    this.#node = node;
    const rested = this.#now() - this.#changedAt > REST_MILLISECONDS;
    this.#changedAt = this.#now();
    this.#write({ n: node === 0 ? null : this.name }, rested ? "push" : "replace");
    this.#tell();
  }

  /** Select by name; nothing happens when there is no such node. @param {string} name */
  chooseName(name) {
    this.choose(nodeNamed(this.#tree, name));
  }

  /** The address changed by itself (Back, Forward). @param {string | null} name */
  follow(name) {
    const node = Math.max(0, nodeNamed(this.#tree, name ?? "0"));
    if (node === this.#node) return;
    this.#node = node;
    this.#tell();
  }

  #tell() {
    for (const listener of [...this.#listeners]) listener(this);
  }
}
