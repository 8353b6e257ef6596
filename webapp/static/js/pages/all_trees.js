// All trees of a step, laid over each other. The table is the server's; this draws the picture above it.
import { byId, data, setText, typed } from "../core/dom.js";
import { number, percent } from "../core/format.js";
import { colour, onTheme, theme } from "../core/theme.js";
import { RunHead } from "../live/head.js";
import { Session } from "../live/session.js";
import { mergedAt, mergedLayout, wayTo } from "../problems/merged.js";
import { colourScale } from "../tree/colour.js";
import { drawLegend } from "../tree/legend.js";
import { hatch, sized } from "../tree/paint.js";

const BINS = 10;
const MOST_ROW = 34;
const LEAST_ROW = 14;
const HEIGHT = 240;
const LABEL_FROM = 34;

const state = /** @type {RunState} */ (data("run-state"));
const head = new RunHead();
const session = new Session(
  {
    onChange: () => {
      const feed = session.feeds.get(state.id);
      if (feed?.state) head.show(feed.state);
    },
  },
  { curves: false },
);
void session.follow(state.id, state);

if (document.getElementById("merged-data")) picture();

function picture() {
  /** @type {import("../problems/merged.js").Merged} */
  const merged = data("merged-data");
  const places = mergedLayout(merged);
  const canvas = typed("merged", HTMLCanvasElement);
  const total = Math.max(merged.leaves[0] ?? 1, 1);
  const rows = Math.max(places.maxDepth + 1, 1);
  const row = Math.max(LEAST_ROW, Math.min(MOST_ROW, Math.floor(HEIGHT / rows)));
  const width = (merged.high - merged.low) / BINS;
  let hovered = -1;

  const middle = (/** @type {number} */ bin) => merged.low + (bin + 0.5) * width;
  /** @param {number} bin */
  const range = (bin) => (bin === BINS ? "no value" : `V ${number(merged.low + bin * width, 1)}–${number(merged.low + (bin + 1) * width, 1)}`);

  function draw() {
    const wide = canvas.parentElement?.clientWidth ?? 0;
    if (!wide) return;
    const { ctx, dpr } = sized(canvas, wide, row * rows);
    const hatching = hatch(ctx, dpr);
    const scale = colourScale("value", merged.high, theme(), merged.low);
    ctx.font = "11px Inter, system-ui, sans-serif";
    ctx.textBaseline = "middle";
    for (let i = 1; i < merged.parent.length; i++) {
      const bin = /** @type {number} */ (merged.bin[i]);
      const left = (/** @type {number} */ (places.x[i]) / total) * wide;
      const size = (/** @type {number} */ (merged.leaves[i]) / total) * wide;
      const top = /** @type {number} */ (places.depth[i]) * row;
      const level = bin === BINS ? -1 : scale.level(middle(bin));
      ctx.fillStyle = level < 0 ? hatching : scale.fill(level);
      ctx.fillRect(left, top, Math.max(size - (size > 3 ? 1 : 0), 0.5), row - 1);
      if (size < LABEL_FROM || level < 0) continue;
      ctx.fillStyle = scale.ink(level);
      ctx.fillText(`${number(merged.low + bin * width, 1)}${size > 70 ? `–${number(merged.low + (bin + 1) * width, 1)}` : "+"}`, left + 5, top + row / 2);
    }
    if (hovered > 0) {
      ctx.lineWidth = 2;
      ctx.strokeStyle = colour("--text-1");
      ctx.strokeRect((/** @type {number} */ (places.x[hovered]) / total) * wide + 1, /** @type {number} */ (places.depth[hovered]) * row + 1, Math.max((/** @type {number} */ (merged.leaves[hovered]) / total) * wide - 3, 1), row - 3);
    }
    drawLegend(byId("merged-legend"), { signal: "value", limit: merged.high, scale }, NaN, new Map());
  }

  function words() {
    if (hovered < 1) return `${merged.nodes[0]} prompt${merged.nodes[0] === 1 ? "" : "s"}, ${merged.leaves[0]} ${merged.leaves[0] === 1 ? "leaf" : "leaves"}`;
    return [
      wayTo(merged, hovered).map(range).join(" › "),
      `${merged.nodes[hovered]} node${merged.nodes[hovered] === 1 ? "" : "s"}`,
      `${merged.leaves[hovered]} leaves (${percent(/** @type {number} */ (merged.leaves[hovered]) / total)})`,
    ].join("   ");
  }

  /** @param {MouseEvent} event */
  const at = (event) => mergedAt(merged, places, Math.floor(event.offsetY / row), (event.offsetX / (canvas.clientWidth || 1)) * total);
  canvas.addEventListener("pointermove", (event) => {
    const node = at(event);
    if (node === hovered) return;
    hovered = node;
    setText(byId("merged-hint"), words());
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = -1;
    setText(byId("merged-hint"), words());
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const node = at(event);
    if (node > 0) location.assign(`?${merged.query}&depth=${places.depth[node]}&bin=${merged.bin[node]}#cell`);
  });
  setText(byId("merged-hint"), words());
  onTheme(draw);
  new ResizeObserver(draw).observe(/** @type {HTMLElement} */ (canvas.parentElement));
}
