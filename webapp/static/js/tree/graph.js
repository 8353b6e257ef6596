// The tree as nodes and links, left to right. It paints what `unfolded.js` laid out; keys and selection are the page's.
import { pointer, select, zoom, zoomIdentity } from "../../vendor/d3.js";
import { number } from "../core/format.js";
import { colour, theme } from "../core/theme.js";
import { FONT } from "./canvas.js";
import { OUTCOME } from "./colour.js";
import { fitted, hatch, sized, textWidth } from "./paint.js";
import { probeDiamond } from "./probe_lane.js";
import { label, look, times, verdictGlyph } from "./signals.js";
import { COLUMN, ROW, Unfolded } from "./unfolded.js";

const HEIGHT = 520;
const RADIUS = 5;
const BAR = 124;
const BAR_HEIGHT = 16;
const WIDEST_LINK = 14;
const TEXT_FROM = 0.55; // zoomed out further, words could not be read
const MARGIN = 24;
const MOST_ZOOM = 3;

/** @typedef {import("./unfolded.js").Item} Item */

export class TreeGraph {
  /** @type {Scene | null} */ #scene = null;
  /** @type {Unfolded | null} */ #unfolded = null;
  /** @type {Item[]} */ #items = [];
  /** @type {Map<number, Item>} */ #byNode = new Map();
  #deepest = 0;
  #selected = 0;
  #hovered = -1;
  #width = 0;
  #asked = false;
  #canvas;
  #hooks;
  #selection;
  #zoom;
  #transform = zoomIdentity;

  /** @param {HTMLCanvasElement} canvas @param {{onSelect: (node: number) => void, onHover: (node: number) => void, onProbe: (node: number, id: string) => void, correct: Int32Array, answers: Int32Array}} hooks */
  constructor(canvas, hooks) {
    this.#canvas = canvas;
    this.#hooks = hooks;
    this.#selection = select(canvas);
    this.#zoom = /** @type {import("../../vendor/d3.js").Zoom<HTMLCanvasElement>} */ (zoom())
      .filter((event) => (event.type === "wheel" ? event.ctrlKey || document.activeElement === canvas : !event.button && event.type !== "dblclick"))
      .scaleExtent([0.02, MOST_ZOOM])
      .on("zoom", ({ transform }) => {
        this.#transform = transform;
        this.redraw();
      });
    this.#selection.call(this.#zoom);
    this.#selection.on("dblclick.zoom", null);
    canvas.addEventListener("click", (event) => this.#click(event));
    canvas.addEventListener("dblclick", (event) => {
      const item = this.#at(event);
      if (!item || item.kind === "more" || item.kind === "probe") return;
      if (this.#unfolded?.isOpen(item.node)) this.#unfolded.close(item.node);
      else this.#unfolded?.open(item.node);
      this.#layOut(item.node);
    });
    canvas.addEventListener("pointermove", (event) => this.#hover(this.#at(event)?.node ?? -1));
    canvas.addEventListener("pointerleave", () => this.#hover(-1));
    canvas.addEventListener("focus", () => this.redraw());
    canvas.addEventListener("blur", () => this.redraw());
    new ResizeObserver(() => this.#resized()).observe(/** @type {HTMLElement} */ (canvas.parentElement));
  }

  /** @param {Scene} scene */
  show(scene) {
    const isNew = scene.layout !== this.#scene?.layout;
    this.#scene = scene;
    if (!isNew) {
      if (this.#unfolded?.hang(scene.probed ?? new Map())) this.#layOut(this.#selected);
      return this.redraw();
    }
    this.#unfolded = new Unfolded(scene.layout);
    this.#unfolded.hang(scene.probed ?? new Map());
    this.#unfolded.reveal(this.#selected);
    this.#layOut();
    this.fit();
  }

  /** @param {number} node */
  select(node) {
    const moved = this.#selected !== node;
    this.#selected = node;
    if (this.#unfolded?.reveal(node)) this.#layOut(/** @type {number} */ (this.#scene?.layout.parent[node]));
    if (moved) this.#bringIn(node);
    this.redraw();
  }

  fit() {
    this.#frame(this.#items, 1);
  }

  /** Its subtree, unfolded, in the window. @param {number} node */
  zoomTo(node) {
    if (!this.#unfolded?.isOpen(node)) {
      this.#unfolded?.open(node);
      this.#layOut(node);
    }
    const below = this.#items.filter((item) => { for (let at = /** @type {Item | null} */ (item); at; at = at.parent) if (at.kind === "node" && at.node === node) return true; return false; });
    this.#frame(below, 1.6);
  }

  /** Out by half, round the selected node. */
  zoomOut() {
    this.#selection.call(this.#zoom.transform, this.#around(this.#byNode.get(this.#selected), this.#transform.k / 1.6));
  }

  redraw() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  /** @param {number} [still] a node that stays where it is on the screen */
  #layOut(still) {
    if (!this.#unfolded) return;
    const before = still === undefined ? undefined : this.#byNode.get(still);
    this.#items = this.#unfolded.items();
    this.#deepest = Math.max(...this.#items.map(({ x }) => x));
    this.#byNode = new Map(this.#items.filter(({ kind }) => kind === "node" || kind === "bar").map((item) => [item.node, item]));
    const after = still === undefined ? undefined : this.#byNode.get(still);
    if (before && after) {
      const { k, x, y } = this.#transform;
      this.#selection.call(this.#zoom.transform, zoomIdentity.translate(x + (before.x - after.x) * k, y + (before.y - after.y) * k).scale(k));
    }
    this.redraw();
  }

  /** @param {Item[]} items @param {number} most zoom */
  #frame(items, most) {
    if (!this.#width || !items.length) return;
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x, y } of items) [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x + 1.7 * COLUMN), Math.min(top, y - ROW), Math.max(bottom, y + ROW)];
    const k = Math.max(0.02, Math.min(most, (this.#width - MARGIN) / (right - left), (HEIGHT - MARGIN) / (bottom - top)));
    const shift = zoomIdentity.translate(MARGIN - left * k, HEIGHT / 2 - ((top + bottom) / 2) * k).scale(k);
    this.#selection.call(this.#zoom.transform, shift);
  }

  /** @param {Item | undefined} item @param {number} k */
  #around(item, k) {
    const [x, y] = item ? [item.x, item.y] : [0, 0];
    return zoomIdentity.translate(this.#width / 2 - x * k, HEIGHT / 2 - y * k).scale(k);
  }

  /** @param {number} node */
  #bringIn(node) {
    const item = this.#byNode.get(node);
    if (!item) return;
    const { k, x, y } = this.#transform;
    const [px, py] = [item.x * k + x, item.y * k + y];
    const dx = px < MARGIN ? MARGIN - px : px > this.#width - BAR ? this.#width - BAR - px : 0;
    const dy = py < MARGIN ? MARGIN - py : py > HEIGHT - MARGIN ? HEIGHT - MARGIN - py : 0;
    if (dx || dy) this.#selection.call(this.#zoom.transform, zoomIdentity.translate(x + dx, y + dy).scale(k));
  }

  #resized() {
    const width = this.#canvas.parentElement?.clientWidth ?? 0;
    if (!width || width === this.#width) return;
    const first = !this.#width;
    this.#width = width;
    this.#zoom.extent([[0, 0], [width, HEIGHT]]);
    if (first) this.fit();
    this.redraw();
  }

  /** @param {MouseEvent} event */
  #at(event) {
    const [px, py] = pointer(event, this.#canvas);
    const { k, x, y } = this.#transform;
    const [lx, ly] = [(px - x) / k, (py - y) / k];
    return this.#items.find((item) => Math.abs(ly - item.y) <= ROW / 2 && lx >= item.x - 8 && lx <= item.x + (item.kind === "node" && item.children.length ? 14 : BAR + 4)) ?? null;
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const item = this.#at(event);
    if (!item) return;
    if (item.kind === "more") {
      this.#unfolded?.showFrom(item.node);
      this.#layOut(item.parent?.node);
    } else if (item.probe) {
      this.#hooks.onProbe(item.node, item.probe.id);
    } else {
      this.#hooks.onSelect(item.node);
    }
  }

  /** @param {number} node */
  #hover(node) {
    if (node === this.#hovered) return;
    this.#hovered = node;
    this.#hooks.onHover(node);
    this.redraw();
  }

  #draw() {
    const scene = this.#scene;
    if (!scene || !this.#width || !this.#canvas.checkVisibility()) return;
    const { ctx, dpr } = sized(this.#canvas, this.#width, HEIGHT);
    const hatching = hatch(ctx, dpr);
    const { k, x, y } = this.#transform;
    ctx.save();
    ctx.translate(x, y);
    ctx.scale(k, k);
    ctx.font = FONT;
    ctx.textBaseline = "middle";
    const [top, bottom] = [(-y - 20) / k - ROW, (HEIGHT - y + 20) / k + ROW];
    const [left, right] = [-x / k - 2 * COLUMN, (this.#width - x) / k + COLUMN];
    const visible = this.#items.filter((item) => item.y >= top && item.y <= bottom && item.x >= left && item.x <= right);
    this.#links(ctx, top, bottom);
    for (const item of visible) {
      if (item.probe) this.#probe(ctx, scene, item, k);
      else this.#item(ctx, scene, item, hatching, k);
    }
    ctx.restore();
  }

  /** Straight elbows, as wide as the answers that went there. @param {CanvasRenderingContext2D} ctx @param {number} top @param {number} bottom */
  #links(ctx, top, bottom) {
    const total = this.#scene?.layout.leaves[0] ?? 1;
    /** @type {Set<number>} */
    const chosen = new Set();
    for (let at = this.#byNode.get(this.#selected) ?? null; at; at = at.parent) chosen.add(at.node);
    for (const isChosen of [false, true]) {
      ctx.strokeStyle = colour(isChosen ? "--text-1" : "--line-control");
      for (const item of this.#items) {
        const { parent } = item;
        if (!parent || (item.y < top && parent.y < top) || (item.y > bottom && parent.y > bottom)) continue;
        const isProbe = item.kind === "probe";
        if (isChosen !== (item.kind !== "more" && !isProbe && chosen.has(item.node))) continue;
        const middle = parent.x + COLUMN - 34;
        ctx.lineWidth = Math.max(1, (WIDEST_LINK * item.leaves) / total);
        ctx.globalAlpha = isChosen ? 1 : 0.55;
        if (isProbe) [ctx.strokeStyle, ctx.globalAlpha] = [colour("--accent"), 0.8];
        ctx.setLineDash(isProbe ? [4, 3] : []);
        ctx.beginPath();
        ctx.moveTo(parent.x, parent.y);
        ctx.lineTo(middle, parent.y);
        ctx.lineTo(middle, item.y);
        ctx.lineTo(item.x, item.y);
        ctx.stroke();
        if (isProbe) ctx.strokeStyle = colour("--line-control");
      }
    }
    ctx.setLineDash([]);
    ctx.globalAlpha = 1;
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Item} item @param {CanvasPattern} hatching @param {number} k */
  #item(ctx, scene, item, hatching, k) {
    const { columns, layout, signal } = scene;
    const { node } = item;
    const value = /** @type {number} */ (signal.values[node]);
    const kind = look(columns, signal, node);
    const verdict = columns.labels.verdict[/** @type {number} */ (columns.verdict[node])] ?? "";
    const level = kind === "credit" && signal.signal !== "verdict" ? signal.scale.level(value) : -1;
    const tones = OUTCOME[theme()];
    const isLeaf = !layout.nChildren[node];
    /** @type {string | CanvasPattern} */
    let fill = level >= 0 ? signal.scale.fill(level) : kind === "hatched" ? hatching : colour(kind === "context" ? "--sunken" : "--line");
    if (signal.signal === "verdict") fill = !isLeaf ? colour("--line") : verdict === "correct" ? tones.correct : verdict === "incorrect" ? tones.incorrect : verdict === "unparsed" ? hatching : tones.other;
    ctx.fillStyle = item.kind === "more" ? colour("--surface") : fill;
    ctx.strokeStyle = colour("--text-2");
    ctx.lineWidth = 1;
    ctx.beginPath();
    if (item.kind !== "node") ctx.rect(item.x, item.y - BAR_HEIGHT / 2, BAR, BAR_HEIGHT);
    else if (isLeaf) ctx.rect(item.x - RADIUS, item.y - RADIUS, 2 * RADIUS, 2 * RADIUS);
    else ctx.arc(item.x, item.y, RADIUS, 0, 2 * Math.PI);
    ctx.fill();
    ctx.stroke();
    if (k >= TEXT_FROM) this.#write(ctx, scene, item, level, kind, verdict);
    if (item.kind !== "more") this.#mark(ctx, scene, item);
  }

  /** A continuation that was sampled by hand: a diamond, dashed, and no part of the tree. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Item} item @param {number} k */
  #probe(ctx, { continuation }, { probe = { id: "", verdict: "", earlier: 0 }, x, y }, k) {
    const { id, verdict, earlier } = probe;
    probeDiamond(ctx, x, y, RADIUS + 2, !id ? "dotted" : id === continuation ? "solid" : "dashed");
    if (k < TEXT_FROM) return;
    const words = [verdictGlyph(verdict), id ? "probe" : "probe to come", earlier ? `and ${earlier} earlier` : ""].filter(Boolean).join(" ");
    ctx.fillStyle = colour("--text-2");
    ctx.fillText(words, x + RADIUS + 8, y + 0.5);
  }

  /** Selected, pointed at, found, the cliff. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Item} item */
  #mark(ctx, { hits, cliff, probed }, { node, kind, x, y }) {
    const focused = document.activeElement === this.#canvas;
    const [left, width, height] = kind === "bar" ? [x, BAR, BAR_HEIGHT] : [x - RADIUS, 2 * RADIUS, 2 * RADIUS];
    const around = (/** @type {number} */ gap, /** @type {string} */ stroke, /** @type {number} */ line) => {
      ctx.strokeStyle = stroke;
      ctx.lineWidth = line;
      ctx.strokeRect(left - gap, y - height / 2 - gap, width + 2 * gap, height + 2 * gap);
    };
    if (hits?.has(node)) {
      ctx.fillStyle = colour("--accent");
      ctx.fillRect(left, y + height / 2 + 1, width, 3);
    }
    // Of a folded subtree they are not drawn one by one.
    if (kind === "bar" && probed?.has(node)) probeDiamond(ctx, left + width, y + height / 2, 5);
    if (node === cliff) {
      ctx.fillStyle = colour("--bad");
      ctx.beginPath();
      ctx.moveTo(left + width / 2 - 5, y - height / 2 - 9);
      ctx.lineTo(left + width / 2 + 5, y - height / 2 - 9);
      ctx.lineTo(left + width / 2, y - height / 2 - 2);
      ctx.fill();
    }
    if (node === this.#selected) around(3, colour(focused ? "--focus" : "--text-1"), focused ? 3 : 2);
    else if (node === this.#hovered) around(2, colour("--text-2"), 1);
  }

  /** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Item} item @param {number} level @param {Look} kind @param {string} verdict */
  #write(ctx, scene, item, level, kind, verdict) {
    const { columns, signal } = scene;
    const { node } = item;
    if (item.kind === "more") {
      ctx.fillStyle = colour("--text-1");
      return ctx.fillText(fitted(ctx, `${item.count} more · ${item.leaves} leaves`, BAR - 8), item.x + 5, item.y + 0.5);
    }
    if (item.kind === "bar") {
      const words = `${item.leaves} leaves · V ${number(columns.value[node], 2)}`;
      if (kind === "hatched") {
        ctx.fillStyle = colour("--sunken");
        ctx.fillRect(item.x + 3, item.y - 7, Math.min(BAR - 6, textWidth(ctx, words) + 5), 14);
      }
      ctx.fillStyle = level >= 0 ? signal.scale.ink(level) : colour("--text-1");
      return ctx.fillText(fitted(ctx, words, BAR - 8), item.x + 5, item.y + 0.5);
    }
    const number_ = signal.signal === "verdict" || signal.signal === "none" ? `V ${number(columns.value[node], 2)}` : node === 0 ? `V ${number(columns.value[0], 2)}` : label(signal.signal, /** @type {number} */ (signal.values[node])) || "—";
    ctx.fillStyle = colour("--text-1");
    if (item.children.length) return ctx.fillText(number_, item.x + 2, item.y - ROW / 2 - 4);
    const words = [verdictGlyph(verdict), number_, times(columns, node)].filter(Boolean).join(" ");
    ctx.fillText(words, item.x + RADIUS + 6, item.y + 0.5);
    // Beside a leaf that ended early others go on to the right.
    const room = item.x < this.#deepest ? COLUMN - 44 : 2 * COLUMN;
    const text = fitted(ctx, scene.textOf(node), room - textWidth(ctx, words));
    ctx.fillStyle = colour("--text-2");
    if (text) ctx.fillText(text, item.x + RADIUS + 12 + textWidth(ctx, words), item.y + 0.5);
  }
}
