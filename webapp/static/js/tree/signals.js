// The signals a tree can be coloured by: the number of a node, its scale, and its words. Pure.
import { VERDICT_GLYPHS, number, signed } from "../core/format.js";
import { colourScale, isSymmetric, sequentialRange, symmetricLimit, upperLimit, valueRange } from "./colour.js";

/** In the order of the choice; words for people. @type {Record<Signal, string>} */
export const SIGNAL_WORDS = {
  advantage: "advantage", value: "value", change: "value − parent", verdict: "verdict", entropy: "entropy", logprob: "mean logprob",
  mismatch: "mismatch", policy: "policy version", tokens: "tokens", difference: "estimator difference", none: "none",
};
export const SIGNALS = /** @type {Signal[]} */ (Object.keys(SIGNAL_WORDS));
const FIXED_LIMIT = 2;
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

/** @param {TreeColumns} columns @param {ColourSignal} signal @param {number} node @returns {Look} */
export function look(columns, signal, node) {
  if (signal.signal === "none") return node === 0 ? "context" : "plain";
  const state = /** @type {number} */ (columns.credit_state[node]);
  const isGiven = node === 0 || state === GIVEN;
  if (isGiven || (signal.signal !== "verdict" && Number.isNaN(/** @type {number} */ (signal.values[node])))) {
    // A value that is missing is missing for one reason: nothing below was scored.
    return signal.signal === "advantage" || signal.signal === "difference" || isGiven ? lookOf(state, node === 0) : "hatched";
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
  const visits = columns.visits?.[node] ?? 0;
  return visits ? `${visits} visit${visits === 1 ? "" : "s"}` : "";
}

/** `×3` for a leaf in which three sampled answers ended, else "". @param {TreeColumns} columns @param {number} node */
export function times(columns, node) {
  const copies = columns.copies?.[node] ?? 1;
  return copies > 1 ? `×${copies}` : "";
}

/** The signals that this tree has numbers for. @param {TreeColumns} columns */
export const signalsOf = (columns) => SIGNALS.filter((signal) => (signal !== "mismatch" || columns.mismatch !== null) && signal !== "policy");

/**
 * The numbers of a signal and the scale that colours them.
 * @param {{columns: TreeColumns, parent: ArrayLike<number>}} tree @param {Signal} signal @param {Theme} theme
 * @param {object} [how]
 * @param {ScaleChoice} [how.scale] of advantages @param {number | null} [how.runLimit] the 98th percentile of |A| in the run; null: not known
 * @param {[number, number] | null} [how.range] chosen by hand @param {Float32Array | null} [how.difference] what another estimator would push more
 * @returns {ColourSignal}
 */
export function signalOf({ columns, parent }, signal, theme, { scale: choice = "run", runLimit = null, range = null, difference = null } = {}) {
  const values = numbersOf(columns, parent, signal, difference);
  const made = (/** @type {number} */ low, /** @type {number} */ limit, /** @type {string} */ source, how = {}) => {
    if (range) [low, limit, source] = [range[0], range[1], "chosen by hand"];
    return { signal, values, limit, source, scale: colourScale(signal, limit, theme, low, { reversed: signal === "logprob", ...how }) };
  };
  if (signal === "advantage") {
    if (choice === "fixed") return made(-FIXED_LIMIT, FIXED_LIMIT, "fixed");
    if (choice === "symlog") return made(0, upperLimit(values.map(Math.abs), 1e-6), "symlog, up to this tree's largest |A|", { symlog: true });
    if (choice === "run" && runLimit) return made(-runLimit, runLimit, "98th percentile of |A| in this run");
    return made(0, symmetricLimit(values), "98th percentile of |A| in this tree");
  }
  if (isSymmetric(signal)) return made(0, symmetricLimit(values), "98th percentile of this tree's sizes");
  if (signal === "value") return made(...valueRange(columns.value), "all values");
  if (signal === "entropy" || signal === "mismatch") return made(0, sequentialRange(values)[1] || 1, "0 to this tree's 98th percentile");
  if (signal === "logprob") return made(Math.min(sequentialRange(values)[0], -0.01), 0, "this tree's 2nd percentile to 0");
  if (signal === "tokens") return made(0, Math.max(1, sequentialRange(values)[1]), "0 to this tree's 98th percentile");
  return made(0, 1, "");
}

/** [N], NaN where there is none. @param {TreeColumns} columns @param {ArrayLike<number>} parent @param {Signal} signal @param {Float32Array | null} difference */
function numbersOf(columns, parent, signal, difference) {
  if (signal === "advantage") return columns.advantage;
  if (signal === "entropy") return columns.entropy;
  if (signal === "logprob") return columns.logprob;
  if (signal === "tokens") return Float32Array.from(columns.tokens, (count, node) => (node ? count : NaN));
  const none = () => new Float32Array(columns.n).fill(NaN);
  if (signal === "mismatch") return columns.mismatch ?? none();
  if (signal === "change") return columns.value.map((value, node) => (node ? value - /** @type {number} */ (columns.value[/** @type {number} */ (parent[node])]) : NaN));
  if (signal === "difference") return difference ?? none();
  return signal === "none" ? none() : columns.value;
}

/** `-1,2` as two ends that rise; anything else null. @param {string | null} text @returns {[number, number] | null} */
export function rangeIn(text) {
  const ends = (text ?? "").split(",").map(Number);
  const [low, high] = /** @type {[number, number]} */ (ends);
  return ends.length === 2 && Number.isFinite(low) && Number.isFinite(high) && low < high ? [low, high] : null;
}

/** What stands in a rectangle. @param {Signal} signal @param {number} value */
export function label(signal, value) {
  if (Number.isNaN(value)) return "";
  if (signal === "tokens" || signal === "policy") return number(value, 0);
  return isSymmetric(signal) ? signed(value, 2) : number(value, 2);
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
  const copies = columns.copies?.[node] ?? 1;
  if (copies > 1) parts.push(`${copies} equal answers`);
  parts.push(`${at(columns.tokens)} tokens`);
  if (columns.visits?.[node]) parts.push(visitWords(columns, node));
  return parts.join(", ");
}

/** @param {string} verdict */
export const verdictGlyph = (verdict) => VERDICT_GLYPHS[verdict] ?? "";

/** "2 probes": continuations that were sampled by hand; "" where there are none. @param {number | undefined} n */
export const probeWords = (n) => (n ? `${n} probe${n === 1 ? "" : "s"}` : "");
