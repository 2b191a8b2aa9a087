// Two stages that zoom and move together, in nanometres: equal lengths of the specimen are equal on the screen.

/** `leader`: gives the stage that a person moves; the other follows and never leads it back. */
export function locked(first, second, leader) {
  const stages = [first, second];
  let on = true, apart = { x: 0, y: 0 };
  /** Size of a pixel [nm]; of pictures that are not both calibrated 1, so that they are locked pixel on pixel. */
  const size = (stage) => (lock.calibrated ? stage.nmPerPixel : 1);
  const place = (stage) => {
    const { x, y } = stage.centre;
    return { x: (x - stage.picture.width / 2) * size(stage), y: (y - stage.picture.height / 2) * size(stage) };
  };
  const follow = (stage) => {
    const other = stages.find((one) => one !== stage);
    if (!on || stage !== leader() || !stage.image || !other.image) return;
    const { x, y } = place(stage), sign = stage === first ? 1 : -1;
    other.zoomTo((stage.zoom / size(stage)) * size(other), true);
    other.moveTo((x + sign * apart.x) / size(other) + other.picture.width / 2, (y + sign * apart.y) / size(other) + other.picture.height / 2, true);
    other.fitted = stage.fitted;
  };
  for (const stage of stages) stage.addEventListener("moved", () => follow(stage));
  const lock = {
    get calibrated() {
      return stages.every((stage) => stage.nmPerPixel !== null);
    },
    /** Show the whole of both at one scale, middle on middle. */
    fit() {
      apart = { x: 0, y: 0 };
      const [scale] = stages.map((stage) => stage.fitting / size(stage)).sort((a, b) => a - b);
      for (const stage of stages) {
        stage.zoomTo(scale * size(stage), true);
        stage.moveTo(stage.picture.width / 2, stage.picture.height / 2, true);
        stage.fitted = true;
      }
    },
    /** Lock or unlock; from then on both keep the distance that they have now. Returns whether they are locked. */
    toggle() {
      on = !on;
      const [a, b] = stages.map(place);
      apart = { x: b.x - a.x, y: b.y - a.y };
      if (on) follow(leader());
      return on;
    },
  };
  return lock;
}
