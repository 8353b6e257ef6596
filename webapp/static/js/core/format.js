// How numbers, times and states read. The same words as `webapp/formatting.py`: a page must not change its style when a
// script updates it. What is missing is an em dash, never a zero.

export const MISSING = "—";
const MINUS = "\u2212";

/** @type {Record<ShownStatus, string>} */
const GLYPHS = {
  queued: "◷",
  starting: "▷",
  running: "▶",
  stopping: "◧",
  recovering: "↻",
  paused: "‖",
  pausing: "◧",
  stalled: "△",
  succeeded: "✓",
  stopped: "■",
  failed: "✕",
  cancelled: "∅",
};
/** @type {Record<string, string>} */
export const VERDICT_GLYPHS = { correct: "✓", incorrect: "✕", unparsed: "?", truncated: "⋯", error: "!" };

const ENDED = new Set(["succeeded", "stopped", "failed", "cancelled"]);

/** @param {string} status */
export const hasEnded = (status) => ENDED.has(status);
/** @param {ShownStatus} status */
export const statusGlyph = (status) => GLYPHS[status] ?? "?";
/** @param {string} status */
export const statusWord = (status) => status.charAt(0).toUpperCase() + status.slice(1);

/** @param {number} value @param {number} places */
function grouped(value, places) {
  const [whole, fraction] = value.toFixed(places).split(".");
  const commas = (whole ?? "").replace(/\B(?=(\d{3})+(?!\d))/g, ",");
  return fraction === undefined ? commas : `${commas}.${fraction}`;
}

/** `0.4123` → `0.412`. @param {number | null | undefined} value */
export function number(value, places = 3) {
  if (value == null || !Number.isFinite(value)) return MISSING;
  let text = grouped(value, places);
  if (value !== 0 && Number(text.replaceAll(",", "")) === 0) {
    // Too small for that many places; Python writes the exponent with two digits.
    text = value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  }
  return text.replaceAll("-", MINUS);
}

/** `0.4` → `+0.400`. @param {number | null | undefined} value */
export function signed(value, places = 3) {
  if (value == null || !Number.isFinite(value)) return MISSING;
  const text = grouped(value, places);
  return (text.startsWith("-") ? text : `+${text}`).replaceAll("-", MINUS);
}

/** `0.563` → `56 %`. @param {number | null | undefined} value */
export function percent(value, places = 0) {
  if (value == null || !Number.isFinite(value)) return MISSING;
  return `${(100 * value).toFixed(places)} %`.replaceAll("-", MINUS);
}

/** Seconds in the two largest units: `3 h 10 min`. @param {number | null | undefined} value */
export function duration(value) {
  if (value == null || !Number.isFinite(value)) return MISSING;
  const seconds = Math.max(value, 0);
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  /** @type {[number, string][]} */
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

/** `3 h 10 min ago`. @param {number} seconds */
export const ago = (seconds) => (seconds < 2 ? "just now" : `${duration(seconds)} ago`);

/**
 * A value in a readout: enough digits to tell neighbours apart, no more than a person reads.
 * @param {number | null | undefined} value
 */
export function figure(value) {
  if (value == null || !Number.isFinite(value)) return MISSING;
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(2).replaceAll("-", MINUS);
  return number(value, size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** The labels of an axis: with as many digits as tell neighbours apart. @param {readonly number[]} values evenly apart @returns {string[]} */
export function axisLabels(values) {
  const apart = Math.abs((values[1] ?? 0) - (values[0] ?? 0));
  const largest = Math.max(...values.map(Math.abs));
  const digits = apart > 0 ? Math.ceil(Math.log10(largest / apart) - 1e-9) + 1 : 0;
  return values.map((value) => shortened(value, Math.min(15, Math.max(4, digits))));
}

/** `12,300` → `12.3k`. @param {number} value */
export const short = (value) => shortened(value, 4);

/** @param {number} value @param {number} digits */
function shortened(value, digits) {
  const size = Math.abs(value);
  if (size > 0 && size < 1e-3) return value.toExponential().replace(/^(-?\d(?:\.\d)?)\d*/, "$1").replaceAll("-", MINUS);
  const [divisor, unit] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
  return `${Number((value / divisor).toPrecision(digits))}${unit}`.replaceAll("-", MINUS);
}

/** Time of day, local. @param {number} milliseconds */
export const clock = (milliseconds) => new Date(milliseconds).toTimeString().slice(0, 8);
