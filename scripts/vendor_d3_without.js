// In the place of d3-transition and d3-interpolate, of which d3-zoom needs something only where transitions run. There are
// none here, and without the two the bundle is a third of the size.
import { selection } from "d3-selection";

selection.prototype.interrupt = function () {
  return this;
};
export function interrupt() {}
export function interpolateZoom() {
  throw new Error("Transitions of d3-zoom are not part of this bundle (scripts/vendor.js).");
}
