// The page: photos in, detections out, and the controls that act on them at once.

import { saveFile, toCoco, zip } from "/page/files.js";
import { decodeMask, encodePng, outlineMask, paintMask } from "/page/masks.js";
import { fetchModels, predict, useToken } from "/page/server.js";
import { Stage } from "/page/stage.js";

// The colors of every picture of this project; categories use them in turn.
const PALETTE = [
  [255, 92, 92], [64, 156, 255], [255, 190, 46], [72, 200, 120], [190, 110, 255],
  [255, 130, 200], [60, 205, 215], [255, 140, 60], [170, 205, 60], [130, 140, 255],
];

const find = id => document.getElementById(id);
const state = { models: [], limits: null, photos: [], current: null, selected: null, waiting: 0 };
const stage = new Stage(find("canvas"), {
  onSplit: share => { find("split").value = Math.round(100 * share); setSplit(share); },
  onSelect: object => select(object),
});

async function start() {
  try {
    const { models, limits } = await fetchModels();
    Object.assign(state, { models, limits });
  } catch (error) {
    if (error.status === 401) find("token-form").hidden = false;
    find("served").textContent = error.status === 401 ? "" : `Error: ${error.message}`;
    return;
  }
  find("token-form").hidden = true;
  find("served").textContent = state.models.map(each => each.version).join(" and ");
  const { max_bytes: bytes, max_pixels: pixels } = state.limits;
  find("limits").textContent =
    `JPEG, PNG, WebP, TIFF or BMP up to ${Math.floor(bytes / 1e6)} MB and ${Math.floor(pixels / 1e6)} megapixels`;
  find("compare").hidden = state.models.length < 2;
  for (const [id, chosen] of [["left", 0], ["right", 1]]) {
    find(id).replaceChildren(...state.models.map(each => new Option(each.name)));
    find(id).selectedIndex = Math.min(chosen, state.models.length - 1);
  }
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

async function addFiles(files) {
  const added = await Promise.all([...files].map(readPhoto));
  if (!added.length) return;
  state.photos.push(...added);
  listPhotos();
  showPhoto(added[0]);
  // One after the other: the server batches what several clients send.
  for (const photo of added) await predictPhoto(photo, chosenModels());
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

async function predictPhoto(photo, names) {
  for (const name of names.filter(each => !(each in photo.found))) {
    state.waiting += 1;
    say(`Looking for objects in ${photo.name}...`);
    try {
      const answer = await predict(photo.file, name);
      photo.width = answer.image.width;
      photo.height = answer.image.height;
      photo.found[name] = { version: answer.model, objects: answer.detections.map(toObject) };
      photo.notices = [...new Set([...photo.notices, ...answer.notices])];
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

function toObject(detection) {
  const pixels = decodeMask(detection.segmentation);
  const categories = state.models[0].categories.map(each => each.id);
  const color = PALETTE[Math.max(categories.indexOf(detection.category_id), 0) % PALETTE.length];
  const { path, box } = outlineMask(pixels);
  const area = pixels.mask.reduce((sum, each) => sum + each, 0);
  const painted = box && paintMask(pixels, box, color);
  return { ...detection, pixels, color, path, box, area, painted };
}

function isComparing() {
  return find("compare-on").checked && state.models.length > 1;
}

function chosenModels() {
  const first = state.models[0]?.name;
  return isComparing() ? [find("left").value, find("right").value] : [first];
}

function shownObjects(photo, name) {
  const lowest = Number(find("score").value);
  return (photo.found[name]?.objects || []).filter(each => each.score >= lowest);
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
    button.addEventListener("click", () => { showPhoto(photo); predictPhoto(photo, chosenModels()); });
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

// Draw and list the current photo's objects again.
function refresh() {
  const photo = state.current;
  if (!photo) return;
  const names = chosenModels();
  const sides = names.map(name => shownObjects(photo, name));
  if (!sides.flat().includes(state.selected)) state.selected = null;
  stage.selected = state.selected;
  if (photo.width) stage.showPhoto(photo);
  stage.setObjects(sides, names.map(name => photo.found[name]?.version || name));
  find("notices").textContent = photo.notices.join("; ");
  find("score-value").textContent = Number(find("score").value).toFixed(2);
  const counts = names.map((name, index) =>
    `${sides[index].length} of ${photo.found[name]?.objects.length || 0}`);
  find("found").textContent = isComparing()
    ? `Objects left: ${counts[0]}, right: ${counts[1]}` : `Objects: ${counts[0]}`;
  listObjects(sides[0]);
  describe(photo, sides[0]);
}

function listObjects(objects) {
  find("objects").replaceChildren(...objects.map(object => {
    const item = document.createElement("li"), button = document.createElement("button");
    const swatch = document.createElement("i"), name = document.createElement("span");
    const score = document.createElement("b");
    swatch.style.background = `rgb(${object.color.join(" ")})`;
    name.textContent = object.category_name;
    score.textContent = object.score.toFixed(2);
    button.type = "button";
    button.setAttribute("aria-pressed", String(object === state.selected));
    button.append(swatch, name, score);
    button.addEventListener("click", () => select(object, { zoom: true }));
    item.append(button);
    return item;
  }));
  find("save-json").disabled = find("save-masks").disabled = find("boundary").disabled = !objects.length;
}

function describe(photo, objects) {
  const listed = objects.slice(0, 10).map(each => `${each.category_name} ${each.score.toFixed(2)}`).join(", ");
  const more = objects.length > 10 ? ` and ${objects.length - 10} more` : "";
  find("canvas").setAttribute("aria-label", `${photo.name}: ${listed || "no object shown"}${more}`);
}

function announce() {
  const photo = state.current;
  if (!photo) return;
  if (photo.problem) say(`${photo.name}: ${photo.problem}`, true);
  else if (photo.found[chosenModels()[0]]) {
    const count = shownObjects(photo, chosenModels()[0]).length;
    say(`${photo.name}: ${count} ${count === 1 ? "object" : "objects"} with a score of at least ${find("score-value").textContent}`);
  }
}

function select(object, { zoom = false } = {}) {
  state.selected = object;
  const focused = [...find("objects").children].findIndex(each => each.contains(document.activeElement));
  refresh();
  // The list was made anew.
  if (focused >= 0) find("objects").children[focused]?.firstChild.focus();
  if (zoom && object?.box) stage.zoomToBox(object.box);
}

function step(by) {
  const objects = shownObjects(state.current, chosenModels()[0]);
  if (!objects.length) return;
  const at = objects.indexOf(state.selected);
  select(objects[(at + by + objects.length + (at < 0 && by < 0 ? 1 : 0)) % objects.length], { zoom: true });
  say(`${state.selected.category_name} ${state.selected.score.toFixed(2)}`);
}

function zoomToBoundary() {
  const objects = shownObjects(state.current, chosenModels()[0]);
  if (!state.selected) select(objects[0] || null);
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

function saveJson() {
  const [name] = chosenModels();
  const photos = state.photos.filter(each => each.found[name]).map(each =>
    ({ ...each, detections: shownObjects(each, name) }));
  saveFile("detections.json", [toCoco(photos, state.models.find(each => each.name === name).categories)], "application/json");
}

async function saveMasks() {
  const photo = state.current;
  const objects = shownObjects(photo, chosenModels()[0]);
  const stem = photo.name.replace(/\.[^.]*$/, "");
  const files = [];
  for (const [index, object] of objects.entries()) {
    const label = object.category_name.replace(/[^\w-]+/g, "_");
    const number = String(index + 1).padStart(3, "0");
    files.push({ name: `${number}-${label}-${object.score.toFixed(2)}.png`, data: await encodePng(object.pixels) });
  }
  saveFile(`${stem}-masks.zip`, zip(files), "application/zip");
}

find("token-form").addEventListener("submit", event => {
  event.preventDefault();
  useToken(find("token").value);
  find("token").value = "";
  start();
});
find("files").addEventListener("change", event => { addFiles(event.target.files); });
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); addFiles(files); }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    find("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") addFiles(event.dataTransfer.files);
  });
}
find("score").addEventListener("input", refresh);
find("score").addEventListener("change", announce);
for (const name of ["masks", "boxes", "names"]) {
  find(`show-${name}`).addEventListener("change", event => { stage.show[name] = event.target.checked; stage.draw(); });
}
for (const id of ["compare-on", "left", "right"]) {
  find(id).addEventListener("change", () => {
    find("compare-more").hidden = !isComparing();
    refresh();
    if (state.current) predictPhoto(state.current, chosenModels());
  });
}
find("split").addEventListener("input", event => setSplit(event.target.value / 100));
find("zoom-in").addEventListener("click", () => stage.zoom(1.5));
find("zoom-out").addEventListener("click", () => stage.zoom(1 / 1.5));
find("fit").addEventListener("click", () => stage.fit());
find("boundary").addEventListener("click", zoomToBoundary);
find("save-json").addEventListener("click", saveJson);
find("save-masks").addEventListener("click", saveMasks);
find("canvas").addEventListener("keydown", press);
start();
