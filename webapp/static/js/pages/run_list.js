// The runs table: cells update in place, rows never move by themselves; select two or more runs to overlay their curves.
import { sparkline } from "../charts/sparkline.js";
import { byId, data, setText } from "../core/dom.js";
import { duration, hasEnded, number, statusGlyph, statusWord } from "../core/format.js";
import { load } from "../core/regions.js";
import { onKeys } from "../core/keys.js";
import { announce } from "../core/announce.js";
import { Session } from "../live/session.js";

const SPARK_POINTS = 40;
/** As many runs as one page of curves takes. */
const MOST_TOGETHER = 10;

const table = document.getElementById("runs-table");
if (table) {
  /** @type {(RunState & {colour: number, spark: number[], url: string})[]} */
  const runs = data("runs-data");
  const known = new Map(runs.map((run) => [run.id, run]));
  for (const run of runs) drawSpark(run.id);

  const session = new Session(
    {
        onChange: () => undefined,
      onSummary: (states) => states.forEach(showState),
      onProblem: (message) => {
        byId("list-problem").hidden = message === null;
        setText(byId("list-problem"), message ?? "");
      },
    },
    { curves: false },
  );
  session.followProject(table.dataset.project ?? "", runs.map((run) => run.id));

  let unknown = 0;
  /** @param {RunState} state */
  function showState(state) {
    const before = known.get(state.id);
    const row = document.getElementById(`run-${state.id}`);
    if (!before || !row) {
      if (known.has(state.id)) return;
      known.set(state.id, { ...state, colour: 9, spark: [], url: "" });
      unknown += 1;
      const note = byId("new-runs");
      note.hidden = false;
      const link = document.createElement("a");
      link.href = location.pathname;
      link.textContent = `${unknown} new run${unknown > 1 ? "s" : ""} · show`;
      note.replaceChildren(link);
      return;
    }
    const cell = (/** @type {string} */ name) => /** @type {HTMLElement} */ (row.querySelector(`[data-cell="${name}"]`));
    const status = cell("status");
    status.className = `status status-${state.shown}`;
    setText(status.querySelector("[data-part=glyph]"), statusGlyph(state.shown));
    setText(status.querySelector("[data-part=word]"), statusWord(state.shown));
    const idle = status.querySelector("[data-part=idle]");
    if (idle instanceof HTMLElement) idle.hidden = !state.is_idle;
    const told = status.querySelector("[data-part=told]");
    if (told instanceof HTMLElement) {
      told.title = state.wish ? `${state.wish.asked}; ${state.wish.words}` : state.told;
      setText(told, state.status === "succeeded" ? "" : told.title);
    }
    cell("step").querySelector("progress")?.setAttribute("value", String(state.step));
    setText(cell("step").querySelector(".figures"), `${state.step}/${state.steps_total}`);
    setText(cell("eta"), duration(state.eta_s));
    setText(cell("reward").querySelector(".figures"), number(state.latest["reward/mean"], 3));
    setText(cell("pass1"), number(state.latest["eval/pass1_sampled"], 3));
    setText(cell("greedy"), number(state.latest["eval/pass1_greedy"], 3));
    setText(cell("zero"), number(state.latest["credit/zero_variance_share"], 2));
    setText(cell("speed"), number(state.latest["speed/tokens_per_second"], 0));
    const reward = state.latest["reward/mean"];
    if (reward != null && state.step > before.step) {
      before.spark = [...before.spark, reward].slice(-SPARK_POINTS);
      drawSpark(state.id);
    }
    if (state.status !== before.status && hasEnded(state.status)) announce(`${state.name}: ${statusWord(state.status)} ${state.told}`);
    if (state.status !== before.status) load(location.href, ["active-runs"]).catch(() => {}); // the next change brings it
    row.dataset.status = state.status;
    const actions = state.actions.join(" ");
    const menu = document.getElementById(`menu-${state.id}`);
    if (menu && actions !== before.actions.join(" ")) {
      load(location.href, [menu.id]).catch(() => menu.removeAttribute("open"));
    }
    Object.assign(before, state);
  }

  /** @param {number} id */
  function drawSpark(id) {
    const run = known.get(id);
    const svg = document.querySelector(`#run-${id} [data-spark]`);
    if (run && svg instanceof SVGSVGElement) sparkline(svg, run.spark, run.colour);
  }

  // ---- selection
  const boxes = /** @type {HTMLInputElement[]} */ ([...table.querySelectorAll("td.pick input")]);
  const overlay = /** @type {HTMLAnchorElement} */ (byId("overlay-link"));
  // Whoever comes from a run's curves to add others finds those selected that are there already.
  const selected = (new URLSearchParams(location.search).get("select") ?? "").split(",");
  for (const box of boxes) if (selected.includes(box.value)) box.checked = true;
  const count = () => {
    const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
    const told = chosen.length > MOST_TOGETHER ? `${chosen.length} selected; ${MOST_TOGETHER} at most are shown together.` : `${chosen.length} selected`;
    setText(byId("selection-count"), chosen.length ? told : "Select two or more runs to see their curves together.");
    byId("selection").classList.toggle("selection-none", chosen.length === 0);
    if (chosen.length > 1 && chosen.length <= MOST_TOGETHER) {
      overlay.href = `/r/${chosen[0]}/?with=${chosen.slice(1).join(",")}`;
      overlay.removeAttribute("aria-disabled");
    } else {
      overlay.removeAttribute("href");
      overlay.setAttribute("aria-disabled", "true");
    }
  };
  table.addEventListener("change", count);
  count();

  // ---- keyboard
  const links = /** @type {HTMLAnchorElement[]} */ ([...table.querySelectorAll("tbody .row-link")]);
  const focused = () => document.activeElement?.closest("tr");
  const go = (/** @type {number} */ by) => {
    const at = links.findIndex((link) => link.closest("tr") === focused());
    links[Math.min(links.length - 1, Math.max(0, at === -1 ? 0 : at + by))]?.focus();
  };
  onKeys({
    j: () => go(1),
    k: () => go(-1),
    x: () => {
      const box = focused()?.querySelector("td.pick input");
      if (box instanceof HTMLInputElement) box.click();
    },
    c: () => {
      if (overlay.href) location.assign(overlay.href);
    },
  });
}
