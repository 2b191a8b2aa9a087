// Lengths and angles in words, and the round lengths of a scale bar. Knows nothing about pages.

/** The largest of 1, 2, 5 times a power of ten that is not above `target`. */
export function roundLength(target) {
  const power = 10 ** Math.floor(Math.log10(target));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((length) => length <= target * 1.0001));
}

/** A length [nm, or px] in the unit that suits its size, with at most `digits` digits. */
export function lengthText(length, unit, digits = 12) {
  const size = Math.abs(length);
  if (unit === "nm" && size >= 999.5e3) [length, unit] = [length / 1e6, "mm"];
  else if (unit === "nm" && size >= 999.5) [length, unit] = [length / 1e3, "µm"];
  else if (unit === "nm" && size < 0.5 && size > 0) [length, unit] = [length * 1e3, "pm"];
  return `${Number(length.toPrecision(digits))} ${unit}`;
}

/** Length of a line between two points [px] in nm where the picture is calibrated. */
export function lengthOf([a, b], nmPerPixel) {
  const pixels = Math.hypot(b.x - a.x, b.y - a.y);
  return nmPerPixel === null ? lengthText(pixels, "px", 3) : lengthText(pixels * nmPerPixel, "nm", 3);
}

/** Angle at the middle one of three points, 0 to 180 degrees. */
export function angleOf([a, middle, b]) {
  const turn = Math.atan2(a.y - middle.y, a.x - middle.x) - Math.atan2(b.y - middle.y, b.x - middle.x);
  const degrees = Math.abs((turn * 180) / Math.PI) % 360;
  return `${(degrees > 180 ? 360 - degrees : degrees).toFixed(1)}°`;
}
