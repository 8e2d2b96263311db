// The view of a model that detects objects.

import { saveFile, saveMasks, toCoco } from "/page/files.js";
import { decodeMask, isInside, measureMask, outlineMask, paintMask } from "/page/masks.js";
import { predict } from "/page/server.js";

export class ObjectsView {
  title = "Objects in photos";
  nothing = "no object shown";
  compareText = "Compare two versions";
  comparesAtOnce = false;

  constructor(models) {
    this.models = models;
    this.sides = models.map(each => each.name);
    this.mainSide = this.sides[0];
  }

  chooseListed(sides) {
    return sides[0];
  }

  missing(photo, sides) {
    return sides.filter(side => !(side in photo.found));
  }

  // All detections of a photo: the page applies the score threshold itself.
  async predict(photo, model) {
    const answer = await predict(photo.file, { model, score_threshold: 0 });
    photo.found[model] = { version: answer.model, items: answer.detections.map(each => this.toItem(each)) };
    return answer;
  }

  toItem(detection) {
    const pixels = decodeMask(detection.segmentation);
    const category = this.models[0].categories.find(each => each.id === detection.category_id);
    const { color } = category || this.models[0].categories[0];
    const { path, box } = outlineMask(pixels);
    const area = measureMask(pixels);
    const value = detection.score.toFixed(2);
    const name = detection.category_name;
    const label = `${name} ${value}`;
    return { ...detection, pixels, color, path, box, area, painted: box && paintMask(pixels, box, color),
      name, value, label, detail: label };
  }

  items(photo, side) {
    const lowest = Number(document.getElementById("score").value);
    return (photo.found[side]?.items || []).filter(each => each.score >= lowest);
  }

  layers(photo, side) {
    return this.items(photo, side);
  }

  isSame(one, other) {
    return one === other;
  }

  pick(photo, side, x, y) {
    return this.items(photo, side).find(each => isInside(each.pixels, x, y)) || null;
  }

  count(photo, sides) {
    const counts = sides.map(side => `${this.items(photo, side).length} of ${photo.found[side]?.items.length || 0}`);
    return counts.length > 1 ? `Objects left: ${counts[0]}, right: ${counts[1]}` : `Objects: ${counts[0]}`;
  }

  describe(photo, side) {
    if (!photo.found[side]) return "";
    const count = this.items(photo, side).length;
    const lowest = document.getElementById("score-value").textContent;
    return `${photo.name}: ${count} ${count === 1 ? "object" : "objects"} with a score of at least ${lowest}`;
  }

  makeControls() {
    return [];
  }

  saveJson(photos, side) {
    const found = photos.filter(each => each.found[side]).map(each => ({ ...each, detections: this.items(each, side) }));
    const { categories } = this.models.find(each => each.name === side);
    const plain = categories.map(({ id, name }) => ({ id, name }));
    saveFile("detections.json", [toCoco(found, plain)], "application/json");
  }

  saveMasks(photo, side) {
    return saveMasks(photo, this.items(photo, side), each => `${each.name}-${each.value}`);
  }
}
