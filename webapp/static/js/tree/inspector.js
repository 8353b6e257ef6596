// Loads what inspector and reader show of a node. Both are the server's own HTML, the same that the node's plain page
// shows: nothing about a value or an advantage is worked out in the browser.
import { byId, setText } from "../core/dom.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

const PATIENCE_MILLISECONDS = 80;

export class Inspector {
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** Parts that were opened or closed by hand stay so from node to node. @type {Map<string, boolean>} */ #open = new Map();
  #tree;
  #onLoaded;

  /** @param {string} tree id @param {() => void} onLoaded new HTML is in place */
  constructor(tree, onLoaded) {
    this.#tree = tree;
    this.#onLoaded = onLoaded;
    document.addEventListener("toggle", (event) => {
      const part = /** @type {HTMLDetailsElement} */ (event.target);
      if (part.dataset?.part) this.#open.set(part.dataset.part, part.open);
    }, true);
  }

  /** Someone who walks with a key held down reads only where they stop. @param {string} name */
  show(name) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#load(name), PATIENCE_MILLISECONDS);
  }

  /** @param {string} name */
  async #load(name) {
    const banner = byId("tree-problem");
    try {
      if (!(await load(`/t/${this.#tree}/n/${name}`, ["inspector", "reader", "probes"]))) return;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      banner.hidden = false;
      setText(banner, `Node ${name} could not be read; what is shown is the one before. ${error.message}`);
      return;
    }
    banner.hidden = true;
    this.arrange();
    this.#onLoaded();
  }

  /** What the server's HTML leaves to scripts. */
  arrange() {
    revealHidden(byId("inspector"));
    revealHidden(byId("reader"));
    for (const part of /** @type {NodeListOf<HTMLDetailsElement>} */ (document.querySelectorAll("[data-part]"))) {
      const wanted = this.#open.get(part.dataset.part ?? "");
      if (wanted !== undefined) part.open = wanted;
    }
    for (const button of document.querySelectorAll("#inspector [data-script][hidden]")) button.removeAttribute("hidden");
  }
}
