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
const ENTROPY = {
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

/** @type {Map<string, string[]>} */
const tables = new Map();

/** @param {"diverging" | "value" | "entropy"} kind @param {Theme} theme */
function table(kind, theme) {
  const key = `${kind} ${theme}`;
  let fills = tables.get(key);
  if (!fills) {
    const stops = (kind === "diverging" ? DIVERGING : kind === "value" ? VALUE : ENTROPY)[theme];
    fills = Array.from({ length: LEVELS }, (_, level) => alongStops(stops, level / (LEVELS - 1)));
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

/**
 * What a canvas needs for one signal: the level of a number, and fill and ink of a level. Level -1 is to be hatched.
 * @param {Signal} signal @param {number} limit @param {Theme} theme @param {number} [low] where the scale begins; of advantages, -limit
 * @returns {{level: (value: number) => number, fill: (level: number) => string, ink: (level: number) => string, low: number, limit: number, symmetric: boolean}}
 */
export function colourScale(signal, limit, theme, low = 0) {
  const symmetric = signal === "advantage";
  const fills = table(symmetric ? "diverging" : signal === "entropy" ? "entropy" : "value", theme);
  const inks = fills.map((fill) => INKS[theme].find((ink) => contrast(fill, ink) >= READABLE));
  const plain = /** @type {string} */ (INKS[theme][0]);
  return {
    low: symmetric ? -limit : low,
    limit,
    symmetric,
    level: (value) => (symmetric ? advantageLevel(value, limit) : sequentialLevel(value, limit, low)),
    fill: (level) => /** @type {string} */ (fills[level]),
    ink: (level) => inks[level] ?? plain,
  };
}

/**
 * The 98th percentile of the absolute values, NaN left out; 1 when there are none, or only zeros.
 * @param {ArrayLike<number>} values
 */
export function symmetricLimit(values) {
  const sizes = [];
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(/** @type {number} */ (values[i]));
    if (size > 0 && Number.isFinite(size)) sizes.push(size);
  }
  if (!sizes.length) return 1;
  sizes.sort((a, b) => a - b);
  return /** @type {number} */ (sizes[Math.min(sizes.length - 1, Math.ceil(0.98 * sizes.length) - 1)]);
}

/** The largest finite value, at least `floor`. @param {ArrayLike<number>} values @param {number} floor */
export function upperLimit(values, floor) {
  let limit = floor;
  for (let i = 0; i < values.length; i++) {
    const value = /** @type {number} */ (values[i]);
    if (Number.isFinite(value) && value > limit) limit = value;
  }
  return limit;
}
