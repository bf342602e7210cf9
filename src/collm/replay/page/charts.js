// The table of turns, in which the critic's values stand beside the rewards, and the terms of a reward as bars.

function returnsToGo(episode) {
  let sum = 0;
  return episode.turns.map((turn) => turn.reward).reverse().map((reward) => (sum += reward ?? 0)).reverse();
}

function rowsOfTurns(episode) {
  const estimates = [...new Set(episode.turns.flatMap((turn) => Object.keys(turn.estimates)))];
  const row = (name, kind, hint, values) => ({ name, kind, hint, values });
  return [
    row("reward", "reward", "team reward of the turn", episode.turns.map((turn) => turn.reward)),
    row("return to go", "reward", "sum of the rewards from this turn on", returnsToGo(episode)),
    ...estimates.map((name) => row(
      name,
      name.startsWith("advantage") ? "advantage" : "value",
      name.startsWith("advantage") ? "how much better the turn went than the critic expected" : "what the critic expected before the turn",
      episode.turns.map((turn) => turn.estimates[name] ?? null),
    )),
  ];
}

// `shown` are the episodes on the page, whose bars share one axis.
function tableOfTurns(episode, shown, go) {
  const rows = rowsOfTurns(episode);
  const all = shown.flatMap(rowsOfTurns).flatMap((row) => row.values).filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  const heads = episode.turns.map((_, turn) =>
    element("th", { scope: "col", className: turn === view.turn ? "now" : "" },
      button(`turn ${turn + 1}`, turn === view.turn, () => go(turn))));
  return element("div", { className: "scroll" }, element("table", { className: "turns" },
    element("thead", {}, element("tr", {}, element("td"), heads)),
    element("tbody", {}, rows.map((row) => element("tr", { title: row.hint },
      element("th", { scope: "row" }, row.name),
      row.values.map((value, turn) => element("td", { className: turn === view.turn ? "now" : "" },
        element("span", { className: "number" }, format(value)), bar(value, low, high, row.kind))))))));
}

function termsOf(turn, shown) {
  const all = shown.flatMap((one) => one.turns).flatMap((one) => Object.values(one.terms)).filter((value) => value !== null);
  if (!all.length) return null;
  const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  return element("section", { className: "terms" },
    element("h3", {}, "terms of the reward"),
    element("table", {}, element("tbody", {}, Object.entries(turn.terms).map(([name, value]) => element("tr", {},
      element("th", { scope: "row" }, name),
      element("td", {}, bar(value, low, high)),
      element("td", { className: "number" }, format(value)))))));
}

function factsOf(turn) {
  const facts = Object.entries(turn.facts);
  if (!facts.length && !turn.state_text) return null;
  return element("details", {},
    element("summary", {}, "state, for critics only"),
    turn.state_text ? element("pre", {}, turn.state_text) : null,
    facts.length ? element("p", { className: "facts" }, facts.map(([name, value]) => element("span", {}, `${name} ${format(value)}`))) : null);
}
