// Whether a problem has trees that a page does not show. Pure.

/** @typedef {{id: number, n_trees: number, is_growing: boolean}} KnownRun */

/**
 * How many trees are new, and whether more may come; of a page that shows chosen runs, of those alone.
 * @param {KnownRun[]} now @param {Record<string, number>} known trees of each run when the page was made
 * @param {boolean} isChosen
 */
export function newer(now, known, isChosen) {
  const mine = isChosen ? now.filter(({ id }) => id in known) : now.filter(({ id }) => id in known || id > Math.max(0, ...Object.keys(known).map(Number)));
  const count = mine.reduce((sum, run) => sum + Math.max(0, run.n_trees - (known[run.id] ?? 0)), 0);
  return { count, isGrowing: mine.some((run) => run.is_growing) };
}
