// The viewer of one picture, or of two at equal scale: `viewer?file=...[&page=...][&size=...][&with=...][&size2=...]`.

import { Stage } from "./stage.js";
import { locked } from "./lock.js";
import { comparison, section, sectionsOf } from "./panel.js";
import { element } from "./page.js";

const NARROW = 820; // width under which the details start closed [px]
const told = new URLSearchParams(location.search);
const root = document.getElementById("stages"), panel = document.getElementById("panel");
const button = (id) => document.getElementById(id);

document.body.classList.toggle("pair", told.has("with"));
details(innerWidth >= NARROW); // before the stages are made, which fit their picture to the room that is left
// OpenSeadragon writes a style into the page unless it finds one; our policy refuses that, and viewer.css says the same.
document.head.append(document.createElementNS("", "style"));
document.head.lastElementChild.setAttribute("data-openseadragon-mobile-css", "");

const sources = [sourceOf("file", "page", "size"), sourceOf("with", "page2", "size2")].filter((source) => source.file);
const places = sources.map((source, index) => element("section", { className: "stage", id: `stage${index + 1}`, "aria-label": `Image ${index + 1}` }));
root.append(...places); // all of them, before any stage looks how wide it is
const stages = sources.map((source, index) => new Stage(places[index], source, sources.length > 1 ? `${index + 1}  ` : ""));
let [active] = stages;
const lock = stages.length === 2 ? locked(...stages, () => active) : null;

wire();
show();

async function show() {
  if (!stages.length) {
    root.append(element("p", { className: "problem", role: "alert" }, "No picture is named. Open the viewer from a picture of a conversation."));
    return;
  }
  const table = section("Comparison", true, element("p", { className: "soft" }, "Being compared …"));
  if (lock) panel.append(table);
  for (const stage of stages) {
    const head = stages.length > 1 ? [element("h3", {}, `Image ${stages.indexOf(stage) + 1}`)] : [];
    panel.append(...head, sectionsOf(stage, { open: stages.length === 1 }));
  }
  const loaded = await Promise.all(stages.map((stage) => stage.load().then(() => true, (error) => (stage.tell(error), false))));
  document.title = `${stages.map(({ picture }) => picture?.name ?? "?").join(" and ")} · MAEMI viewer`;
  if (!lock || !loaded.every(Boolean)) return;
  lock.fit();
  if (!lock.calibrated) table.append(element("p", { className: "cautions" }, "Not both pictures are calibrated: they are locked pixel on pixel, and their sizes do not compare."));
  const compare = async () => table.lastElementChild.replaceWith(await comparison(...stages).catch((error) => element("p", { className: "problem" }, error.message)));
  table.append(element("p", {}));
  table.querySelector(".soft").remove();
  await compare();
  for (const stage of stages) stage.addEventListener("loaded", compare);
}

function sourceOf(file, page, size) {
  const source = { file: told.get(file) };
  if (told.has(page)) source.page = Number(told.get(page));
  if (told.get(size)) source.size = told.get(size);
  return source;
}

function wire() {
  const acts = {
    fit: () => (lock ? lock.fit() : active?.fit()),
    pixels: () => active?.zoomTo(1),
    in: () => active?.zoomBy(1.5),
    out: () => active?.zoomBy(1 / 1.5),
    lock: () => button("lock").setAttribute("aria-pressed", lock.toggle()),
    whole: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    details: () => details(!document.body.classList.contains("with-details")),
  };
  for (const stage of stages) {
    for (const kind of ["pointerdown", "wheel", "focusin"]) {
      stage.root.addEventListener(kind, () => (active = stage), { capture: true, passive: true });
    }
    stage.viewer.addHandler("canvas-click", (event) => {
      if (event.quick && !stage.ruler.tool) stage.onClick?.(stage.inPicture(event.position));
    });
    stage.addEventListener("resized", () => stages.every((one) => one.image && one.fitted) && acts.fit());
    stage.ruler.addEventListener("change", () => setTimeout(take, 0, null)); // one at a time; its last click chooses nothing
  }
  for (const [id, act] of Object.entries(acts)) button(id).addEventListener("click", act);
  for (const kind of ["line", "angle"]) {
    button(kind).addEventListener("click", (event) => {
      if (event.detail === 0) active?.ruler.lay(kind); // by the keyboard, which cannot point
      else take(active?.ruler.tool === kind ? null : kind);
    });
  }
  document.addEventListener("keydown", ({ key, target, ctrlKey, metaKey }) => {
    if (target.matches("input") || ctrlKey || metaKey) return;
    if (key === "Escape") take(null);
    if (key === "l" || key === "g") take(key === "l" ? "line" : "angle");
    if (key === "1") acts.pixels();
  });
  document.addEventListener("fullscreenchange", () => button("whole").setAttribute("aria-pressed", document.fullscreenElement !== null));
  button("whole").hidden = !document.fullscreenEnabled;
  button("locking").hidden = !lock;
}

function take(tool) {
  for (const stage of stages) stage.ruler.take(tool);
  for (const kind of ["line", "angle"]) button(kind).setAttribute("aria-pressed", tool === kind);
}

function details(on) {
  document.body.classList.toggle("with-details", on);
  button("details").setAttribute("aria-pressed", on);
}
