// Ranges of axes. Pure.

/**
 * The range that shows all values: finite ones only, with 6 % of air; a flat curve gets a range around it. Shares, whose
 * values all lie in 0..1, never show room below 0 or above 1.
 * @param {Iterable<ArrayLike<number | null | undefined>>} columns
 * @returns {[number, number]}
 */
export function yRange(columns) {
  let low = Infinity;
  let high = -Infinity;
  for (const column of columns) {
    for (let i = 0; i < column.length; i++) {
      const value = column[i];
      if (value == null || !Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return [0, 1];
  if (low === high) {
    const half = Math.abs(low) * 0.1 || 0.5;
    return [low >= 0 ? Math.max(0, low - half) : low - half, high + half];
  }
  const air = 0.06 * (high - low);
  return [low >= 0 ? Math.max(0, low - air) : low - air, high <= 1 && low >= 0 ? Math.min(1, high + air) : high + air];
}

/**
 * The range of x: from the first to the last value seen, at least one unit wide; a chosen range wins.
 * @param {number | undefined} first @param {number | undefined} last @param {[number, number] | null} chosen
 * @returns {[number, number]}
 */
export function xRange(first, last, chosen) {
  if (chosen) return chosen;
  if (first === undefined || last === undefined) return [0, 1];
  return last > first ? [first, last] : [first, first + 1];
}
