// The running answer: server-sent events in, messages for the Chatbot out. The server is not asked again for any of it.
// (Runs once, inside a component of its own; `trigger` makes the page take what window.llmsvcLive() gives.)
let source = null, session = "", turn = "", text = "", length = 0, status = {};

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

function take(event) {
  const data = JSON.parse(event.data);
  if (data.turn_id !== turn) return done();  // this one ended while the connection was lost
  text = (data.offset === length ? text : [...text].slice(0, data.offset).join("")) + data.text;
  length = data.length;
  Object.assign(status, data);
  window.llmsvcText = text;
  trigger("select", {});
}

function done() {
  source?.close();
  source = null;
  window.llmsvcSay?.("done");
}

function open() {
  source?.close();
  const mine = source = new EventSource(`v1/sessions/${session}/stream`);
  mine.onmessage = take;
  mine.addEventListener("end", (event) => { take(event); if (source === mine) done(); });
  // The browser comes again by itself after a cut, saying what it had; not after a refusal.
  mine.onerror = () => { if (mine.readyState === 2 && source === mine) setTimeout(() => source === mine && open(), 1000); };
}

window.llmsvcWatch = (go) => {
  const [where, what] = go.split(" ");
  source?.close();
  source = null;
  [session, turn, text, length, status] = [where, what ?? "", "", 0, {}];
  if (!session) return;
  trigger("select", {});
  open();
};
