// The branching a form's text means. Pure. Only for a picture: the server reads and checks the same text.

/** More leaves than this are not worth a picture, and far more are a typing error. */
const MOST_LEAVES = 100_000;

/**
 * `4, 2, 2` with depth 3 → [4, 2, 2]; one number stands for every depth; null when the text is not (yet) a branching.
 * @param {string} text @param {number} depth @returns {number[] | null}
 */
export function shapeOf(text, depth) {
  const parts = text.split(/[\s,;·×]+/).filter(Boolean).map(Number);
  if (!parts.length || parts.some((part) => !Number.isInteger(part) || part < 1) || !Number.isInteger(depth) || depth < 1 || depth > 16) return null;
  const shape = parts.length === 1 ? /** @type {number[]} */ (Array(depth).fill(parts[0])) : parts;
  if (shape.length !== depth) return null;
  return shape.reduce((leaves, children) => leaves * children, 1) > MOST_LEAVES ? null : shape;
}
