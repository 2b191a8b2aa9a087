// What the page does in the browser beside Gradio: the card of a fact, and copying words instead of markup.
() => {
  const card = document.createElement("div");
  card.className = "maemi-tip";
  card.setAttribute("aria-hidden", "true"); // a reader hears the same from the word's own label
  document.body.append(card);
  let shown = null;

  function show(word) {
    shown = word;
    if (word.title) { // the sanitizer lets no label through; without its title the word has one card, not two
      word.setAttribute("aria-label", word.title);
      word.removeAttribute("title");
    }
    card.replaceChildren(...(word.getAttribute("aria-label") ?? "").split("\n").map((line) => {
      const row = document.createElement("p");
      row.textContent = line;
      return row;
    }));
    card.style.display = "block";
    const at = word.getBoundingClientRect(), size = card.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left), innerWidth - size.width - 8);
    const above = at.top - size.height - 8;
    card.style.left = `${left}px`;
    card.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  }
  function hide() {
    shown = null;
    card.style.display = "none";
  }
  const word = (event) => event.target.closest?.(".maemi-fact");
  for (const kind of ["mouseover", "focusin", "click"])
    document.addEventListener(kind, (event) => word(event) ? show(word(event)) : kind === "click" && hide());
  document.addEventListener("mouseout", (event) => word(event) && word(event) !== document.activeElement && hide());
  document.addEventListener("focusout", (event) => word(event) && hide());
  document.addEventListener("scroll", () => shown && hide(), true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });

  const viewer = document.createElement("dialog");
  viewer.className = "maemi-viewer";
  viewer.setAttribute("aria-label", "Viewer");
  viewer.addEventListener("close", () => viewer.replaceChildren());
  document.body.append(viewer);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.maemi-view");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // those open a tab of its own
    event.preventDefault();
    const close = document.createElement("button"), frame = document.createElement("iframe");
    close.textContent = "Close viewer";
    close.addEventListener("click", () => viewer.close());
    Object.assign(frame, { src: link.href, title: link.textContent, allow: "fullscreen" });
    viewer.replaceChildren(close, frame);
    viewer.showModal();
  });

  // What is clicked or typed in a table goes into a hidden field, whose change the page answers.
  const tell = (element, words) => {
    const field = document.querySelector(`.maemi-told-${element.dataset.tells} :is(textarea, input)`);
    if (!field) return;
    field.value = `${words}\n${Date.now()}`; // the same words twice are told twice
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-tells]");
    if (button) tell(button, button.dataset.value);
  });
  document.addEventListener("change", (event) => {
    const field = event.target.closest?.("input[data-tells]");
    if (field) tell(field, `${field.dataset.value}\t${field.value.replace(/\s+/g, " ").trim()}`);
  });

  // Gradio gives pictures of a chat no words, and fields for files another name than what stands in them.
  new MutationObserver(() => {
    for (const picture of document.querySelectorAll('.maemi-chat .message img[alt=""]')) picture.alt = "Micrograph";
    for (const field of document.querySelectorAll("button.upload-container[aria-label]")) field.removeAttribute("aria-label");
  }).observe(document.body, { childList: true, subtree: true });

  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write)
    navigator.clipboard.writeText = (text) => {
      const page = new DOMParser().parseFromString(text, "text/html");
      page.querySelectorAll(".maemi-by").forEach((note) => note.remove());
      return write(page.body.textContent.trim());
    };

  if (innerWidth < 760) { // the list would stand before the chat
    const waiting = setInterval(() => {
      const list = document.querySelector(".maemi-list button.label-wrap.open");
      if (list) {
        clearInterval(waiting);
        list.click();
      }
    }, 50);
    setTimeout(() => clearInterval(waiting), 10000);
  }
}
