// The scale of the colours in use, with the place of the selected node on it. Dragging it changes the range.
import { make } from "../core/dom.js";
import { number, signed } from "../core/format.js";
import { colour, theme } from "../core/theme.js";
import { LEVELS } from "./colour.js";
import { hatch, outcome, sized } from "./paint.js";
import { SIGNAL_WORDS } from "./signals.js";

const WIDTH = 132;
const BAR = 10;
const PIXELS_PER_E = 60;
const KEY_FACTOR = 1.1;

/**
 * A legend that only shows. @param {HTMLElement} host
 * @param {{signal: Signal, scale: ColourScale, limit: number}} signal @param {number} value that is marked; NaN: none
 * @param {ReadonlyMap<Look, string>} looks without a number, with their words
 */
export function drawLegend(host, { signal, scale, limit }, value, looks) {
  if (signal === "verdict") return host.replaceChildren(...verdicts());
  const bar = make("canvas", { class: "legend-bar", role: "img", "aria-label": `${SIGNAL_WORDS[signal]}, from ${end(scale.low, scale.symmetric)} to ${end(limit, scale.symmetric)}` });
  paintBar(bar, scale, value);
  host.replaceChildren(make("span", { class: "figures" }, end(scale.low, scale.symmetric)), bar, make("span", { class: "figures" }, end(limit, scale.symmetric)), ...others(looks));
}

/** @param {HTMLCanvasElement} bar @param {ColourScale} scale @param {number} value */
function paintBar(bar, scale, value) {
  const { ctx } = sized(bar, WIDTH, BAR + 6);
  for (let x = 0; x < WIDTH; x++) {
    ctx.fillStyle = scale.fill(Math.round((x / (WIDTH - 1)) * (LEVELS - 1)));
    ctx.fillRect(x, 0, 1, BAR);
  }
  if (Number.isNaN(value)) return;
  const x = scale.place(value) * (WIDTH - 1);
  ctx.fillStyle = colour("--text-1");
  ctx.beginPath();
  ctx.moveTo(x, BAR - 1);
  ctx.lineTo(x - 4, BAR + 6);
  ctx.lineTo(x + 4, BAR + 6);
  ctx.fill();
}

const verdicts = () => ["correct", "incorrect", "unparsed", "truncated", "error"].map((word) => swatch(word, (ctx, dpr) => outcome(ctx, word, { left: 0, right: 12, top: 0, height: 12 }, theme(), hatch(ctx, dpr))));

/** @param {ReadonlyMap<Look, string>} looks */
const others = (looks) => [...looks].filter(([look]) => look !== "credit").map(([look, word]) => swatch(word, (ctx, dpr) => {
  ctx.fillStyle = look === "hatched" ? hatch(ctx, dpr) : colour(look === "plain" ? "--line" : "--sunken");
  ctx.fillRect(0, 0, 12, 12);
}));

export class Legend {
  #host;
  #colouring;
  #bar = make("canvas", { class: "legend-bar", role: "slider", tabindex: 0, title: "Drag to change the range; double-click for the usual one." });
  #low = make("span", { class: "figures" });
  #high = make("span", { class: "figures" });
  #source = make("span", { class: "legend-source" });
  #value = NaN;

  /** @param {HTMLElement} host @param {import("./colouring.js").Colouring} colouring */
  constructor(host, colouring) {
    this.#host = host;
    this.#colouring = colouring;
    this.#listen();
  }

  /** @param {ReadonlyMap<Look, string>} looks that stand in the tree, with their words @param {number} value of the selected node */
  show(looks, value) {
    this.#value = value;
    const { signal } = this.#colouring.signal;
    if (signal === "verdict") {
      this.#host.replaceChildren(...verdicts());
    } else if (signal === "none") {
      this.#host.replaceChildren("no colour");
    } else if (this.#colouring.problem && signal === "difference") {
      this.#host.replaceChildren(make("span", { class: "problem" }, this.#colouring.problem));
    } else {
      const parts = [this.#low, this.#bar, this.#high, this.#source, ...others(looks)];
      if (parts.some((part, i) => this.#host.childNodes[i] !== part) || this.#host.childNodes.length !== parts.length) this.#host.replaceChildren(...parts);
      this.#draw();
    }
  }

  /** The selected node is another. @param {number} value */
  mark(value) {
    this.#value = value;
    if (this.#bar.isConnected) this.#draw();
  }

  #draw() {
    const { scale, limit, signal, source } = this.#colouring.signal;
    const [first, last] = [end(scale.low, scale.symmetric), end(limit, scale.symmetric)];
    this.#low.textContent = first;
    this.#high.textContent = last;
    this.#source.textContent = source;
    paintBar(this.#bar, scale, this.#value);
    this.#bar.setAttribute("aria-label", `Range of the colours: ${SIGNAL_WORDS[signal]}`);
    this.#bar.setAttribute("aria-valuenow", String(limit));
    this.#bar.setAttribute("aria-valuetext", `from ${first} to ${last}, ${source}`);
  }

  #listen() {
    const bar = this.#bar;
    bar.addEventListener("pointerdown", (down) => {
      if (down.button) return;
      down.preventDefault();
      bar.focus();
      bar.setPointerCapture(down.pointerId);
      const { scale, limit } = this.#colouring.signal;
      const isHigh = down.offsetX >= bar.clientWidth / 2;
      const move = (/** @type {PointerEvent} */ event) => {
        const outward = (event.clientX - down.clientX) * (isHigh ? 1 : -1);
        if (Math.abs(outward) > 2) this.#stretch([scale.low, limit], Math.exp(outward / PIXELS_PER_E), isHigh);
      };
      bar.addEventListener("pointermove", move);
      bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move), { once: true });
      bar.addEventListener("pointercancel", () => bar.removeEventListener("pointermove", move), { once: true });
    });
    bar.addEventListener("dblclick", () => this.#colouring.rangeBy(null));
    bar.addEventListener("keydown", (event) => {
      const { scale, limit } = this.#colouring.signal;
      if (event.key === "ArrowRight" || event.key === "ArrowUp") this.#stretch([scale.low, limit], KEY_FACTOR, true);
      else if (event.key === "ArrowLeft" || event.key === "ArrowDown") this.#stretch([scale.low, limit], 1 / KEY_FACTOR, true);
      else if (event.key === "Delete" || event.key === "Backspace") this.#colouring.rangeBy(null);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** @param {[number, number]} ends @param {number} factor @param {boolean} isHigh which end of a scale that is not symmetric */
  #stretch([low, limit], factor, isHigh) {
    if (this.#colouring.signal.scale.symmetric) this.#colouring.rangeBy([-limit * factor, limit * factor]);
    else this.#colouring.rangeBy(isHigh ? [low, low + (limit - low) * factor] : [limit - (limit - low) * factor, limit]);
  }
}

/** @param {number} value @param {boolean} isSigned */
function end(value, isSigned) {
  const size = Math.abs(value);
  const places = size >= 100 ? 0 : size >= 0.95 || size === 0 ? 1 : 2;
  return size === 0 ? "0" : isSigned ? signed(value, places) : number(value, places);
}

/** @param {string} word @param {(ctx: CanvasRenderingContext2D, dpr: number) => void} paint */
function swatch(word, paint) {
  const square = make("canvas", { class: "swatch", "aria-hidden": "true" });
  const { ctx, dpr } = sized(square, 12, 12);
  paint(ctx, dpr);
  return make("span", { class: "legend-word" }, square, word);
}
