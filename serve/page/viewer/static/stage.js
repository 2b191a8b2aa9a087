// One picture: its tiles, zoom, window, scale bar and the layers that lie on it. Knows nothing about panels.

import { Marks } from "./marks.js";
import { Ruler } from "./ruler.js";
import { address, asked, element } from "./page.js";
import { lengthText, roundLength } from "./scale.js";

const BAR_SHARE = 0.25; // longest scale bar, in widths of the stage
const SHARP_FROM = 1.5; // screen pixels per pixel from which pixels are shown as squares
const LEFT_ALONE = new Set(["r", "R", "f", "F", "[", "]"]); // keys by which OpenSeadragon would turn a micrograph

export class Stage extends EventTarget {
  /** `source`: the parameters `file` and, where they are known, `page` and `size`; `mark` stands before the name. */
  constructor(root, source, mark = "") {
    super();
    this.source = source;
    this.mark = mark;
    this.fitted = true; // nobody has moved it yet: it stays fitted to a stage that changes its size
    this.root = root;
    this.title = element("h2");
    this.pages = element("span", { className: "pages", hidden: true });
    this.view = element("div", { className: "view" });
    this.bar = element("p", { className: "scale" }, element("span"), element("i"));
    this.problem = element("p", { className: "problem", role: "alert", hidden: true });
    this.head = element("div", { className: "head" }, this.title, this.pages);
    root.append(this.view, this.head, this.bar, this.problem);
    this.viewer = OpenSeadragon({
      element: this.view,
      showNavigationControl: false,
      drawer: "canvas",
      animationTime: 0.4,
      blendTime: 0,
      visibilityRatio: 0.2,
      minZoomImageRatio: 0.05,
      maxZoomPixelRatio: 40,
      imageLoaderLimit: 6,
      crossOriginPolicy: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false },
    });
    this.viewer.addHandler("canvas-key", (event) => {
      if (LEFT_ALONE.has(event.originalEvent.key)) event.preventDefaultAction = true;
    });
    for (const name of ["canvas-drag", "canvas-scroll", "canvas-pinch", "canvas-key", "canvas-double-click"]) {
      this.viewer.addHandler(name, () => (this.fitted = false));
    }
    this.viewer.addHandler("resize", () => setTimeout(() => this.dispatchEvent(new Event("resized"))));
    for (const name of ["viewport-change", "resize", "open"]) this.viewer.addHandler(name, () => this.moved());
    this.marks = new Marks(this);
    this.ruler = new Ruler(this);
  }

  /** Read the picture and show it; `page` where another page of a stack is wanted. */
  async load(page = this.source.page) {
    this.source = { ...this.source, ...(page === undefined ? {} : { page }) };
    this.root.setAttribute("aria-busy", "true");
    this.picture = await asked("picture", this.source);
    this.source.page = this.picture.page;
    this.window = { ...this.picture.window };
    this.nmPerPixel = this.picture.nm_per_pixel;
    this.title.textContent = this.mark + this.picture.name;
    this.view.firstElementChild?.setAttribute("role", "group"); // without one, readers pass over the name
    this.view.firstElementChild?.setAttribute("aria-label", `${this.picture.name}: arrows move, plus and minus zoom`);
    this.turnPages();
    this.image = null;
    await new Promise((done, failed) => {
      this.viewer.addOnceHandler("open", done);
      this.viewer.addOnceHandler("open-failed", () => failed(new Error("The tiles of the picture cannot be read.")));
      this.viewer.open(this.tiles());
    });
    this.image = this.viewer.world.getItemAt(0);
    this.root.removeAttribute("aria-busy");
    this.marks.clear();
    this.ruler.redraw();
    this.moved();
    this.dispatchEvent(new Event("loaded"));
  }

  /** Show another part of the grey values; what is on the screen stays until the new tiles are there. */
  setWindow(low, high) {
    this.window = { low, high };
    this.dispatchEvent(new Event("window"));
    clearTimeout(this.rewindowing);
    this.rewindowing = setTimeout(() => {
      const wanted = this.window;
      this.viewer.addTiledImage({
        tileSource: this.tiles(),
        success: ({ item }) => {
          this.image = item;
          const settle = () => {
            if (!item.getFullyLoaded() || wanted !== this.window) return;
            while (this.viewer.world.getItemAt(0) !== item) this.viewer.world.removeItem(this.viewer.world.getItemAt(0));
          };
          item.addHandler("fully-loaded-change", settle);
          settle();
        },
      });
    }, 120);
  }

  fit() {
    this.fitted = true;
    this.viewer.viewport.goHome();
  }

  /** How many pixels of the screen one of the picture takes. */
  get zoom() {
    return this.image ? this.image.viewportToImageZoom(this.viewer.viewport.getZoom(true)) : 1;
  }

  /** Zoom to so many pixels of the screen per pixel, about the middle. */
  zoomTo(zoom, immediately = false) {
    this.fitted = false;
    if (this.image) this.viewer.viewport.zoomTo(this.image.imageToViewportZoom(zoom), null, immediately);
  }

  zoomBy(factor) {
    this.fitted = false;
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  /** The zoom at which the whole picture is seen. */
  get fitting() {
    return Math.min(this.view.clientWidth / this.picture.width, this.view.clientHeight / this.picture.height);
  }

  /** Middle of the stage in the picture [px]. */
  get centre() {
    return this.image.viewportToImageCoordinates(this.viewer.viewport.getCenter(true));
  }

  moveTo(x, y, immediately = false) {
    this.viewer.viewport.panTo(this.image.imageToViewportCoordinates(new OpenSeadragon.Point(x, y)), immediately);
  }

  /** A place of the stage [px of the screen] in the picture [px]. */
  inPicture(point) {
    return this.image.viewerElementToImageCoordinates(new OpenSeadragon.Point(point.x, point.y));
  }

  /** What takes a point of the picture to one of the stage: factor, and where its corner lies. */
  get placing() {
    const corner = this.viewer.viewport.viewportToViewerElementCoordinates(this.image.getBounds(true).getTopLeft());
    return { zoom: this.zoom, x: corner.x, y: corner.y };
  }

  moved() {
    if (!this.image) return;
    this.viewer.drawer.setImageSmoothingEnabled(this.zoom < SHARP_FROM);
    const [words, line] = this.bar.children;
    const unit = this.nmPerPixel === null ? "px" : "nm";
    const perPixel = (this.nmPerPixel ?? 1) / this.zoom;
    const length = roundLength(BAR_SHARE * this.view.clientWidth * perPixel);
    line.style.width = `${length / perPixel}px`;
    words.textContent = lengthText(length, unit);
    this.marks.draw();
    this.ruler.place();
    this.dispatchEvent(new Event("moved"));
  }

  tell(error) {
    this.problem.textContent = error.message;
    this.problem.hidden = false;
    this.root.removeAttribute("aria-busy");
  }

  tiles() {
    const { width, height, tile, levels } = this.picture;
    const known = { ...this.source, low: this.window.low, high: this.window.high };
    return {
      width, height, tileSize: tile, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, x, y) => address("tile", { ...known, level: levels - 1 - level, x, y }),
    };
  }

  turnPages() {
    const { page, pages } = this.picture;
    this.pages.hidden = pages < 2;
    if (pages < 2) return;
    const turn = (to) => this.load(Math.max(0, Math.min(pages - 1, to))).catch((error) => this.tell(error));
    const number = element("input", {
      type: "number", min: 1, max: pages, value: page + 1, "aria-label": `Page, of ${pages}`,
      onchange: () => turn(number.value - 1),
    });
    this.pages.replaceChildren(
      element("button", { type: "button", "aria-label": "Page before", disabled: page === 0, onclick: () => turn(page - 1) }, "‹"),
      number, ` / ${pages}`,
      element("button", { type: "button", "aria-label": "Next page", disabled: page === pages - 1, onclick: () => turn(page + 1) }, "›"),
    );
  }
}
