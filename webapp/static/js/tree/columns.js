// The binary form of a tree (`/api/v1/trees/<id>/columns`) to typed arrays. Pure. Refuses what does not fit together:
// a canvas that paints garbage looks like a result.

const COUNTS = ["uint8", "uint16", "uint32"];
/** The columns that are read, and the types each may have. @type {Record<string, {dtypes: string[], optional?: true}>} */
const KNOWN = {
  n_children: { dtypes: COUNTS }, tokens: { dtypes: COUNTS }, value: { dtypes: ["float32"] }, advantage: { dtypes: ["float32"] },
  entropy: { dtypes: ["float16"] }, logprob: { dtypes: ["float16"] }, mismatch: { dtypes: ["float16"], optional: true },
  verdict: { dtypes: ["uint8"] }, finish: { dtypes: ["uint8"] }, credit_state: { dtypes: ["uint8"] },
  copies: { dtypes: COUNTS, optional: true }, visits: { dtypes: COUNTS, optional: true },
};
/** @type {Record<string, Uint8ArrayConstructor | Uint16ArrayConstructor | Uint32ArrayConstructor | Float32ArrayConstructor>} */
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float16: Uint16Array };

/**
 * uint32 length of the header, header as JSON padded to a multiple of 4, then little-endian columns, each 4-byte aligned;
 * offsets count from the end of the header, lengths are rows.
 * @param {ArrayBuffer} buffer @returns {TreeColumns}
 */
export function decodeColumns(buffer) {
  if (buffer.byteLength < 4) throw new RangeError(`The tree's columns are ${buffer.byteLength} bytes; at least 4 were expected.`);
  const headerBytes = new DataView(buffer).getUint32(0, true);
  if (4 + headerBytes > buffer.byteLength) throw new RangeError(`The header says it has ${headerBytes} bytes, the whole answer has ${buffer.byteLength}.`);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerBytes)));
  const n = header.n_nodes;
  if (!Number.isInteger(n) || n < 1) throw new RangeError(`The tree says it has ${n} nodes; at least 1 was expected.`);
  /** @type {any} Filled by name below, each column checked against KNOWN. */
  const columns = { n, labels: header.labels, policyVersion: header.policy_version ?? 0, cliff: header.cliff ?? null };
  for (const [name, { dtypes, optional }] of Object.entries(KNOWN)) {
    const spec = header.columns.find((/** @type {{name: string}} */ column) => column.name === name);
    if (!spec && optional) {
      columns[name] = null;
      continue;
    }
    if (!spec || !dtypes.includes(spec.dtype)) throw new TypeError(`Column ${name} is ${spec ? spec.dtype : "missing"}; ${dtypes.join(" or ")} was expected.`);
    const Type = /** @type {Uint8ArrayConstructor} */ (TYPES[spec.dtype]);
    if (spec.length !== n) throw new RangeError(`Column ${name} has ${spec.length} rows; ${n} were expected.`);
    const start = 4 + headerBytes + spec.offset;
    if (start + n * Type.BYTES_PER_ELEMENT > buffer.byteLength) throw new RangeError(`Column ${name} ends after the answer does.`);
    const column = new Type(buffer, start, n);
    if (spec.dtype === "float16") unpackedWhenRead(columns, name, column);
    else columns[name] = column;
  }
  let reached = 1;
  for (let i = 0; i < n; i++) {
    if (reached <= i) throw new RangeError(`Node ${i} is nobody's child: the counts of children before it end at ${reached}.`);
    reached += columns.n_children[i];
  }
  if (reached !== n) throw new RangeError(`The counts of children tell of ${reached} nodes; the tree has ${n}.`);
  return columns;
}

/** Half floats take twice the memory unpacked, and of a large tree most are never looked at. @param {object} columns @param {string} name @param {ArrayLike<number>} packed */
function unpackedWhenRead(columns, name, packed) {
  /** @type {Float32Array | null} */
  let unpacked = null;
  Object.defineProperty(columns, name, { enumerable: true, get: () => (unpacked ??= Float32Array.from(packed, halfFloat)) });
}

/** The number that 16 bits stand for (IEEE 754 binary16). @param {number} bits */
export function halfFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}
