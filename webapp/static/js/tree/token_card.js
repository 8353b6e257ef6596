// What is known of one token, in a card beside it. Everything in it is text.
import { make } from "../core/dom.js";
import { MISSING, number, percent, signed } from "../core/format.js";
import { parts, codePoint } from "../core/text.js";
import { segmentAt, textOf } from "./tokens.js";

const GAP = 6;

export class TokenCard {
  #card = make("div", { class: "token-card", id: "token-card", role: "tooltip", hidden: true });

  constructor() {
    document.body.append(this.#card);
  }

  get id() {
    return this.#card.id;
  }

  hide() {
    this.#card.hidden = true;
  }

  /** Beside `anchor`, inside the window. @param {PathTokens} tokens @param {number} i @param {Element} anchor */
  show(tokens, i, anchor) {
    this.#card.replaceChildren(...content(tokens, i));
    this.#card.hidden = false;
    // The first line of a token that is broken over two.
    const at = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
    const { width, height } = this.#card.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
    const below = at.bottom + GAP;
    const top = below + height > innerHeight ? Math.max(8, at.top - height - GAP) : below;
    this.#card.style.left = `${left}px`;
    this.#card.style.top = `${top}px`;
  }
}

/** How a screen reader hears it. @param {PathTokens} tokens @param {number} i */
export function spokenToken(tokens, i) {
  const text = textOf(tokens, i).trim() || shown(tokens, /** @type {number} */ (tokens.id[i]));
  if (segmentAt(tokens, i).isGiven) return `${text}, given`;
  return `${text}, probability ${percent(probability(tokens, i))}, entropy ${number(tokens.entropy[i], 2)}`;
}

/** @param {PathTokens} tokens @param {number} i */
function content(tokens, i) {
  const segment = segmentAt(tokens, i);
  const id = /** @type {number} */ (tokens.id[i]);
  const text = textOf(tokens, i);
  const head = make("p", { class: "token-head" }, make("code", { class: "token-text" }, ...visible(text || shown(tokens, id))), make("span", { class: "secondary" }, ` id ${id}`));
  if (!text) head.append(make("span", { class: "secondary" }, tokens.pieces.has(id) ? " · leaves no text here" : ""));
  if (segment.isGiven) return [head, make("p", { class: "secondary" }, segment.node === "0" ? "Part of the prompt: given, not sampled." : "Given, not sampled.")];
  const facts = [
    fact("Probability", percent(probability(tokens, i), 1)),
    fact("Logprob", number(tokens.logprob[i], 3)),
    fact("Entropy", `${number(tokens.entropy[i], 3)} nats`),
    fact("Rank", rank(tokens, i)),
  ];
  if (tokens.mismatch) facts.push(fact("Mismatch", Number.isNaN(/** @type {number} */ (tokens.mismatch[i])) ? "not trained" : signed(tokens.mismatch[i], 4)));
  if (tokens.log_ratio) facts.push(fact("Ratio", ratio(tokens, i)));
  facts.push(fact("Credit", !tokens.trained[i] ? (segment.words || "masked: not trained") : segment.advantage === null ? segment.words || MISSING : `A ${signed(segment.advantage, 3)}`));
  return [head, make("dl", { class: "facts" }, ...facts.flat()), ...alternatives(tokens, i)];
}

/** @param {PathTokens} tokens @param {number} i */
function ratio(tokens, i) {
  const log = tokens.log_ratio?.[i] ?? NaN;
  if (Number.isNaN(log)) return "not trained";
  const clip = tokens.clip?.[i] ?? 0;
  const sides = ["above", "below", "by the dual bound"].filter((_, bit) => clip & (1 << bit));
  return number(Math.exp(log), 3) + (sides.length ? ` · clipped ${sides.join(", ")}` : "");
}

/** @param {string} name @param {string} value */
const fact = (name, value) => [make("dt", {}, name), make("dd", {}, value)];

/** @param {PathTokens} tokens @param {number} i */
const probability = (tokens, i) => Math.min(1, Math.exp(/** @type {number} */ (tokens.logprob[i])));

/** @param {PathTokens} tokens @param {number} i */
function rank(tokens, i) {
  if (!tokens.top_id) return MISSING;
  const top = tokens.top_id.subarray(i * tokens.topK, (i + 1) * tokens.topK);
  const place = top.indexOf(/** @type {number} */ (tokens.id[i]));
  return place < 0 ? (top[0] === -1 ? MISSING : `below ${tokens.topK}`) : String(place + 1);
}

/** The most likely tokens there, the sampled one marked, each with a bar of its probability. @param {PathTokens} tokens @param {number} i */
function alternatives(tokens, i) {
  if (!tokens.top_id || !tokens.top_logprob) return [make("p", { class: "secondary small" }, "Alternatives were not recorded for this tree.")];
  const rows = [];
  const sampled = /** @type {number} */ (tokens.id[i]);
  let isThere = false;
  for (let at = i * tokens.topK; at < (i + 1) * tokens.topK; at++) {
    const id = /** @type {number} */ (tokens.top_id[at]);
    if (id < 0) continue;
    isThere ||= id === sampled;
    rows.push(row(tokens, id, Math.exp(/** @type {number} */ (tokens.top_logprob[at])), id === sampled));
  }
  if (!rows.length) return [make("p", { class: "secondary small" }, "Alternatives were not recorded for this token.")];
  if (!isThere) rows.push(row(tokens, sampled, probability(tokens, i), true));
  return [make("table", { class: "alternatives" }, make("caption", { class: "off-screen" }, "Most likely tokens here"), make("tbody", {}, ...rows))];
}

/** @param {PathTokens} tokens @param {number} id @param {number} share @param {boolean} isSampled */
function row(tokens, id, share, isSampled) {
  const bar = make("span", { class: "alternative-bar" });
  bar.style.setProperty("--share", `${100 * Math.min(1, share)}%`);
  return make("tr", { "aria-current": isSampled ? "true" : null }, make("th", { scope: "row" }, make("code", {}, ...visible(shown(tokens, id)))), make("td", { class: "num" }, percent(share, 1)), make("td", { class: "alternative-cell" }, bar), make("td", { class: "secondary" }, isSampled ? "sampled" : ""));
}

/** A token's text alone. @param {PathTokens} tokens @param {number} id */
const shown = (tokens, id) => tokens.pieces.get(id) ?? `#${id}`;

/** Blanks and hidden characters as one can see them. @param {string} text */
function visible(text) {
  return parts(text).map((part) => {
    if (part.hidden) return make("span", { class: "capsule" }, codePoint(part.text));
    return part.text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
  });
}
