// What is told beside the pictures: contrast, overlay, objects, measurements, values; of two pictures their differences.

import { asked, element, say } from "./page.js";
import { contrast } from "./contrast.js";

const COLUMNS = [
  ["diameter", "Diameter"], ["feret_max", "Longest"], ["feret_min", "Shortest"], ["aspect_ratio", "Aspect"],
  ["orientation", "Direction"], ["state", "State"],
];

/** The sections of one picture; they follow it from page to page. */
export function sectionsOf(stage, { open = true } = {}) {
  const root = element("div", { className: "sections" });
  const ruled = section("Measurements", true);
  stage.ruler.addEventListener("change", () => list(ruled, stage));
  stage.addEventListener("loaded", () => {
    const measured = [section("Overlay", open), section("Objects", false), section("Values", open)];
    const evidence = section("Evidence", false);
    evidence.addEventListener("toggle", () => explain(evidence, stage));
    root.replaceChildren(
      section("Contrast", open, contrast(stage)), ...measured, evidence, ruled, section("Picture", false, aboutPicture(stage.picture)),
    );
    list(ruled, stage);
    fill(measured, stage);
  });
  return root;
}

/** What the class rests on, over the picture as long as the section is open; asked for once, and it takes a while. */
async function explain(evidence, stage) {
  if (!evidence.open) return stage.marks.cover(null);
  const { picture } = stage;
  try {
    if (!evidence.told) put(evidence, element("p", { className: "soft", role: "status" }, "Covering the picture part by part; this takes a while …"));
    evidence.told ??= asked("evidence", stage.source);
    const told = await evidence.told;
    if (picture !== stage.picture || !evidence.open) return;
    put(evidence, element("p", { className: "soft" }, told.sentence));
    stage.marks.cover(told);
  } catch (error) {
    evidence.told = undefined;
    put(evidence, element("p", { className: "problem" }, error.message));
  }
}

/** The table of two pictures' facts and their differences. */
export async function comparison(first, second) {
  const { file, size, page } = second.source;
  const told = { ...first.source, with: file, page2: page, ...(size ? { size2: size } : {}) };
  const rows = await asked("compared", told);
  const head = ["Quantity", "Image 1", "Image 2", "2 less 1"];
  return element("div", { className: "scroll compared" }, table("Facts of both pictures", head, rows.map((row) => [row.quantity, row.a || "–", row.b || "–", row.difference])));
}

export function section(title, open, ...content) {
  return element("details", { open }, element("summary", {}, title), ...content);
}

async function fill([overlay, objects, values], stage) {
  const { picture } = stage;
  for (const waiting of [overlay, objects, values]) put(waiting, element("p", { className: "soft" }, "Being measured …"));
  try {
    const measured = await asked("measured", stage.source);
    if (picture !== stage.picture) return; // another page by now
    stage.measured = measured;
    stage.marks.take(measured);
    put(overlay, ...switches(measured, stage));
    put(objects, objectsOf(measured.objects, stage, objects));
    put(values, listed(measured.facts));
  } catch (error) {
    for (const waiting of [overlay, objects, values]) put(waiting, element("p", { className: "problem" }, error.message));
  }
}

function put(section, ...content) {
  section.replaceChildren(section.firstElementChild, ...content);
}

function switches({ figures }, stage) {
  if (!figures.length) return [element("p", { className: "soft" }, "Nothing was measured that could be drawn.")];
  return figures.map(({ name, facts }) => {
    const box = element("input", { type: "checkbox", id: `${stage.root.id}-${name}`, onchange: () => stage.marks.show(name, box.checked) });
    const told = facts.map(([quantity, value]) => `${quantity} ${value}`).join(", ");
    return element("label", { className: "switch", title: facts[0]?.[2] ?? "" }, box, element("b", {}, name), element("span", {}, told));
  });
}

function objectsOf({ total, rows }, stage, holder) {
  if (!total) return element("p", { className: "soft" }, "No separate objects were told apart.");
  const body = element("tbody");
  const choose = (object, line) => {
    body.querySelector("[aria-selected=true]")?.removeAttribute("aria-selected");
    line?.setAttribute("aria-selected", "true");
    stage.marks.choose(object ?? null);
    if (object) say(`Object ${object.number}: ${COLUMNS.map(([key, title]) => `${title} ${object[key]}`).join(", ")}`);
  };
  const lines = new Map(rows.map((row, index) => {
    const object = stage.marks.objects[index];
    const see = () => {
      choose(object, line);
      stage.moveTo((object.box.left + object.box.right) / 2, (object.box.top + object.box.bottom) / 2);
    };
    const line = element("tr", {},
      element("th", { scope: "row" }, element("button", { type: "button", "aria-label": `Show object ${row.number}`, onclick: see }, row.number)),
      ...COLUMNS.map(([key]) => element("td", {}, row[key])));
    return [object, line];
  }));
  body.append(...lines.values());
  stage.onClick = (point) => {
    const object = stage.marks.at(point);
    choose(object, lines.get(object));
    if (!object) return;
    holder.open = true;
    lines.get(object).scrollIntoView({ block: "nearest" });
  };
  const told = total > rows.length ? `The largest ${rows.length} of ${total}.` : `${total} in all. A click on one in the picture finds it here.`;
  const made = element("table", {}, element("thead", {}, element("tr", {}, ...["No.", ...COLUMNS.map(([, title]) => title)].map((title) => element("th", { scope: "col" }, title)))), body);
  return element("div", {}, element("p", { className: "soft" }, told), element("div", { className: "scroll objects" }, made));
}

function list(section, stage) {
  const { ruler } = stage;
  const rows = ruler.made.map((measured, index) => element("li", {},
    element("span", {}, `${measured.kind} ${index + 1}`), element("b", {}, ruler.text(measured)),
    element("button", { type: "button", "aria-label": `Remove ${measured.kind} ${index + 1}`, onclick: () => ruler.remove(measured) }, "×")));
  const hint = stage.nmPerPixel === null
    ? "The picture is not calibrated: lengths are in pixels." : "Take Line or Angle above, then click or drag in the picture.";
  put(section, rows.length ? element("ul", { className: "measured" }, ...rows) : element("p", { className: "soft" }, hint));
}

function listed(facts) {
  return element("dl", {}, ...facts.map(([name, value, how]) => element("div", { title: how }, element("dt", {}, name), element("dd", {}, value))));
}

function aboutPicture({ read, warnings }) {
  const cautions = element("ul", { className: "cautions", hidden: !warnings.length }, ...warnings.map((text) => element("li", {}, text)));
  return element("div", {}, cautions, listed(read.map(([label, value]) => [label, value, ""])));
}

function table(caption, head, rows) {
  const cells = (row) => row.map((text, column) => element(column ? "td" : "th", column ? {} : { scope: "row" }, text));
  return element("table", {}, element("caption", { className: "unseen" }, caption),
    element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row)))));
}
