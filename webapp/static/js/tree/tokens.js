// The tokens of a path (`/api/v1/trees/<id>/paths/<name>/tokens`): decoded, and cut into pieces to draw. Pure.

/** As `webapp/trees/tokens.py`; it stands in the address, so that no browser reads a kept answer of before. */
export const TOKENS_VERSION = 2;
export const SHADES = /** @type {const} */ (["none", "advantage", "entropy", "logprob", "mismatch", "ratio", "mask"]);
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
