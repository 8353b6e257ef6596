// A problem over training, as far as it is pure: which frame a step shows, what moves the slider, how bands lie.

/**
 * @typedef {object} Frame
 * @property {number} id of the tree
 * @property {number} step
 * @property {number | null} value
 * @property {number} n_correct
 * @property {number} answers
 * @property {Icicle | null} icicle
 * @property {string} url
 */
/**
 * @typedef {object} FilmRun
 * @property {number} id
 * @property {string} name
 * @property {number} colour
 * @property {{step: number, words: string}[]} turns
 * @property {{step: number, value: number | null, solved: number | null}[]} points rising steps
 * @property {Frame[]} frames rising steps
 * @property {{text: string, verdict: string, counts: number[]}[]} bands
 * @property {number[]} band_steps of the counts, rising
 */

/** Index of the newest entry at or before `step`; -1 when all are later. @param {readonly number[]} steps rising @param {number} step */
export function atOrBefore(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (/** @type {number} */ (steps[middle]) <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The place nearest to a step. @param {readonly number[]} steps rising @param {number} step */
export function nearestPlace(steps, step) {
  const at = atOrBefore(steps, step);
  if (at < 0) return 0;
  const next = steps[at + 1];
  return next !== undefined && next - step < step - /** @type {number} */ (steps[at]) ? at + 1 : at;
}

/**
 * A line of a chart from a run's points; what is missing is left out. Null when nothing is left.
 * @param {FilmRun} run @param {"value" | "solved"} name @returns {import("../charts/series.js").Line | null}
 */
export function lineOfPoints(run, name) {
  const points = run.points.filter((point) => point[name] !== null);
  if (!points.length) return null;
  const steps = points.map(({ step }) => step);
  const raw = points.map((point) => /** @type {number} */ (point[name]));
  return { run: run.id, name, x: steps, raw, smoothed: raw, low: null, high: null, step: steps, ticks: [] };
}

/**
 * The rectangles of stacked bands, in shares of the picture: a tree's answers fill its column from its step to the next
 * tree's; the last one is as wide as they are on the mean.
 * @param {readonly {counts: number[]}[]} bands @param {readonly number[]} steps rising @param {number} low @param {number} high steps at the picture's edges
 * @returns {{band: number, left: number, right: number, top: number, bottom: number}[]}
 */
export function stacked(bands, steps, low, high) {
  const found = [];
  const span = Math.max(high - low, 1);
  const mean = Math.max(1, (Number(steps.at(-1)) - Number(steps[0])) / Math.max(steps.length - 1, 1));
  for (let at = 0; at < steps.length; at++) {
    const step = /** @type {number} */ (steps[at]);
    const next = Math.min(steps[at + 1] ?? step + mean, high);
    const whole = bands.reduce((sum, band) => sum + (band.counts[at] ?? 0), 0);
    if (!whole || next <= step) continue;
    const [left, right] = [(step - low) / span, (next - low) / span];
    let top = 0;
    for (const [band, { counts }] of bands.entries()) {
      const share = (counts[at] ?? 0) / whole;
      if (share) found.push({ band, left, right, top, bottom: top + share });
      top += share;
    }
  }
  return found;
}

/**
 * Where each band's colour lies between -1, the strongest wrong, and 1, the strongest right; null: it is no judged answer.
 * @param {readonly {verdict: string}[]} bands
 */
export function tones(bands) {
  let right = 0;
  let wrong = 0;
  return bands.map(({ verdict }) => {
    if (verdict === "correct") return Math.max(1 - 0.3 * right++, 0.3);
    if (verdict === "incorrect") return Math.min(-0.85 + 0.16 * wrong++, -0.15);
    return null;
  });
}
