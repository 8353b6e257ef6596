// The signal that colours the tree, its scale, and the address that says so. Every picture and the reader listen to it.
import { request } from "../core/api.js";
import { onTheme, theme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { look, rangeIn, signalOf, signalsOf } from "./signals.js";
import { REST_MILLISECONDS } from "./selection.js";
import { nodeNamed } from "./walk.js";

/** @type {ScaleChoice[]} */
const SCALES = ["run", "tree", "fixed", "symlog"];

/** Plain GRPO on the leaves: what one would have without the tree. */
const USUAL_ESTIMATOR = "grpo";

export class Colouring {
  /** @type {Set<() => void>} */ #listeners = new Set();
  #columns;
  #layout;
  #root;
  /** @type {Signal} */ #name;
  /** @type {ScaleChoice} */ #scale;
  /** @type {[number, number] | null} */ #range;
  /** @type {{under: string, values: Float32Array} | null} */ #other = null;
  #signal;

  /** @param {TreeColumns} columns @param {Shape} shape @param {HTMLElement} root with what the server read from the address */
  constructor(columns, shape, root) {
    this.#columns = columns;
    this.#layout = shape;
    this.#root = root;
    this.#name = signalsOf(columns).find((name) => name === root.dataset.colour) ?? "value";
    this.#scale = SCALES.find((scale) => scale === read("scale")) ?? this.usualScale;
    this.#range = rangeIn(read("range"));
    this.#signal = this.#made();
    onTheme(() => this.#changed());
    if (this.#name === "difference") void this.under(read("under") ?? USUAL_ESTIMATOR, "replace");
  }

  get signal() {
    return this.#signal;
  }

  get scale() {
    return this.#scale;
  }

  /** @type {ScaleChoice} */
  get usualScale() {
    return this.#root.dataset.runLimit ? "run" : "tree";
  }

  /** The estimator that `difference` compares with. */
  get estimator() {
    return this.#other?.under ?? read("under") ?? USUAL_ESTIMATOR;
  }

  /** @param {() => void} listener */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  /** @param {Signal} name */
  by(name) {
    this.#name = name;
    this.#range = null;
    this.#changed("push");
    if (name === "difference" && !this.#other) void this.under(this.estimator, "replace");
  }

  /** @param {ScaleChoice} scale */
  scaleBy(scale) {
    this.#scale = scale;
    this.#range = null;
    this.#changed("push");
  }

  /** Chosen by hand; null: as usual. @param {[number, number] | null} range */
  rangeBy(range) {
    this.#range = range;
    // One step Back undoes a whole drag, or a burst of keys.
    const rested = performance.now() - this.#rangedAt > REST_MILLISECONDS;
    this.#rangedAt = performance.now();
    this.#changed(rested ? "push" : "replace");
  }
  #rangedAt = -Infinity;

  /** The address changed by itself (Back, Forward). */
  follow() {
    this.#name = signalsOf(this.#columns).find((name) => name === (read("color") ?? this.#root.dataset.usualColour)) ?? "value";
    this.#scale = SCALES.find((scale) => scale === read("scale")) ?? this.usualScale;
    this.#range = rangeIn(read("range"));
    const under = read("under") ?? USUAL_ESTIMATOR;
    if (this.#name === "difference" && this.#other?.under !== under) void this.under(under, "replace");
    else this.#changed();
  }

  /** Compare with what another estimator would give. @param {string} slug @param {"push" | "replace"} [how] @returns {Promise<string>} why not, or "" */
  async under(slug, how = "push") {
    write({ under: slug === USUAL_ESTIMATOR ? null : slug }, how);
    try {
      const raw = await (await request(`/trees/${this.#root.dataset.tree}/difference?under=${encodeURIComponent(slug)}`)).arrayBuffer();
      this.#other = { under: slug, values: new Float32Array(raw) };
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#other = { under: slug, values: new Float32Array(this.#columns.n).fill(NaN) };
      this.problem = error.message;
      this.#changed();
      return error.message;
    }
    this.problem = "";
    this.#changed();
    return "";
  }
  /** Why there is no difference to show. */ problem = "";

  #made() {
    const runLimit = Number(this.#root.dataset.runLimit) || null;
    return signalOf({ columns: this.#columns, parent: this.#layout.parent }, this.#name, theme(), { scale: this.#scale, runLimit, range: this.#range, difference: this.#other?.values ?? null });
  }

  /** @param {"push" | "replace"} [how] `push` where Back should undo it */
  #changed(how = "replace") {
    this.#signal = this.#made();
    write({
      color: this.#name === this.#root.dataset.usualColour ? null : this.#name,
      scale: this.#scale === this.usualScale ? null : this.#scale,
      range: this.#range ? this.#range.map((end) => Number(end.toPrecision(3))).join(",") : null,
    }, how);
    for (const listener of this.#listeners) listener();
  }

  /** The fill of a node as a colour; null where it is to be hatched. @param {string} name of the node */
  fillOf = (name) => {
    const signal = this.#signal;
    const node = nodeNamed(this.#layout, name);
    const kind = node < 0 ? "context" : look(this.#columns, signal, node);
    if (kind !== "credit") return kind === "hatched" ? null : "transparent";
    const level = signal.scale.level(/** @type {number} */ (signal.values[node]));
    return level < 0 ? "transparent" : signal.scale.fill(level);
  };
}
