// What pages do beyond links and forms; all of them work without it.
"use strict";

for (const twin of document.querySelectorAll("[data-twin]")) {
  const address = new URL(location.href);
  address.searchParams.set("format", "json");
  twin.href = address.pathname + address.search;
}

for (const form of document.querySelectorAll("form[data-drop]")) {
  const input = form.querySelector("input[type=file]");
  const over = on => event => { event.preventDefault(); form.classList.toggle("is-over", on); };
  form.addEventListener("dragover", over(true));
  form.addEventListener("dragleave", over(false));
  form.addEventListener("drop", event => {
    over(false)(event);
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    form.requestSubmit();
  });
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.disabled = true;
    button.textContent = "Sending …";
  });
}

for (const form of document.querySelectorAll("form[data-submit]")) form.requestSubmit();
