// The scale of the colours in use, with the place of the selected node on it.
import { make } from "../core/dom.js";
import { number, signed } from "../core/format.js";
import { colour, theme } from "../core/theme.js";
import { LEVELS } from "./colour.js";
import { hatch, outcome, sized } from "./paint.js";

const WIDTH = 132;
const BAR = 10;

/**
 * @param {HTMLElement} host @param {ReturnType<import("./signals.js").signalOf>} signal @param {number} value of the selected node
 * @param {ReadonlyMap<Look, string>} looks that stand in the tree, with their words
 */
export function drawLegend(host, { signal, scale, limit }, value, looks) {
  if (signal === "verdict") {
    host.replaceChildren(...["correct", "incorrect", "unparsed", "truncated", "error"].map((word) => {
      const swatch = make("canvas", { class: "swatch", "aria-hidden": "true" });
      const { ctx, dpr } = sized(swatch, 12, 12);
      outcome(ctx, word, { left: 0, right: 12, top: 0, height: 12 }, theme(), hatch(ctx, dpr));
      return make("span", { class: "legend-word" }, swatch, word);
    }));
    return;
  }
  const first = scale.symmetric ? signed(scale.low, 1) : scale.low ? number(scale.low, 1) : "0";
  const bar = make("canvas", { class: "legend-bar", role: "img", "aria-label": `${signal}, from ${first} to ${number(limit, 1)}` });
  const { ctx } = sized(bar, WIDTH, BAR + 5);
  for (let x = 0; x < WIDTH; x++) {
    ctx.fillStyle = scale.fill(Math.round((x / (WIDTH - 1)) * (LEVELS - 1)));
    ctx.fillRect(x, 0, 1, BAR);
  }
  if (!Number.isNaN(value)) {
    const share = (value - scale.low) / (limit - scale.low);
    const x = Math.min(1, Math.max(0, share)) * (WIDTH - 1);
    ctx.fillStyle = colour("--text-1");
    ctx.beginPath();
    ctx.moveTo(x, BAR);
    ctx.lineTo(x - 4, BAR + 5);
    ctx.lineTo(x + 4, BAR + 5);
    ctx.fill();
  }
  const parts = [make("span", { class: "figures" }, first), bar, make("span", { class: "figures" }, scale.symmetric ? signed(limit, 1) : number(limit, 1))];
  for (const [look, word] of looks) {
    if (look === "credit") continue;
    const swatch = make("canvas", { class: "swatch", "aria-hidden": "true" });
    const pen = sized(swatch, 12, 12);
    pen.ctx.fillStyle = look === "hatched" ? hatch(pen.ctx, pen.dpr) : colour(look === "plain" ? "--line" : "--sunken");
    pen.ctx.fillRect(0, 0, 12, 12);
    parts.push(make("span", { class: "legend-word" }, swatch, word));
  }
  host.replaceChildren(...parts);
  host.title = signal === "advantage" ? `This tree's scale: ±${number(limit, 2)} is the 98th percentile of |A|; beyond it colours do not change.` : "";
}
