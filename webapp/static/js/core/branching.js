// The picture of one tree: rows of cells, one row per depth. Pure. The server says how many nodes stand in a row.

/** More cells than this in a row are drawn as one bar. */
const LEAST_PIXELS = 2;

/** `4 8 16` → [4, 8, 16]; [] when nothing is known. @param {string} text */
export const rowsOf = (text) => text.split(" ").filter(Boolean).map(Number).filter((row) => Number.isInteger(row) && row > 0);

/**
 * Left edge and width of every cell of a row, in pixels; a row that is too fine is one bar.
 * @param {number} count @param {number} width @returns {{left: number, width: number}[]}
 */
export function cells(count, width) {
  const step = width / count;
  if (step < LEAST_PIXELS) return [{ left: 0, width }];
  const gap = step > 4 ? 1.5 : 0.5;
  return Array.from({ length: count }, (_, i) => ({ left: i * step, width: Math.max(1, step - gap) }));
}

/** What a screen reader hears of it. @param {number[]} rows @param {boolean} loose */
export function shapeInWords(rows, loose) {
  if (!rows.length) return "Shape of one tree: not known yet";
  return `Shape of one tree: ${loose ? "for example " : ""}${rows.join(", then ")} nodes`;
}
