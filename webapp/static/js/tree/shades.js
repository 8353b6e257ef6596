// The scales and shares that lists of trees are painted by. Pure.
import { valueRange } from "./colour.js";

/** @typedef {{step: number, n_trees: number, mean: number | null}} StepCell */

export const OUTCOMES = /** @type {const} */ (["correct", "incorrect", "unparsed", "truncated", "error"]);

/**
 * Shares of a bar for the outcomes of all answers, in the order of `OUTCOMES`.
 * @param {string} counts correct, unparsed, truncated, errors, answers; commas between
 */
export function outcomeShares(counts) {
  const [correct = 0, unparsed = 0, truncated = 0, errors = 0, answers = 0] = counts.split(",").map(Number);
  const incorrect = Math.max(0, answers - correct - unparsed - truncated - errors);
  const all = correct + incorrect + unparsed + truncated + errors;
  return [correct, incorrect, unparsed, truncated, errors].map((count) => (all ? count / all : 0));
}

/**
 * The ends of the scale for a signal's means: values have one of their own, others go from the smallest mean to the largest. A
 * cliff's drop is deepest where it is lowest.
 * @param {string} sort @param {StepCell[]} cells @returns {{palette: "value" | "entropy", low: number, high: number, flip: boolean}}
 */
export function shadeScale(sort, cells) {
  const means = cells.flatMap(({ mean }) => (mean === null ? [] : [mean]));
  if (sort === "value") {
    const [low, high] = valueRange(means);
    return { palette: "value", low, high, flip: false };
  }
  const [low, high] = means.length ? [Math.min(...means), Math.max(...means)] : [0, 1];
  return { palette: "entropy", low, high: high > low ? high : low + 1, flip: sort === "cliff" };
}
