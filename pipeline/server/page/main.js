// The page: photos in, what a model finds out, and the controls that act on it at once.
//
// Each task has a view: what it asks the server, what it draws, lists and saves. A side is a name of
// what a photo can show: a model, or for a refiner also the masks as they were given.

import { LabelsView } from "/page/labels.js";
import { ObjectsView } from "/page/objects.js";
import { RefineView } from "/page/refine.js";
import { fetchModels, useToken } from "/page/server.js";
import { Stage } from "/page/stage.js";

const VIEWS = { instance: ObjectsView, semantic: LabelsView, refine: RefineView };

const find = id => document.getElementById(id);
const state = { models: [], limits: null, view: null, photos: [], current: null, selected: null, waiting: 0 };
const stage = new Stage(find("canvas"), {
  onSplit: share => { find("split").value = Math.round(100 * share); setSplit(share); },
  onPick: (side, x, y) => select(state.view.pick(state.current, chosenSides()[side], x, y)),
});

// A photo may come before the server has told its models, or before it was given a token.
let tellReady;
const ready = new Promise(resolve => { tellReady = resolve; });

async function start() {
  let answer;
  try {
    answer = await fetchModels();
  } catch (error) {
    if (error.status === 401) find("token-form").hidden = false;
    find("served").textContent = error.status === 401 ? "" : `Error: ${error.message}`;
    return;
  }
  const { task, models, limits } = answer;
  Object.assign(state, { models, limits, view: new VIEWS[task](models, limits) });
  find("token-form").hidden = true;
  find("heading").textContent = document.title = state.view.title;
  find("served").textContent = state.models.map(each => each.version).join(" and ");
  for (const each of document.querySelectorAll("[data-task]")) {
    each.hidden = !each.dataset.task.split(" ").includes(task);
  }
  find("limits").textContent =
    `JPEG, PNG, WebP, TIFF or BMP up to ${Math.floor(limits.max_bytes / 1e6)} MB and ${Math.floor(limits.max_pixels / 1e6)} megapixels`;
  stage.show.boxes = task === "instance";
  const { sides } = state.view;
  find("compare").hidden = sides.length < 2;
  find("compare-text").textContent = state.view.compareText;
  for (const [id, chosen] of [["left", 0], ["right", 1]]) {
    find(id).replaceChildren(...sides.map(each => new Option(each)));
    find(id).selectedIndex = Math.min(chosen, sides.length - 1);
  }
  find("compare-on").checked = state.view.comparesAtOnce;
  find("compare-more").hidden = !isComparing();
  tellReady();
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

async function addFiles(files) {
  const added = await Promise.all([...files].map(readPhoto));
  if (!added.length) return;
  if (!state.view) say("Waiting for the server...");
  await ready;
  state.photos.push(...added);
  listPhotos();
  showPhoto(added[0]);
  // One after the other: the server batches what several clients send.
  for (const photo of added) await predictPhoto(photo);
}

async function readPhoto(file, index) {
  const name = file.name || `pasted ${state.photos.length + index + 1}.png`;
  const photo = { file, name, bitmap: null, width: 0, height: 0, found: {}, problem: "", notices: [] };
  try {
    // Masks belong to the pixels as stored, without the orientation in EXIF.
    photo.bitmap = await createImageBitmap(file, { imageOrientation: "none" });
    photo.width = photo.bitmap.width;
    photo.height = photo.bitmap.height;
  } catch {
    photo.notices.push("this browser cannot show the file; the masks are shown alone");
  }
  return photo;
}

async function addMasks(files) {
  await ready;
  for (const file of files) {
    try {
      say(await state.view.addMasks(file, state.photos, state.current));
    } catch (error) {
      say(`${file.name}: ${error.message}`, true);
      return;
    }
  }
  const photos = state.photos.filter(each => !Object.keys(each.found).length);
  for (const photo of photos) await predictPhoto(photo);
}

async function predictPhoto(photo) {
  for (const model of state.view.missing(photo, chosenSides())) {
    state.waiting += 1;
    say(`${photo.name}: waiting for ${model}...`);
    try {
      const { image, notices } = await state.view.predict(photo, model);
      photo.width = image.width;
      photo.height = image.height;
      photo.notices = [...new Set([...photo.notices, ...notices])];
      photo.problem = "";
    } catch (error) {
      photo.problem = error.message;
      if (error.status === 401) find("token-form").hidden = false;
    }
    state.waiting -= 1;
    if (photo === state.current) refresh();
  }
  if (!state.waiting) announce();
}

function isComparing() {
  return find("compare-on").checked && state.view.sides.length > 1;
}

function chosenSides() {
  return isComparing() ? [find("left").value, find("right").value] : [state.view.mainSide];
}

// What the list, the keys and the files are about.
function listedSide() {
  return state.view.chooseListed(chosenSides());
}

function listPhotos() {
  find("photos").hidden = state.photos.length < 2;
  find("photos").replaceChildren(...state.photos.map(photo => {
    const button = document.createElement("button");
    const text = document.createElement("span");
    text.textContent = photo.name;
    const small = document.createElement("canvas");
    if (photo.bitmap) {
      const scale = Math.min(200 / photo.width, 130 / photo.height, 1);
      small.width = Math.max(1, photo.width * scale);
      small.height = Math.max(1, photo.height * scale);
      small.getContext("2d").drawImage(photo.bitmap, 0, 0, small.width, small.height);
    }
    button.type = "button";
    button.append(small, text);
    button.setAttribute("aria-current", String(photo === state.current));
    button.addEventListener("click", () => { showPhoto(photo); predictPhoto(photo); });
    return button;
  }));
}

function showPhoto(photo) {
  state.current = photo;
  state.selected = null;
  find("work").hidden = false;
  [...find("photos").children].forEach((button, index) =>
    button.setAttribute("aria-current", String(state.photos[index] === photo)));
  refresh();
  announce();
}

function isSelected(item) {
  return Boolean(state.selected) && state.view.isSame(item, state.selected);
}

// Draw and list what was found in the current photo again.
function refresh() {
  const photo = state.current;
  if (!photo) return;
  const { view } = state;
  const sides = chosenSides();
  const listed = view.items(photo, listedSide());
  const items = [...listed, ...sides.flatMap(side => view.items(photo, side))];
  state.selected = items.find(isSelected) || null;
  stage.isSelected = isSelected;
  stage.opacity = Number(find("opacity").value);
  if (photo.width) stage.showPhoto(photo);
  stage.setObjects(sides.map(side => view.layers(photo, side, state.selected)),
    sides.map(side => photo.found[side]?.version || side));
  find("notices").textContent = photo.notices.join("; ");
  for (const id of ["score", "opacity", "change"]) {
    find(`${id}-value`).textContent = Number(find(id).value).toFixed(2);
  }
  find("found").textContent = view.count(photo, sides);
  listItems(listed);
  const texts = listed.slice(0, 10).map(each => each.label);
  const more = listed.length > 10 ? ` and ${listed.length - 10} more` : "";
  find("canvas").setAttribute("aria-label", `${photo.name}: ${texts.join(", ") || view.nothing}${more}`);
}

function listItems(items) {
  find("objects").replaceChildren(...items.map(item => {
    const entry = document.createElement("li"), button = document.createElement("button");
    const swatch = document.createElement("i"), name = document.createElement("span");
    const value = document.createElement("b");
    swatch.style.background = `rgb(${item.color.join(" ")})`;
    name.textContent = item.name;
    value.textContent = item.value;
    button.type = "button";
    button.setAttribute("aria-pressed", String(isSelected(item)));
    button.append(swatch, name, value);
    button.addEventListener("click", () => select(item, { zoom: true }));
    entry.append(button, ...state.view.makeControls(item, refresh));
    return entry;
  }));
  for (const id of ["save-json", "save-masks", "save-labels", "boundary"]) find(id).disabled = !items.length;
}

function announce() {
  const photo = state.current;
  if (!photo) return;
  if (photo.problem) say(`${photo.name}: ${photo.problem}`, true);
  else say(state.view.describe(photo, listedSide()));
}

function select(item, { zoom = false } = {}) {
  state.selected = item;
  const focused = [...find("objects").children].findIndex(each => each.contains(document.activeElement));
  refresh();
  // The list was made anew.
  if (focused >= 0) find("objects").children[focused]?.firstChild.focus();
  if (zoom && item?.box) stage.zoomToBox(item.box);
}

function step(by) {
  const items = state.view.items(state.current, listedSide());
  if (!items.length) return;
  const at = items.findIndex(isSelected);
  select(items[(at + by + items.length + (at < 0 && by < 0 ? 1 : 0)) % items.length], { zoom: true });
  say(state.selected.detail);
}

function zoomToBoundary() {
  const items = state.view.items(state.current, listedSide());
  if (!state.selected) select(items[0] || null);
  stage.zoomToBoundary(state.selected);
}

function setSplit(share) {
  stage.split = share;
  stage.draw();
}

function press(event) {
  const moves = { ArrowLeft: [-60, 0], ArrowRight: [60, 0], ArrowUp: [0, -60], ArrowDown: [0, 60] };
  const actions = {
    "+": () => stage.zoom(1.4), "=": () => stage.zoom(1.4), "-": () => stage.zoom(1 / 1.4),
    0: () => stage.fit(), n: () => step(1), p: () => step(-1), b: zoomToBoundary,
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = moves[event.key] ? () => stage.shift(...moves[event.key]) : actions[event.key];
  if (!action || !state.current) return;
  event.preventDefault();
  action();
}

// Masks are JSON files, and images that are dropped on the field for masks.
function drop(event) {
  const files = [...event.dataTransfer.files];
  const onMasks = find("drop-masks").contains(event.target);
  const isMask = file => !find("drop-masks").hidden && (onMasks || file.name.endsWith(".json"));
  const masks = files.filter(isMask);
  addFiles(files.filter(file => !isMask(file))).then(() => masks.length && addMasks(masks));
}

find("token-form").addEventListener("submit", event => {
  event.preventDefault();
  useToken(find("token").value);
  find("token").value = "";
  start();
});
find("files").addEventListener("change", event => { addFiles(event.target.files); });
find("mask-files").addEventListener("change", event => { addMasks([...event.target.files]); });
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); addFiles(files); }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    const onMasks = find("drop-masks").contains(event.target);
    find("drop").classList.toggle("over", name === "dragover" && !onMasks);
    find("drop-masks").classList.toggle("over", name === "dragover" && onMasks);
    if (name === "drop") drop(event);
  });
}
for (const id of ["score", "opacity", "change"]) {
  find(id).addEventListener("input", refresh);
  find(id).addEventListener("change", announce);
}
for (const name of ["masks", "boxes", "names"]) {
  find(`show-${name}`).addEventListener("change", event => { stage.show[name] = event.target.checked; stage.draw(); });
}
for (const id of ["compare-on", "left", "right"]) {
  find(id).addEventListener("change", () => {
    find("compare-more").hidden = !isComparing();
    refresh();
    if (state.current) predictPhoto(state.current);
  });
}
find("split").addEventListener("input", event => setSplit(event.target.value / 100));
find("zoom-in").addEventListener("click", () => stage.zoom(1.5));
find("zoom-out").addEventListener("click", () => stage.zoom(1 / 1.5));
find("fit").addEventListener("click", () => stage.fit());
find("boundary").addEventListener("click", zoomToBoundary);
find("save-json").addEventListener("click", () => state.view.saveJson(state.photos, listedSide()));
find("save-masks").addEventListener("click", () => state.view.saveMasks(state.current, listedSide()));
find("save-labels").addEventListener("click", () => state.view.saveLabels(state.current, listedSide()));
find("canvas").addEventListener("keydown", press);
start();
