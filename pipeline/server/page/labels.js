// The view of a semantic model: one color for each class, a legend, and the label map as a file.

import { saveFile } from "/page/files.js";
import { outlineMask } from "/page/masks.js";
import { decodeBase64, predict } from "/page/server.js";

export class LabelsView {
  title = "Classes in photos";
  nothing = "no class";
  compareText = "Compare two versions";
  comparesAtOnce = false;
  hidden = new Set();

  constructor(models) {
    this.sides = models.map(each => each.name);
    this.mainSide = this.sides[0];
    this.colors = new Map(models.flatMap(model => model.categories.map(each => [each.id, each.color])));
  }

  chooseListed(sides) {
    return sides[0];
  }

  missing(photo, sides) {
    return sides.filter(side => !(side in photo.found));
  }

  async predict(photo, model) {
    const answer = await predict(photo.file, { model, format: "json" });
    const png = decodeBase64(answer.label_map);
    const map = await readLabels(png);
    const items = answer.segments.map(each => this.toItem(each, map));
    photo.found[model] = { version: answer.model, png, map, items, painted: null, paintedFor: null };
    return answer;
  }

  toItem(segment, map) {
    const share = segment.area / map.labels.length;
    const value = share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
    const name = segment.category_name;
    const color = this.colors.get(segment.category_id) || [128, 128, 128];
    const label = `${name} ${value}`;
    return new ClassItem({ ...segment, name, value, color, label, detail: label }, map);
  }

  items(photo, side) {
    return photo.found[side]?.items || [];
  }

  // The label map is one layer; the chosen class has an outline.
  layers(photo, side, selected) {
    const found = photo.found[side];
    if (!found) return [];
    const key = [...this.hidden].sort().join(" ");
    if (found.paintedFor !== key) {
      const shown = new Map([...this.colors].filter(([id]) => !this.hidden.has(id)));
      Object.assign(found, { painted: paintLabels(found.map, shown), paintedFor: key });
    }
    const outlined = selected && found.items.find(each => this.isSame(each, selected));
    const { width, height } = found.map;
    const box = { left: 0, top: 0, right: width, bottom: height };
    return [{ painted: found.painted, box, path: outlined?.path, isLabels: true }];
  }

  isSame(one, other) {
    return one.category_id === other.category_id;
  }

  pick(photo, side, x, y) {
    const found = photo.found[side];
    const { labels, width, height } = found?.map || { width: 0, height: 0 };
    if (x < 0 || y < 0 || x >= width || y >= height) return null;
    return found.items.find(each => each.category_id === labels[y * width + x]) || null;
  }

  count(photo, sides) {
    const counts = sides.map(side => this.items(photo, side).length);
    return counts.length > 1 ? `Classes left: ${counts[0]}, right: ${counts[1]}` : `Classes: ${counts[0]}`;
  }

  describe(photo, side) {
    if (!photo.found[side]) return "";
    const items = this.items(photo, side);
    return `${photo.name}: ${items.length} ${items.length === 1 ? "class" : "classes"}, most of it ${items[0].label}`;
  }

  // Shows and hides a class.
  makeControls(item, refresh) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !this.hidden.has(item.category_id);
    box.setAttribute("aria-label", `show ${item.name}`);
    box.addEventListener("change", () => {
      if (box.checked) this.hidden.delete(item.category_id);
      else this.hidden.add(item.category_id);
      refresh();
      [...document.querySelectorAll("#objects input")]
        .find(each => each.getAttribute("aria-label") === `show ${item.name}`)?.focus();
    });
    return [box];
  }

  // The file as the server sent it.
  saveLabels(photo, side) {
    saveFile(`${photo.name.replace(/\.[^.]*$/, "")}-labels.png`, [photo.found[side].png], "image/png");
  }
}

// A class of a label map. Its mask and outline are made when they are asked for.
class ClassItem {
  constructor(fields, map) {
    Object.assign(this, fields);
    this.map = map;
  }

  get pixels() {
    const { labels, width, height } = this.map;
    return { mask: labels.map(each => (each === this.category_id ? 1 : 0)), width, height };
  }

  get path() {
    return this.outline().path;
  }

  get box() {
    return this.outline().box;
  }

  outline() {
    this.outlined ||= outlineMask(this.pixels);
    return this.outlined;
  }
}

// The values of a gray PNG: in a canvas all three channels have them.
async function readLabels(png) {
  const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }), { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const labels = new Uint8Array(width * height);
  for (let n = 0; n < labels.length; n += 1) labels[n] = data[4 * n];
  return { labels, width, height };
}

function paintLabels({ labels, width, height }, colors) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const table = new Uint32Array(256);
  // Bytes in memory are red, green, blue, alpha.
  for (const [id, [red, green, blue]] of colors) table[id] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const pixels = new Uint32Array(image.data.buffer);
  for (let n = 0; n < labels.length; n += 1) pixels[n] = table[labels[n]];
  context.putImageData(image, 0, 0);
  return canvas;
}
