// The contrast window of a picture: its histogram, and the two grey values that are shown as black and white.

import { drawn, element } from "./page.js";

const WIDE = 256, HIGH = 72;
const STEPS = 1000; // of a slider

export function contrast(stage) {
  const { histogram, whole_numbers: whole, window: automatic } = stage.picture;
  const span = histogram.high - histogram.low;
  const step = whole ? Math.max(1, Math.round(span / STEPS)) : span / STEPS;
  const shade = drawn("path", { class: "outside" });
  const picture = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of the grey values" },
    drawn("path", { class: "bars", d: bars(histogram.counts) }), shade);
  const ends = ["low", "high"].map((end) => {
    const name = end === "low" ? "Black" : "White";
    const slider = element("input", { type: "range", min: histogram.low, max: histogram.high, step, "aria-label": `${name} at` });
    const number = element("input", { type: "number", step: whole ? 1 : "any", "aria-label": `${name} at, grey value` });
    for (const input of [slider, number]) {
      input.addEventListener(input === slider ? "input" : "change", () => {
        const wanted = { ...stage.window, [end]: Number(input.value) };
        if (wanted.low < wanted.high) stage.setWindow(wanted.low, wanted.high);
        else follow();
      });
    }
    return { end, slider, number, row: element("label", { className: "row" }, element("span", {}, name), slider, number) };
  });
  const follow = () => {
    for (const { end, slider, number } of ends) {
      slider.value = stage.window[end];
      number.value = Number(stage.window[end].toPrecision(6));
    }
    const [low, high] = ["low", "high"].map((end) => Math.min(1, Math.max(0, (stage.window[end] - histogram.low) / span)) * WIDE);
    shade.setAttribute("d", `M0 0H${low}V${HIGH}H0ZM${high} 0H${WIDE}V${HIGH}H${high}Z`);
  };
  const set = (low, high) => element("button", { type: "button", onclick: () => stage.setWindow(low, high) });
  const usual = set(automatic.low, automatic.high), all = set(histogram.least, histogram.greatest);
  usual.textContent = "Automatic";
  all.textContent = "All values";
  stage.addEventListener("window", follow);
  follow();
  return element("div", { className: "contrast" }, picture, ...ends.map(({ row }) => row), element("div", { className: "group" }, usual, all));
}

/** The outline of the bars; heights are logarithms, so that rare values are seen. */
function bars(counts) {
  const most = Math.log1p(Math.max(...counts, 1)), wide = WIDE / counts.length;
  return counts.map((count, n) => `M${n * wide} ${HIGH}v${(-HIGH * Math.log1p(count)) / most}h${wide}V${HIGH}Z`).join("");
}
