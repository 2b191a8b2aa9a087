// Small pieces of a page: elements, replies of the server, words for a screen reader.

/** An element with properties, attributes (`aria-...`, `data-...`, `role`) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** The same of SVG; all properties are attributes. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** What the server answers to `viewer/NAME?...`; an Error with its words where it refuses. */
export async function asked(name, parameters) {
  const reply = await fetch(address(name, parameters));
  const record = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(record.error?.message ?? `The server answers ${reply.status}.`);
  return record;
}

/** Where something of a picture is found. */
export function address(name, parameters) {
  return `viewer/${name}?${new URLSearchParams(parameters)}`;
}

/** Tell a screen reader. */
export function say(words) {
  document.getElementById("said").textContent = words;
}
