// The form of a new run: what is typed is checked by the server while it is typed, by the same code that reads it at the
// end; the page says what the run will cost and what differs from the preset.
import { shapeOf } from "../core/branching.js";
import { byId, make, revealScripted, setText, typed } from "../core/dom.js";
import { load } from "../core/regions.js";
import { colour, onTheme } from "../core/theme.js";

import { sized } from "../tree/paint.js";

const PATIENCE_MILLISECONDS = 300;
const form = typed("run-form", HTMLFormElement);

/** @typedef {HTMLElement & {dataset: {path: string, presetValue: string}}} FieldElement */
const fields = () => /** @type {FieldElement[]} */ ([...form.querySelectorAll("[data-path]")]);
/** @param {Element} field */
const control = (field) => /** @type {HTMLInputElement | HTMLSelectElement} */ (field.querySelector("input, select"));
/** @param {string} path */
const valueOf = (path) => {
  const field = fields().find((one) => one.dataset.path === path);
  return field ? control(field).value : null;
};

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
form.addEventListener("input", () => {
  tell();
  clearTimeout(timer);
  timer = setTimeout(() => void check(false), PATIENCE_MILLISECONDS);
});
form.addEventListener("change", (event) => {
  const path = /** @type {Element} */ (event.target).closest("[data-path]")?.getAttribute("data-path");
  if (!path?.endsWith(".kind")) return;
  // Another kind has other fields.
  clearTimeout(timer);
  void check(true);
});
form.addEventListener("click", (event) => {
  const button = /** @type {Element} */ (event.target).closest("[data-reset]");
  const field = button?.closest("[data-path]");
  if (!(field instanceof HTMLElement)) return;
  control(field).value = field.dataset.presetValue ?? "";
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

/** @param {boolean} withFields the fields themselves may change */
async function check(withFields) {
  const query = new URLSearchParams({ preset: /** @type {HTMLInputElement} */ (form.elements.namedItem("preset")).value });
  for (const field of fields()) query.set(field.dataset.path, control(field).value);
  const notes = [...form.querySelectorAll(".note")].map((note) => note.id);
  const problem = byId("check-problem");
  try {
    if (!(await load(`${form.dataset.check}?${query}`, withFields ? ["consequence", "form-sections"] : ["consequence", ...notes]))) return;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    problem.hidden = false;
    setText(problem, `Not checked. ${error.message}`);
    return;
  }
  problem.hidden = true;
  for (const field of fields()) {
    const wrong = field.querySelector("[data-error]:not([hidden])") !== null;
    field.classList.toggle("field-wrong", wrong);
    if (wrong) control(field).setAttribute("aria-invalid", "true");
    else control(field).removeAttribute("aria-invalid");
  }
  revealScripted(form);
  tell();
}

/** What the page knows without asking: which fields differ from the preset, and the shape of a tree. */
function tell() {
  const changes = [];
  for (const field of fields()) {
    if (field.dataset.path === "name") continue;
    const [value, preset] = [control(field).value.trim(), field.dataset.presetValue];
    const changed = value !== preset;
    field.classList.toggle("field-changed", changed);
    if (changed) changes.push(make("li", {}, make("code", {}, field.dataset.path), ` ${preset || "—"} → `, make("strong", {}, value || "—")));
  }
  setText(byId("changes-count"), changes.length ? `(${changes.length})` : "");
  byId("changes-list").replaceChildren(...(changes.length ? changes : [make("li", { class: "secondary" }, "None: exactly the preset.")]));
  for (const section of form.querySelectorAll("[data-section]")) {
    const count = section.querySelectorAll(".field-changed").length;
    setText(form.querySelector(`[data-count="${section.getAttribute("data-section")}"]`), count ? `${count} •` : "");
    const hidden = section.querySelectorAll(".advanced .field-changed").length;
    setText(section.querySelector("[data-advanced-count]"), hidden ? ` ${hidden} •` : "");
  }
  drawShape();
}

/** One tree as it will be grown, widths by leaves. */
function drawShape() {
  const canvas = typed("branching-preview", HTMLCanvasElement);
  const shape = shapeOf(valueOf("sampler.group_size") ?? valueOf("sampler.branching_per_depth") ?? "", Number(valueOf("sampler.depth") ?? 1));
  canvas.hidden = shape === null;
  if (!shape || !canvas.clientWidth) return;
  const row = 18;
  const { ctx } = sized(canvas, canvas.clientWidth, (shape.length + 1) * row);
  let width = 1;
  [1, ...shape].forEach((children, depth) => {
    width *= children;
    const step = canvas.clientWidth / width;
    ctx.fillStyle = depth === 0 ? colour("--line-control") : colour("--accent");
    ctx.globalAlpha = depth === 0 ? 0.6 : 0.35 + (0.5 * depth) / shape.length;
    if (step < 2) ctx.fillRect(0, depth * row, canvas.clientWidth, row - 2);
    else for (let i = 0; i < width; i++) ctx.fillRect(i * step, depth * row, Math.max(1, step - (step > 4 ? 1.5 : 0.5)), row - 2);
  });
  canvas.setAttribute("aria-label", `Shape of one tree: ${shape.join(" times ")} is ${width} leaves`);
}

onTheme(drawShape);
new ResizeObserver(drawShape).observe(byId("branching-preview").parentElement ?? form);
tell();
// Sections that hold an error must not hide it.
for (const details of /** @type {NodeListOf<HTMLDetailsElement>} */ (form.querySelectorAll("details.advanced"))) {
  if (details.querySelector("[data-error]:not([hidden])")) details.open = true;
}
