// Strokes that the large icicle and the small ones share.
import { colour, theme } from "../core/theme.js";
import { OUTCOME } from "./colour.js";

/** One pattern per canvas, until the theme or the screen changes. @type {WeakMap<CanvasRenderingContext2D, {key: string, pattern: CanvasPattern}>} */
const hatches = new WeakMap();

/** 45° hatch on the sunken tone: no credit. @param {CanvasRenderingContext2D} ctx @param {number} dpr */
export function hatch(ctx, dpr) {
  const key = `${theme()} ${dpr}`;
  const there = hatches.get(ctx);
  if (there?.key === key) return there.pattern;
  const size = Math.round(5 * dpr);
  const tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const pen = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  pen.fillStyle = colour("--sunken");
  pen.fillRect(0, 0, size, size);
  pen.strokeStyle = colour("--line-control");
  pen.lineWidth = dpr * 0.8;
  pen.beginPath();
  for (const shift of [-size, 0, size]) {
    pen.moveTo(shift - 1, size + 1);
    pen.lineTo(shift + size + 1, -1);
  }
  pen.stroke();
  const pattern = /** @type {CanvasPattern} */ (ctx.createPattern(tile, "repeat"));
  // The context is scaled to CSS pixels; the tile is in device pixels.
  pattern.setTransform(new DOMMatrix().scale(1 / dpr));
  hatches.set(ctx, { key, pattern });
  return pattern;
}

/**
 * One leaf's outcome: told by height and place, then by colour, then by a glyph where there is room.
 * @param {CanvasRenderingContext2D} ctx @param {string} verdict @param {{left: number, right: number, top: number, height: number}} box
 * @param {Theme} tone @param {CanvasPattern} hatching
 */
export function outcome(ctx, verdict, { left, right, top, height }, tone, hatching) {
  const width = Math.max(1, right - left - (right - left > 3 ? 1 : 0));
  const tones = OUTCOME[tone];
  const middle = left + width / 2;
  switch (verdict) {
    case "correct":
      ctx.fillStyle = tones.correct;
      ctx.fillRect(left, top, width, height);
      break;
    case "incorrect":
      ctx.fillStyle = tones.incorrect;
      ctx.fillRect(left, top + height / 2, width, height / 2);
      break;
    case "unparsed":
      ctx.fillStyle = hatching;
      ctx.fillRect(left, top, width, height);
      break;
    case "truncated":
      ctx.fillStyle = tones.other;
      for (const shift of [-4, 0, 4]) if (width > 10 || shift === 0) ctx.fillRect(middle + shift - 1, top + height - 4, 2, 2);
      break;
    case "error":
      ctx.fillStyle = tones.error;
      ctx.fillRect(middle - 1, top, 2, height - 5);
      ctx.fillRect(middle - 1, top + height - 3, 2, 3);
      break;
    default:
      ctx.fillStyle = tones.other;
      ctx.fillRect(left, top + height - 1, width, 1);
  }
}

/** A canvas with as many device pixels as it covers, and a context in CSS pixels. @param {HTMLCanvasElement} canvas @param {number} width @param {number} height */
export function sized(canvas, width, height) {
  const dpr = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * dpr), Math.round(height * dpr)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.height = `${height}px`;
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return { ctx, dpr };
}

/** @type {Map<string, number>} */
const widths = new Map();
const MOST_WIDTHS = 20_000;

/** Width of a text in the canvas's font; all trees are drawn with one. @param {CanvasRenderingContext2D} ctx @param {string} text */
export function textWidth(ctx, text) {
  let width = widths.get(text);
  if (width === undefined) {
    if (widths.size > MOST_WIDTHS) widths.clear();
    width = ctx.measureText(text).width;
    widths.set(text, width);
  }
  return width;
}

/** As much of a text as fits, with an ellipsis; "" when not even three letters do. @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} width */
export function fitted(ctx, text, width) {
  if (!text) return "";
  const whole = textWidth(ctx, text);
  if (whole <= width) return text;
  // Guessed by proportion and then shortened until it fits: two measurements as a rule.
  let length = Math.floor(((width - 8) / whole) * text.length);
  while (length >= 3 && ctx.measureText(`${text.slice(0, length)}…`).width > width) length -= Math.max(1, Math.floor(length / 16));
  return length < 3 ? "" : `${text.slice(0, length).trimEnd()}…`;
}

/** The face has come: widths measured before were another one's. */
export const forgetWidths = () => widths.clear();
