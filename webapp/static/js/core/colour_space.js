// Mixing colours evenly to the eye, and telling whether text can be read on them (Björn Ottosson, "A perceptual color space for image processing", 2020).

/** @typedef {[number, number, number]} Triple */

/** @param {number} channel 0..1 */
const toLinear = (channel) => (channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4);
/** @param {number} channel */
const toGamma = (channel) => (channel <= 0.0031308 ? 12.92 * channel : 1.055 * channel ** (1 / 2.4) - 0.055);

/** `#rrggbb` to OKLab. @param {string} hex @returns {Triple} */
export function oklab(hex) {
  const red = toLinear(parseInt(hex.slice(1, 3), 16) / 255);
  const green = toLinear(parseInt(hex.slice(3, 5), 16) / 255);
  const blue = toLinear(parseInt(hex.slice(5, 7), 16) / 255);
  const long = Math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue);
  const medium = Math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue);
  const short = Math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue);
  return [
    0.2104542553 * long + 0.793617785 * medium - 0.0040720468 * short,
    1.9779984951 * long - 2.428592205 * medium + 0.4505937099 * short,
    0.0259040371 * long + 0.7827717662 * medium - 0.808675766 * short,
  ];
}

/** OKLab to `#rrggbb`, clipped into what a screen can show. @param {Triple} lab */
export function hexOf([lightness, a, b]) {
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const channels = [
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
  ];
  return `#${channels
    .map((channel) => Math.round(255 * Math.min(1, Math.max(0, toGamma(Math.max(0, channel))))).toString(16).padStart(2, "0"))
    .join("")}`;
}

/**
 * A colour along evenly spaced stops, mixed in OKLab.
 * @param {readonly string[]} stops @param {number} position 0..1; outside is clamped
 */
export function alongStops(stops, position) {
  const place = Math.min(1, Math.max(0, position)) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const share = place - index;
  const from = oklab(/** @type {string} */ (stops[index]));
  const to = oklab(/** @type {string} */ (stops[index + 1]));
  return hexOf([from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share, from[2] + (to[2] - from[2]) * share]);
}

/** Relative luminance, 0 to 1 (WCAG 2.2). @param {string} hex */
function luminance(hex) {
  const [red, green, blue] = [1, 3, 5].map((at) => toLinear(parseInt(hex.slice(at, at + 2), 16) / 255));
  return 0.2126 * Number(red) + 0.7152 * Number(green) + 0.0722 * Number(blue);
}

/** Contrast ratio, 1 to 21 (WCAG 2.2). @param {string} one @param {string} other */
export function contrast(one, other) {
  const [a, b] = [luminance(one), luminance(other)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
