// The previous and the next tree of the same problem, with the same view and colours.
import { note } from "../tree/note.js";

/** @param {TreePage} page */
export function mountStrip({ shortcuts }) {
  shortcuts.add(
    { "[": () => follow("strip-previous", "first"), "]": () => follow("strip-next", "last") },
    "previous, next step of the same problem",
  );
}

/** @param {string} id of the link @param {string} end */
function follow(id, end) {
  const link = document.getElementById(id);
  if (!(link instanceof HTMLAnchorElement)) return note(`This is the ${end} tree of this problem in this run.`);
  const query = new URLSearchParams(location.search);
  for (const name of ["n", "zoom"]) query.delete(name); // another tree has other nodes
  if (document.activeElement instanceof HTMLCanvasElement) sessionStorage.setItem("focus-picture", "1");
  location.assign(`${link.pathname}${query.size ? `?${query}` : ""}`);
}
