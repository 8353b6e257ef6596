// A short word about what one just did, beside the page and for screen readers.
import { byId, setText } from "../core/dom.js";

const SECONDS = 6;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** @param {string} text */
export function note(text) {
  const place = byId("page-note");
  clearTimeout(timer);
  setText(place, text);
  place.classList.add("shown");
  timer = setTimeout(() => {
    place.classList.remove("shown");
    setText(place, "");
  }, 1000 * SECONDS);
}
