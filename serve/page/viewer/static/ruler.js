// Lines and angles that a person measures: placed by clicks or a drag, moved by their ends, also with the keyboard.

import { angleOf, lengthOf } from "./scale.js";
import { drawn, say } from "./page.js";

const NEEDED = { line: 2, angle: 3 }; // points
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const A_DRAG = 6; // shortest way of the pointer that is no click [px of the screen]

export class Ruler extends EventTarget {
  constructor(stage) {
    super();
    this.stage = stage;
    this.tool = null;
    this.made = []; // {kind, points: [{x, y}] in px of the picture}
    this.making = null;
    this.layer = drawn("svg", { class: "ruler", role: "group", "aria-label": "Measurements" });
    stage.view.after(this.layer);
    const { viewer } = stage;
    viewer.addHandler("canvas-press", (event) => this.pressed(event));
    viewer.addHandler("canvas-release", (event) => this.released(event));
    viewer.addHandler("canvas-drag", (event) => this.tool && this.follow(event.position));
    for (const name of ["canvas-drag", "canvas-drag-end", "canvas-double-click"]) {
      viewer.addHandler(name, (event) => (event.preventDefaultAction ||= this.tool !== null));
    }
    stage.view.addEventListener("pointermove", (event) => this.hovered(event));
  }

  /** Take up a tool, "line" or "angle", or put it down with null. */
  take(tool) {
    if (tool === this.tool && !this.making) return; // drawn anew, the ends would lose the focus
    this.tool = tool;
    this.making = null;
    this.stage.root.classList.toggle("measuring", tool !== null);
    this.redraw();
    this.dispatchEvent(new Event("tool"));
  }

  /** Lay one across the middle of the stage, to be moved with the arrow keys. */
  lay(kind) {
    const { clientWidth: width, clientHeight: height } = this.stage.view;
    const places = { line: [[-1, 0], [1, 0]], angle: [[-1, 0], [0, 1], [1, 0]] }[kind];
    const points = places.map(([x, y]) => this.stage.inPicture({ x: width / 2 + (x * width) / 6, y: height / 2 + (y * height) / 6 }));
    this.add({ kind, points });
    this.layer.lastElementChild.querySelector(".end").focus();
  }

  remove(measured) {
    this.made = this.made.filter((other) => other !== measured);
    this.redraw();
    this.dispatchEvent(new Event("change"));
  }

  /** What a measurement says. */
  text({ kind, points }) {
    return kind === "line" ? lengthOf(points, this.stage.nmPerPixel) : angleOf(points);
  }

  add(measured) {
    this.making = null;
    this.made.push(measured);
    this.redraw();
    this.changed(measured);
  }

  changed(measured) {
    say(`${measured.kind} ${this.made.indexOf(measured) + 1}: ${this.text(measured)}`);
    this.dispatchEvent(new Event("change"));
  }

  pressed(event) {
    if (!this.tool) return;
    this.start = event.position;
    this.first = this.making === null;
    if (this.first) {
      const here = this.stage.inPicture(event.position);
      this.making = { kind: this.tool, points: [here, here] }; // the last point follows the pointer
      this.redraw();
    }
    this.follow(event.position);
  }

  hovered(event) {
    if (this.making && !event.buttons) this.follow(this.onStage(event));
  }

  follow(position) {
    if (!this.making) return;
    this.making.points[this.making.points.length - 1] = this.stage.inPicture(position);
    this.place();
  }

  /** The last point stands where the pointer was let go; a click that began a measurement placed its first only. */
  released(event) {
    if (!this.making) return;
    this.follow(event.position);
    const { points, kind } = this.making;
    const dragged = Math.hypot(event.position.x - this.start.x, event.position.y - this.start.y) > A_DRAG;
    if (this.first && !dragged) return;
    if (points.length < NEEDED[kind]) points.push(points.at(-1));
    else this.add(this.making);
  }

  onStage(event) {
    const frame = this.stage.view.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  }

  redraw() {
    const all = this.making ? [...this.made, this.making] : this.made;
    this.layer.replaceChildren(...all.map((measured, number) => this.pieces(measured, number + 1)));
    this.place();
  }

  pieces(measured, number) {
    const group = drawn("g", {}, drawn("polyline", { class: "shade" }), drawn("polyline"), drawn("text"));
    if (measured !== this.making) {
      measured.points.forEach((point, index) => group.append(this.end(measured, number, index)));
    }
    return group;
  }

  end(measured, number, index) {
    const end = drawn("circle", {
      class: "end", r: 7, tabindex: 0, role: "button",
      "aria-label": `${measured.kind} ${number}, point ${index + 1}: arrows move it, Delete removes the ${measured.kind}`,
    });
    const put = (point) => {
      measured.points[index] = point;
      this.place();
      this.changed(measured);
    };
    end.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      end.setPointerCapture(event.pointerId);
    });
    end.addEventListener("pointermove", (event) => {
      if (end.hasPointerCapture(event.pointerId)) put(this.stage.inPicture(this.onStage(event)));
    });
    end.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") this.remove(measured);
      const [x, y] = STEPS[event.key] ?? [];
      if (x === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const step = (event.shiftKey ? 10 : 1) / this.stage.zoom;
      put({ x: measured.points[index].x + x * step, y: measured.points[index].y + y * step });
    });
    return end;
  }

  /** Put everything where the picture is now. */
  place() {
    if (!this.stage.image) return;
    const { zoom, x, y } = this.stage.placing;
    const all = this.making ? [...this.made, this.making] : this.made;
    all.forEach((measured, number) => {
      const group = this.layer.children[number];
      if (!group) return;
      const points = measured.points.map((point) => ({ x: point.x * zoom + x, y: point.y * zoom + y }));
      const [shade, line, text, ...ends] = group.children;
      for (const part of [shade, line]) part.setAttribute("points", points.map((p) => `${p.x},${p.y}`).join(" "));
      const [a, b] = points.length > 2 ? [points[1], points[1]] : points;
      text.setAttribute("x", (a.x + b.x) / 2);
      text.setAttribute("y", (a.y + b.y) / 2 - 12);
      text.textContent = points.length < NEEDED[measured.kind] ? "" : this.text(measured);
      ends.forEach((end, index) => {
        end.setAttribute("cx", points[index].x);
        end.setAttribute("cy", points[index].y);
      });
    });
  }
}
