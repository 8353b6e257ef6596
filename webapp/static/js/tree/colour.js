// From a node's numbers to its fill. Pure. Quantised to 65 fills (64 steps and an exact middle), so that a canvas can
// batch by fill and so that advantage 0 is exactly the neutral colour.
import { alongStops, contrast } from "../core/colour_space.js";

export const LEVELS = 65;
const MIDDLE = (LEVELS - 1) / 2;

/** Nine stops at -1, -3/4, ..., +1 of the scale: orange is worse than the siblings, blue is better. */
const DIVERGING = {
  light: ["#8c2d04", "#b84a16", "#e58a54", "#f6cfb4", "#f1f1ee", "#bcd8ee", "#6aaede", "#1f6cab", "#0b4a82"],
  dark: ["#ffb08a", "#f08451", "#a84a26", "#6e3a22", "#2b2e33", "#1f4666", "#2669a0", "#5ea9e0", "#a6d3f7"],
};
const VALUE = {
  light: ["#f1f4f2", "#cfe3da", "#9cc9b8", "#5fa78f", "#2c7d66", "#0f5444"],
  dark: ["#1f2725", "#23443b", "#2c6a5a", "#3c957e", "#63c0a6", "#a8e6d2"],
};
const OTHER = {
  light: ["#f3f1f7", "#d9d0ea", "#b6a3d8", "#8468b8", "#63459c"],
  dark: ["#23212b", "#3d3358", "#5d4a8c", "#937eca", "#b9a8e6"],
};
/** In order of liking; the first that can be read is taken. On some middle tones only black or white can. */
const INKS = {
  light: ["#1c1d1f", "#ffffff", "#000000"],
  dark: ["#e8e8e6", "#131417", "#000000", "#ffffff"],
};
const READABLE = 4.5;

/** Leaf outcomes, where a colour is all there is room for. */
export const OUTCOME = {
  light: { correct: "#0b4a82", incorrect: "#b84a16", other: "#8f9197", error: "#b3261e" },
  dark: { correct: "#a6d3f7", incorrect: "#f08451", other: "#6c7079", error: "#f2857b" },
};

/** @type {Record<"diverging" | "value" | "other", Record<Theme, string[]>>} */
const PALETTES = { diverging: DIVERGING, value: VALUE, other: OTHER };
/** @type {Record<Signal, keyof typeof PALETTES>} */
const PALETTE_OF = {
  advantage: "diverging", change: "diverging", difference: "diverging", value: "value", policy: "value",
  entropy: "other", logprob: "other", mismatch: "other", tokens: "other", verdict: "value", none: "value",
};

/** @param {Signal} signal */
export const isSymmetric = (signal) => PALETTE_OF[signal] === "diverging";

/** @type {Map<string, string[]>} */
const tables = new Map();

/** @param {keyof typeof PALETTES} palette @param {Theme} theme */
function table(palette, theme) {
  const key = `${palette} ${theme}`;
  let fills = tables.get(key);
  if (!fills) {
    fills = Array.from({ length: LEVELS }, (_, level) => alongStops(PALETTES[palette][theme], level / (LEVELS - 1)));
    tables.set(key, fills);
  }
  return fills;
}

/**
 * Level of an advantage on a scale that is symmetric around 0; -1 for no credit. Beyond the limit it saturates.
 * @param {number} advantage NaN: no credit @param {number} limit > 0
 */
export function advantageLevel(advantage, limit) {
  if (Number.isNaN(advantage)) return -1;
  const share = Math.min(1, Math.max(-1, advantage / limit));
  // Rounded by size and then signed, so that +a and -a always lie equally far from the middle.
  return MIDDLE + Math.sign(share) * Math.round(Math.abs(share) * MIDDLE);
}

/** Level of a number on a scale from `low` to `limit`; -1 when missing. @param {number} value @param {number} limit > low */
export function sequentialLevel(value, limit, low = 0) {
  if (Number.isNaN(value)) return -1;
  return Math.round(Math.min(1, Math.max(0, (value - low) / (limit - low))) * (LEVELS - 1));
}

/**
 * The ends of a scale for values: 0 to 1, and further where rewards go further. @param {Iterable<number>} values
 * @returns {[number, number]}
 */
export function valueRange(values) {
  let [low, high] = [0, 1];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < 0) low = Math.min(low, -1, value); // rewards of -1 and 1 are the usual ones
    if (value > high) high = value;
  }
  return [low, high];
}

/** Where the steep middle of a symlog scale ends, as a share of the limit. */
const SYMLOG_FROM = 1 / 30;

/**
 * What a canvas needs for one signal: the level of a number, and fill and ink of a level. Level -1 is to be hatched.
 * `place` is where a number lies on the scale, from 0 to 1, and `at` the opposite; they say where a legend marks it.
 * @param {Signal} signal @param {number} limit @param {Theme} theme @param {number} [low] where the scale begins; of signed signals, -limit
 * @param {{symlog?: boolean, reversed?: boolean}} [how] symlog: also small numbers of a signed signal can be told apart; reversed: dark is low
 * @returns {ColourScale}
 */
export function colourScale(signal, limit, theme, low = 0, { symlog = false, reversed = false } = {}) {
  const symmetric = isSymmetric(signal);
  const fills = reversed ? [...table(PALETTE_OF[signal], theme)].reverse() : table(PALETTE_OF[signal], theme);
  const inks = fills.map((fill) => INKS[theme].find((ink) => contrast(fill, ink) >= READABLE));
  const plain = /** @type {string} */ (INKS[theme][0]);
  const from = symmetric ? -limit : low;
  const bend = limit * SYMLOG_FROM;
  const squeeze = (/** @type {number} */ value) => (symlog ? (Math.sign(value) * Math.log1p(Math.abs(value) / bend) * limit) / Math.log1p(limit / bend) : value);
  const stretch = (/** @type {number} */ value) => (symlog ? Math.sign(value) * bend * Math.expm1((Math.abs(value) / limit) * Math.log1p(limit / bend)) : value);
  return {
    low: from,
    limit,
    symmetric,
    symlog,
    level: (value) => (symmetric ? advantageLevel(squeeze(value), limit) : sequentialLevel(value, limit, low)),
    place: (value) => Math.min(1, Math.max(0, (squeeze(value) - from) / (limit - from))),
    at: (place) => stretch(from + place * (limit - from)),
    fill: (level) => /** @type {string} */ (fills[level]),
    ink: (level) => inks[level] ?? plain,
  };
}

const SAMPLES = 50_000;

/**
 * The 98th percentile of the absolute values, NaN left out; 1 when there are none, or only zeros. Of more than 50,000 values
 * it is that of 50,000 of them, evenly spread.
 * @param {ArrayLike<number>} values
 */
export function symmetricLimit(values) {
  const sizes = sampled(values, (value) => value !== 0, Math.abs);
  return sizes.length ? percentile(sizes, 0.98) : 1;
}

/** Where a sequential scale begins and ends: the 2nd and the 98th percentile, likewise. @param {ArrayLike<number>} values @returns {[number, number]} */
export function sequentialRange(values) {
  const found = sampled(values, () => true, Number);
  if (!found.length) return [0, 1];
  const [low, high] = [percentile(found, 0.02), percentile(found, 0.98)];
  return high > low ? [low, high] : [low, low + 1];
}

/** @param {ArrayLike<number>} values @param {(value: number) => boolean} keep @param {(value: number) => number} map */
function sampled(values, keep, map) {
  const stride = Math.max(1, Math.ceil(values.length / SAMPLES));
  const found = new Float64Array(Math.ceil(values.length / stride));
  let n = 0;
  for (let i = 0; i < values.length; i += stride) {
    const value = /** @type {number} */ (values[i]);
    if (Number.isFinite(value) && keep(value)) found[n++] = map(value);
  }
  return found.subarray(0, n).sort();
}

/** @param {Float64Array} sorted @param {number} share */
const percentile = (sorted, share) => /** @type {number} */ (sorted[Math.max(0, Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1))]);

/** The largest finite value, at least `floor`. @param {ArrayLike<number>} values @param {number} floor */
export function upperLimit(values, floor) {
  let limit = floor;
  for (let i = 0; i < values.length; i++) {
    const value = /** @type {number} */ (values[i]);
    if (Number.isFinite(value) && value > limit) limit = value;
  }
  return limit;
}
