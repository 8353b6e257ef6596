// The binary form of a tree (`/api/v1/trees/<id>/columns`) to typed arrays. Pure. Refuses what does not fit together:
// a canvas that paints garbage looks like a result.

const TYPES = { int32: Int32Array, uint8: Uint8Array, float32: Float32Array };
const NEEDED = /** @type {const} */ ({
  parent: "int32", n_leaves: "int32", tokens: "int32", copies: "int32", visits: "int32", value: "float32", advantage: "float32", entropy: "float32",
  logprob: "float32", verdict: "uint8", finish: "uint8", credit_state: "uint8",
});

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
  /** @type {any} Filled by name below, each column checked against NEEDED. */
  const columns = { n, labels: header.labels };
  for (const [name, type] of Object.entries(NEEDED)) {
    const spec = header.columns.find((/** @type {{name: string}} */ column) => column.name === name);
    if (!spec || spec.dtype !== type) throw new TypeError(`Column ${name} is ${spec ? spec.dtype : "missing"}; ${type} was expected.`);
    const Type = TYPES[type];
    if (spec.length !== n) throw new RangeError(`Column ${name} has ${spec.length} rows; ${n} were expected.`);
    const start = 4 + headerBytes + spec.offset;
    if (start + n * Type.BYTES_PER_ELEMENT > buffer.byteLength) throw new RangeError(`Column ${name} ends after the answer does.`);
    columns[name] = new Type(buffer, start, n);
  }
  for (let i = 0; i < n; i++) {
    const parent = columns.parent[i];
    if (i === 0 ? parent !== -1 : parent < 0 || parent >= i || parent < columns.parent[i - 1]) {
      throw new RangeError(`Node ${i} has parent ${parent}: nodes must come breadth-first, parents before children.`);
    }
  }
  return columns;
}
