// What is typed into a field of a form, compared by what it means. Pure. The server has the last word.

/**
 * @param {string} kind as the server names it: number, integer, integers, lines, …
 * @param {string} one @param {string} other
 */
export function sameValue(kind, one, other) {
  if (kind === "lines") return one.replaceAll("\r\n", "\n") === other.replaceAll("\r\n", "\n");
  if (kind === "integers") return parts(one).join() === parts(other).join();
  if (kind !== "number" && kind !== "integer") return one.trim() === other.trim();
  const [a, b] = [one, other].map((text) => (text.trim() ? Number(text) : NaN));
  return a === b || one.trim() === other.trim();
}

/** @param {string} text */
const parts = (text) => text.split(/[\s,]+/).filter(Boolean).map((part) => (Number.isNaN(Number(part)) ? part : String(Number(part))));

/** A value as a list of changes shows it: on one line, and not endless. @param {string} value */
export function shown(value) {
  const line = value.replaceAll("\n", "⏎");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "—";
}
