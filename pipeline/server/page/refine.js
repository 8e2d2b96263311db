// The view of a refiner: masks as they were given on the left, refined on the right.

import { saveFile, saveMasks } from "/page/files.js";
import { decodeMask, isInside, measureMask, outlineMask, paintMask } from "/page/masks.js";
import { encodeBase64, predict } from "/page/server.js";

const GIVEN = "as given";

export class RefineView {
  title = "Sharper masks";
  nothing = "no mask";
  compareText = "Compare before and after";
  comparesAtOnce = true;
  files = [];

  constructor(models, limits) {
    this.names = models.map(each => each.name);
    this.sides = [GIVEN, ...this.names];
    this.mainSide = this.names[0];
    this.limits = limits;
  }

  chooseListed(sides) {
    return sides.findLast(side => side !== GIVEN) || this.mainSide;
  }

  // Add a file of masks; return what to say about it.
  async addMasks(file, photos, current) {
    if (file.name.endsWith(".json")) {
      let content;
      try {
        content = JSON.parse(await file.text());
      } catch (error) {
        throw new Error(`it is not JSON (${error.message})`);
      }
      findRows(content, "");  // refuses other files, also without a photo
      this.files.push({ name: file.name, content });
      const counts = photos.map(photo => this.attach(photo, content));
      const count = counts.reduce((sum, each) => sum + each, 0);
      if (photos.length && !count) throw new Error("it has no masks of these photos: their names or image ids are not in it");
      return `${file.name}: ${count} masks of ${counts.filter(Boolean).length} photos`;
    }
    if (!current) throw new Error("choose its photo first");
    const mask = encodeBase64(new Uint8Array(await file.arrayBuffer()));
    current.given = [...(current.given || []), { mask, name: file.name, row: null }];
    current.found = {};
    return `${file.name}: a mask of ${current.name}`;
  }

  attach(photo, content) {
    const rows = findRows(content, photo.name);
    const names = new Map((content.categories || []).map(each => [each.id, each.name]));
    const given = rows.map((row, index) => ({
      mask: row.segmentation,
      name: row.category_name || names.get(row.category_id) || `mask ${index + 1}`,
      row,
    }));
    if (given.length) Object.assign(photo, { given: [...(photo.given || []), ...given], found: {} });
    return given.length;
  }

  missing(photo, sides) {
    if (!photo.given) for (const { content } of this.files) this.attach(photo, content);
    const models = new Set([...sides.filter(side => side !== GIVEN), this.chooseListed(sides)]);
    return photo.given ? [...models].filter(model => !(model in photo.found)) : [];
  }

  // A request takes a limited number of masks. The page applies the largest change itself.
  async predict(photo, model) {
    const step = this.limits.max_masks, { given } = photo;
    const items = [];
    let answer;
    for (let start = 0; start < given.length; start += step) {
      const part = given.slice(start, start + step);
      const masks = new Blob([JSON.stringify(part.map(each => each.mask))], { type: "application/json" });
      answer = await predict(photo.file, { model, masks, max_change: 1, with_given: true });
      items.push(...answer.masks.map((each, index) => toItem(each, part[index], start + index)));
    }
    photo.found[model] = { version: answer.model, items };
    return answer;
  }

  // Those that change most first.
  items(photo, side) {
    const largest = Number(document.getElementById("change").value);
    const found = photo.found[side === GIVEN ? this.anyModel(photo) : side]?.items || [];
    return found.map(each => each.choose(side === GIVEN, largest)).sort((a, b) => b.change - a.change);
  }

  anyModel(photo) {
    return this.names.find(name => name in photo.found);
  }

  // The smallest on top.
  layers(photo, side) {
    const area = ({ box }) => (box ? (box.right - box.left) * (box.bottom - box.top) : 0);
    return this.items(photo, side).sort((a, b) => area(a) - area(b));
  }

  isSame(one, other) {
    return one.index === other.index;
  }

  pick(photo, side, x, y) {
    return this.layers(photo, side).find(each => isInside(each.pixels, x, y)) || null;
  }

  count(photo, sides) {
    const items = this.items(photo, this.chooseListed(sides));
    return `Masks: ${items.length}, kept as given: ${items.filter(each => each.isKept).length}`;
  }

  describe(photo, side) {
    if (!photo.given) return `${photo.name}: add its masks`;
    if (!photo.found[side]) return "";
    const count = this.items(photo, side).length;
    return `${photo.name}: ${count} ${count === 1 ? "mask" : "masks"}`;
  }

  makeControls() {
    return [];
  }

  // The files as they were given, with refined masks; masks of PNG files as rows of their own.
  saveJson(photos, side) {
    const refined = new Map(), others = [];
    for (const photo of photos) {
      for (const item of this.items(photo, side)) {
        const { row } = photo.given[item.index];
        if (row) refined.set(row, item);
        else others.push({ file_name: photo.name, name: item.name, segmentation: item.segmentation });
      }
    }
    for (const { name, content } of this.files) {
      const replace = row => replaceMask(row, refined.get(row));
      const changed = Array.isArray(content) ? content.map(replace)
        : { ...content, annotations: content.annotations.map(replace) };
      saveFile(name.replace(/\.json$/, "-refined.json"), [JSON.stringify(changed)], "application/json");
    }
    if (others.length) saveFile("refined.json", [JSON.stringify(others)], "application/json");
  }

  saveMasks(photo, side) {
    return saveMasks(photo, this.items(photo, side), each => each.name);
  }
}

function toItem(answer, given, index) {
  const hue = (index * 137.508) % 360;
  const color = toRgb(hue);
  const shown = segmentation => {
    const pixels = decodeMask(segmentation), { path, box } = outlineMask(pixels);
    return { segmentation, pixels, path, box, painted: box && paintMask(pixels, box, color) };
  };
  const before = shown(answer.given), after = shown(answer.segmentation);
  const change = `change ${answer.change.toFixed(2)}`;
  const shared = { index, color, name: given.name, label: given.name, change: answer.change };
  const detail = `${given.name}: ${change}, confidence ${answer.confidence.toFixed(2)}`;
  const refined = { ...shared, ...after, isKept: false, value: change, detail };
  const kept = { ...shared, ...before, isKept: true, value: `kept, ${change}`, detail };
  return { choose: (isGiven, largest) => (isGiven || answer.change > largest ? kept : refined) };
}

function toRgb(hue) {
  const part = shift => {
    const k = (shift + hue / 30) % 12;
    return Math.round(255 * (0.62 - 0.33 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

// The rows of a photo in COCO results or annotations: by file name, or by the number in its name.
function findRows(content, photoName) {
  const isFile = name => typeof name === "string" && name.split("/").pop() === photoName;
  const rows = Array.isArray(content) ? content : content?.annotations;
  if (!Array.isArray(rows)) throw new Error("it is neither a list of rows nor an annotation file");
  const usable = rows.filter(row => row?.segmentation && !row.iscrowd);
  if (!Array.isArray(content)) {
    const image = (content.images || []).find(each => isFile(each.file_name));
    if (image) return usable.filter(row => row.image_id === image.id);
  }
  const named = usable.filter(row => isFile(row.file_name));
  if (named.length) return named;
  const number = photoName.replace(/\.[^.]*$/, "").split("_").pop();
  const numbered = usable.filter(row => /^\d+$/.test(number) && row.image_id === Number(number));
  if (numbered.length) return numbered;
  // A file of one photo.
  return new Set(usable.map(row => row.image_id)).size === 1 && !usable[0].file_name ? usable : [];
}

function replaceMask(row, item) {
  if (!item || item.isKept) return row;
  const { left, top, right, bottom } = item.box || { left: 0, top: 0, right: 0, bottom: 0 };
  const changed = { ...row, segmentation: item.segmentation };
  // Annotations have them; the box of a result is the detector's.
  if ("area" in row) changed.area = measureMask(item.pixels);
  if ("area" in row && "bbox" in row) changed.bbox = [left, top, right - left, bottom - top];
  return changed;
}
