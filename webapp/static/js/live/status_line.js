// The words about how live a page is, and the button that pauses the view.
import { announce } from "../core/announce.js";
import { make, setText } from "../core/dom.js";

/** A change that lasts shorter than this is not read out. */
const STEADY_SECONDS = 3;

export class StatusLine {
  #place = document.getElementById("live-state");
  /** @type {HTMLButtonElement | null} */ #button = null;
  /** The word that was last read out, if any. */ #said = "";
  /** @type {number | undefined} */ #timer;
  #word = "";
  #text = "";

  /** @param {() => void} onPause the reader wants the view paused, or to go on */
  constructor(onPause) {
    if (!this.#place) return;
    this.#button = make("button", { type: "button", class: "quiet pause-view", title: "Pause or resume the view (.)", hidden: true });
    this.#button.addEventListener("click", onPause);
    this.#place.after(this.#button);
  }

  /** @param {{word: string, text: string}} words @param {{paused: boolean, canPause: boolean}} view */
  show(words, view) {
    if (!this.#place) return;
    this.#place.hidden = false;
    this.#place.dataset.word = words.word;
    setText(this.#place, words.text);
    if (this.#button) {
      this.#button.hidden = !view.canPause;
      setText(this.#button, view.paused ? "Resume view" : "Pause view");
    }
    this.#text = words.text;
    if (words.word === this.#word) return;
    this.#word = words.word;
    window.clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#say(), 1000 * STEADY_SECONDS);
  }

  /** Not how a page begins, nor every tenth of a second: only that the word is another one. */
  #say() {
    if (this.#word === this.#said) return;
    const isFirst = this.#said === "";
    this.#said = this.#word;
    if (!isFirst || !["live", "finished", "waiting"].includes(this.#word)) announce(this.#text);
  }
}
