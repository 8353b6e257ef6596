// The path reader. The server wrote the text; here its segments get the colour of their node, its tokens a tint and a card,
// its formulas their shape. Tokens are drawn one by one only near the window: a path may have 32,000 of them.
import { request } from "../core/api.js";
import { byId, make, setText, typed } from "../core/dom.js";
import { figure } from "../core/format.js";
import { codePoint, parts } from "../core/text.js";
import { onTheme, theme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../core/announce.js";
import { chunksOf, decodeTokens, SHADES, shadesOf, textOf, TOKENS_VERSION } from "./tokens.js";

const NEAR = "800px 0px";
/** When the first tokens of the page were there; `benchmarks/reading.py` reads it. */
const FIRST_DRAWN = "reader: first tokens";
/** @type {Record<Shade, string>} */
const LEGENDS = { none: "", advantage: "advantage", entropy: "nats", logprob: "−log p, nats", mismatch: "|sampler − policy|, nats", ratio: "ratio of the policies", mask: "hatched: not trained" };

/**
 * @param {HTMLElement} reader @param {(name: string) => string | null} colourOf null: no credit
 */
export function colourSegments(reader, colourOf) {
  for (const segment of /** @type {NodeListOf<HTMLElement>} */ (reader.querySelectorAll("[data-segment]"))) {
    const fill = colourOf(segment.dataset.segment ?? "");
    segment.classList.toggle("segment-no-credit", fill === null);
    segment.style.setProperty("--bar", fill ?? "transparent");
  }
}

/** @param {(name: string) => void} go */
export function interceptNodeLinks(go) {
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const link = /** @type {Element} */ (event.target).closest("a[data-go]");
    if (!(link instanceof HTMLElement)) return;
    event.preventDefault();
    go(link.dataset.go ?? "0");
  });
}

export class Reader {
  #treeId;
  /** @type {import("./token_card.js").TokenCard | null} loaded for the first token that is pointed at */ #card = null;
  /** @type {Element | null} */ #pointed = null;
  /** @type {PathTokens | null} */ #tokens = null;
  /** @type {ReturnType<typeof import("./shading.js").shadingOf> | null} */ #shading = null;
  /** @type {typeof import("./formulas.js").unbroken | undefined} */ #unbroken;
  /** Runs of tokens of the path, with the elements they are drawn in. @type {Map<Element, {from: number, to: number, text: string, withFormulas: string | null, isDrawn: boolean}>} */ #chunks = new Map();
  /** @type {IntersectionObserver} */ #observer;
  #shade = /** @type {Shade} */ (SHADES.find((name) => name === read("shade")) ?? "none");
  #math = read("math") === "1";
  #raw = read("raw") === "1";
  /** @type {number | null} Token under the keyboard. */ #active = null;
  /** A segment, and maybe a token in it, to go to when its path is there. @type {{node: string, place: number | null} | null} */ #target = null;
  /** @type {AbortController | undefined} */ #loading;

  /** @param {string} treeId */
  constructor(treeId) {
    this.#treeId = treeId;
    this.#observer = new IntersectionObserver((entries) => entries.forEach((entry) => this.#draw(entry.target, entry.isIntersecting)), { rootMargin: NEAR });
    const shade = typed("reader-shade", HTMLSelectElement);
    shade.value = this.#shade;
    shade.addEventListener("change", () => this.shadeBy(/** @type {Shade} */ (shade.value)));
    for (const [id, isOn, toggle] of /** @type {[string, boolean, () => void][]} */ ([["reader-math", this.#math, () => this.toggleMath()], ["reader-raw", this.#raw, () => this.toggleRaw()]])) {
      const box = typed(id, HTMLInputElement);
      box.checked = isOn;
      box.addEventListener("change", toggle);
    }
    onTheme(() => void this.#reshade());
    document.addEventListener("pointerover", (event) => this.#hover(/** @type {Element} */ (event.target)));
    document.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("focusout", (event) => {
      if (/** @type {Element} */ (event.target).classList.contains("text")) this.#leave();
    });
    window.addEventListener("scroll", () => this.#unpoint(), { passive: true });
    document.addEventListener("click", (event) => {
      const link = /** @type {Element} */ (event.target).closest("a[data-token]");
      if (!(link instanceof HTMLElement)) return;
      event.preventDefault();
      this.goTo(document.querySelector("#reader .segment-selected")?.getAttribute("data-segment") ?? "0", Number(link.dataset.token));
    });
  }

  /** The server's new path is in the page. Its text is there to read; tokens follow. */
  async show() {
    this.#loading?.abort();
    this.#loading = new AbortController();
    this.#observer.disconnect();
    this.#chunks.clear();
    this.#tokens = null;
    this.#leave();
    const last = [...document.querySelectorAll("#reader [data-segment]")].pop();
    const name = last?.getAttribute("data-segment") ?? "0";
    const { signal } = this.#loading;
    try {
      const response = await request(`/trees/${this.#treeId}/paths/${name}/tokens?v=${TOKENS_VERSION}`, { signal });
      const tokens = decodeTokens(await response.arrayBuffer());
      if (!signal.aborted) this.#place(tokens);
    } catch (error) {
      if (signal.aborted || !(error instanceof Error)) return;
      // The text stays as it is; what is missing are tints and cards.
      setText(byId("shade-legend"), `Tokens cannot be shown. ${error.message}`);
    }
  }

  /** The whole path as it was sampled. */
  pathText() {
    return this.#tokens ? this.#tokens.segments.map((segment) => segment.text).join("") : [...document.querySelectorAll("#reader .text")].map((text) => text.textContent).join("");
  }

  /** @param {PathTokens} tokens */
  #place(tokens) {
    this.#tokens = tokens;
    const select = typed("reader-shade", HTMLSelectElement);
    const known = shadesOf(tokens);
    for (const option of select.options) option.disabled = !known.some((shade) => shade === option.value);
    for (const segment of tokens.segments) {
      const text = document.querySelector(`#reader [data-segment="${segment.node}"] .text`);
      if (!(text instanceof HTMLElement)) continue;
      const elements = chunksOf(tokens, segment).map((chunk) => {
        const element = make("span", { class: "chunk" });
        this.#chunks.set(element, { ...chunk, withFormulas: null, isDrawn: false });
        return element;
      });
      text.replaceChildren(...elements);
      if (segment.isPlaced && segment.count) {
        text.tabIndex = 0;
        text.setAttribute("role", "group");
        text.setAttribute("aria-label", `Text of ${segment.node}; arrow keys read its tokens`);
      }
    }
    void this.#reshade();
    if (this.#target) this.#arrive(this.#target);
  }

  // ---- drawing

  /** @param {Element} element @param {{text: string, withFormulas: string | null, isDrawn: boolean}} chunk */
  async #typeset(element, chunk) {
    this.#fillPlain(element, chunk.withFormulas ?? chunk.text);
    const { typeset } = await import("./mathematics.js");
    if (this.#math && chunk.isDrawn) await typeset(element, chunk.withFormulas ?? chunk.text, hidden);
  }

  /** @param {Element} element @param {boolean} isNear */
  #draw(element, isNear) {
    const chunk = this.#chunks.get(element);
    if (!chunk || chunk.isDrawn === isNear) return;
    chunk.isDrawn = isNear;
    if (this.#math && isNear) return void this.#typeset(element, chunk);
    if (!isNear || !this.#tokens || chunk.from === chunk.to) return this.#fillPlain(element, this.#math ? (chunk.withFormulas ?? chunk.text) : chunk.text);
    const spans = [];
    for (let i = chunk.from; i < chunk.to; i++) {
      const span = this.#token(i);
      if (span) spans.push(span);
    }
    element.replaceChildren(...spans);
    if (spans.length && !performance.getEntriesByName(FIRST_DRAWN).length) performance.mark(FIRST_DRAWN);
  }

  /** @param {Element} element @param {string} text */
  #fillPlain(element, text) {
    element.replaceChildren(...hidden(text));
  }

  /** @param {number} i */
  #token(i) {
    const tokens = /** @type {PathTokens} */ (this.#tokens);
    const text = textOf(tokens, i);
    if (!text && !this.#raw) return null;
    const span = make("span", { class: "tok", "data-i": i });
    if (!text) span.append(make("span", { class: "capsule capsule-token" }, tokens.pieces.get(/** @type {number} */ (tokens.id[i])) ?? `#${tokens.id[i]}`));
    else if (this.#raw && text.includes("\n")) span.append(...text.split(/(?=\n)/).flatMap((line) => (line.startsWith("\n") ? [make("span", { class: "capsule capsule-token" }, "↵"), ...hidden(line)] : hidden(line))));
    else span.append(...hidden(text));
    this.#tint(span, i);
    return span;
  }

  /** @param {HTMLElement} span @param {number} i */
  #tint(span, i) {
    const shading = this.#shading;
    span.style.backgroundColor = shading ? shading.fill(shading.level(i)) : "";
    span.classList.toggle("tok-marked", shading?.isMarked(i) ?? false);
    span.classList.toggle("tok-hatched", shading?.isHatched(i) ?? false);
    span.classList.toggle("tok-active", i === this.#active);
  }

  /** Everything drawn is drawn again. */
  #redraw() {
    this.#observer.disconnect();
    if (this.#math && this.#unbroken) this.#keepFormulasWhole(this.#unbroken);
    for (const [element, chunk] of this.#chunks) {
      chunk.isDrawn = false;
      this.#fillPlain(element, this.#math ? (chunk.withFormulas ?? chunk.text) : chunk.text);
      this.#observer.observe(element);
    }
  }

  /** Chunks end between tokens; with formulas they end between those, too. Worked out when it is first asked for. @param {typeof import("./formulas.js").unbroken} unbroken */
  #keepFormulasWhole(unbroken) {
    /** @type {Map<Element | null, {text: string, withFormulas: string | null}[]>} */
    const bySegment = new Map();
    for (const [element, chunk] of this.#chunks) {
      if (chunk.withFormulas === null) bySegment.set(element.parentElement, [...(bySegment.get(element.parentElement) ?? []), chunk]);
    }
    for (const chunks of bySegment.values()) {
      const texts = unbroken(chunks.map((chunk) => chunk.text));
      chunks.forEach((chunk, place) => (chunk.withFormulas = texts[place] ?? ""));
    }
  }

  async #reshade() {
    const [tokens, wanted] = [this.#tokens, this.#shade];
    if (!tokens) return;
    const shade = shadesOf(tokens).includes(wanted) ? wanted : "none";
    if ((shade !== "none" && !this.#shading) || (this.#math && !this.#unbroken)) this.#redraw(); // the text first
    const shading = shade === "none" ? null : (await import("./shading.js")).shadingOf(tokens, shade, theme());
    if (this.#math) this.#unbroken ??= (await import("./formulas.js")).unbroken;
    if (this.#tokens !== tokens || this.#shade !== wanted) return;
    this.#shading = shading;
    this.#tellShade(shade);
    this.#redraw();
  }

  /** @param {Shade} shade */
  #tellShade(shade) {
    const legend = byId("shade-legend");
    const shading = this.#shading;
    if (this.#math && shade !== "none") return legend.replaceChildren("shading shows when formulas are off");
    if (!shading) return legend.replaceChildren(this.#shade === "mismatch" ? "not recorded for this tree" : this.#shade === "ratio" ? "every ratio was 1, or not recorded" : "");
    if (shade === "mask") return legend.replaceChildren(LEGENDS.mask);
    const bar = make("span", { class: "shade-bar", "aria-hidden": "true" });
    const stops = Array.from({ length: 9 }, (_, k) => shading.fill(Math.round((k / 8) * 16)));
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    if (shade === "ratio") return legend.replaceChildren(figure(Math.exp(shading.low)), bar, `${figure(Math.exp(shading.high))} ${LEGENDS.ratio} · `, make("span", { class: "mark-sample" }, "clipped"));
    legend.replaceChildren(figure(shading.low), bar, `${figure(shading.high)} ${LEGENDS[shade]}`, ...(shade === "advantage" ? [] : [" · ", make("span", { class: "mark-sample" }, "above the 99th percentile")]));
  }

  // ---- choices

  /** @param {Shade} shade */
  shadeBy(shade) {
    this.#shade = shade;
    typed("reader-shade", HTMLSelectElement).value = shade;
    write({ shade: shade === "none" ? null : shade });
    if (this.#math && shade !== "none") this.toggleMath();
    else void this.#reshade();
  }

  /** The next shading of those this tree has. */
  cycleShade() {
    const known = this.#tokens ? shadesOf(this.#tokens) : SHADES;
    const next = /** @type {Shade} */ (known[(known.indexOf(this.#shade) + 1) % known.length]);
    this.shadeBy(next);
    announce(`Shading: ${next}`);
  }

  toggleMath() {
    this.#math = !this.#math;
    typed("reader-math", HTMLInputElement).checked = this.#math;
    write({ math: this.#math ? "1" : null });
    this.#leave();
    void this.#reshade();
  }

  toggleRaw() {
    this.#raw = !this.#raw;
    typed("reader-raw", HTMLInputElement).checked = this.#raw;
    write({ raw: this.#raw ? "1" : null });
    this.#redraw();
  }

  // ---- one token

  /** @param {Element} target */
  #hover(target) {
    const span = target.closest?.(".tok");
    if (!(span instanceof HTMLElement) || !this.#tokens) {
      if (this.#active === null) this.#unpoint();
      return;
    }
    void this.#point(Number(span.dataset.i), span, false);
  }

  /** Tell of a token in its card. @param {number} i @param {Element} span @param {boolean} aloud */
  async #point(i, span, aloud) {
    this.#pointed = span;
    const { spokenToken, TokenCard } = await import("./token_card.js");
    this.#card ??= new TokenCard();
    if (this.#pointed !== span || !this.#tokens) return; // left meanwhile
    this.#card.show(this.#tokens, i, span);
    if (aloud) announce(spokenToken(this.#tokens, i));
  }

  #unpoint() {
    this.#pointed = null;
    this.#card?.hide();
  }

  /** Arrow keys read tokens while a segment's text has the focus. @param {KeyboardEvent} event */
  #key(event) {
    const text = document.activeElement;
    if (!this.#tokens || this.#math || !text?.matches("#reader .text[tabindex]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = text.closest("[data-segment]")?.getAttribute("data-segment");
    const segment = this.#tokens.segments.find((one) => one.node === name);
    if (!segment) return;
    const [first, last] = [segment.start, segment.start + segment.count - 1];
    const at = this.#active ?? first - 1;
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: first, End: last }[event.key];
    if (event.key === "Escape") this.#leave();
    if (next === undefined) return;
    event.preventDefault();
    const step = event.key === "ArrowLeft" || event.key === "End" ? -1 : 1;
    let i = Math.min(last, Math.max(first, next));
    while (!this.#raw && i > first && i < last && !textOf(this.#tokens, i)) i += step;
    this.#activate(i);
  }

  /** @param {number} i */
  #activate(i) {
    const before = this.#active;
    this.#active = i;
    const span = this.#spanOf(i);
    if (before !== null) this.#spanOf(before)?.classList.remove("tok-active");
    if (!span) return;
    span.classList.add("tok-active");
    span.scrollIntoView({ block: "nearest" });
    void this.#point(i, span, true);
  }

  #leave() {
    const before = this.#active;
    this.#active = null;
    if (before !== null) this.#spanOf(before)?.classList.remove("tok-active");
    this.#unpoint();
  }

  /** Its span, drawn if it was not. @param {number} i @returns {HTMLElement | null} */
  #spanOf(i) {
    for (const [element, chunk] of this.#chunks) {
      if (i < chunk.from || i >= chunk.to) continue;
      this.#draw(element, true);
      return element.querySelector(`[data-i="${i}"]`);
    }
    return null;
  }

  /** To a segment, and to a token of it; when its path is not there yet, as soon as it is. @param {string} node @param {number | null} [place] */
  goTo(node, place = null) {
    this.#target = { node, place };
    if (this.#tokens?.segments.some((segment) => segment.node === node)) this.#arrive(this.#target);
  }

  /** @param {{node: string, place: number | null}} target */
  #arrive({ node, place }) {
    this.#target = null;
    const segment = this.#tokens?.segments.find((one) => one.node === node);
    const element = document.querySelector(`#reader [data-segment="${node}"]`);
    if (!segment || !element) return;
    element.scrollIntoView({ block: "center" });
    if (place === null || !segment.isPlaced) return;
    if (this.#math) this.toggleMath();
    const text = element.querySelector(".text");
    if (text instanceof HTMLElement) text.focus({ preventScroll: true });
    this.#spanOf(segment.start + place)?.scrollIntoView({ block: "center" });
    // After the page has come to rest: scrolling takes the card away.
    requestAnimationFrame(() => requestAnimationFrame(() => this.#activate(segment.start + place)));
  }
}

/** Text with hidden characters as capsules. @param {string} text @returns {(Node | string)[]} */
function hidden(text) {
  return parts(text).map((part) => (part.hidden ? make("span", { class: "capsule" }, codePoint(part.text)) : part.text));
}
