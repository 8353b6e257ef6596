// The tokens of a path (`/api/v1/trees/<id>/paths/<name>/tokens`): decoded, cut into pieces to draw, and shaded. Pure.
import { LEVELS as FILLS, colourScale } from "./colour.js";

/** As `webapp/trees/tokens.py`; it stands in the address, so that no browser reads a kept answer of before. */
export const TOKENS_VERSION = 2;
export const SHADES = /** @type {const} */ (["none", "advantage", "entropy", "logprob", "mismatch", "ratio", "mask"]);
export const LEVELS = 17;
/** Strength of a tint, in the alpha of `#rrggbbaa`: 44 %. Ink stays readable on both themes. */
const ALPHA = "70";
const CHUNK_TOKENS = 128;
const TYPES = { int32: Int32Array, uint32: Uint32Array, uint8: Uint8Array, float32: Float32Array };
const NEEDED = /** @type {const} */ ({ id: "int32", end: "uint32", logprob: "float32", entropy: "float32", trained: "uint8" });
const OPTIONAL = /** @type {const} */ ({ mismatch: "float32", log_ratio: "float32", clip: "uint8", top_id: "int32", top_logprob: "float32" });

/**
 * Header length, header as JSON, little-endian columns; refuses what does not fit together.
 * @param {ArrayBuffer} buffer @returns {PathTokens}
 */
export function decodeTokens(buffer) {
  if (buffer.byteLength < 4) throw new RangeError(`The path's tokens are ${buffer.byteLength} bytes; at least 4 were expected.`);
  const headerBytes = new DataView(buffer).getUint32(0, true);
  if (4 + headerBytes > buffer.byteLength) throw new RangeError(`The header says it has ${headerBytes} bytes, the whole answer has ${buffer.byteLength}.`);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerBytes)));
  if (header.version !== TOKENS_VERSION) throw new RangeError(`The tokens are of version ${header.version}; ${TOKENS_VERSION} was expected. Reload the page.`);
  const n = header.n_tokens;
  const column = (/** @type {string} */ name, /** @type {keyof typeof TYPES} */ type, /** @type {number} */ length) => {
    const spec = header.columns.find((/** @type {{name: string}} */ one) => one.name === name);
    if (!spec) return null;
    if (spec.dtype !== type || spec.length !== length) throw new RangeError(`Column ${name} is ${spec.length} ${spec.dtype}; ${length} ${type} were expected.`);
    const Type = TYPES[type];
    const start = 4 + headerBytes + spec.offset;
    if (start + length * Type.BYTES_PER_ELEMENT > buffer.byteLength) throw new RangeError(`Column ${name} ends after the answer does.`);
    return new Type(buffer, start, length);
  };
  /** @type {any} Filled by name. */
  const tokens = { n, topK: header.top_k, pieces: new Map(Object.entries(header.pieces).map(([id, text]) => [Number(id), text])), advantageLimit: header.advantage_limit };
  for (const [name, type] of Object.entries(NEEDED)) {
    tokens[name] = column(name, type, n);
    if (!tokens[name]) throw new TypeError(`Column ${name} is missing.`);
  }
  for (const [name, type] of Object.entries(OPTIONAL)) tokens[name] = column(name, type, name.startsWith("top_") ? n * header.top_k : n);
  let start = 0;
  tokens.segments = header.segments.map((/** @type {any} */ segment) => {
    const made = { node: segment.node, start, count: segment.count, text: segment.text, isPlaced: segment.is_placed, isGiven: segment.is_given, advantage: segment.advantage, words: segment.words };
    start += segment.count;
    return made;
  });
  if (start !== n) throw new RangeError(`The segments have ${start} tokens; ${n} were expected.`);
  for (const segment of tokens.segments) {
    let before = 0;
    for (let i = segment.start; segment.isPlaced && i < segment.start + segment.count; i++) {
      if (tokens.end[i] < before || tokens.end[i] > segment.text.length) throw new RangeError(`Token ${i} ends at ${tokens.end[i]}, outside of its segment's text.`);
      before = tokens.end[i];
    }
  }
  return tokens;
}

/** The segment that token `i` is in. @param {PathTokens} tokens @param {number} i */
export function segmentAt(tokens, i) {
  let [low, high] = [0, tokens.segments.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (/** @type {TokenSegment} */ (tokens.segments[middle]).start <= i) low = middle;
    else high = middle - 1;
  }
  return /** @type {TokenSegment} */ (tokens.segments[low]);
}

/** The part of its segment's text that ends with token `i`; "" for a part of a character and for a token without text. @param {PathTokens} tokens @param {number} i */
export function textOf(tokens, i) {
  const segment = segmentAt(tokens, i);
  return segment.text.slice(i > segment.start ? tokens.end[i - 1] : 0, tokens.end[i]);
}

/**
 * A segment in runs of tokens to draw one by one, `to` excluded. One without placed tokens is one run of none.
 * @param {PathTokens} tokens @param {TokenSegment} segment @returns {{from: number, to: number, text: string}[]}
 */
export function chunksOf(tokens, segment) {
  if (!segment.isPlaced || !segment.count) return [{ from: segment.start, to: segment.start, text: segment.text }];
  const chunks = [];
  const stop = segment.start + segment.count;
  for (let from = segment.start, begin = 0; from < stop; from += CHUNK_TOKENS) {
    const to = Math.min(from + CHUNK_TOKENS, stop);
    const end = /** @type {number} */ (tokens.end[to - 1]);
    chunks.push({ from, to, text: segment.text.slice(begin, end) });
    begin = end;
  }
  return chunks;
}

/** What may be shaded on this path. @param {PathTokens} tokens @returns {readonly Shade[]} */
export const shadesOf = (tokens) => SHADES.filter((shade) => (shade !== "mismatch" || tokens.mismatch !== null) && (shade !== "ratio" || tokens.log_ratio !== null));

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

/** Places of formulas. A dollar before a blank, or after one, is money. */
const MATHEMATICS = /\\\[([\s\S]{1,1000}?)\\\]|\\\(([\s\S]{1,1000}?)\\\)|(?<!\\)\$\$([\s\S]{1,1000}?)\$\$|(?<![\\$])\$(?![\s$])((?:[^$\n]|\\\$){0,1000}?[^\s$\\])\$(?![\d$])/g;

/**
 * A text in parts: plain ones, and formulas without their marks. @param {string} text
 * @returns {{text: string, tex: string | null, isDisplay: boolean}[]} the texts join to the whole
 */
export function formulas(text) {
  const parts = [];
  let done = 0;
  for (const match of text.matchAll(MATHEMATICS)) {
    if (match.index > done) parts.push({ text: text.slice(done, match.index), tex: null, isDisplay: false });
    const [whole, brackets, parentheses, dollars, dollar] = match;
    parts.push({ text: whole, tex: brackets ?? parentheses ?? dollars ?? dollar ?? "", isDisplay: brackets !== undefined || dollars !== undefined });
    done = match.index + whole.length;
  }
  if (done < text.length) parts.push({ text: text.slice(done), tex: null, isDisplay: false });
  return parts;
}

/**
 * Texts that join to the same whole as `texts`, with no formula cut in two: what of it stands in a later one moves up.
 * @param {string[]} texts @returns {string[]} as many
 */
export function unbroken(texts) {
  const whole = texts.join("");
  /** Ends of formulas by the places inside of them: first a sorted list, then walked along. @type {[number, number][]} */
  const ranges = [];
  let at = 0;
  for (const part of formulas(whole)) {
    if (part.tex !== null) ranges.push([at, at + part.text.length]);
    at += part.text.length;
  }
  const found = [];
  let [begin, boundary, next] = [0, 0, 0];
  for (const text of texts) {
    boundary += text.length;
    while (next < ranges.length && /** @type {[number, number]} */ (ranges[next])[1] <= boundary) next++;
    const range = ranges[next];
    const end = Math.max(begin, range && range[0] < boundary ? range[1] : boundary);
    found.push(whole.slice(begin, end));
    begin = end;
  }
  return found;
}
