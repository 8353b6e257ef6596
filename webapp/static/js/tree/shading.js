// How the tokens of a path are tinted. Pure; loaded when somebody asks for a shading.
import { LEVELS as FILLS, colourScale } from "./colour.js";
import { segmentAt } from "./tokens.js";

export const LEVELS = 17;
/** Strength of a tint, in the alpha of `#rrggbbaa`: 44 %. Ink stays readable on both themes. */
const ALPHA = "70";

/**
 * How the tokens of a path are tinted: `level` of a token (-1: not at all), `isMarked` above the 99th percentile (of ratios:
 * clipped), `isHatched` without credit, and the ends of the scale.
 * @param {PathTokens} tokens @param {Shade} shade @param {Theme} theme
 */
export function shadingOf(tokens, shade, theme) {
  const numbers = numbersOf(tokens, shade);
  const sizes = [...numbers].map(Math.abs).filter(Number.isFinite).sort((a, b) => a - b);
  const isSigned = shade === "advantage" || shade === "ratio";
  const high = shade === "advantage" ? tokens.advantageLimit : Math.max(sizes[Math.floor(0.99 * (sizes.length - 1))] ?? 0, 1e-6);
  // Between segments an advantage steps; there is no token that stands out.
  const mark = isSigned || shade === "mask" ? Infinity : high;
  const tints = tintsOf(isSigned ? "advantage" : "entropy", theme);
  return {
    shade,
    low: isSigned ? -high : 0,
    high,
    /** @param {number} i */
    level(i) {
      const number = /** @type {number} */ (numbers[i]);
      if (Number.isNaN(number)) return -1;
      const share = Math.min(1, Math.max(isSigned ? -1 : 0, number / high));
      return Math.round((isSigned ? (share + 1) / 2 : share) * (LEVELS - 1));
    },
    /** @param {number} i */
    isMarked: (i) => shade === "ratio" ? Boolean(tokens.clip?.[i]) : Math.abs(/** @type {number} */ (numbers[i])) > mark,
    /** Could have been trained and was not. @param {number} i */
    isHatched: (i) => (shade === "mask" || shade === "advantage") && !tokens.trained[i] && !segmentAt(tokens, i).isGiven,
    /** @param {number} level */
    fill: (level) => (level < 0 ? "" : /** @type {string} */ (tints[level])),
  };
}

/** [T] NaN: nothing to show. @param {PathTokens} tokens @param {Shade} shade */
function numbersOf(tokens, shade) {
  const numbers = new Float32Array(tokens.n).fill(NaN);
  for (const segment of tokens.segments) {
    if (segment.isGiven || shade === "none") continue;
    for (let i = segment.start; i < segment.start + segment.count; i++) {
      if (shade === "advantage") numbers[i] = tokens.trained[i] ? (segment.advantage ?? NaN) : NaN;
      else if (shade === "entropy") numbers[i] = /** @type {number} */ (tokens.entropy[i]);
      else if (shade === "logprob") numbers[i] = -(/** @type {number} */ (tokens.logprob[i]));
      else if (shade === "ratio") numbers[i] = tokens.log_ratio?.[i] ?? NaN;
      else if (shade === "mismatch") numbers[i] = Math.abs(tokens.mismatch?.[i] ?? NaN);
    }
  }
  return numbers;
}

/** @type {Map<string, string[]>} */
const made = new Map();

/** One tint per level. @param {"advantage" | "entropy"} kind @param {Theme} theme */
export function tintsOf(kind, theme) {
  const key = `${kind} ${theme}`;
  let tints = made.get(key);
  if (!tints) {
    const { fill } = colourScale(kind, 1, theme);
    tints = Array.from({ length: LEVELS }, (_, level) => fill(Math.round((level / (LEVELS - 1)) * (FILLS - 1))) + ALPHA);
    made.set(key, tints);
  }
  return tints;
}
