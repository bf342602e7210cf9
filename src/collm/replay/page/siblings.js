// The joint actions that were sampled after one history (a rollout tree): their rewards as a matrix or a list.

function siblingsOf(episode, index) {
  const branch = episode.turns[index]?.branch;
  if (!branch) return [];
  const found = new Map();
  for (const other of replay.episodes) {
    const turn = other.turns[index];
    if (other.source !== episode.source || other.task !== episode.task || turn?.branch?.parent !== branch.parent) continue;
    if (!found.has(turn.branch.node)) found.set(turn.branch.node, { turn, paths: [] });
    found.get(turn.branch.node).paths.push(other);
  }
  return [...found.values()];
}

function matrixOf(episode, index, open) {
  const siblings = siblingsOf(episode, index);
  if (siblings.length < 2) return null;
  const rewards = siblings.map((one) => one.turn.reward).filter((value) => value !== null);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const cell = (one) => {
    if (!one) return element("td");
    const share = high > low ? (one.turn.reward - low) / (high - low) : 0.5;
    const now = one.turn.branch.node === episode.turns[index].branch.node;
    const mean = one.paths.reduce((sum, path) => sum + (path.return ?? 0), 0) / one.paths.length;
    return element("td", { className: now ? "cell now" : "cell", "data-share": share.toFixed(2), style: { "--share": share.toFixed(2) } },
      element("button", { type: "button", title: `mean return of its ${one.paths.length} paths: ${format(mean)}`, onclick: () => open(one.paths[0]) },
        format(one.turn.reward)));
  };
  const names = Object.keys(siblings[0].turn.actions);
  const distinct = (name) => [...new Set(siblings.map((one) => one.turn.branch.actions[name]))];
  const title = element("h3", {}, `rewards of the ${siblings.length} joint actions after this history`);
  const words = (name, uid) => siblings.find((one) => one.turn.branch.actions[name] === uid).turn.actions[name].slice(0, 60) || "nothing";
  if (names.length === 2 && siblings.length === distinct(names[0]).length * distinct(names[1]).length) {
    const [rows, columns] = names.map(distinct);
    const at = (row, column) => siblings.find((one) => one.turn.branch.actions[names[0]] === row && one.turn.branch.actions[names[1]] === column);
    return element("section", { className: "siblings" }, title, element("div", { className: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, element("td", {}, `${names[0]} ↓  ${names[1]} →`), columns.map((uid) => element("th", { scope: "col" }, words(names[1], uid))))),
      element("tbody", {}, rows.map((row) => element("tr", {}, element("th", { scope: "row" }, words(names[0], row)), columns.map((column) => cell(at(row, column)))))))));
  }
  return element("section", { className: "siblings" }, title, element("div", { className: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col" }, name)), element("th", { scope: "col" }, "reward"))),
    element("tbody", {}, siblings.map((one) => element("tr", {}, names.map((name) => element("td", { className: "words" }, one.turn.actions[name].slice(0, 60) || "nothing")), cell(one)))))));
}
