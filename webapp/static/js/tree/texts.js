// How the texts of nodes start, fetched by the block when something wants to show them. Pure but for the fetching, which is handed in.
import { codePoint, parts } from "../core/text.js";

/** As `webapp/trees/texts.py` cuts them. */
export const TEXT_BLOCK = 128;
const BLOCKS_AT_ONCE = 64;
const PATIENCE_MILLISECONDS = 60;
const MOST_KEPT = 400;

export class TextStarts {
  /** @type {Map<number, string[]>} */ #kept = new Map();
  /** @type {Set<number>} */ #wanted = new Set();
  /** @type {Set<number>} */ #asked = new Set();
  /** @type {Set<() => void>} */ #listeners = new Set();
  #timer = 0;
  #fetchBlocks;
  #later;

  /**
   * @param {(blocks: number[]) => Promise<Record<string, string[]>>} fetchBlocks
   * @param {(run: () => void, milliseconds: number) => number} later
   */
  constructor(fetchBlocks, later) {
    this.#fetchBlocks = fetchBlocks;
    this.#later = later;
  }

  /** New texts have come. @param {() => void} listener */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  /** The start of a node's text; "" while it is on its way. @param {number} node */
  of(node) {
    const block = (node / TEXT_BLOCK) | 0;
    const there = this.#kept.get(block);
    if (there) return there[node % TEXT_BLOCK] ?? "";
    if (!this.#asked.has(block)) {
      this.#wanted.add(block);
      this.#timer ||= this.#later(() => void this.#fetch(), PATIENCE_MILLISECONDS);
    }
    return "";
  }

  async #fetch() {
    this.#timer = 0;
    // The newest wishes: who scrolls through a million rows reads where they stop.
    const blocks = [...this.#wanted].slice(-BLOCKS_AT_ONCE);
    this.#wanted.clear();
    for (const block of blocks) this.#asked.add(block);
    try {
      const found = await this.#fetchBlocks(blocks);
      for (const [block, texts] of Object.entries(found)) this.#kept.set(Number(block), texts.map(visible));
    } catch {
      // Texts are an extra here: the node's own page has them, and says what is wrong.
      return;
    }
    for (const block of blocks) this.#asked.delete(block);
    for (const block of this.#kept.keys()) {
      if (this.#kept.size <= MOST_KEPT) break;
      this.#kept.delete(block);
    }
    for (const listener of this.#listeners) listener();
  }
}

/** Characters that hide or turn round others, as their number: a canvas cannot hold capsules. @param {string} text */
export const visible = (text) => parts(text).map((part) => (part.hidden ? `⟨${codePoint(part.text)}⟩` : part.text)).join("");
