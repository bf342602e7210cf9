// The page: a list of episodes, one episode or two side by side, and the keyboard.

const side = document.getElementById("side");
const main = document.getElementById("main");

function open(episode, turn = 0) {
  view.episode = episode.index;
  view.turn = Math.max(0, Math.min(turn, episode.turns.length - 1));
  if (view.beside !== null && !sourcesBeside(episode).includes(view.beside)) view.beside = null;
  history.replaceState(null, "", addressOf(episode, view.turn));
  show();
}

function turnsShown() {
  const episode = replay.episodes[view.episode];
  const other = view.beside === null ? null : counterpart(episode, view.beside);
  return Math.max(1, episode.turns.length, other ? other.turns.length : 0);
}

function go(turn) {
  view.turn = Math.max(0, Math.min(turn, turnsShown() - 1));
  history.replaceState(null, "", addressOf(replay.episodes[view.episode], view.turn));
  show();
}

function stand(beside) {
  view.beside = beside;
  go(view.turn);
}

function listOfEpisodes() {
  const found = listed();
  const returns = replay.episodes.map((one) => one.return).filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...returns), Math.max(0, ...returns)];
  const head = (name, title) => element("th", { scope: "col", "aria-sort": view.sort === name ? (view.down ? "descending" : "ascending") : "none" },
    element("button", { type: "button", onclick: () => { view.down = view.sort === name ? !view.down : name === "return"; view.sort = name; showList(); } },
      title, view.sort === name ? (view.down ? " ↓" : " ↑") : ""));
  return [
    element("p", { className: "count", role: "status" }, `${found.length} of ${replay.episodes.length} episodes`,
      replay.left_out ? `; ${replay.left_out.toLocaleString("en")} more are in the files, which are larger than this page may be` : ""),
    element("table", { className: "list" },
      element("thead", {}, element("tr", {}, head("task", "task"), head("return", "return"), head("turns", "turns"))),
      element("tbody", {}, found.map((one) => element("tr", { className: one.index === view.episode ? "now" : "", "data-index": one.index, onclick: () => open(one) },
        element("td", {}, element("a", { href: addressOf(one, 0), onclick: (event) => event.preventDefault() }, one.task),
          element("small", {}, replay.sources.length > 1 && view.source === "" ? `${sourceName(one.source)} · ` : "", `no. ${one.number}`)),
        element("td", {}, element("span", { className: "number" }, one.error === null ? format(one.return) : "failed"), bar(one.return, low, high, "reward")),
        element("td", { className: "number" }, one.turns.length, succeeded(one) === null ? null : element("span", { className: "outcome", title: SUCCESS }, succeeded(one) ? " ✓" : " ✗")))))),
  ];
}

function showList() {
  const body = side.querySelector("#list");
  body.replaceChildren(...listOfEpisodes());
  body.querySelector("tr.now")?.scrollIntoView({ block: "nearest" });
}

function makeSide() {
  const choice = (name, title, options) => element("label", {}, title, element("select", { id: name, onchange: (event) => { view[name] = event.target.value; showList(); } },
    options.map(([value, text]) => element("option", { value, selected: view[name] === value }, text))));
  const outcomes = [["", "any"], ["failed", "failed episodes"], ["rejected", "with rejected lines"], ...(SUCCESS ? [["success", "success"], ["no success", "no success"]] : [])];
  side.replaceChildren(
    element("h1", {}, replay.title),
    element("input", { type: "search", id: "search", placeholder: "search tasks and actions  (press /)", "aria-label": "search", oninput: (event) => { view.text = event.target.value; showList(); } }),
    element("div", { className: "filters" },
      replay.sources.length > 1 ? choice("source", "when", [["", "all"], ...replay.sources.map((_, index) => [String(index), sourceName(index)])]) : null,
      choice("outcome", "outcome", outcomes)),
    element("div", { id: "list" }));
}

function headOf(episode, small) {
  const metrics = Object.entries(episode.metrics).filter(([name]) => name !== "return");
  return element("header", { className: "head" },
    element(small ? "h3" : "h2", {}, small ? sourceName(episode.source) : episode.task),
    element("p", { className: "facts" }, element("strong", {}, `return ${format(episode.return)}`),
      metrics.slice(0, 8).map(([name, value]) => element("span", {}, `${name.replaceAll("_", " ")} ${format(value)}`)),
      small ? null : element("span", {}, `no. ${episode.number}, ${sourceName(episode.source)}`)),
    episode.error === null ? null : element("p", { className: "error" }, `failed: ${episode.error}`));
}

const SCALES = { probability: ["likely", "unlikely"], entropy: ["sure", "unsure"] };

// Tokens by one of their numbers, or by none where they already are.
function heat(kind) {
  view.heat = view.heat === kind ? "" : kind;
  show();
}

function toolbar(episode) {
  const beside = sourcesBeside(episode);
  const tokens = episode.turns.flatMap((turn) => Object.values(turn.tokens ?? {}).flat());
  const [low, high] = SCALES[view.heat] ?? [];
  const turns = turnsShown();
  return element("nav", { className: "tools", "aria-label": "turn and view" },
    element("span", { className: "steps" },
      button("←", false, () => go(view.turn - 1), "previous turn"),
      element("strong", { id: "where" }, `turn ${view.turn + 1} of ${turns}`),
      button("→", false, () => go(view.turn + 1), "next turn")),
    beside.length ? element("label", {}, "beside it", element("select", { id: "beside", onchange: (event) => stand(event.target.value === "" ? null : Number(event.target.value)) },
      element("option", { value: "" }, "nothing"),
      beside.map((index) => element("option", { value: String(index), selected: view.beside === index }, sourceName(index))))) : null,
    button("changes", view.changes, () => { view.changes = !view.changes; show(); }, "differences to the last turn (d)"),
    tokens.length ? button("token probabilities", view.heat === "probability", () => heat("probability"), "log-probability of each token (p)") : null,
    tokens.some((one) => one.length > 2) ? button("token entropies", view.heat === "entropy", () => heat("entropy"), "entropy of the distribution each token was drawn from (e)") : null,
    low && tokens.length ? element("span", { className: `scale ${view.heat}` }, low, element("i", {}), high) : null,
    element("a", { className: "link", href: addressOf(episode, view.turn) }, "link to this turn"),
    element("span", { className: "keys" }, "keys: ← → turns, ↑ ↓ episodes, b beside, d changes, p probabilities, e entropies, / search"));
}

function show() {
  const episode = replay.episodes[view.episode];
  const other = view.beside === null ? null : counterpart(episode, view.beside);
  const shown = other ? [episode, other].sort((a, b) => a.source - b.source) : [episode];
  const column = (one, small) => element("div", { className: "column" }, headOf(one, small), tableOfTurns(one, shown, go), turnOf(one, view.turn, shown));
  main.replaceChildren(
    toolbar(episode),
    other
      ? element("div", {}, element("h2", {}, episode.task), element("div", { className: "pair" }, shown.map((one) => column(one, true))))
      : element("div", {}, column(episode, false), matrixOf(episode, view.turn, (path) => open(path, view.turn))));
  showList();
}

// The next file to stand beside the episode, or none after the last.
function nextBeside(episode) {
  const choices = [...sourcesBeside(episode), null];
  return choices[(choices.indexOf(view.beside) + 1) % choices.length];
}

const KEYS = {
  ArrowLeft: () => go(view.turn - 1),
  ArrowRight: () => go(view.turn + 1),
  ArrowUp: () => step(-1),
  ArrowDown: () => step(1),
  b: () => stand(nextBeside(replay.episodes[view.episode])),
  d: () => { view.changes = !view.changes; show(); },
  p: () => heat("probability"),
  e: () => heat("entropy"),
  "/": () => document.getElementById("search").focus(),
};

function step(by) {
  const found = listed();
  const place = found.findIndex((one) => one.index === view.episode);
  const next = found[place < 0 ? 0 : Math.max(0, Math.min(found.length - 1, place + by))];
  if (next) open(next, view.turn);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") document.activeElement.blur();
  if (["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName)) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

window.addEventListener("hashchange", () => { readAddress(); show(); });

readAddress();
if (!location.hash) {
  // the last episodes are those after training; those before it stand beside them
  view.source = replay.sources.length > 1 ? String(replay.episodes.at(-1).source) : "";
  view.episode = replay.episodes.findIndex((one) => one.source === replay.episodes.at(-1).source);
  const first = sourcesBeside(replay.episodes[view.episode])[0];
  view.beside = first === undefined ? null : first;
}
makeSide();
show();
