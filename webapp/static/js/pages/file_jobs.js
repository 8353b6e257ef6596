// Jobs on files, my exports or a project's imports: while one is not finished, the list is read again, as long as somebody looks.
import { announce } from "../core/announce.js";
import { byId, revealScripted, setText } from "../core/dom.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

const SECONDS = 1.5;
const SLOW_SECONDS = 10; // after a failure

const list = /** @type {HTMLElement} */ (document.querySelector("[data-jobs]"));
const isUnfinished = () => document.querySelector('tr[data-status="queued"], tr[data-status="running"]') !== null;
const rows = () => new Map([...document.querySelectorAll("tr[data-status]")].map((row) => [row.id, row]));

async function look() {
  if (document.hidden || !isUnfinished()) return later(SECONDS);
  const problem = byId("list-problem");
  const before = new Map([...rows()].map(([id, row]) => [id, row.getAttribute("data-status")]));
  try {
    await load(location.pathname + location.search, [list.id]);
    problem.hidden = true;
    const place = byId(list.id);
    revealScripted(place);
    revealHidden(place);
    for (const [id, row] of rows()) {
      const now = row.getAttribute("data-status");
      if (before.has(id) && before.get(id) !== now && now !== "running") announce(`${row.querySelector("th")?.textContent?.trim() ?? ""}: ${now}`);
    }
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
