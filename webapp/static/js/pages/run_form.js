// The form of a new run: what is typed is checked by the server while it is typed, by the same code that reads it at the
// end; the page says what the run will cost and what differs from the preset.
import { cells, rowsOf, shapeInWords } from "../core/branching.js";
import { byId, make, revealScripted, setText, typed } from "../core/dom.js";
import { farRate, sameValue, shown } from "../core/knobs.js";
import { filterPresets } from "../core/presets.js";
import { load } from "../core/regions.js";
import { colour, onTheme } from "../core/theme.js";
import { sized } from "../tree/paint.js";

const PATIENCE_MILLISECONDS = 300;
const ROW = 18;
/** What the form asks beside the config. */
const OWN = new Set(["name", "checkpoint"]);
const form = typed("run-form", HTMLFormElement);

/** @typedef {HTMLElement & {dataset: {path: string, kind: string, presetValue: string}}} FieldElement */
/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Control */
const fields = () => /** @type {FieldElement[]} */ ([...form.querySelectorAll("[data-path]")]);
/** @param {Element} field */
const control = (field) => /** @type {Control} */ (field.querySelector("select, textarea, input:not([type=hidden])"));
/** @param {Control} element */
const isBox = (element) => element instanceof HTMLInputElement && element.type === "checkbox";
/** @param {Element} field */
function valueOf(field) {
  const element = control(field);
  return isBox(element) ? String(/** @type {HTMLInputElement} */ (element).checked) : element.value;
}
/** @param {Element} field @param {string} value */
function setValue(field, value) {
  const element = control(field);
  if (isBox(element)) /** @type {HTMLInputElement} */ (element).checked = value === "true";
  else element.value = value;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
form.addEventListener("input", () => {
  tell();
  clearTimeout(timer);
  timer = setTimeout(() => void check(""), PATIENCE_MILLISECONDS);
});
form.addEventListener("change", (event) => {
  const path = /** @type {Element} */ (event.target).closest("[data-path]")?.getAttribute("data-path");
  if (!path?.endsWith(".kind")) return;
  // Another kind has other fields.
  clearTimeout(timer);
  void check(path);
});
form.addEventListener("click", (event) => {
  const button = /** @type {Element} */ (event.target).closest("[data-reset]");
  const field = button?.closest("[data-path]");
  if (!(field instanceof HTMLElement)) return;
  setValue(field, field.dataset.presetValue ?? "");
  control(field).focus();
  control(field).dispatchEvent(new Event("input", { bubbles: true }));
  control(field).dispatchEvent(new Event("change", { bubbles: true }));
});
// A double click must not send the form twice; the server would notice by its key, but the reader would not.
form.addEventListener("submit", () => {
  const button = typed("queue-run", HTMLButtonElement);
  setTimeout(() => (button.disabled = true));
  setTimeout(() => (button.disabled = false), 5000);
});
// A link to a field leads to the field, even where it is folded away.
document.addEventListener("click", (event) => {
  const link = /** @type {Element} */ (event.target).closest('a[href^="#"]');
  const target = link && document.getElementById(decodeURIComponent(/** @type {HTMLAnchorElement} */ (link).hash.slice(1)));
  const details = target?.closest("details");
  if (details) details.open = true;
});

/** @param {string} kindPath "" or the choice that was just made: other fields are needed, with that kind's defaults */
async function check(kindPath) {
  const query = new URLSearchParams();
  for (const origin of /** @type {NodeListOf<HTMLInputElement>} */ (form.querySelectorAll("input[data-origin]"))) query.set(origin.name, origin.value);
  const before = fields();
  /** @type {Map<string, string>} */
  const sent = new Map();
  const inside = kindPath.replace(/kind$/, "");
  for (const field of before) {
    const { path } = field.dataset;
    if (inside && path.startsWith(inside) && path !== kindPath) continue;
    sent.set(path, valueOf(field));
    query.set(path, valueOf(field));
  }
  const notes = [...form.querySelectorAll(".note")].map((note) => note.id);
  const open = openParts();
  const problem = byId("check-problem");
  try {
    if (!(await load(`${form.dataset.check}?${query}`, kindPath ? ["consequence", "form-sections"] : ["consequence", "form-problems", ...notes]))) return;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    problem.hidden = false;
    setText(problem, `Not checked. ${error.message}`);
    return;
  }
  problem.hidden = true;
  if (kindPath) {
    for (const details of openable()) details.open = open.has(details.dataset.advanced ?? "");
    keepTyped(before, sent);
  }
  for (const field of fields()) {
    const wrong = field.querySelector("[data-error]:not([hidden])") !== null;
    field.classList.toggle("field-wrong", wrong);
    if (wrong) control(field).setAttribute("aria-invalid", "true");
    else control(field).removeAttribute("aria-invalid");
  }
  revealScripted(form);
  tell();
}

/** What was typed while the server's answer was on its way goes into the new fields. @param {FieldElement[]} before @param {Map<string, string>} sent */
function keepTyped(before, sent) {
  const after = new Map(fields().map((field) => [field.dataset.path, field]));
  for (const field of before) {
    const was = sent.get(field.dataset.path);
    const fresh = after.get(field.dataset.path);
    if (was === undefined || !fresh || valueOf(field) === was) continue;
    setValue(fresh, valueOf(field));
    control(fresh).dispatchEvent(new Event("input", { bubbles: true }));
  }
}

const openable = () => /** @type {NodeListOf<HTMLDetailsElement>} */ (form.querySelectorAll("details.advanced"));
const openParts = () => new Set([...openable()].filter((details) => details.open).map((details) => details.dataset.advanced ?? ""));

/** What the page knows without asking: which fields differ from the preset, and the shape of a tree. */
function tell() {
  const changes = [];
  for (const field of fields()) {
    if (OWN.has(field.dataset.path)) continue;
    const [value, preset] = [valueOf(field), field.dataset.presetValue];
    const changed = !sameValue(field.dataset.kind, value, preset);
    field.classList.toggle("field-changed", changed);
    if (!changed) continue;
    const far = farRate(field.dataset.path, preset, value);
    changes.push(make("li", {}, make("code", {}, field.dataset.path), ` ${shown(preset)} → `, make("strong", {}, shown(value)), far ? make("span", { class: "warn" }, ` ${far}`) : ""));
  }
  setText(byId("changes-count"), changes.length ? `(${changes.length})` : "");
  byId("changes-list").replaceChildren(...(changes.length ? changes : [make("li", { class: "secondary" }, byId("changes-list").dataset.none ?? "")]));
  for (const section of form.querySelectorAll("[data-section]")) {
    const count = section.querySelectorAll(".field-changed").length;
    setText(form.querySelector(`[data-count="${section.getAttribute("data-section")}"]`), count ? `${count} •` : "");
    const hidden = section.querySelectorAll(".advanced .field-changed").length;
    setText(section.querySelector("[data-advanced-count]"), hidden ? ` ${hidden} •` : "");
  }
  drawShape();
}

/** One tree as it will be grown. Paler where only sampling decides. */
function drawShape() {
  const canvas = typed("branching-preview", HTMLCanvasElement);
  const estimate = byId("estimate");
  const rows = rowsOf(estimate.dataset.rows ?? "");
  const loose = "loose" in estimate.dataset;
  canvas.hidden = rows.length === 0;
  if (!rows.length || !canvas.clientWidth) return;
  const row = Math.max(4, Math.min(ROW, 160 / rows.length));
  const { ctx } = sized(canvas, canvas.clientWidth, (rows.length + 1) * row);
  [1, ...rows].forEach((count, depth) => {
    ctx.fillStyle = depth === 0 ? colour("--line-control") : colour("--accent");
    ctx.globalAlpha = depth === 0 ? 0.6 : (loose ? 0.5 : 1) * (0.35 + (0.5 * depth) / rows.length);
    for (const { left, width } of cells(count, canvas.clientWidth)) ctx.fillRect(left, depth * row, width, row - Math.min(2, row / 4));
  });
  canvas.setAttribute("aria-label", shapeInWords(rows, loose));
}

onTheme(drawShape);
new ResizeObserver(drawShape).observe(byId("branching-preview").parentElement ?? form);
tell();
// Sections that hold an error must not hide it.
for (const details of openable()) {
  if (details.querySelector("[data-error]:not([hidden])")) details.open = true;
}

// ---- presets: the list narrows while one types

if (document.getElementById("picker")) watchPicker();

function watchPicker() {
  // On a narrow screen the list scrolls; it begins where the chosen one stands.
  const list = /** @type {HTMLElement | null} */ (byId("picker").querySelector(".picker-groups"));
  const picked = /** @type {HTMLElement | null} */ (byId("picker").querySelector(".picked"));
  if (list && picked) list.scrollTop = picked.offsetTop - list.offsetTop - list.clientHeight / 2;

  const filter = typed("preset-filter", HTMLInputElement);
  filter.addEventListener("input", () => {
    const rows = /** @type {HTMLElement[]} */ ([...byId("picker").querySelectorAll("[data-preset-text]")]);
    const found = filterPresets(rows.map((row) => row.dataset.presetText ?? ""), filter.value);
    rows.forEach((row, i) => { row.hidden = !found[i]; });
    for (const group of /** @type {NodeListOf<HTMLElement>} */ (byId("picker").querySelectorAll("[data-preset-group]"))) {
      group.hidden = group.querySelector("[data-preset-text]:not([hidden])") === null;
    }
    const none = byId("preset-none");
    none.hidden = found.some(Boolean);
    setText(none, none.hidden ? "" : `No preset has “${filter.value.trim()}” in its name, summary or source.`);
  });
  filter.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      filter.value = "";
      filter.dispatchEvent(new Event("input"));
    } else if (event.key === "Enter" && filter.value.trim()) {
      const first = byId("picker").querySelector("[data-preset-text]:not([hidden]) a");
      if (first instanceof HTMLElement) first.click();
    }
  });
}
