// The icicle. It only paints what layout, viewport and colour return, and tells which node is pointed at.
import { pointer, select, zoom, zoomIdentity } from "../../vendor/d3.js";
import { colour, theme } from "../core/theme.js";
import { OUTCOME } from "./colour.js";
import { hit } from "./hit.js";
import { visibleBoxes } from "./layout.js";
import { hatch, outcome, sized } from "./paint.js";
import { label, look, times, verdictGlyph, withoutCredit } from "./signals.js";
import { around, bringIn, fit, transformOf, viewOf } from "./viewport.js";
import { pathTo } from "./walk.js";

const ROW = 26;
const OUTCOMES = 22;
const OVERVIEW = 10;
const LABEL_FROM = 40;
const TEXT_FROM = 140;
const TEXT_ALONE_FROM = 70;
const FONT = "11px Inter, system-ui, sans-serif";

/**
 * @typedef {object} Scene
 * @property {TreeColumns} columns
 * @property {Layout} layout
 * @property {ReturnType<import("./signals.js").signalOf>} signal
 * @property {(node: number) => string} textOf start of a node's text, or ""
 */

export class TreeCanvas {
  /** @type {Scene | null} */ #scene = null;
  #selected = 0;
  #hovered = -1;
  #width = 0;
  #asked = false;
  #canvas;
  #hooks;
  #selection;
  #zoom;
  /** @type {View} */ #view = { x0: 0, x1: 1 };

  /** @param {HTMLCanvasElement} canvas @param {{onSelect: (node: number) => void, onHover: (node: number) => void}} hooks */
  constructor(canvas, hooks) {
    this.#canvas = canvas;
    this.#hooks = hooks;
    this.#selection = select(canvas);
    this.#zoom = /** @type {import("../../vendor/d3.js").Zoom<HTMLCanvasElement>} */ (zoom())
      // The wheel scrolls the page until the reader is in the tree: it zooms when the canvas has the focus, or with Ctrl.
      .filter((event) => (event.type === "wheel" ? event.ctrlKey || document.activeElement === canvas : !event.button && event.type !== "dblclick"))
      .on("zoom", ({ transform }) => {
        if (!this.#scene) return;
        this.#view = viewOf(transform, this.#width, this.#total());
        this.#drawSoon();
      });
    this.#selection.call(this.#zoom);
    this.#selection.on("dblclick.zoom", null);
    canvas.addEventListener("click", (event) => {
      const node = this.#at(event);
      if (node >= 0) this.#hooks.onSelect(node);
    });
    canvas.addEventListener("dblclick", (event) => {
      const node = this.#at(event);
      if (node >= 0) this.zoomTo(node);
    });
    canvas.addEventListener("pointermove", (event) => this.#hover(this.#at(event)));
    canvas.addEventListener("pointerleave", () => this.#hover(-1));
    canvas.addEventListener("focus", () => this.#drawSoon());
    canvas.addEventListener("blur", () => this.#drawSoon());
    new ResizeObserver(() => this.#resized()).observe(/** @type {HTMLElement} */ (canvas.parentElement));
  }

  /** @param {Scene} scene @param {boolean} keepView */
  show(scene, keepView) {
    this.#scene = scene;
    if (!keepView) this.#view = fit(scene.layout);
    this.#resized();
  }

  /** @param {number} node */
  select(node) {
    this.#selected = node;
    if (this.#scene) this.#setView(bringIn(this.#scene.layout, this.#view, node));
    this.#drawSoon();
  }

  fit() {
    if (this.#scene) this.#setView(fit(this.#scene.layout));
  }

  /** One subtree, edge to edge. @param {number} node */
  zoomTo(node) {
    if (this.#scene) this.#setView(around(this.#scene.layout, node));
  }

  redraw() {
    this.#drawSoon();
  }

  #total() {
    return /** @type {number} */ (this.#scene?.layout.leaves[0] ?? 1);
  }

  /** @param {View} view */
  #setView(view) {
    this.#view = view;
    if (this.#width) {
      const { k, x } = transformOf(view, this.#width, this.#total());
      this.#selection.call(this.#zoom.transform, zoomIdentity.translate(x, 0).scale(k));
    }
    this.#drawSoon();
  }

  #resized() {
    const width = this.#canvas.parentElement?.clientWidth ?? 0;
    if (!width || !this.#scene) return;
    this.#width = width;
    this.#zoom.extent([[0, 0], [width, 1]]).translateExtent([[0, 0], [width, 1]]).scaleExtent([1, Math.max(1, this.#total())]);
    this.#setView(this.#view);
  }

  /** @param {MouseEvent} event */
  #at(event) {
    if (!this.#scene) return -1;
    const [x, y] = pointer(event, this.#canvas);
    return hit(this.#scene.layout, this.#view, this.#width, ROW, x, y);
  }

  /** @param {number} node */
  #hover(node) {
    if (node === this.#hovered) return;
    this.#hovered = node;
    this.#hooks.onHover(node);
    this.#drawSoon();
  }

  #drawSoon() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  #draw() {
    const scene = this.#scene;
    if (!scene || !this.#width) return;
    const { layout } = scene;
    const width = this.#width;
    const rowsHeight = ROW * (layout.maxDepth + 1);
    const zoomed = this.#view.x1 - this.#view.x0 < this.#total() * 0.999;
    const { ctx, dpr } = sized(this.#canvas, width, rowsHeight + OUTCOMES + OVERVIEW);
    const hatching = hatch(ctx, dpr);
    ctx.font = FONT;
    ctx.textBaseline = "middle";
    for (let row = 0; row <= layout.maxDepth; row++) {
      const boxes = visibleBoxes(layout, row, this.#view, width);
      this.#fillRow(ctx, scene, row, boxes, hatching);
      this.#writeRow(ctx, scene, row, boxes);
    }
    this.#outcomes(ctx, scene, rowsHeight, hatching);
    this.#marks(ctx, scene);
    if (zoomed) this.#overview(ctx, rowsHeight + OUTCOMES + 4);
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} row @param {Box[]} boxes @param {CanvasPattern} hatching */
  #fillRow(ctx, scene, row, boxes, hatching) {
    /** Rectangles by fill, so that each fill is set once. @type {Map<string | CanvasPattern, Box[]>} */
    const byFill = new Map();
    for (const box of boxes) {
      const fill = this.#fillOf(scene, box, hatching);
      const there = byFill.get(fill);
      if (there) there.push(box);
      else byFill.set(fill, [box]);
    }
    for (const [fill, group] of byFill) {
      ctx.fillStyle = fill;
      for (const { left, right } of group) {
        const [from, to] = [Math.max(left, -1), Math.min(right, this.#width + 1)];
        ctx.fillRect(from, row * ROW, Math.max(to - from - (right - left > 3 ? 1 : 0), 0.5), ROW - 1);
      }
    }
  }

  /** @param {Scene} scene @param {Box} box @param {CanvasPattern} hatching @returns {string | CanvasPattern} */
  #fillOf(scene, box, hatching) {
    const { columns, layout, signal } = scene;
    const kind = look(columns, signal, box.from);
    if (kind === "context") return colour("--sunken");
    if (signal.signal === "verdict") {
      const tones = OUTCOME[theme()];
      const verdict = columns.labels.verdict[/** @type {number} */ (columns.verdict[box.from])];
      if (/** @type {number} */ (layout.nChildren[box.from])) return colour("--line");
      return verdict === "correct" ? tones.correct : verdict === "incorrect" ? tones.incorrect : verdict === "unparsed" ? hatching : tones.other;
    }
    let sum = 0;
    let weight = 0;
    for (let i = box.from; i <= box.to; i++) {
      const value = /** @type {number} */ (signal.values[i]);
      if (Number.isNaN(value)) continue;
      sum += value * /** @type {number} */ (layout.leaves[i]);
      weight += /** @type {number} */ (layout.leaves[i]);
    }
    const level = weight ? signal.scale.level(sum / weight) : -1;
    if (level >= 0) return signal.scale.fill(level);
    return kind === "plain" ? colour("--line") : hatching;
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} row @param {Box[]} boxes */
  #writeRow(ctx, scene, row, boxes) {
    const { columns, signal } = scene;
    for (const box of boxes) {
      const left = Math.max(box.left, 0);
      const room = Math.min(box.right, this.#width) - left - 10;
      if (box.from !== box.to || room < LABEL_FROM - 10) continue;
      const node = box.from;
      const value = /** @type {number} */ (signal.values[node]);
      const kind = look(columns, signal, node);
      const plain = kind !== "credit" || signal.signal === "verdict" || Number.isNaN(value);
      const verdict = columns.labels.verdict[/** @type {number} */ (columns.verdict[node])] ?? "";
      const isLeaf = verdict !== "none" && node > 0;
      ctx.fillStyle = plain ? (signal.signal === "verdict" && isLeaf && verdict !== "unparsed" ? colour("--surface") : colour("--text-1")) : signal.scale.ink(signal.scale.level(value));
      const y = row * ROW + ROW / 2;
      let text = node === 0 ? `V ${label("value", /** @type {number} */ (columns.value[0]))}` : signal.signal === "verdict" ? (isLeaf ? verdictGlyph(verdict) : "") : label(signal.signal, value);
      if (node > 0 && kind !== "credit") text = this.#instead(ctx, signal.signal === "advantage" || kind === "context" ? withoutCredit(columns, node) : "not scored", kind, room);
      const equal = times(columns, node);
      if (equal && room > 60) text = `${text} ${equal}`.trim();
      const plated = kind === "hatched" && signal.signal !== "verdict";
      if (text) {
        if (plated) this.#plate(ctx, text, left + 5, y);
        ctx.fillText(text, left + 5, y);
      }
      if (room < (text ? TEXT_FROM : TEXT_ALONE_FROM) - 10) continue;
      const start = left + 5 + (text ? ctx.measureText(text).width + 8 : 0);
      const words = fitted(ctx, scene.textOf(node), left + 5 + room - start);
      if (!words) continue;
      if (plated) this.#plate(ctx, words, start, y);
      ctx.fillText(words, start, y);
    }
  }

  /**
   * What stands in place of a number: what was given says so, what has no credit says why where there is room, and what is
   * plain leaves its room to the text (the legend says what plain is).
   * @param {CanvasRenderingContext2D} ctx @param {string} words @param {Look} kind @param {number} room
   */
  #instead(ctx, words, kind, room) {
    if (kind === "plain") return "";
    return [words, ...(words.startsWith("no credit") ? ["no credit"] : [])].find((text) => ctx.measureText(text).width < room) ?? "";
  }

  /** Ground for a text on a hatch. @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} x @param {number} y */
  #plate(ctx, text, x, y) {
    const ink = ctx.fillStyle;
    ctx.fillStyle = colour("--sunken");
    ctx.fillRect(x - 3, y - 8, ctx.measureText(text).width + 6, 16);
    ctx.fillStyle = ink;
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} top @param {CanvasPattern} hatching */
  #outcomes(ctx, scene, top, hatching) {
    const { columns, layout } = scene;
    const scale = this.#width / (this.#view.x1 - this.#view.x0);
    const box = { left: 0, right: 0, top: top + 3, height: OUTCOMES - 6 };
    const from = Math.max(0, Math.floor(this.#view.x0));
    const to = Math.min(layout.leafAt.length, Math.ceil(this.#view.x1));
    // Thinner than a pixel: one tick per pixel, the worst outcome kept.
    const stride = Math.max(1, Math.floor(1 / scale));
    for (let x = from; x < to; x += stride) {
      let verdict = /** @type {number} */ (columns.verdict[/** @type {number} */ (layout.leafAt[x])]);
      for (let i = x + 1; i < Math.min(x + stride, to); i++) verdict = Math.max(verdict, /** @type {number} */ (columns.verdict[/** @type {number} */ (layout.leafAt[i])]));
      box.left = (x - this.#view.x0) * scale;
      box.right = (x + stride - this.#view.x0) * scale;
      const word = columns.labels.verdict[verdict] ?? "none";
      outcome(ctx, word, box, theme(), hatching);
      if (box.right - box.left >= 18 && (word === "correct" || word === "incorrect")) {
        ctx.fillStyle = colour("--surface");
        const glyph = verdictGlyph(word);
        ctx.fillText(glyph, (box.left + box.right) / 2 - ctx.measureText(glyph).width / 2, box.top + (word === "correct" ? box.height / 2 : (3 * box.height) / 4) + 0.5);
      }
    }
  }

  /** Selection, the way to it, and what the pointer is on. @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
  #marks(ctx, scene) {
    const { layout } = scene;
    const scale = this.#width / (this.#view.x1 - this.#view.x0);
    const outline = (/** @type {number} */ node, /** @type {number} */ width, /** @type {string} */ stroke) => {
      const x = /** @type {number} */ (layout.x[node]);
      const left = Math.max((x - this.#view.x0) * scale, 0);
      const right = Math.min((x + /** @type {number} */ (layout.leaves[node]) - this.#view.x0) * scale, this.#width) - 1;
      if (right < 0 || left > this.#width) return;
      ctx.lineWidth = width;
      ctx.strokeStyle = stroke;
      ctx.strokeRect(left + width / 2, /** @type {number} */ (layout.depth[node]) * ROW + width / 2, Math.max(right - left - width, 1), ROW - 1 - width);
    };
    for (const node of pathTo(layout, this.#selected).slice(0, -1)) outline(node, 1, colour("--text-2"));
    if (this.#hovered >= 0 && this.#hovered !== this.#selected) outline(this.#hovered, 1, colour("--text-1"));
    const focused = document.activeElement === this.#canvas;
    outline(this.#selected, focused ? 3 : 2, colour(focused ? "--focus" : "--text-1"));
  }

  /** Where in the whole tree the window is. @param {CanvasRenderingContext2D} ctx @param {number} top */
  #overview(ctx, top) {
    const scale = this.#width / this.#total();
    ctx.fillStyle = colour("--line");
    ctx.fillRect(0, top, this.#width, 4);
    ctx.fillStyle = colour("--text-3");
    ctx.fillRect(this.#view.x0 * scale, top, Math.max(3, (this.#view.x1 - this.#view.x0) * scale), 4);
  }
}

/** As much of a text as fits, with an ellipsis; "" when not even three letters do. @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} width */
function fitted(ctx, text, width) {
  if (!text || ctx.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (ctx.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return low < 3 ? "" : `${text.slice(0, low)}…`;
}
