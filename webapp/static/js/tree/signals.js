// The signals a tree can be coloured by: the number of a node, its scale, and its words. Pure.
import { VERDICT_GLYPHS, number, signed } from "../core/format.js";
import { colourScale, symmetricLimit, upperLimit, valueRange } from "./colour.js";

export const SIGNALS = /** @type {const} */ (["advantage", "value", "verdict", "entropy"]);
/** As `trainer.tree.Verdict` numbers them; a tree's own columns bring their words along. */
export const VERDICTS = ["none", "correct", "incorrect", "unparsed", "truncated", "error"];
/** As `trainer.tree.CreditState` numbers them. */
const PER_PATH = 5;
const GIVEN = 7;
const NO_ADVANTAGE = 8;

/**
 * How a node is drawn whose number is missing. Only what could have had credit and has none is hatched: what was given is
 * context like the prompt, and a segment whose answers carry the credit is plain.
 * @param {number} state @param {boolean} isRoot @returns {Exclude<Look, "credit">}
 */
export function lookOf(state, isRoot) {
  if (isRoot || state === GIVEN) return "context";
  return state === PER_PATH || state === NO_ADVANTAGE ? "plain" : "hatched";
}

/** @param {TreeColumns} columns @param {ReturnType<typeof signalOf>} signal @param {number} node @returns {Look} */
export function look(columns, signal, node) {
  const state = /** @type {number} */ (columns.credit_state[node]);
  const isGiven = node === 0 || state === GIVEN;
  if (isGiven || (signal.signal !== "verdict" && Number.isNaN(/** @type {number} */ (signal.values[node])))) {
    // A value that is missing is missing for one reason: nothing below was scored.
    return signal.signal === "advantage" || isGiven ? lookOf(state, node === 0) : "hatched";
  }
  return "credit";
}

/** What is said in place of an advantage. @param {TreeColumns} columns @param {number} node */
export const withoutCredit = (columns, node) => columns.labels.credit[/** @type {number} */ (columns.credit_state[node])] || "no credit";

/** `A +0.57`, why there is none, or "" where no node has any. @param {TreeColumns} columns @param {number} node */
export function advantageWords(columns, node) {
  const advantage = /** @type {number} */ (columns.advantage[node]);
  if (!Number.isNaN(advantage)) return `A ${signed(advantage, 3)}`;
  return columns.credit_state[node] === NO_ADVANTAGE ? "" : withoutCredit(columns, node);
}

/** `12 visits`; "" where nothing was searched. @param {TreeColumns} columns @param {number} node */
export function visitWords(columns, node) {
  const visits = /** @type {number} */ (columns.visits[node]);
  return visits ? `${visits} visit${visits === 1 ? "" : "s"}` : "";
}

/** `×3` for a leaf in which three sampled answers ended, else "". @param {TreeColumns} columns @param {number} node */
export function times(columns, node) {
  const copies = /** @type {number} */ (columns.copies[node]);
  return copies > 1 ? `×${copies}` : "";
}

/**
 * @param {TreeColumns} columns @param {Signal} signal @param {Theme} theme
 */
export function signalOf(columns, signal, theme) {
  const values = signal === "entropy" ? columns.entropy : signal === "advantage" ? columns.advantage : columns.value;
  const [low, high] = valueRange(columns.value);
  const limit = signal === "advantage" ? symmetricLimit(values) : signal === "entropy" ? upperLimit(values, 0.1) : high;
  const scale = colourScale(signal, limit, theme, signal === "entropy" ? 0 : low);
  return { signal, values, limit, scale };
}

/** What stands in a rectangle. @param {Signal} signal @param {number} value */
export function label(signal, value) {
  if (Number.isNaN(value)) return "";
  return signal === "advantage" ? signed(value, 2) : number(value, 2);
}

/**
 * How a screen reader hears a node: "Node 2.1.3, value 0.38, 6 of 16 correct, advantage minus 0.91, 118 tokens".
 * @param {TreeColumns} columns @param {number} node @param {string} name @param {number} correct @param {number} answers
 */
export function spoken(columns, node, name, correct, answers) {
  const at = (/** @type {ArrayLike<number>} */ column) => /** @type {number} */ (column[node]);
  const parts = [`Node ${name}`];
  if (!Number.isNaN(at(columns.value))) parts.push(`value ${at(columns.value).toFixed(2)}`);
  parts.push(`${correct} of ${answers} correct`);
  const advantage = at(columns.advantage);
  if (node > 0 && columns.credit_state[node] !== NO_ADVANTAGE) parts.push(Number.isNaN(advantage) ? withoutCredit(columns, node) : `advantage ${advantage < 0 ? "minus" : "plus"} ${Math.abs(advantage).toFixed(2)}`);
  const verdict = columns.labels.verdict[at(columns.verdict)];
  if (verdict && verdict !== "none") parts.push(verdict);
  if (at(columns.copies) > 1) parts.push(`${at(columns.copies)} equal answers`);
  parts.push(`${at(columns.tokens)} tokens`);
  if (at(columns.visits) > 0) parts.push(visitWords(columns, node));
  return parts.join(", ");
}

/** @param {string} verdict */
export const verdictGlyph = (verdict) => VERDICT_GLYPHS[verdict] ?? "";
