"use strict";
// Elements are made here and nowhere else. Whatever a model wrote is added as text, never as markup.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function format(number) {
  if (number === null || number === undefined) return "–";
  if (Number.isInteger(number)) return number.toLocaleString("en");
  const digits = Math.abs(number) >= 100 ? 1 : Math.abs(number) >= 0.01 ? 2 : 4;
  return number.toFixed(digits).replace("-", "−");
}

// A bar from zero to `value` on an axis from `low` to `high`; its text stands beside it.
function bar(value, low, high, kind = "") {
  const [left, right] = [Math.min(low, 0), Math.max(high, 0)];
  const span = right - left || 1;
  const start = (Math.min(value ?? 0, 0) - left) / span;
  const width = Math.abs(value ?? 0) / span;
  return element("span", { className: `bar ${kind}` },
    element("span", { className: "zero", style: { left: `${(100 * -left) / span}%` } }),
    element("span", {
      className: (value ?? 0) < 0 ? "fill negative" : "fill",
      style: { left: `${100 * start}%`, width: `${100 * width}%` },
    }));
}

// Pictures are images: browsers run no scripts in them and load nothing for them.
function picture(svg, description) {
  return element("img", { className: "picture", alt: description, src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}` });
}

function button(label, pressed, action, hint = "") {
  return element("button", { type: "button", "aria-pressed": String(pressed), title: hint, onclick: action }, label);
}
