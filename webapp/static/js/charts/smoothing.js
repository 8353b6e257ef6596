// The smoothed line, and how a value of it reads. Pure. Time-weighted exponential moving average: the weight of the past falls by `weight` per step of
// training, not per point, so that neither the density of points, nor bucketing, nor zoom changes the line.
import { figure, number } from "../core/format.js";

/**
 * s_i = sum_j w^(x_i - x_j) n_j y_j / sum_j w^(x_i - x_j) n_j  over j <= i: a weighted mean of what came before, so it has
 * no start-up bias and is the curve itself for a constant curve.
 * @param {ArrayLike<number>} step rising @param {ArrayLike<number>} value finite
 * @param {number} weight 0 (no smoothing) to below 1 @param {ArrayLike<number>} [n] points behind each value
 * @returns {number[]}
 */
export function smooth(step, value, weight, n) {
  const smoothed = new Array(value.length);
  let sum = 0;
  let mass = 0;
  let previous = 0;
  for (let i = 0; i < value.length; i++) {
    const at = /** @type {number} */ (step[i]);
    const count = n ? /** @type {number} */ (n[i]) : 1;
    const fade = i === 0 ? 0 : weight ** (at - previous);
    sum = sum * fade + count * /** @type {number} */ (value[i]);
    mass = mass * fade + count;
    smoothed[i] = sum / mass;
    previous = at;
  }
  return smoothed;
}

/**
 * A smoothed value beside the raw ones. The past of a curve that fell to 0 never leaves its mean, so where the curve has
 * values of 0.1 and more, what is left of them reads as 0.001 or `≈ 0`, not as 5.46e−7.
 * @param {number | null | undefined} value @param {readonly number[]} raw of the whole line
 */
export function smoothedFigure(value, raw) {
  const size = Math.abs(value ?? 0);
  if (value == null || !(size > 0 && size < 0.001) || !raw.some((one) => Math.abs(one) >= 0.1)) return figure(value);
  return size < 0.0005 ? "≈ 0" : number(value, 3);
}
