// The layer of what was measured: paths over the picture, drawn anew whenever it moves. Knows nothing about numbers.

const VEIL = { positive: "#ffb84d", negative: "#63c3bf", opacity: 0.6 };

export class Marks {
  constructor(stage) {
    this.stage = stage;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "marks";
    this.canvas.setAttribute("aria-hidden", "true");
    stage.view.after(this.canvas);
    this.clear();
  }

  clear() {
    this.figures = new Map(); // name -> strokes
    this.shown = new Set();
    this.objects = [];
    this.chosen = null;
    this.veil = null;
    this.draw();
  }

  /** Lay a veil over a square of the picture: amber where a share is positive, teal where it is negative; or none. */
  cover(evidence) {
    this.veil = evidence && { ...evidence.square, drawn: veiled(evidence.shares) };
    this.draw();
  }

  /** Take what was measured: figures with their strokes, objects with their outlines. */
  take(measured) {
    for (const figure of measured.figures) {
      this.figures.set(figure.name, figure.strokes.map((stroke) => ({ ...stroke, drawn: new Path2D(stroke.path) })));
    }
    this.objects = measured.objects.rows.map((row) => ({ ...row, drawn: outlined(row.outline), box: boxOf(row.outline) }));
  }

  show(figure, on) {
    if (on) this.shown.add(figure);
    else this.shown.delete(figure);
    this.draw();
  }

  choose(object) {
    this.chosen = object;
    this.draw();
  }

  /** The smallest object at a point of the picture, or undefined. */
  at({ x, y }) {
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const around = this.objects.filter(({ box }) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom);
    const size = ({ box }) => (box.right - box.left) * (box.bottom - box.top);
    return around.filter(({ drawn }) => pen.isPointInPath(drawn, x, y)).sort((a, b) => size(a) - size(b))[0];
  }

  draw() {
    const { canvas, stage } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(stage.view.clientWidth * ratio), height = Math.round(stage.view.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!stage.image || (!this.shown.size && !this.chosen && !this.veil)) return;
    const { zoom, x, y } = stage.placing;
    pen.setTransform(zoom * ratio, 0, 0, zoom * ratio, x * ratio, y * ratio);
    pen.lineJoin = pen.lineCap = "round";
    if (this.veil) {
      const { left, top, side, drawn } = this.veil;
      pen.globalAlpha = 1;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(drawn, left, top, side, side);
      pen.strokeStyle = VEIL.positive;
      pen.lineWidth = 1.2 / zoom;
      pen.strokeRect(left, top, side, side);
    }
    for (const name of this.shown) for (const stroke of this.figures.get(name) ?? []) draw(pen, stroke, zoom);
    if (this.chosen) {
      draw(pen, { drawn: this.chosen.drawn, colour: "#ffffff", width: 0, opacity: 0.25 }, zoom);
      draw(pen, { drawn: this.chosen.drawn, colour: "#ffffff", width: 3, opacity: 1 }, zoom);
    }
  }
}

function draw(pen, { drawn, colour, width, opacity }, zoom) {
  pen.globalAlpha = opacity;
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = width / zoom;
  if (width) pen.stroke(drawn);
  else pen.fill(drawn, "evenodd");
}

/** A canvas of one pixel per part, which is drawn large and smooth. */
function veiled(shares) {
  const canvas = Object.assign(document.createElement("canvas"), { width: shares[0].length, height: shares.length });
  const pen = canvas.getContext("2d");
  shares.forEach((row, y) => row.forEach((share, x) => {
    pen.globalAlpha = VEIL.opacity * Math.abs(share);
    pen.fillStyle = share > 0 ? VEIL.positive : VEIL.negative;
    pen.fillRect(x, y, 1, 1);
  }));
  return canvas;
}

function outlined(points) {
  const path = new Path2D();
  points.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
  return path;
}

function boxOf(points) {
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
}
