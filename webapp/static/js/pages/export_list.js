// My exports: while one is not finished, the list is read again, as long as somebody looks.
import { byId, revealScripted, setText } from "../core/dom.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

const SECONDS = 1.5;
const SLOW_SECONDS = 10; // after a failure

const isUnfinished = () => document.querySelector('tr[data-status="queued"], tr[data-status="running"]') !== null;

async function look() {
  if (document.hidden || !isUnfinished()) return later(SECONDS);
  const problem = byId("list-problem");
  try {
    await load(location.pathname + location.search, ["exports"]);
    problem.hidden = true;
    revealScripted(byId("exports"));
    revealHidden(byId("exports"));
    later(SECONDS);
  } catch (error) {
    setText(problem, `What is shown may be old. ${/** @type {Error} */ (error).message}`);
    problem.hidden = false;
    later(SLOW_SECONDS);
  }
}

/** @param {number} seconds */
function later(seconds) {
  if (isUnfinished()) setTimeout(() => void look(), 1000 * seconds);
}

later(SECONDS);
