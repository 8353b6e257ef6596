// The signals a tree can be coloured by: the number of a node, its scale, and its words. Pure.
import { VERDICT_GLYPHS, number, signed } from "../core/format.js";
import { colourScale, symmetricLimit, upperLimit } from "./colour.js";

export const SIGNALS = /** @type {const} */ (["advantage", "value", "verdict", "entropy"]);
/** As `trainer.tree.Verdict` numbers them; a tree's own columns bring their words along. */
export const VERDICTS = ["none", "correct", "incorrect", "unparsed", "truncated", "error"];

/**
 * @param {TreeColumns} columns @param {Signal} signal @param {Theme} theme
 */
export function signalOf(columns, signal, theme) {
  const values = signal === "entropy" ? columns.entropy : signal === "advantage" ? columns.advantage : columns.value;
  const limit = signal === "advantage" ? symmetricLimit(values) : signal === "entropy" ? upperLimit(values, 0.1) : 1;
  const scale = colourScale(signal, limit, theme);
  return { signal, values, limit, scale };
}

/** What stands in a rectangle. @param {Signal} signal @param {number} value */
export function label(signal, value) {
  if (Number.isNaN(value)) return "";
  return signal === "advantage" ? signed(value, 2) : number(value, 2);
}

/**
 * How a screen reader hears a node: "Node 2.1.3, value 0.38, 6 of 16 correct, advantage minus 0.91, 118 tokens".
 * @param {TreeColumns} columns @param {number} node @param {string} name @param {number} correct
 */
export function spoken(columns, node, name, correct) {
  const at = (/** @type {ArrayLike<number>} */ column) => /** @type {number} */ (column[node]);
  const parts = [`Node ${name}`];
  if (!Number.isNaN(at(columns.value))) parts.push(`value ${at(columns.value).toFixed(2)}`);
  parts.push(`${correct} of ${at(columns.n_leaves)} correct`);
  const advantage = at(columns.advantage);
  if (node > 0) parts.push(Number.isNaN(advantage) ? "no credit" : `advantage ${advantage < 0 ? "minus" : "plus"} ${Math.abs(advantage).toFixed(2)}`);
  const verdict = columns.labels.verdict[at(columns.verdict)];
  if (verdict && verdict !== "none") parts.push(verdict);
  parts.push(`${at(columns.tokens)} tokens`);
  return parts.join(", ");
}

/** @param {string} verdict */
export const verdictGlyph = (verdict) => VERDICT_GLYPHS[verdict] ?? "";
