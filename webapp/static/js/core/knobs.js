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

const FAR = 10;

/**
 * Of a learning rate that is ten times what it was or more, or a tenth or less: how far it went, for a warning; "" of all
 * else. @param {string} path of the knob @param {string} was @param {string} value
 */
export function farRate(path, was, value) {
  if (!path.endsWith("learning_rate")) return "";
  const [before, now] = [Number(was), Number(value)];
  if (!(before > 0 && now > 0)) return "";
  const times = Math.max(now / before, before / now);
  if (times < FAR * (1 - 1e-9)) return ""; // 3e-3 is ten times 3e-4, whatever floats make of it
  return `${Number(times.toPrecision(2))} times ${now > before ? "higher: a policy may break" : "lower: it may learn too slowly to see"}`;
}

/** @param {string} text */
const parts = (text) => text.split(/[\s,]+/).filter(Boolean).map((part) => (Number.isNaN(Number(part)) ? part : String(Number(part))));

/** A value as a list of changes shows it: on one line, and not endless. @param {string} value */
export function shown(value) {
  const line = value.replaceAll("\n", "⏎");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "—";
}
