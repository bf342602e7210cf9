// What each agent was shown and wrote in a turn: lines that are new, lines that had no effect, tokens by number.

const MOST_LINES = 500; // of a text whose lines are compared: the comparison takes time in the square

// Lines of `now`, each with whether it was in `before`, and the lines of `before` that are gone at their places.
function differences(before, now) {
  const [a, b] = [before.split("\n"), now.split("\n")];
  if (a.length > MOST_LINES || b.length > MOST_LINES) return b.map((line) => ({ line, kind: "same" }));
  const length = Array.from({ length: a.length + 1 }, () => new Int32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? 1 + length[i + 1][j + 1] : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const lines = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { lines.push({ line: b[j], kind: "same" }); i++; j++; }
    else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) { lines.push({ line: a[i], kind: "gone" }); i++; }
    else { lines.push({ line: b[j], kind: "new" }); j++; }
  }
  return lines;
}

const MARKER = /^(?:[-*]+|\d+[.)])\s*/;

// Puts the reason beside each line that the environment rejected; returns the rejections that fit no line.
function markRejected(lines, rejected) {
  const left = [...rejected];
  for (const one of lines) {
    if (one.kind === "gone") continue;
    const bare = one.line.trim().replace(MARKER, "");
    const found = left.findIndex(([line]) => bare && bare.startsWith(line));
    if (found >= 0) one.rejected = left.splice(found, 1)[0][1];
  }
  return left;
}

function linesOf(lines) {
  const marks = { same: " ", new: "+", gone: "−" };
  return element("pre", { className: "lines" }, lines.map((one) => element("span", {
    className: `line ${one.kind}${one.rejected ? " rejected" : ""}`,
  },
  element("span", { className: "mark", "aria-hidden": "true" }, one.rejected ? "✗" : marks[one.kind]),
  element("span", { className: "words" }, one.line || " "),
  one.rejected ? element("span", { className: "reason" }, one.rejected.replaceAll("_", " ")) : null)));
}

// Tokens on a ground that is darker the less likely they were, or the less sure the agent was: the entropy is what
// minus the log-probability is on average, so both have one scale, up to 5 nats.
function tokensOf(tokens, kind) {
  return element("pre", { className: `tokens ${kind}` }, tokens.map(([piece, logProb, entropy = null]) => {
    const nats = kind === "entropy" ? entropy : logProb === null ? null : -logProb;
    const shade = Math.min(1, Math.max(0, nats ?? 0) / 5);
    const hints = [
      logProb === null ? "" : `log-probability ${format(logProb)}, probability ${format(Math.exp(logProb))}`,
      entropy === null ? "" : `entropy ${format(entropy)}`,
    ];
    return element("span", { title: hints.filter(Boolean).join(", "), className: shade > 0.55 ? "token dark" : "token", style: { "--shade": shade.toFixed(2) }, "data-shade": shade.toFixed(2) }, piece);
  }));
}

function messagesOf(turn, agent) {
  const own = (turn.messages ?? []).filter((message) => message.agent === agent);
  return own.length ? own : [{ agent, observation: turn.observations[agent] ?? "", text: turn.actions[agent] ?? "" }];
}

function cardOf(episode, index, agent) {
  const [turn, last] = [episode.turns[index], episode.turns[index - 1]];
  const before = view.changes && last ? messagesOf(last, agent) : [];
  const parts = messagesOf(turn, agent).map((message, place, all) => {
    const compared = (name) => (before.length ? differences(before[Math.min(place, before.length - 1)][name], message[name])
      : message[name].split("\n").map((line) => ({ line, kind: "same" })));
    const isAction = place === all.length - 1;
    const written = compared("text");
    const left = markRejected(written, isAction ? turn.rejected[agent] ?? [] : []);
    const tokens = isAction ? turn.tokens?.[agent] : null;
    return [
      element("h4", {}, "is shown"), linesOf(compared("observation")),
      element("h4", {}, isAction ? "writes" : "says", turn.truncated.includes(agent) && isAction ? element("span", { className: "badge" }, "cut at the token limit") : null),
      view.heat && tokens ? tokensOf(tokens, view.heat) : message.text ? linesOf(written) : element("p", { className: "nothing" }, "nothing"),
      left.length ? element("ul", { className: "left" }, left.map(([line, reason]) => element("li", {}, element("code", {}, line), ` ${reason.replaceAll("_", " ")}`))) : null,
    ];
  });
  const rejected = (turn.rejected[agent] ?? []).length;
  return element("article", { className: `card agent${agents.indexOf(agent) % 6}` },
    element("h3", {}, element("span", { className: "swatch", "aria-hidden": "true" }), agent,
      rejected ? element("span", { className: "badge" }, `${rejected} rejected`) : null),
    parts);
}

function turnOf(episode, index, shown) {
  const turn = episode.turns[index];
  if (!turn) return element("p", { className: "nothing" }, `This episode ended after ${episode.turns.length} turns.`);
  return element("section", { className: "turn" },
    element("div", { className: "result" },
      turn.picture ? picture(turn.picture, `state after turn ${index + 1}`) : null,
      element("div", {}, termsOf(turn, shown), factsOf(turn))),
    element("div", { className: "cards" }, Object.keys(turn.actions).map((agent) => cardOf(episode, index, agent))));
}
