// From the curves of several runs to the columns one panel draws. Pure.
import { smooth } from "./smoothing.js";

/** @typedef {"step" | "tokens" | "time"} XAxis */
/**
 * One line of a panel.
 * @typedef {object} Line
 * @property {number} run
 * @property {string} name of the metric
 * @property {number[]} x
 * @property {number[]} raw
 * @property {number[]} smoothed
 * @property {number[] | null} low lower edge of the band: interval, or smallest of each bucket
 * @property {number[] | null} high
 * @property {boolean} [isInterval] the band is the 95 % interval that came with the values
 * @property {number[]} step of each entry
 * @property {{x: number, k: string}[]} ticks values that are not finite
 * @property {boolean} [past] what a later attempt went over again
 * @property {boolean} [earlier] of a run that this one came from, up to the fork
 */

/** The metric behind each x axis that is not the step. */
export const CLOCKS = /** @type {const} */ ({ tokens: "tree/unique_tokens_total", time: "speed/step_seconds" });

const ORIGIN = { step: 0, x: 0 };

/**
 * Where a fork begins on an axis: its ancestors' curves one after the other, each up to the step that the next one forked at.
 * @param {XAxis} axis @param {readonly {curves: ReadonlyMap<string, Series>, to: number}[]} ancestors the oldest first
 */
export function startAfter(axis, ancestors) {
  let start = ORIGIN;
  for (const { curves, to } of ancestors) {
    const x = xOf(axis, curves, start)(to);
    start = { step: to, x: Number.isFinite(x) ? x : start.x };
  }
  return start;
}

/**
 * Step -> x on the axis chosen. Tokens: sampled until then, each segment once. Time: seconds of all steps until then,
 * evaluation not counted. Between two known steps it is a straight line; before the first, it begins where `start` says: at
 * zero, or for a fork where the curve of the run that it came from leaves off.
 * @param {XAxis} axis @param {ReadonlyMap<string, Series>} curves of one run @param {{step: number, x: number}} [start]
 * @returns {(step: number) => number}
 */
export function xOf(axis, curves, start = ORIGIN) {
  if (axis === "step") return (step) => step;
  const clock = curves.get(CLOCKS[axis]);
  if (!clock || !clock.step.length) return () => NaN;
  const steps = [start.step];
  const reached = [start.x];
  clock.step.forEach((step, i) => {
    const value = /** @type {number} */ (clock.value[i]);
    const before = /** @type {number} */ (reached.at(-1));
    // A bucket's mean times its points is its sum.
    const now = axis === "tokens" ? Math.max(before, value) : before + value * /** @type {number} */ (clock.n[i]);
    if (step <= start.step) reached[0] = now;
    else {
      steps.push(step);
      reached.push(now);
    }
  });
  return (step) => interpolate(steps, reached, step);
}

/** @param {number[]} xs rising @param {number[]} ys @param {number} x */
function interpolate(xs, ys, x) {
  const last = xs.length - 1;
  if (x <= /** @type {number} */ (xs[0])) return /** @type {number} */ (ys[0]);
  if (x >= /** @type {number} */ (xs[last])) return /** @type {number} */ (ys[last]);
  let low = 0;
  let high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (/** @type {number} */ (xs[middle]) <= x) low = middle;
    else high = middle;
  }
  const [x0, x1, y0, y1] = [xs[low], xs[high], ys[low], ys[high]].map(Number);
  return /** @type {number} */ (y0) + ((/** @type {number} */ (y1) - /** @type {number} */ (y0)) * (x - /** @type {number} */ (x0))) / (/** @type {number} */ (x1) - /** @type {number} */ (x0));
}

/**
 * @param {number} run @param {ReadonlyMap<string, Series>} curves of that run @param {string} name @param {XAxis} axis
 * @param {number} weight of the smoothing @param {[string, string]} [band] the metrics of its interval
 * @param {{step: number, x: number}} [start] of a fork
 * @returns {Line | null} null when the run does not log this metric
 */
export function lineOf(run, curves, name, axis, weight, band, start) {
  const curve = curves.get(name);
  if (!curve || (!curve.step.length && !curve.nonfinite.length)) return null;
  const place = xOf(axis, curves, start);
  const low = band && curves.get(band[0]);
  const high = band && curves.get(band[1]);
  const interval = low && high ? [along(curve, low), along(curve, high)] : null;
  const bucketed = curve.bucketed ? [curve.min, curve.max] : null;
  return {
    run,
    name,
    x: curve.step.map(place),
    raw: curve.value,
    // Evaluations are means over many problems already, and come with their interval.
    smoothed: interval || weight <= 0 ? curve.value : smooth(curve.step, curve.value, weight, curve.n),
    low: interval?.[0] ?? bucketed?.[0] ?? null,
    high: interval?.[1] ?? bucketed?.[1] ?? null,
    isInterval: interval !== null,
    step: curve.step,
    ticks: curve.nonfinite.map(({ step, k }) => ({ x: place(step), k })),
  };
}

/** The values of `other` at the steps of `curve`; the curve's own value where there is none. @param {Series} curve @param {Series} other */
function along(curve, other) {
  const at = new Map(other.step.map((step, i) => [step, /** @type {number} */ (other.value[i])]));
  return curve.step.map((step, i) => at.get(step) ?? /** @type {number} */ (curve.value[i]));
}

/**
 * One x column for all lines, and each line's columns along it. `undefined` where another line has a point and this one
 * has not: the chart connects over it. Each line has four columns: raw, smoothed, low, high.
 * @param {readonly Line[]} lines
 * @returns {{x: number[], columns: (number | undefined)[][]}}
 */
export function aligned(lines) {
  const xs = new Set();
  for (const line of lines) for (const x of line.x) if (Number.isFinite(x)) xs.add(x);
  const x = /** @type {number[]} */ ([...xs]).sort((a, b) => a - b);
  const place = new Map(x.map((value, i) => [value, i]));
  const columns = lines.flatMap((line) =>
    [line.raw, line.smoothed, line.low, line.high].map((values) => {
      /** @type {(number | undefined)[]} */
      const column = new Array(x.length).fill(undefined);
      if (values) {
        line.x.forEach((value, i) => {
          const index = place.get(value);
          if (index !== undefined) column[index] = values[i];
        });
      }
      return column;
    }),
  );
  return { x, columns };
}

/**
 * The point of a line nearest to x, for readouts; null for an empty line, and where the line has already ended or not yet
 * begun: further away than its own points are from each other there.
 * @param {Line} line @param {number} x @returns {number | null} its index
 */
export function nearest(line, x) {
  let best = null;
  let distance = Infinity;
  for (let i = 0; i < line.x.length; i++) {
    const away = Math.abs(/** @type {number} */ (line.x[i]) - x);
    if (away <= distance) {
      distance = away;
      best = i;
    } else if (Number.isFinite(away)) break;
  }
  if (best === null) return null;
  const [first, last, ends] = [line.x[0], line.x.at(-1), line.x.length > 1];
  if (ends && x > Number(last) && x - Number(last) > Number(last) - Number(line.x.at(-2))) return null;
  if (ends && x < Number(first) && Number(first) - x > Number(line.x[1]) - Number(first)) return null;
  return best;
}

/**
 * What a panel reads out: of each line the point nearest to x, or its last one where x is null; and the newest step among
 * them. `index` is -1 where the line has no point there, and `step` is told where it is not the newest. What ended at a fork
 * has no value now, only where the reader points.
 * @param {readonly Line[]} lines @param {number | null} x
 * @returns {{newest: number | null, found: {line: Line, place: number, index: number, step: number | null}[]}}
 */
export function readings(lines, x) {
  const found = lines.flatMap((line, place) => {
    const index = x !== null ? nearest(line, x) : line.earlier ? null : line.raw.length - 1;
    return line.earlier && index === null ? [] : [{ line, place, index: index ?? -1, step: line.step[index ?? -1] ?? null }];
  });
  const steps = found.flatMap(({ step }) => step ?? []);
  const newest = steps.length ? Math.max(...steps) : null;
  return { newest, found: found.map((one) => ({ ...one, step: one.step === newest ? null : one.step })) };
}

/**
 * The rows of "show as table": one per step that any line has, newest first, at most `limit`; and how many were left out.
 * @param {readonly Line[]} lines @param {number} limit
 * @returns {{rows: {step: number, values: (number | null)[]}[], left: number}}
 */
export function tableOf(lines, limit) {
  const maps = lines.map((line) => new Map(line.step.map((step, i) => [step, /** @type {number} */ (line.raw[i])])));
  const steps = [...new Set(lines.flatMap((line) => line.step))].sort((a, b) => b - a);
  const rows = steps.slice(0, limit).map((step) => ({ step, values: maps.map((map) => map.get(step) ?? null) }));
  return { rows, left: steps.length - rows.length };
}
