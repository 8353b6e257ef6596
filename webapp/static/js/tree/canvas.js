// The icicle. It only paints what layout, viewport and colour return, and tells which node is pointed at.
import { pointer, select, zoom, zoomIdentity } from "../../vendor/d3.js";
import { colour, theme } from "../core/theme.js";
import { Blend, Tally, Worst } from "./blend.js";
import { LEVELS, OUTCOME } from "./colour.js";
import { hit, leafFrom } from "./hit.js";
import { eachBox, nodeAt, placeOf } from "./layout.js";
import { fitted, forgetWidths, hatch, outcome, sized, textWidth } from "./paint.js";
import { label, look, times, verdictGlyph, withoutCredit } from "./signals.js";
import { around, bringIn, fit, transformOf, viewOf } from "./viewport.js";
import { pathTo } from "./walk.js";

const ROW = 26;
const CELL = 24;
const OUTCOMES = 24;
const OVERVIEW = 12;
const MOST_ROWS = 24;
const LABEL_FROM = 40;
const TEXT_FROM = 140;
const TEXT_ALONE_FROM = 70;
const BRACKET_FROM = 12;
const ZOOM_MILLISECONDS = 120;
export const FONT = "11px Inter, system-ui, sans-serif";

/** Fills beyond the levels of the scale. */
const HATCHED = LEVELS;
const PLAIN = LEVELS + 1;
const CONTEXT = LEVELS + 2;
const CORRECT = LEVELS + 3;
const INCORRECT = LEVELS + 4;
const OTHER = LEVELS + 5;
const FILLS = LEVELS + 6;
const MOST_BOXES = 40_000;

export class TreeCanvas {
  /** @type {Scene | null} */ #scene = null;
  #selected = 0;
  #hovered = -1;
  #width = 0;
  #asked = false;
  #stale = true;
  #tween = 0;
  #canvas;
  #box;
  #hooks;
  #selection;
  #zoom;
  /** @type {View} */ #view = { x0: 0, x1: 1 };
  /** Everything but the marks, so that marks can move without painting the tree again. */ #base = document.createElement("canvas");
  /** What was sampled by hand. @type {import("./probe_lane.js").ProbeLane | null} */ #lane = null;
  /** @type {Blend | null} */ #blend = null;
  /** @type {Tally | null} */ #tally = null;
  /** @type {Worst | null} */ #worst = null;
  // The rectangles of one painting, by fill.
  #codes = new Uint8Array(MOST_BOXES);
  #lefts = new Float32Array(MOST_BOXES);
  #tops = new Float32Array(MOST_BOXES);
  #widths = new Float32Array(MOST_BOXES);
  #sorted = new Uint32Array(MOST_BOXES);

  /**
   * @param {HTMLCanvasElement} canvas in a box that scrolls when the tree is deep
   * @param {{onSelect: (node: number) => void, onHover: (node: number) => void, onZoom: (node: number | null) => void, onProbe?: (node: number, id: string) => void}} hooks
   * `onZoom`: the node whose subtree now fills the width; null: none, the reader moved the window by hand
   */
  constructor(canvas, hooks) {
    this.#canvas = canvas;
    this.#box = /** @type {HTMLElement} */ (canvas.parentElement);
    this.#hooks = hooks;
    this.#selection = select(canvas);
    this.#zoom = /** @type {import("../../vendor/d3.js").Zoom<HTMLCanvasElement>} */ (zoom())
      // The wheel scrolls the page until the reader is in the tree: it zooms when the canvas has the focus, or with Ctrl.
      .filter((event) => (event.type === "wheel" ? event.ctrlKey || document.activeElement === canvas : !event.button && event.type !== "dblclick"))
      .on("zoom", ({ transform, sourceEvent }) => {
        if (!this.#scene) return;
        this.#view = viewOf(transform, this.#width, this.#total());
        if (sourceEvent) {
          cancelAnimationFrame(this.#tween);
          this.#hooks.onZoom(null);
        }
        this.#drawSoon(true);
      });
    this.#selection.call(this.#zoom);
    this.#selection.on("dblclick.zoom", null);
    canvas.addEventListener("click", (event) => {
      const node = this.#at(event);
      const probe = this.#lane?.at(...pointer(event, this.#canvas));
      if (node >= 0) this.#hooks.onSelect(node);
      else if (probe) this.#hooks.onProbe?.(probe.node, probe.id);
    });
    canvas.addEventListener("dblclick", (event) => {
      const node = this.#at(event);
      if (node >= 0) this.zoomTo(node);
    });
    canvas.addEventListener("pointermove", (event) => this.#hover(this.#at(event)));
    canvas.addEventListener("pointerleave", () => this.#hover(-1));
    canvas.addEventListener("focus", () => this.#drawSoon(false));
    canvas.addEventListener("blur", () => this.#drawSoon(false));
    this.#box.addEventListener("scroll", () => this.#drawSoon(true));
    new ResizeObserver(() => this.#resized()).observe(this.#box);
    // Until the face is there texts are measured in another one.
    void document.fonts.ready.then(() => {
      forgetWidths();
      this.#drawSoon(true);
    });
  }

  /** @param {Scene} scene @param {boolean} keepView */
  show(scene, keepView) {
    const before = this.#scene;
    this.#scene = scene;
    if (scene.layout !== before?.layout || scene.signal.values !== before.signal.values) this.#blend = new Blend(scene.layout, scene.signal.values);
    if (scene.layout !== before?.layout) this.#worst = null;
    if (scene.layout !== before?.layout) this.#tally = new Tally(scene.layout, scene.columns.verdict, scene.columns.labels.verdict.length);
    if (!keepView) this.#view = fit(scene.layout);
    this.#resized();
  }

  /** @param {number} node */
  select(node) {
    this.#selected = node;
    if (this.#scene) {
      const view = bringIn(this.#scene.layout, this.#view, node);
      if (view !== this.#view) {
        this.#hooks.onZoom(null);
        this.#setView(view);
      }
      const top = /** @type {number} */ (this.#scene.layout.depth[node]) * ROW;
      const room = this.#rowsHeight() - ROW;
      if (this.#box.scrollTop > top) this.#box.scrollTop = top;
      else if (this.#box.scrollTop + room < top) this.#box.scrollTop = top - room;
    }
    this.#drawSoon(false);
  }

  /** A lane below the tree. @param {import("./probe_lane.js").ProbeLane} lane */
  hang(lane) {
    this.#lane = lane;
    this.redraw();
  }

  fit() {
    this.zoomTo(0);
  }

  /** One subtree, edge to edge. @param {number} node @param {boolean} [atOnce] */
  zoomTo(node, atOnce = false) {
    if (!this.#scene) return;
    this.#hooks.onZoom(node);
    const view = node ? around(this.#scene.layout, node) : fit(this.#scene.layout);
    if (atOnce) this.#setView(view);
    else this.#glide(view);
  }

  /** The next larger subtree round the selected node. */
  zoomOut() {
    if (!this.#scene) return;
    const { layout } = this.#scene;
    const span = this.#view.x1 - this.#view.x0;
    const wider = pathTo(layout, this.#selected).filter((node) => /** @type {number} */ (layout.width[node]) > span * 1.001);
    this.zoomTo(wider.at(-1) ?? 0);
  }

  redraw() {
    this.#drawSoon(true);
  }

  #total() {
    return this.#scene?.layout.total || 1;
  }

  /** How high the rows are that can be seen. */
  #rowsHeight() {
    return ROW * Math.min(MOST_ROWS, (this.#scene?.layout.maxDepth ?? 0) + 1);
  }

  /** Zooming moves there, unless motion is not wanted. @param {View} view */
  #glide(view) {
    cancelAnimationFrame(this.#tween);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.#setView(view);
    const from = this.#view;
    const started = performance.now();
    const step = () => {
      const t = Math.min(1, (performance.now() - started) / ZOOM_MILLISECONDS);
      const eased = 1 - (1 - t) ** 3;
      // The window's width goes by ratios, so that a zoom by a thousand does not jump at its start.
      const span = (from.x1 - from.x0) * ((view.x1 - view.x0) / (from.x1 - from.x0)) ** eased;
      const share = from.x1 - from.x0 === view.x1 - view.x0 ? eased : (span - (from.x1 - from.x0)) / (view.x1 - view.x0 - (from.x1 - from.x0));
      const x0 = from.x0 + (view.x0 - from.x0) * share;
      this.#setView(t < 1 ? { x0, x1: x0 + span } : view);
      if (t < 1) this.#tween = requestAnimationFrame(step);
    };
    step();
  }

  /** @param {View} view */
  #setView(view) {
    this.#view = view;
    if (this.#width) {
      const { k, x } = transformOf(view, this.#width, this.#total());
      this.#selection.call(this.#zoom.transform, zoomIdentity.translate(x, 0).scale(k));
    }
    this.#drawSoon(true);
  }

  #resized() {
    const width = this.#box.clientWidth;
    if (!width || !this.#scene) return;
    this.#width = width;
    this.#zoom.extent([[0, 0], [width, 1]]).translateExtent([[0, 0], [width, 1]]).scaleExtent([1, Math.max(1, 4 * this.#scene.layout.n)]);
    this.#setView(this.#view);
  }

  /** @param {MouseEvent} event */
  #at(event) {
    if (!this.#scene) return -1;
    const [x, y] = pointer(event, this.#canvas);
    const { layout } = this.#scene;
    const rows = this.#rowsHeight();
    const depth = y < rows ? y + this.#box.scrollTop : ROW * (layout.maxDepth + 1) + y - rows;
    return y > rows + OUTCOMES ? -1 : hit(layout, this.#view, this.#width, ROW, x, depth);
  }

  /** @param {number} node */
  #hover(node) {
    if (node === this.#hovered) return;
    this.#hovered = node;
    this.#hooks.onHover(node);
    this.#drawSoon(false);
  }

  /** @param {boolean} stale the tree itself, not only the marks on it */
  #drawSoon(stale) {
    this.#stale ||= stale;
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  #draw() {
    const scene = this.#scene;
    if (!scene || !this.#width || !this.#canvas.checkVisibility()) return;
    const rows = this.#rowsHeight();
    const height = rows + OUTCOMES + (this.#lane?.height ?? 0) + OVERVIEW;
    const { ctx, dpr } = sized(this.#canvas, this.#width, height);
    if (this.#stale) this.#drawBase(scene, rows, height);
    this.#stale = false;
    this.#box.style.setProperty("--all-rows", `${ROW * (scene.layout.maxDepth + 1) - rows}px`);
    ctx.drawImage(this.#base, 0, 0, this.#base.width / dpr, this.#base.height / dpr);
    this.#marks(ctx, scene, rows);
    ctx.font = FONT;
    ctx.textBaseline = "middle";
    const { layout } = scene;
    this.#lane?.draw(ctx, scene, {
      width: this.#width, rows, top: rows + OUTCOMES, selected: this.#selected, hatching: hatch(ctx, dpr),
      edges: (node) => [this.#px(/** @type {number} */ (layout.x[node])), this.#px(/** @type {number} */ (layout.x[node]) + /** @type {number} */ (layout.width[node]))],
      bottomOf: (node) => (/** @type {number} */ (layout.depth[node]) + 1) * ROW - this.#box.scrollTop,
    });
    this.#overview(ctx, height - OVERVIEW + 2);
  }

  /** @param {Scene} scene @param {number} rows @param {number} height */
  #drawBase(scene, rows, height) {
    const { layout } = scene;
    const { ctx, dpr } = sized(this.#base, this.#width, height);
    const hatching = hatch(ctx, dpr);
    ctx.font = FONT;
    ctx.textBaseline = "middle";
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, 0, this.#width, rows);
    ctx.clip();
    const scrolled = this.#box.scrollTop;
    const firstRow = Math.floor(scrolled / ROW);
    const lastRow = Math.min(layout.maxDepth, Math.floor((scrolled + rows - 1) / ROW));
    let n = 0;
    /** Wide enough for words: place and where. @type {number[]} */
    const worded = [];
    /** @type {[number, number, number][]} */
    const found = [];
    for (let row = firstRow; row <= lastRow; row++) {
      const top = row * ROW - scrolled;
      eachBox(layout, row, this.#view, this.#width, 1, (from, to, left, right) => {
        if (n === MOST_BOXES || right <= left) return;
        const [l, r] = [Math.max(left, -1), Math.min(right, this.#width + 1)];
        this.#codes[n] = this.#codeOf(scene, from, to);
        this.#lefts[n] = l;
        this.#tops[n] = top;
        this.#widths[n++] = Math.max(r - l - (right - left > 3 ? 1 : 0), 0.5);
        if (from === to && right - left >= LABEL_FROM) worded.push(from, left, right, top);
        if (scene.hits && scene.hits.any(from, to)) found.push([l, Math.max(r - l - (right - left > 3 ? 1 : 0), 2), top]);
      });
    }
    this.#fill(ctx, n, scene, hatching);
    ctx.fillStyle = colour("--line-control");
    for (let i = 0; i < worded.length; i += 4) this.#bracket(ctx, scene, nodeAt(layout, /** @type {number} */ (worded[i])), /** @type {number} */ (worded[i + 3]));
    for (let i = 0; i < worded.length; i += 4) this.#write(ctx, scene, nodeAt(layout, /** @type {number} */ (worded[i])), /** @type {number} */ (worded[i + 1]), /** @type {number} */ (worded[i + 2]), /** @type {number} */ (worded[i + 3]));
    ctx.fillStyle = colour("--accent");
    for (const [left, width, top] of found) ctx.fillRect(left, top + CELL - 3, width, 3);
    if (scene.cliff > 0) this.#notch(ctx, scene, scrolled);
    ctx.restore();
    this.#outcomes(ctx, scene, rows, hatching);
  }

  /** Every fill is set once, for all its rectangles. @param {CanvasRenderingContext2D} ctx @param {number} n @param {Scene} scene @param {CanvasPattern} hatching */
  #fill(ctx, n, scene, hatching) {
    const starts = new Uint32Array(FILLS + 1);
    for (let i = 0; i < n; i++) {
      const code = /** @type {number} */ (this.#codes[i]) + 1;
      starts[code] = /** @type {number} */ (starts[code]) + 1;
    }
    for (let code = 0; code < FILLS; code++) starts[code + 1] = /** @type {number} */ (starts[code + 1]) + /** @type {number} */ (starts[code]);
    const next = starts.slice();
    for (let i = 0; i < n; i++) {
      const code = /** @type {number} */ (this.#codes[i]);
      const at = /** @type {number} */ (next[code]);
      this.#sorted[at] = i;
      next[code] = at + 1;
    }
    const tones = OUTCOME[theme()];
    for (let code = 0; code < FILLS; code++) {
      const [from, to] = [/** @type {number} */ (starts[code]), /** @type {number} */ (starts[code + 1])];
      if (from === to) continue;
      ctx.fillStyle =
        code < LEVELS ? scene.signal.scale.fill(code) : code === HATCHED ? hatching : code === PLAIN ? colour("--line") : code === CONTEXT ? colour("--sunken") : code === CORRECT ? tones.correct : code === INCORRECT ? tones.incorrect : tones.other;
      for (let k = from; k < to; k++) {
        const i = /** @type {number} */ (this.#sorted[k]);
        ctx.fillRect(/** @type {number} */ (this.#lefts[i]), /** @type {number} */ (this.#tops[i]), /** @type {number} */ (this.#widths[i]), CELL);
      }
    }
  }

  /** @param {Scene} scene @param {number} from places @param {number} to */
  #codeOf({ columns, layout, signal }, from, to) {
    const node = nodeAt(layout, from);
    const kind = look(columns, signal, node);
    if (from === to && kind === "context") return CONTEXT;
    if (signal.signal === "none") return PLAIN;
    if (signal.signal === "verdict") {
      if (/** @type {number} */ (layout.nChildren[node])) return PLAIN;
      this.#worst ??= new Worst(layout, columns.verdict);
      const word = columns.labels.verdict[this.#worst.among(from, to)];
      return word === "correct" ? CORRECT : word === "incorrect" ? INCORRECT : word === "unparsed" ? HATCHED : OTHER;
    }
    const level = signal.scale.level(/** @type {Blend} */ (this.#blend).mean(from, to));
    if (level >= 0) return level;
    return kind === "plain" ? PLAIN : kind === "context" ? CONTEXT : HATCHED;
  }

  /** One bracket over the children of a node: they were compared with each other. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} node @param {number} top */
  #bracket(ctx, { layout }, node, top) {
    const count = /** @type {number} */ (layout.nChildren[node]);
    if (count < 2) return;
    const first = placeOf(layout, /** @type {number} */ (layout.firstChild[node]));
    const one = layout.rowNodes ? firstPlace(layout, node) : first;
    const [a, b] = [nodeAt(layout, one), nodeAt(layout, one + count - 1)];
    const left = Math.max(0, this.#px(/** @type {number} */ (layout.x[a])));
    const right = Math.min(this.#width, this.#px(/** @type {number} */ (layout.x[b]) + /** @type {number} */ (layout.width[b])) - 1);
    if (right - left < BRACKET_FROM) return;
    const y = top + CELL;
    ctx.fillRect(left, y, right - left, 1);
    if (left > 0) ctx.fillRect(left, y, 1, 4);
    if (right < this.#width) ctx.fillRect(right - 1, y, 1, 4);
  }

  /** @param {number} x */
  #px(x) {
    return ((x - this.#view.x0) * this.#width) / (this.#view.x1 - this.#view.x0);
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} node @param {number} boxLeft @param {number} boxRight @param {number} top */
  #write(ctx, scene, node, boxLeft, boxRight, top) {
    const { columns, signal } = scene;
    const left = Math.max(boxLeft, 0);
    const room = Math.min(boxRight, this.#width) - left - 10;
    if (room < LABEL_FROM - 10) return;
    const value = /** @type {number} */ (signal.values[node]);
    const kind = look(columns, signal, node);
    const plain = kind !== "credit" || signal.signal === "verdict" || Number.isNaN(value);
    const verdict = columns.labels.verdict[/** @type {number} */ (columns.verdict[node])] ?? "";
    const isLeaf = verdict !== "none" && node > 0;
    ctx.fillStyle = plain ? (signal.signal === "verdict" && isLeaf && verdict !== "unparsed" ? colour("--surface") : colour("--text-1")) : signal.scale.ink(signal.scale.level(value));
    const y = top + CELL / 2 + 0.5;
    let text = node === 0 ? `V ${label("value", /** @type {number} */ (columns.value[0]))}` : signal.signal === "verdict" ? (isLeaf ? verdictGlyph(verdict) : "") : label(signal.signal, value);
    if (node > 0 && kind !== "credit") text = instead(ctx, signal.signal === "advantage" || signal.signal === "difference" || kind === "context" ? withoutCredit(columns, node) : "not scored", kind, room);
    const equal = times(columns, node);
    if (equal && room > 60) text = `${text} ${equal}`.trim();
    const plated = kind === "hatched" && signal.signal !== "verdict";
    if (text) {
      if (plated) plate(ctx, text, left + 5, y);
      ctx.fillText(text, left + 5, y);
    }
    if (room < (text ? TEXT_FROM : TEXT_ALONE_FROM) - 10) return;
    const start = left + 5 + (text ? textWidth(ctx, text) + 8 : 0);
    const words = fitted(ctx, scene.textOf(node), left + 5 + room - start);
    if (!words) return;
    if (plated) plate(ctx, words, start, y);
    ctx.fillText(words, start, y);
  }

  /** Where the value falls most. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} scrolled */
  #notch(ctx, { layout, cliff }, scrolled) {
    const top = /** @type {number} */ (layout.depth[cliff]) * ROW - scrolled;
    const left = this.#px(/** @type {number} */ (layout.x[cliff]));
    const right = this.#px(/** @type {number} */ (layout.x[cliff]) + /** @type {number} */ (layout.width[cliff]));
    if (right < 0 || left > this.#width) return;
    const middle = Math.min(Math.max((left + right) / 2, 8), this.#width - 8);
    ctx.beginPath();
    ctx.moveTo(middle - 7, top - 2);
    ctx.lineTo(middle + 7, top - 2);
    ctx.lineTo(middle, top + 7);
    ctx.closePath();
    ctx.fillStyle = colour("--bad");
    ctx.strokeStyle = colour("--bg");
    ctx.lineWidth = 2;
    ctx.stroke();
    ctx.fill();
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} top @param {CanvasPattern} hatching */
  #outcomes(ctx, { columns, layout }, top, hatching) {
    const height = OUTCOMES - 6;
    const box = { left: 0, right: 0, top: top + 3, height };
    const tones = OUTCOME[theme()];
    const words = columns.labels.verdict;
    const [correct, error] = [words.indexOf("correct"), words.indexOf("error")];
    const { leafOrder } = layout;
    const edge = (/** @type {number} */ i) => this.#px(/** @type {number} */ (layout.x[/** @type {number} */ (leafOrder[i])]));
    for (let i = leafFrom(layout, this.#view.x0); i < leafOrder.length; ) {
      const leaf = /** @type {number} */ (leafOrder[i]);
      box.left = this.#px(/** @type {number} */ (layout.x[leaf]));
      if (box.left >= this.#width) break;
      box.right = this.#px(/** @type {number} */ (layout.x[leaf]) + /** @type {number} */ (layout.width[leaf]));
      if (box.right - box.left >= 2) {
        const word = words[/** @type {number} */ (columns.verdict[leaf])] ?? "none";
        outcome(ctx, word, box, theme(), hatching);
        if (box.right - box.left >= 18 && (word === "correct" || word === "incorrect")) {
          ctx.fillStyle = colour("--surface");
          const glyph = verdictGlyph(word);
          ctx.fillText(glyph, (box.left + box.right) / 2 - textWidth(ctx, glyph) / 2, box.top + (word === "correct" ? height / 2 : (3 * height) / 4) + 0.5);
        }
        i++;
        continue;
      }
      // Thinner than can be told apart: how many of them are correct, as the height of the lower part; an error is never lost.
      const target = Math.max(box.left + 2, Math.floor(box.left) + 2);
      let low = i;
      let high = leafOrder.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (edge(middle) < target) low = middle;
        else high = middle - 1;
      }
      const counts = /** @type {Tally} */ (this.#tally).between(i, low);
      let all = 0;
      for (const count of counts) all += count;
      const share = /** @type {number} */ (counts[correct]) / Math.max(1, all);
      const blue = Math.round(share * height);
      ctx.fillStyle = tones.incorrect;
      ctx.fillRect(box.left, box.top, 2, height - blue);
      ctx.fillStyle = tones.correct;
      ctx.fillRect(box.left, box.top + height - blue, 2, blue);
      if (error >= 0 && /** @type {number} */ (counts[error]) > 0) {
        ctx.fillStyle = tones.error;
        ctx.fillRect(box.left, top, 2, 3);
      }
      i = low + 1;
    }
  }

  /** Selection, the way to it, and what the pointer is on. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} rows */
  #marks(ctx, { layout }, rows) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, 0, this.#width, rows);
    ctx.clip();
    const scrolled = this.#box.scrollTop;
    const outline = (/** @type {number} */ node, /** @type {number} */ width, /** @type {string} */ stroke) => {
      const left = Math.max(this.#px(/** @type {number} */ (layout.x[node])), 0);
      const right = Math.min(this.#px(/** @type {number} */ (layout.x[node]) + /** @type {number} */ (layout.width[node])), this.#width) - 1;
      if (right < -1 || left > this.#width) return;
      ctx.lineWidth = width;
      ctx.strokeStyle = stroke;
      ctx.strokeRect(left + width / 2, /** @type {number} */ (layout.depth[node]) * ROW - scrolled + width / 2, Math.max(right - left - width, 1), CELL - width);
    };
    for (const node of pathTo(layout, this.#selected).slice(0, -1)) outline(node, 1, colour("--text-2"));
    if (this.#hovered >= 0 && this.#hovered !== this.#selected) outline(this.#hovered, 1, colour("--text-1"));
    const focused = document.activeElement === this.#canvas;
    outline(this.#selected, focused ? 3 : 2, colour(focused ? "--focus" : "--text-1"));
    ctx.restore();
  }

  /** Where in the whole tree the window is. @param {CanvasRenderingContext2D} ctx @param {number} top */
  #overview(ctx, top) {
    if (this.#view.x1 - this.#view.x0 >= this.#total() * 0.999) return;
    const scale = this.#width / this.#total();
    ctx.fillStyle = colour("--line");
    ctx.fillRect(0, top + 2, this.#width, 4);
    ctx.fillStyle = colour("--text-2");
    ctx.fillRect(this.#view.x0 * scale, top, Math.max(4, (this.#view.x1 - this.#view.x0) * scale), 8);
  }
}

/** The place where the children of a node begin. @param {Layout} layout @param {number} node */
function firstPlace(layout, node) {
  const first = /** @type {number} */ (layout.firstChild[node]);
  let place = Infinity;
  for (let i = first; i < first + /** @type {number} */ (layout.nChildren[node]); i++) place = Math.min(place, placeOf(layout, i));
  return place;
}

/**
 * What stands in place of a number: what was given says so, what has no credit says why where there is room, and what is
 * plain leaves its room to the text (the legend says what plain is).
 * @param {CanvasRenderingContext2D} ctx @param {string} words @param {Look} kind @param {number} room
 */
function instead(ctx, words, kind, room) {
  if (kind === "plain") return "";
  return [words, ...(words.startsWith("no credit") ? ["no credit"] : [])].find((text) => textWidth(ctx, text) < room) ?? "";
}

/** Ground for a text on a hatch. @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} x @param {number} y */
function plate(ctx, text, x, y) {
  const ink = ctx.fillStyle;
  ctx.fillStyle = colour("--sunken");
  ctx.fillRect(x - 3, y - 8, textWidth(ctx, text) + 6, 16);
  ctx.fillStyle = ink;
}
