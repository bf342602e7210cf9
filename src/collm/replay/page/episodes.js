// The episodes of the page, which of them are listed, and the address of an episode and turn.

// Without prototypes: an agent may be called `constructor`, which every other object seems to have.
const replay = JSON.parse(document.getElementById("document").textContent,
  (_, value) => (value && typeof value === "object" && !Array.isArray(value) ? Object.setPrototypeOf(value, null) : value));
replay.episodes.forEach((episode, index) => { episode.index = index; });

const labels = [...new Set(replay.sources.map((source) => source.label))];
const agents = [...new Set(replay.episodes.flatMap((episode) => episode.turns.flatMap((turn) => Object.keys(turn.actions))))];
const SUCCESS = ["success", "solved", "pass", "correct", "win"].find((name) => replay.episodes.some((one) => name in one.metrics));

const view = { episode: 0, turn: 0, beside: null, heat: "", changes: true, text: "", source: "", outcome: "", sort: "order", down: false };

function sourceName(index) {
  const source = replay.sources[index];
  const when = source.step === null ? source.kind : source.step === 0 ? "before training" : `after ${source.step.toLocaleString("en")} joint samples`;
  return labels.length > 1 ? `${source.label}, ${when}` : when;
}

// Whether an episode succeeded, where its environment says so; else null.
function succeeded(episode) {
  if (!SUCCESS || !(SUCCESS in episode.metrics)) return null;
  return episode.metrics[SUCCESS] >= 1;
}

function matches(episode) {
  if (view.source !== "" && episode.source !== Number(view.source)) return false;
  if (view.outcome === "failed" && episode.error === null) return false;
  if (view.outcome === "success" && succeeded(episode) !== true) return false;
  if (view.outcome === "no success" && succeeded(episode) !== false) return false;
  if (view.outcome === "rejected" && !episode.turns.some((turn) => Object.values(turn.rejected).some((lines) => lines.length))) return false;
  const wanted = view.text.trim().toLowerCase();
  if (!wanted) return true;
  if (episode.task.toLowerCase().includes(wanted)) return true;
  return episode.turns.some((turn) => Object.values(turn.actions).some((text) => text.toLowerCase().includes(wanted)));
}

const SORTS = {
  order: (one) => one.index,
  task: (one) => one.task,
  return: (one) => one.return ?? -Infinity,
  turns: (one) => one.turns.length,
};

function listed() {
  const key = SORTS[view.sort];
  const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.index - b.index);
  const found = replay.episodes.filter(matches).sort(order);
  return view.down ? found.reverse() : found;
}

// The episode of `source` with the task of `episode` and, where it was played often enough, the same place among those.
function counterpart(episode, source) {
  const same = (one, from) => one.source === from && one.task === episode.task;
  const place = replay.episodes.filter((one) => same(one, episode.source)).indexOf(episode);
  const others = replay.episodes.filter((one) => same(one, source));
  return others.length ? others[Math.min(place, others.length - 1)] : null;
}

// Files that can stand beside an episode: the same method before or after, or another method, on the same task.
function sourcesBeside(episode) {
  return replay.sources.map((_, index) => index).filter((index) => index !== episode.source && counterpart(episode, index));
}

function addressOf(episode, turn) {
  const beside = view.beside === null ? "" : `&beside=${view.beside}`;
  return `#episode=${episode.index + 1}&turn=${turn + 1}${beside}`;
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const count = (name, most) => Math.min(Math.max(Number.parseInt(given.get(name) ?? "1", 10) || 1, 1), most) - 1;
  view.episode = count("episode", replay.episodes.length);
  view.turn = count("turn", Math.max(1, replay.episodes[view.episode].turns.length));
  const beside = given.has("beside") ? Number.parseInt(given.get("beside"), 10) : null;
  view.beside = sourcesBeside(replay.episodes[view.episode]).includes(beside) ? beside : null;
}
