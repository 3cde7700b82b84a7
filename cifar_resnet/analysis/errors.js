"use strict";
// What is shown stands in the address, as in #true=cat&predicted=dog&image=812&map=both: links, Back and Forward work.
// Every name from the run is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const { classes, confusion, rows, maps } = data; // an error's place in `rows` is its rank: 0 is the most confident
const MAPS = { off: ["image"], predicted: ["predicted"], true: ["true"], both: ["predicted", "true"] };
const STEP = 240; // images that are drawn at once, more as one scrolls
const FINE = 64; // pixels of the side of a drawn map
const ORDERS = {
  confident: ["most confident first", (one, other) => one - other],
  loss: ["highest loss first", (one, other) => rows.loss[other] - rows.loss[one] || one - other],
  file: rows.file
    ? ["file name", (one, other) => collator.compare(rows.file[one], rows.file[other])]
    : ["place in the test set", (one, other) => rows.index[one] - rows.index[other]],
  label: ["likeliest wrong label first", (one, other) => rows.label_rank[one] - rows.label_rank[other]],
};
const collator = new Intl.Collator(undefined, { numeric: true });
const everything = [...rows.index.keys()];
const $ = (id) => document.getElementById(id);
const [sprite, cards, detail, search, sort] = ["sprite", "cards", "detail", "search", "sort"].map($);
let shown = []; // the places of the chosen errors, in order
let drawn = ""; // what the cards are of

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- words

const count = (number) => number.toLocaleString("en");

function percent(share) {
  return `${(100 * share).toFixed(share >= 0.0005 && share < 0.9995 ? 1 : 0)} %`;
}

function describe(place) {
  const [is, said] = [classes[rows.true[place]], classes[rows.predicted[place]]];
  return `test image ${rows.index[place]}, ${is} taken for ${said}, ${percent(rows.predicted_probability[place])}`;
}

function title(state) {
  if (state.true === null && state.predicted === null) return "All errors";
  const name = (label) => (label === null ? "anything" : classes[label]);
  return `${name(state.true)} taken for ${name(state.predicted)}`;
}

// ---- the address

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const place = (list, key) => (list.includes(given.get(key)) ? list.indexOf(given.get(key)) : null);
  return {
    true: place(classes, "true"),
    predicted: place(classes, "predicted"),
    image: place(rows.index.map(String), "image"),
    map: maps && Object.hasOwn(MAPS, given.get("map")) ? given.get("map") : "off",
    view: given.get("view") === "labels" ? "labels" : "errors",
  };
}

function go(change, quietly = false) {
  const state = { ...read(), ...change };
  const address = new URLSearchParams();
  for (const key of ["true", "predicted"]) if (state[key] !== null) address.set(key, classes[state[key]]);
  if (state.image !== null) address.set("image", rows.index[state.image]);
  if (state.map !== "off") address.set("map", state.map);
  if (state.view !== "errors") address.set("view", state.view);
  if (quietly) location.replace(`#${address}`);
  else location.hash = address;
}

// ---- keys

function focus(group, element) {
  const before = group.querySelector("[tabindex='0']");
  if (before) before.tabIndex = -1;
  element.tabIndex = 0;
  element.focus();
}

// One of a group takes Tab; the arrow keys move among them. Items that are null are passed over.
function roam(event, group, items, columns) {
  const at = items.indexOf(event.target);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (at < 0 || !step) return;
  let to = at + step;
  while (items[to] === null) to += step;
  event.preventDefault();
  if (items[to]) focus(group, items[to]);
}

// ---- the confusion matrix

const cells = [];

function choose(is, said) {
  const now = read();
  const again = now.true === is && now.predicted === said;
  go(again ? { true: null, predicted: null } : { true: is, predicted: said });
}

function cell(is, said, text, label) {
  const button = make("button", { type: "button", textContent: text, tabIndex: -1, onclick: () => choose(is, said) });
  button.setAttribute("aria-label", label);
  button.title = label;
  cells.push({ button, is, said });
  return button;
}

function headings(makeCell, scope, total, label) {
  return classes.map((name, at) => make("th", { scope }, makeCell(at, name, `${label(name)}: ${count(total(at))}`)));
}

function buildMatrix() {
  const wrong = confusion.map((row, is) => row.map((number, said) => (is === said ? 0 : number)));
  const most = Math.max(1, ...wrong.flat());
  const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);
  const corner = make("td", { className: "corner" }, make("span", {}, "taken for"), make("span", {}, "true"));
  const top = headings((at, name, label) => cell(null, at, name, label), "col",
    (at) => sum(wrong.map((row) => row[at])), (name) => `anything taken for ${name}`);
  const left = headings((at, name, label) => cell(at, null, name, label), "row",
    (at) => sum(wrong[at]), (name) => `${name} taken for anything`);
  const body = confusion.map((row, is) => make("tr", {}, left[is], ...row.map((number, said) => {
    if (is === said) return make("td", { className: "right" }, count(number));
    if (!number) return make("td");
    const share = Math.sqrt(number / most);
    const button = cell(is, said, count(number), `${classes[is]} taken for ${classes[said]}: ${count(number)}`);
    button.style.setProperty("--share", `${Math.round(100 * share)}%`);
    button.classList.toggle("strong", share > 0.8);
    return make("td", {}, button);
  })));
  $("matrix").append(make("thead", {}, make("tr", {}, corner, ...top)), make("tbody", {}, ...body));
  $("matrix").classList.toggle("many", classes.length > 12);
  $("matrix").querySelector("button").tabIndex = 0;
  const items = [...$("matrix").rows].flatMap((row) => [...row.cells].map((each) => each.querySelector("button")));
  $("matrix").addEventListener("keydown", (event) => roam(event, $("matrix"), items, classes.length + 1));
}

// ---- images and maps

function decode(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const bytes = maps && { predicted: decode(maps.predicted), true: decode(maps.true) };
const colours = maps && maps.colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function cellsOf(place, part) {
  return bytes[part].subarray(place * maps.side ** 2, (place + 1) * maps.side ** 2);
}

// Each pixel between the middles of the four cells around it, as the gallery's maps are enlarged.
function enlarge(grid, side) {
  const ends = Array.from({ length: FINE }, (_, pixel) => {
    const at = Math.min(Math.max(((pixel + 0.5) * side) / FINE - 0.5, 0), side - 1);
    return [Math.floor(at), Math.min(Math.floor(at) + 1, side - 1), at % 1];
  });
  return ends.flatMap(([up, down, y]) => ends.map(([left, right, x]) => {
    const above = grid[up * side + left] * (1 - x) + grid[up * side + right] * x;
    const below = grid[down * side + left] * (1 - x) + grid[down * side + right] * x;
    return (above * (1 - y) + below * y) / 255;
  }));
}

function heat(place, part) {
  const canvas = make("canvas", { className: "heat", width: FINE, height: FINE });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(FINE, FINE);
  enlarge(cellsOf(place, part), maps.side).forEach((value, at) => {
    const colour = colours[Math.round(value * (colours.length - 1))];
    picture.data.set([...colour, 255 * (0.25 + 0.5 * value)], 4 * at);
  });
  context.putImageData(picture, 0, 0);
  return canvas;
}

function panel(place, part) {
  const { side, columns } = data;
  const image = make("canvas", { className: "pixels", width: side, height: side });
  const [x, y] = [place % columns, Math.floor(place / columns)];
  image.getContext("2d").drawImage(sprite, x * side, y * side, side, side, 0, 0, side, side);
  image.classList.toggle("crisp", side <= 48);
  if (part === "image") return make("span", { className: "panel" }, image);
  const found = cellsOf(place, part).some(Boolean);
  return make("span", { className: "panel mapped" }, image, ...(found ? [heat(place, part)] : []));
}

function card(place, at) {
  const said = make("b", {}, make("span", {}, classes[rows.predicted[place]]), ` · ${percent(rows.predicted_probability[place])}`);
  const is = `true: ${classes[rows.true[place]]}`;
  const panels = MAPS[read().map].map((part) => panel(place, part));
  const button = make("button", { type: "button", className: "card", tabIndex: at ? -1 : 0, title: rows.file?.[place] ?? "" },
    make("span", { className: "panels" }, ...panels), said, make("span", { className: "is" }, is));
  button.setAttribute("aria-label", describe(place));
  button.onclick = () => go({ image: place });
  return button;
}

// ---- the chosen images

function chosen(state) {
  const wanted = search.value.trim().toLowerCase();
  const text = (place) => [rows.file?.[place], classes[rows.true[place]], classes[rows.predicted[place]], rows.index[place]];
  const fits = (place) =>
    (state.true === null || rows.true[place] === state.true) &&
    (state.predicted === null || rows.predicted[place] === state.predicted) &&
    (!wanted || text(place).join("\n").toLowerCase().includes(wanted));
  const order = ORDERS[state.view === "labels" ? "label" : sort.value][1];
  return everything.filter(fits).sort(order);
}

function drawMore(until = cards.childElementCount + STEP) {
  const from = cards.childElementCount;
  cards.append(...shown.slice(from, until).map((place, at) => card(place, from + at)));
  watcher.unobserve($("more")); // and again, for it tells changes alone
  if (cards.childElementCount < shown.length) watcher.observe($("more"));
}

const watcher = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && drawMore(), { rootMargin: "600px" });

function drawCards(state) {
  const now = JSON.stringify([state.true, state.predicted, state.map, state.view, sort.value, search.value]);
  if (now === drawn) return;
  drawn = now;
  shown = chosen(state);
  cards.replaceChildren();
  cards.className = state.map;
  drawMore(STEP);
  const all = `${count(shown.length)} of ${count(everything.length)} errors`;
  const wrong = confusion.flatMap((row, is) => row.filter((_, said) => is !== said)).reduce((one, other) => one + other, 0);
  const capped = wrong > everything.length ? `; the page has the most confident of ${count(wrong)}` : "";
  $("count").textContent = all + capped + (shown.length ? "" : ": nothing fits, search for less");
}

function focusCard(place) {
  const at = shown.indexOf(place);
  if (at < 0) return;
  drawMore(at + 1);
  focus(cards, cards.children[at]);
}

// ---- the opened image

function bar(name, part, probability) {
  const meter = make("span", { className: `bar ${part}` });
  meter.style.setProperty("--share", percent(probability).replace(" ", ""));
  return make("div", { className: "probability" }, make("span", {}, name, " ", make("small", {}, part)), meter, make("span", {}, percent(probability)));
}

function fact(name, value) {
  return make("div", { className: name }, make("dt", {}, name), make("dd", {}, String(value)));
}

function openImage(state) {
  const place = state.image;
  if (place === null) return detail.close();
  const [is, said] = [classes[rows.true[place]], classes[rows.predicted[place]]];
  $("detail-title").textContent = `${is} taken for ${said}`;
  const parts = state.map === "off" ? ["image"] : ["image", ...MAPS[state.map]];
  $("stage").replaceChildren(...parts.map((part) => {
    const of = part === "predicted" ? said : is;
    const zero = part !== "image" && !cellsOf(place, part).some(Boolean);
    const caption = part === "image" ? "the image" : `where it sees ${of}${zero ? ": nowhere, the map is zero" : ""}`;
    const picture = panel(place, part);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", part === "image" ? describe(place) : caption);
    return make("figure", {}, picture, make("figcaption", {}, caption));
  }));
  const facts = [
    ["test image", rows.index[place]],
    ["confidence rank", `${count(place + 1)} of ${count(everything.length)}`],
    ["loss", rows.loss[place].toFixed(2)],
    ["label to check", `number ${count(rows.label_rank[place])}`],
    ...(rows.file ? [["file", rows.file[place]]] : []),
    ...(rows.neighbours ? [["nearest training images", rows.neighbours[place].join("\n")]] : []),
  ];
  $("facts").replaceChildren(bar(said, "predicted", rows.predicted_probability[place]), bar(is, "true", rows.true_probability[place]),
    make("dl", {}, ...facts.map(([name, value]) => fact(name, value))));
  const at = shown.indexOf(place);
  $("place").textContent = at < 0 ? "" : `${count(at + 1)} of ${count(shown.length)}`;
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === shown.length - 1;
  if (detail.open) return;
  detail.showModal();
  detail.focus(); // rather than its first button
}

function turn(step) {
  const to = shown[shown.indexOf(read().image) + step];
  if (to !== undefined) go({ image: to }, true);
}

// ---- all of it

function buildTools() {
  for (const key of ["true", "predicted"]) {
    $(key).append(make("option", { value: "" }, "any"), ...classes.map((name, at) => make("option", { value: at }, name)));
    $(key).onchange = (event) => go({ [key]: event.target.value === "" ? null : Number(event.target.value) });
  }
  for (const key of ["confident", "loss", "file"]) sort.append(make("option", { value: key }, ORDERS[key][0]));
  for (const place of document.querySelectorAll("[data-maps]")) place.append(...(maps ? mapTools() : [`Without maps: ${data.reason}`]));
  sort.onchange = search.oninput = () => drawCards(read());
  $("all").onclick = () => go({ true: null, predicted: null });
  $("previous").onclick = () => turn(-1);
  $("next").onclick = () => turn(1);
  for (const view of ["errors", "labels"]) $(`tab-${view}`).onclick = () => go({ view });
  for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
  document.querySelector("[data-help]").onclick = () => $("help").showModal();
}

function mapTools() {
  const buttons = Object.keys(MAPS).map((key) => {
    const button = make("button", { type: "button", onclick: () => go({ map: key }, true) }, key);
    button.dataset.map = key;
    return button;
  });
  const group = make("span", { className: "choice" }, ...buttons);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Map over the image");
  const scale = make("span", { className: "scale" });
  scale.style.backgroundImage = `linear-gradient(to right, ${maps.colours})`;
  return [make("span", { className: "name" }, "map"), group, make("span", { className: "legend" }, "nothing", scale, "most")];
}

function render() {
  const state = read();
  for (const { button, is, said } of cells) button.setAttribute("aria-pressed", is === state.true && said === state.predicted);
  for (const button of document.querySelectorAll("[data-map]")) button.setAttribute("aria-pressed", button.dataset.map === state.map);
  for (const view of ["errors", "labels"]) $(`tab-${view}`).setAttribute("aria-selected", view === state.view);
  for (const key of ["true", "predicted"]) $(key).value = state[key] ?? "";
  $("sorting").hidden = state.view === "labels";
  $("found-title").textContent = title(state);
  $("all").hidden = state.true === null && state.predicted === null;
  drawCards(state);
  openImage(state);
}

detail.addEventListener("close", () => {
  const place = read().image;
  if (place === null) return;
  go({ image: null }, true);
  focusCard(place);
});
detail.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
cards.addEventListener("keydown", (event) => {
  const columns = getComputedStyle(cards).gridTemplateColumns.split(" ").length;
  const at = [...cards.children].indexOf(event.target);
  if (at + columns >= cards.childElementCount) drawMore();
  roam(event, cards, [...cards.children], columns);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  const names = Object.keys(MAPS);
  if (event.key === "?" && !$("help").open) $("help").showModal();
  else if (event.key === "m" && maps) go({ map: names[(names.indexOf(read().map) + 1) % names.length] }, true);
  else if (event.key === "/" && !detail.open) search.focus();
  else return;
  event.preventDefault();
});
addEventListener("hashchange", render);
buildMatrix();
buildTools();
sprite.decode().then(render);
