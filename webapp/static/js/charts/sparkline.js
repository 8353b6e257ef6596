// A small line in a table cell.
import { yRange } from "./scale.js";

/** @param {SVGSVGElement} svg @param {number[]} values @param {number} slot of the run palette */
export function sparkline(svg, values, slot) {
  const [width, height] = [64, 16];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("class", `spark s${slot}`);
  const [low, high] = yRange([values]);
  const points = values.map((value, i) => {
    const x = (i * width) / Math.max(1, values.length - 1);
    const y = height - 1 - ((value - low) / (high - low)) * (height - 2);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  let path = svg.querySelector("path");
  if (!path) {
    path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.append(path);
  }
  path.setAttribute("d", values.length > 1 ? `M${points.join("L")}` : "");
}
