// What is drawn: a document's rank as a line, and lines between the two rankings.

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element; text is only ever text. */
function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Ranks at which grid lines stand: 1, 2, 5, 10, 20 ... up to the first one that holds the worst. */
function ticks(worst) {
  const found = [];
  for (let power = 1; ; power *= 10) {
    for (const step of [1, 2, 5]) {
      found.push(step * power);
      if (step * power >= worst) return thinned(found);
    }
  }
}

function thinned(found) {
  if (found.length <= 7) return found;
  const last = found[found.length - 1];
  return found.filter((tick) => /^10*$/.test(String(tick)) || tick === last);
}

/**
 * The chart of a document's rank: 1 at the top, by its logarithm, one dot per step, dashed for the direct rank.
 * @param {HTMLElement} place that the chart fills.
 * @param {{steps: {rank: number, text: string}[], direct: {rank: number}, unit: string}} facts of the API.
 * @param {(step: number) => void} near is told which step is looked at; by mouse or arrow keys.
 */
export function drawChart(place, facts, near) {
  const width = Math.max(place.clientWidth, 260), height = 240;
  const ranks = facts.steps.map((step) => step.rank);
  const worst = Math.max(facts.direct.rank, ...ranks, 2);
  const marks = ticks(worst);
  const left = 14 + 7.5 * String(marks[marks.length - 1]).length, right = 30, top = 14, bottom = 26;
  const bottomRank = marks[marks.length - 1];
  const x = (step) => left + (ranks.length > 1 ? step / (ranks.length - 1) : 0.5) * (width - left - right);
  const y = (rank) => top + (Math.log(rank) / Math.log(bottomRank)) * (height - top - bottom);

  const chart = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0 });
  chart.setAttribute("aria-label",
    `Rank after each ${facts.unit}, from none on: ${ranks.join(", ")}. Direct: ${facts.direct.rank}. ` +
    "Arrow keys move along the line.");
  for (const mark of marks) {
    chart.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    chart.append(shape("text", { x: left - 10, y: y(mark) + 4, "text-anchor": "end" }, mark.toLocaleString("en")));
  }
  const every = Math.ceil(ranks.length / Math.max(2, Math.floor((width - left - right) / 34)));
  ranks.forEach((_, step) => {
    if (step % every) return;
    chart.append(shape("text", { x: x(step), y: height - 6, "text-anchor": "middle" }, String(step)));
  });
  const level = y(facts.direct.rank);
  chart.append(shape("line", { class: "direct", x1: left, x2: width - right, y1: level, y2: level }));
  const cursor = shape("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  chart.append(cursor);
  chart.append(shape("path", { class: "line", d: "M" + ranks.map((rank, step) => `${x(step)} ${y(rank)}`).join("L") }));
  const dots = ranks.map((rank, step) =>
    shape("circle", { class: "dot", cx: x(step), cy: y(rank), r: ranks.length > 24 ? 3 : 4.5, "data-rank": rank }));
  chart.append(...dots);
  const end = ranks.length - 1;
  chart.append(shape("text", { class: "last", x: x(end) + 10, y: y(ranks[end]) + 4 }, String(ranks[end])));

  let current = end;
  const look = (step) => {
    current = Math.min(Math.max(step, 0), end);
    dots.forEach((dot, place) => dot.classList.toggle("is-near", place === current));
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", x(current));
    cursor.setAttribute("x2", x(current));
    near(current);
  };
  chart.addEventListener("pointermove", (event) => {
    const share = (event.clientX - chart.getBoundingClientRect().left - left) / (width - left - right);
    look(Math.round(share * end));
  });
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: end }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    look(to);
  });
  place.replaceChildren(chart);
  return look;
}

/**
 * Lines from the documents of one list to the same documents of the other.
 * @param {SVGElement} place between the two.
 * @param {Map<string, HTMLElement>} from rows by id.
 * @param {Map<string, HTMLElement>} to rows by id.
 */
export function drawLinks(place, from, to) {
  place.replaceChildren();
  const frame = place.getBoundingClientRect();
  if (!frame.width) return;
  const middle = (row) => {
    const box = row.getBoundingClientRect();
    return box.top + 22 - frame.top;
  };
  for (const [id, row] of from) {
    if (!to.has(id)) continue;
    const [start, end] = [middle(row), middle(to.get(id))];
    const way = Math.abs(start - end) < 2 ? "same" : end < start ? "up" : "down";
    const bend = frame.width * 0.5;
    const path = shape("path", {
      class: way,
      d: `M2 ${start}C${bend} ${start} ${frame.width - bend} ${end} ${frame.width - 2} ${end}`,
    });
    path.documentId = id;
    place.append(path);
  }
}
