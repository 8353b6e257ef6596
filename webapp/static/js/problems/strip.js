// `[` and `]` on a tree's page: the previous and the next tree of the same problem, with the same view and colour.
import { onKeys } from "../core/keys.js";

/** @param {string} id */
function follow(id) {
  const link = document.getElementById(id);
  if (!(link instanceof HTMLAnchorElement)) return;
  const query = new URLSearchParams(location.search);
  query.delete("n"); // another tree has other nodes
  location.assign(`${link.pathname}${query.size ? `?${query}` : ""}`);
}
onKeys({ "[": () => follow("strip-previous"), "]": () => follow("strip-next") });
