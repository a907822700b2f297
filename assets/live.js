// The running answer: server-sent events in, messages for the Chatbot out. The server is not asked again for any of it.
// (Runs once, inside a component of its own; `trigger` makes the page take what window.llmsvcLive() gives.)
let answer = null;

const VERBATIM = /^ {0,3}(`{3,}|~{3,})[^]*?(?:^ {0,3}\1[`~]*[ \t]*$|$(?![^]))|(`+)(?!`)[^]+?(?<!`)\2(?!`)|\$\$[^]*?\$\$|\\\([^]*?\\\)|\\\[[^]*?\\\]/gm;

function escaped(s) {  // as _escaped in llmsvc/ui/chat.py
  if (!s.includes("<")) return s;
  let out = "", end = 0;
  for (const found of s.matchAll(VERBATIM)) {
    out += s.slice(end, found.index).replaceAll("<", "&lt;") + found[0];
    end = found.index + found[0].length;
  }
  return out + s.slice(end).replaceAll("<", "&lt;");
}

const message = (text, metadata) => ({ role: "assistant", metadata, options: null, content: [{ type: "text", text }] });

function closed(s) {  // as _closed there
  const open = s.split("\n").filter((line) => line.trimStart().startsWith("```")).length % 2;
  return open ? s + "\n```" : s;
}

function thinkingTime(seconds, running) {
  const whole = Math.max(1, Math.round(seconds ?? 0));
  const time = whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return running ? `Thinking… ${time}` : `Thought for ${time}`;
}

window.llmsvcLive = () => {
  if (!answer) return [[]];
  const { text, reasoning, status } = answer;
  const note = (status.note || status.error || "").replaceAll("<", "&lt;");
  const waiting = note || (status.state === "prefill" ? "Reading…" : "Waiting…");
  const title = thinkingTime(status.usage?.thinking_seconds, !text.trim() && !answer.over);
  const thought = reasoning ? [message(closed(escaped(reasoning)), { title, status: "done" })] : [];
  if (reasoning && !text && !note) return [thought];
  let shown = text ? escaped(text) : `<span class="waiting">${waiting}</span>`;
  if (text && status.usage?.completion_tokens) {
    const speed = status.usage.tokens_per_second ? ` · ${status.usage.tokens_per_second} tok/s` : "";
    shown = `${closed(shown)}\n\n<sub class="usage">${status.usage.completion_tokens} tokens${speed}${note ? " · " + note : ""}</sub>`;
  }
  return [[...thought, message(shown, { title: null })]];
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
