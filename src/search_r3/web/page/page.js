// The page: asks the API, shows what comes. Whatever a query or a document says is set as text, never as markup.

import { drawChart, drawLinks } from "./draw.js";

const get = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const rows = { direct: new Map(), reasoning: new Map() };
let search = null; // what ends the one that runs
let query = "";
let k = 10;

/** An element with a class and children, which are elements or text. */
function made(tag, kind, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

// ---- asking

/** The answer to a POST; throws an Error with one line for people. */
async function post(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  throw new Error((await answer.json().catch(() => ({}))).error ?? `The server answers ${answer.status}.`);
}

/** Server-sent events of an answer as they come: [name, data]. */
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      const [name, data] = part.split("\n");
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

async function ask(text) {
  search?.abort();
  const own = (search = new AbortController());
  query = text;
  begin();
  const start = performance.now();
  try {
    for await (const [name, data] of eventsOf(await post("api/stream", { query: text }, own.signal))) {
      if (own.signal.aborted) return;
      if (name === "error") throw new Error(data.error);
      if (name === "waiting") waiting(data.ahead);
      if (name === "direct") fill("direct", data.hits);
      if (name === "text") write(data.text);
      if (name === "done") return finish(data, (performance.now() - start) / 1000);
    }
    throw new Error("The connection ended before the answer was whole.");
  } catch (error) {
    if (own.signal.aborted) return;
    fail(error.name === "TypeError" ? "The connection ended before the answer was whole." : error.message);
  }
}

// ---- showing a search

function begin() {
  get("error").hidden = get("empty").hidden = true;
  get("thought").hidden = get("results").hidden = get("switch").hidden = false;
  get("thought").dataset.state = "waiting";
  get("thought-facts").textContent = get("moved").textContent = "";
  get("text").textContent = "…";
  get("query").removeAttribute("aria-invalid");
  get("links").replaceChildren();
  for (const side of ["direct", "reasoning"]) {
    rows[side].clear();
    get(side).replaceChildren(...Array.from({ length: Math.min(k, 10) }, () => made("li", "hollow")));
    get(side).setAttribute("aria-busy", "true");
  }
  get("status").textContent = "Searching";
  document.title = `${query.replace(/\s+/g, " ").slice(0, 60)} – Search-R3`;
}

function waiting(ahead) {
  if (ahead) get("text").textContent = ahead === 1 ? "Waiting for another search…" : `Waiting for ${ahead} other searches…`;
}

function write(piece) {
  const first = get("thought").dataset.state !== "writing";
  get("thought").dataset.state = "writing";
  const text = get("text");
  if (first) text.textContent = piece.trimStart();
  else text.append(piece);
}

function finish(answer, seconds) {
  const said = answer.reasoning;
  get("thought").dataset.state = "done";
  get("text").textContent = said.reasoning || "Nothing: the model embeds this query at once.";
  const limit = said.has_embed_token ? "" : ", cut short";
  get("thought-facts").textContent = ` ${plural(said.n_tokens, "token")}${limit}, ${seconds.toFixed(1)} s`;
  fill("direct", answer.direct.hits);
  fill("reasoning", said.hits);
  const moved = said.hits.filter((hit) => hit.moved_up).length;
  get("moved").textContent = moved ? ` ${count(moved)} of ${count(said.hits.length)} moved` : " nothing moved";
  get("status").textContent = `${plural(said.hits.length, "document")}; ${moved} moved by the reasoning`;
  drawLinks(get("links"), rows.direct, rows.reasoning);
}

function fail(message) {
  get("thought").hidden = get("results").hidden = get("switch").hidden = true;
  get("error").textContent = message;
  get("error").hidden = false;
  get("status").textContent = "";
  get("query").setAttribute("aria-invalid", "true");
}

function fill(side, hits) {
  rows[side].clear();
  const list = hits.map((hit) => {
    const row = hitRow(side, hit);
    rows[side].set(hit.id, row);
    return made("li", "", row);
  });
  get(side).replaceChildren(...list);
  get(side).removeAttribute("aria-busy");
}

/** What follows the title in a document's text; all of it where it has none, or nothing more. */
function withoutTitle(document) {
  const rest = document.text.startsWith(document.title) ? document.text.slice(document.title.length).trimStart() : "";
  return (rest || document.text) + (document.is_cut ? " …" : "");
}

/** One document: rank, title or id, the beginning of its text, how it moved, score. */
function hitRow(side, hit) {
  const body = made("span", "", made("span", hit.title ? "name" : "name id", hit.title || hit.id));
  body.append(made("span", "snippet", withoutTitle(hit).replace(/\s+/g, " ").trim()));
  const marks = made("span", "marks", made("span", "score", hit.score.toFixed(3)));
  if (hit.moved_up) marks.append(moveMark(side, hit));
  const row = made("button", "hit", made("span", "rank", count(hit.rank)), body, marks);
  row.type = "button";
  row.dataset.id = hit.id;
  row.addEventListener("click", () => inspect(hit));
  for (const event of ["mouseenter", "focus"]) row.addEventListener(event, () => mark(hit.id, true));
  for (const event of ["mouseleave", "blur"]) row.addEventListener(event, () => mark(hit.id, false));
  return row;
}

/** "▲ 3" beside the new rank; beside the old one where it went. */
function moveMark(side, hit) {
  const way = hit.moved_up > 0 ? "up" : "down";
  const places = count(Math.abs(hit.moved_up));
  const shown = side === "reasoning" ? `${way === "up" ? "▲" : "▼"} ${places}` : `→ ${count(hit.reasoning_rank)}`;
  const told = side === "reasoning"
    ? `${way} ${places}, from rank ${count(hit.direct_rank)}` : `${way} to rank ${count(hit.reasoning_rank)}`;
  const seen = made("span", "", shown);
  seen.setAttribute("aria-hidden", "true");
  const move = made("span", `move ${way}`, seen, made("span", "unseen", told));
  move.title = told;
  return move;
}

/** Marks a document in both lists, and the line between. */
function mark(id, isNear) {
  for (const side of ["direct", "reasoning"]) rows[side].get(id)?.classList.toggle("is-near", isNear);
  for (const path of get("links").children) {
    if (path.documentId === id) path.classList.toggle("is-near", isNear);
  }
}

// ---- the inspector

let inspected = null; // its facts, drawn again when the window changes

async function inspect(hit) {
  const dialog = get("inspector");
  get("inspected").textContent = hit.title || hit.id;
  get("inspected-id").textContent = hit.title ? hit.id : "";
  get("inspector-error").hidden = true;
  get("inspector-content").hidden = true;
  dialog.dataset.state = "loading";
  inspected = hit;
  dialog.showModal();
  dialog.scrollTop = 0;
  try {
    const facts = await (await post("api/inspect", { query, id: hit.id })).json();
    if (inspected !== hit) return; // closed by then, or another one is open
    showInspected(facts);
  } catch (error) {
    if (inspected !== hit) return;
    get("inspector-error").textContent = error.message;
    get("inspector-error").hidden = false;
  }
  delete dialog.dataset.state;
}

function showInspected(facts) {
  inspected = facts;
  const last = facts.steps[facts.steps.length - 1];
  const way = last.rank < facts.direct.rank ? "up" : last.rank > facts.direct.rank ? "down" : "";
  get("summary").replaceChildren("Direct rank ", made("b", "", count(facts.direct.rank)), ", after reasoning ",
    made("b", way, count(last.rank)), ` of ${plural(facts.n_documents, "document")}`);
  get("chart-name").textContent = `Rank if the reasoning ended after each ${facts.unit}; dashed: direct`;
  get("document").textContent = withoutTitle(facts.document);
  get("document").classList.toggle("code", /\n[ \t]/.test(facts.document.text));
  get("inspector-content").hidden = false;
  const lines = facts.steps.map((step, place) => stepRow(step, place));
  get("steps").tBodies[0].replaceChildren(...lines);
  const look = drawChart(get("chart"), facts, (place) => {
    lines.forEach((line, other) => line.classList.toggle("is-near", other === place));
    get("point").textContent = place ? `${place}: “${facts.steps[place].text.trim()}”, rank ${count(facts.steps[place].rank)}`
      : `0: before any reasoning, rank ${count(facts.steps[0].rank)}`;
  });
  lines.forEach((line, place) => line.addEventListener("mouseenter", () => look(place)));
}

function stepRow(step, place) {
  const text = place ? step.text.trim() : made("i", "", "before any reasoning");
  return made("tr", "", made("td", "", text), made("td", "", count(step.rank)), made("td", "", step.score.toFixed(3)));
}

// ---- keys and the rest

function moveFocus(key) {
  const row = document.activeElement.closest?.(".hit");
  if (!row) return false;
  const side = row.closest("ol").id;
  const list = [...rows[side].values()];
  if (key === "ArrowDown" || key === "ArrowUp") {
    const next = list[list.indexOf(row) + (key === "ArrowDown" ? 1 : -1)];
    if (!next && key === "ArrowUp") get("query").focus();
    next?.focus();
    return true;
  }
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const other = key === "ArrowLeft" ? "direct" : "reasoning";
    showSide(other);
    (rows[other].get(row.dataset.id) ?? [...rows[other].values()][list.indexOf(row)])?.focus();
    return true;
  }
  return false;
}

function showSide(side) {
  get("results").dataset.shown = side;
  for (const button of get("switch").children) button.setAttribute("aria-pressed", button.dataset.side === side);
}

get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(get("query").value);
});
get("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask(get("query").value);
  } else if (event.key === "ArrowDown" && get("query").selectionEnd === get("query").value.length) {
    const first = rows[get("results").dataset.shown].values().next().value;
    if (first && !get("results").hidden) {
      event.preventDefault();
      first.focus();
    }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || get("inspector").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && document.activeElement !== get("query")) {
    event.preventDefault();
    get("query").select();
  } else if (moveFocus(event.key)) event.preventDefault();
});
get("switch").addEventListener("click", (event) => {
  if (event.target.dataset.side) showSide(event.target.dataset.side);
});
get("close").addEventListener("click", () => get("inspector").close());
get("inspector").addEventListener("click", (event) => {
  if (event.target === get("inspector")) get("inspector").close(); // beside the sheet
});
get("inspector").addEventListener("close", () => { inspected = null; });
addEventListener("resize", () => {
  drawLinks(get("links"), rows.direct, rows.reasoning);
  if (inspected?.steps) showInspected(inspected);
});

fetch("api/health").then((answer) => answer.json()).then((facts) => {
  k = facts.k;
  get("about").textContent = `${facts.corpus}, ${plural(facts.n_documents, "document")}; ${facts.model}`;
}).catch(() => { get("about").textContent = ""; });
get("query").focus();
