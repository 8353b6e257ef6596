// How each run's lines look, in every chart of a page. Pure.

/** Beyond the first six colours a dash tells lines apart as well. @type {number[][]} */
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

/**
 * Slot of the palette and dash per run. Two runs on one page may have the same slot: each later one gets the next dash.
 * @param {{id: number, colour: number}[]} runs @returns {Map<number, {slot: number, dash: number[]}>}
 */
export function stylesOf(runs) {
  const taken = new Map();
  return new Map(
    runs.map(({ id, colour }) => {
      const before = taken.get(colour) ?? 0;
      taken.set(colour, before + 1);
      const first = colour > 6 ? 1 : 0;
      return [id, { slot: colour, dash: /** @type {number[]} */ (DASHES[(first + before) % DASHES.length]) }];
    }),
  );
}
