// The running answer: server-sent events in, messages for the Chatbot out. The server is not asked again for any of it.
// (Runs once, inside a component of its own; `trigger` makes the page take what window.llmsvcLive() gives.)
let answer = null;

const VERBATIM = /^ {0,3}(`{3,}|~{3,})[^]*?(?:^ {0,3}\1[`~]*[ \t]*$|$(?![^]))|(`+)(?!`)[^]+?(?<!`)\2(?!`)|\$\$[^]*?\$\$|\\\([^]*?\\\)|\\\[[^]*?\\\]|<\/?think>/gm;

function escaped(s) {  // as _escaped in llmsvc/ui/chat.py
  if (!s.includes("<")) return s;
  let out = "", end = 0;
  for (const found of s.matchAll(VERBATIM)) {
    out += s.slice(end, found.index).replaceAll("<", "&lt;") + found[0];
    end = found.index + found[0].length;
  }
  return out + s.slice(end).replaceAll("<", "&lt;");
}

window.llmsvcLive = () => {
  if (!answer) return [[]];
  const { text, status } = answer;
  const note = (status.note || status.error || "").replaceAll("<", "&lt;");
  const waiting = note || (status.state === "prefill" ? "Reading…" : "Waiting…");
  let shown = text ? escaped(text) : `<span class="waiting">${waiting}</span>`;
  if (text && status.usage?.completion_tokens) {
    const open = text.split("\n").filter((line) => line.trimStart().startsWith("```")).length % 2;
    const speed = status.usage.tokens_per_second ? ` · ${status.usage.tokens_per_second} tok/s` : "";
    shown += `${open ? "\n```" : ""}\n\n<sub class="usage">${status.usage.completion_tokens} tokens${speed}${note ? " · " + note : ""}</sub>`;
  }
  return [[{ role: "assistant", metadata: { title: null }, options: null, content: [{ type: "text", text: shown }] }]];
};

function changed(now) {
  if (now !== answer) return;
  if (now.turn && now.turn !== now.wanted) now.over = true;
  if (!now.over) return trigger("select", {});
  answer.close();
  delete sessionStorage.llmsvcWatched;
  window.llmsvcSay?.("done");
}

// How many messages stand on the screen, and the id of the last, by the buttons that each has.
window.llmsvcShown = () => {
  const marks = document.querySelectorAll("#history :is(.do-edit, .do-again), #recent :is(.do-edit, .do-again)");
  const last = [...marks.item(marks.length - 1)?.classList ?? []].find((name) => name.startsWith("to-")) ?? "to-";
  return `${marks.length} ${last.slice(3)}`;
};

window.llmsvcWatch = (go) => {
  const [session, turn] = go.split(" ");
  if (turn && answer?.wanted === turn && !answer.over) return;  // it is being watched
  const early = window.llmsvcEarly;
  window.llmsvcEarly = null;
  answer?.close();
  answer = null;
  const taken = early && early.session === session && !early.over;
  if (early && !taken) early.over = true, early.close(), early.uncover();
  if (!turn) return delete sessionStorage.llmsvcWatched;
  sessionStorage.llmsvcWatched = session;  // so that a reload shows it at once
  answer = Object.assign(taken ? early : window.llmsvcRead(session, changed), { changed, wanted: turn });
  changed(answer);
  if (taken) (function uncover() {
    if (answer !== early || early.over || document.querySelector("#live .message")?.innerText) early.uncover();
    else requestAnimationFrame(uncover);
  })();
};
