// Clicks and keys that change the conversation, handed to the server as one event: {action, id, text}.
// (Runs once, inside the component of the messages that wait: `element` and `trigger` are its own.)
const say = window.llmsvcSay = (action, id = "", text = "") => trigger("select", { action, id, text });
element.addEventListener("click", (e) => {
  const button = e.target.closest("[data-act]");
  if (button) say(button.dataset.act, button.dataset.id);
});
document.addEventListener("click", (e) => {
  const button = e.target.closest("#scroll .act");
  if (button) {
    const token = (start) => [...button.classList].find((c) => c.startsWith(start))?.slice(3) ?? "";
    say(token("do-"), token("to-"));
  }
  if (e.target.closest("#editing [data-act]")) say("cancel");
});
document.addEventListener("keydown", (e) => {
  const box = e.target.closest("#composer textarea");
  if (box && e.key === "ArrowUp" && !box.value) { e.preventDefault(); say("edit-last"); }
  if (e.key === "Escape" && document.querySelector("#editing button")) { e.stopPropagation(); say("cancel"); }
}, true);
