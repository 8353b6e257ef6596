// A tree while it grows, on a canvas: dotted boxes, tokens so far.
import { colour } from "../core/theme.js";
import { growingBoxes, judgedSoFar } from "./growing_layout.js";
import { sized } from "./paint.js";
import { VERDICTS, verdictGlyph } from "./signals.js";

const LABEL_FROM = 28; // pixels of width

/** @param {HTMLCanvasElement} canvas @param {import("./growing_layout.js").GrowingTree} tree @param {number[]} branching planned @param {number} row its height in pixels */
export function paintGrowing(canvas, tree, branching, row) {
  const { boxes, depth } = growingBoxes(tree, branching);
  const width = canvas.clientWidth;
  const { ctx } = sized(canvas, width, row * Math.max(depth, 1) + 1);
  ctx.lineWidth = 1;
  ctx.strokeStyle = colour("--line-control");
  ctx.font = getComputedStyle(canvas).font;
  ctx.textBaseline = "middle";
  const { judged, correct } = judgedSoFar(tree);
  for (const box of boxes) {
    const left = Math.round(box.left * width) + 0.5;
    const right = Math.round((box.left + box.width) * width) - 1.5;
    const top = (box.depth - 1) * row + 0.5;
    const [wide, high] = [Math.max(right - left, 0.5), row - 2];
    if (box.isWritten) {
      ctx.fillStyle = colour("--accent-bg");
      ctx.fillRect(left, top, wide, high);
    }
    // Dotted: nothing here is final, and what is still empty is being written.
    ctx.setLineDash([2, 2]);
    ctx.strokeRect(left, top, wide, high);
    if (box.isWritten && wide >= LABEL_FROM) {
      ctx.fillStyle = colour("--text-2");
      const verdict = tree.verdict?.[box.node] ?? 0;
      const told = verdict ? verdictGlyph(VERDICTS[verdict] ?? "") : judged[box.node] ? `${correct[box.node]}/${judged[box.node]} ✓` : "";
      ctx.fillText([told, tree.tokens[box.node]].filter(Boolean).join("  "), left + 4, top + high / 2 + 0.5, wide - 6);
    }
  }
}
