// Files come in by dropping and pasting, through the input of the button that attaches them.
// (Runs once, inside the component of the files' chips.)
const parts = "#chips, #file-list, #file-text";
const say = (...words) => window.llmsvcSay(...words);
function give(files) {
  const input = document.querySelector("#ask input[type=file]");
  const given = new DataTransfer();
  for (const file of files) given.items.add(file);
  input.files = given.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
const brings = (e) => [...(e.dataTransfer?.types ?? [])].includes("Files");
let over = 0;
const hint = (on) => document.body.classList.toggle("dropping", on);
document.addEventListener("dragover", (e) => {
  if (!brings(e)) return;
  e.preventDefault(); e.stopPropagation();
  hint(true);
  clearTimeout(over);
  over = setTimeout(hint, 300, false);  // leaving is told for every element that is crossed
}, true);
document.addEventListener("drop", (e) => {
  if (!brings(e)) return;
  e.preventDefault(); e.stopPropagation();
  hint(false);
  give(e.dataTransfer.files);
}, true);
document.addEventListener("paste", (e) => {
  const files = e.clipboardData?.files ?? [];
  if (!files.length || e.clipboardData.getData("text/plain")) return;  // office programs add a picture of the text
  e.preventDefault(); e.stopPropagation();
  give(files);
}, true);

const openTab = () =>
  [...document.querySelectorAll("#tabs [role=tab]")].find((tab) => tab.textContent.trim() === "Files")?.click();
document.addEventListener("click", (e) => {
  if (e.target.closest("#scroll :is(.do-file-open, .do-file-summary)")) openTab();
  const button = e.target.closest(`:is(${parts}) button[data-act]`);
  if (!button) return;
  const { act, id } = button.dataset;
  if (act === "file-remove" && !button.classList.contains("sure")) {
    const label = button.textContent;
    button.classList.add("sure");
    button.textContent = "Remove?";
    return setTimeout(() => { button.classList.remove("sure"); button.textContent = label; }, 4000);
  }
  if (act === "file-open") openTab();
  say(act, id);
});
document.addEventListener("submit", (e) => {
  const form = e.target.closest("#file-list form");
  if (!form) return;
  e.preventDefault();
  say(form.dataset.act, form.dataset.id, form.querySelector("input").value);
});
document.addEventListener("change", (e) => {
  const choice = e.target.closest("#file-list select");
  if (choice) say(choice.dataset.act, choice.dataset.id, choice.value);
});

// The lists are drawn anew as files are read: whoever uses the keyboard stays where they were.
let held = "";
const stay = new MutationObserver(() => {
  if (held && document.activeElement === document.body) document.querySelector(held)?.focus();
});
document.addEventListener("focusin", (e) => {
  const part = e.target.closest(parts), button = e.target.closest("[data-act]");
  held = part && button ? `#${part.id} [data-act="${button.dataset.act}"][data-id="${button.dataset.id}"]` : "";
  if (part) stay.observe(part, { childList: true, subtree: true });
});
