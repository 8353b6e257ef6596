// The keys of a tree's page, each with its words, so that `?` shows what there is. Parts of the page add their own.
import { make } from "../core/dom.js";
import { onKeys } from "../core/keys.js";

/** What stands for a key that has no letter. @type {Record<string, string>} */
const GLYPHS = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", PageUp: "PgUp", PageDown: "PgDn", " ": "Space" };

export class Shortcuts {
  /** @type {{keys: string[], words: string, where: "page" | "canvas"}[]} */ #rows = [];
  #pictures;

  /** @param {EventTarget[]} pictures where moving keys are heard: elsewhere they scroll the page */
  constructor(pictures) {
    this.#pictures = pictures;
  }

  /**
   * Keys that belong together, what they do in words, and doing it. Off while someone types, holds a modifier or answers a dialog.
   * @param {Record<string, (event: KeyboardEvent) => void>} commands by `event.key` @param {string} words
   * @param {"page" | "canvas"} [where] `canvas`: only while a picture of the tree has the focus
   */
  add(commands, words, where = "page") {
    this.#rows.push({ keys: Object.keys(commands).map((key) => GLYPHS[key] ?? key), words, where });
    const heard = Object.fromEntries(
      Object.entries(commands).map(([key, run]) => [key, (/** @type {KeyboardEvent} */ event) => {
        if (!document.querySelector("dialog[open]")) run(event);
      }]),
    );
    for (const target of where === "canvas" ? this.#pictures : [document]) onKeys(heard, target);
  }

  /** A key that works on every page, for the list. @param {string[]} keys @param {string} words */
  note(keys, words) {
    this.#rows.push({ keys, words, where: "page" });
  }

  /** Every deed with its keys, as rows of a table. */
  rows() {
    return this.#rows.map(({ keys, words, where }) =>
      make("tr", {}, make("th", { scope: "row" }, ...keys.flatMap((key) => [make("kbd", {}, key), " "])), make("td", {}, words, where === "canvas" ? make("span", { class: "secondary" }, " · in the picture") : "")),
    );
  }
}
