// The parts of D3 that Arborist uses; `scripts/vendor.js` makes `vendor/d3.js` from this list.
export { hierarchy, tree } from "d3-hierarchy";
export { pointer, select } from "d3-selection";
export { zoom, zoomIdentity } from "d3-zoom";
