// A small seeded generator (mulberry32), so that a failing case can be had again from its seed.

/** @param {number} seed */
export function seeded(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return { next, below: (/** @type {number} */ n) => Math.floor(next() * n) };
}

/** Parents of a random tree, breadth-first. @param {ReturnType<typeof seeded>} random @param {number} most nodes */
export function randomParents(random, most) {
  const parent = [-1];
  let level = [0];
  while (level.length && parent.length < most) {
    const below = [];
    for (const node of level) {
      const children = random.below(5);
      for (let i = 0; i < children && parent.length < most; i++) {
        below.push(parent.length);
        parent.push(node);
      }
    }
    level = below;
  }
  return parent;
}
