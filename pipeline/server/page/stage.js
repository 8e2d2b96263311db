// The photo with what was found in it on a canvas: zoom, move, select, and a divider between two sides.

const LONGEST_LABEL = 40;

export class Stage {
  constructor(canvas, { onSplit, onPick }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.photo = null;
    this.sides = [];
    this.names = [];
    this.isSelected = () => false;
    this.split = 0.5;
    this.opacity = 0.5;
    this.show = { masks: true, boxes: true, names: true };
    this.onSplit = onSplit;
    this.onPick = onPick;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", event => this.press(event));
    canvas.addEventListener("pointermove", event => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, event => this.release(event));
    }
    canvas.addEventListener("wheel", event => this.turn(event), { passive: false });
  }

  // Photo: {bitmap, width, height}. Another photo is shown whole.
  showPhoto(photo) {
    const isOther = photo !== this.photo;
    this.photo = photo;
    if (isOther) this.fit();
    else this.draw();
  }

  // One list of objects, or two: left and right of the divider.
  setObjects(sides, names) {
    this.sides = sides;
    this.names = names;
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    const wasWhole = this.isWhole();
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (wasWhole || !this.scale) this.fit();
    else this.draw();
  }

  isWhole() {
    return !this.photo || Math.abs(this.scale - this.wholeScale()) < 1e-6;
  }

  wholeScale() {
    return Math.min(this.canvas.width / this.photo.width, this.canvas.height / this.photo.height);
  }

  fit() {
    if (!this.photo || !this.canvas.width) return;
    this.place(this.wholeScale(), this.photo.width / 2, this.photo.height / 2);
  }

  // Put a point of the photo into the middle.
  place(scale, x, y) {
    this.scale = Math.min(Math.max(scale, this.wholeScale() / 2), 64 * (window.devicePixelRatio || 1));
    this.x = this.canvas.width / 2 - x * this.scale;
    this.y = this.canvas.height / 2 - y * this.scale;
    this.canvas.classList.toggle("zoomed", this.scale > 1.01 * this.wholeScale());
    this.draw();
  }

  zoom(factor, at = [this.canvas.width / 2, this.canvas.height / 2]) {
    if (!this.photo) return;
    const [x, y] = this.toPhoto(at);
    const scale = Math.min(Math.max(this.scale * factor, this.wholeScale() / 2), 64 * (window.devicePixelRatio || 1));
    this.place(scale, x + (this.canvas.width / 2 - at[0]) / scale, y + (this.canvas.height / 2 - at[1]) / scale);
  }

  shift(dx, dy) {
    const [x, y] = this.toPhoto([this.canvas.width / 2, this.canvas.height / 2]);
    this.place(this.scale, x + dx / this.scale, y + dy / this.scale);
  }

  zoomToBox({ left, top, right, bottom }) {
    const share = 0.7;
    const scale = share * Math.min(this.canvas.width / (right - left), this.canvas.height / (bottom - top));
    this.place(scale, (left + right) / 2, (top + bottom) / 2);
  }

  // Show about forty pixels around the highest point of the boundary nearest to the box's middle.
  zoomToBoundary(object) {
    if (!object?.box) return;
    const { left, top, right, bottom } = object.box;
    const { mask, width } = object.pixels;
    const middle = Math.floor((left + right) / 2);
    const columns = Array.from({ length: right - left }, (_, n) => left + n);
    columns.sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle));
    for (const x of columns) {
      let y = top;
      while (y < bottom && !mask[y * width + x]) y += 1;
      if (y < bottom) {
        this.place(Math.min(this.canvas.width, this.canvas.height) / 40, x + 0.5, y + 0.5);
        return;
      }
    }
  }

  toPhoto([x, y]) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  toCanvas(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.toCanvas(event);
    const isOnDivider = this.sides.length > 1 && Math.abs(at[0] - this.split * this.canvas.width) < 14;
    this.pointers.set(event.pointerId, { at, isOnDivider, moved: 0 });
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer || !this.photo) return;
    const before = pointer.at, at = this.toCanvas(event);
    pointer.at = at;
    pointer.moved += Math.hypot(at[0] - before[0], at[1] - before[1]);
    if (pointer.isOnDivider) {
      this.onSplit(Math.min(Math.max(at[0] / this.canvas.width, 0), 1));
    } else if (this.pointers.size === 2) {
      const [other] = [...this.pointers.values()].filter(each => each !== pointer);
      const reach = point => Math.hypot(point[0] - other.at[0], point[1] - other.at[1]);
      this.zoom(reach(at) / Math.max(reach(before), 1), other.at);
    } else {
      this.shift(before[0] - at[0], before[1] - at[1]);
    }
  }

  release(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (event.type !== "pointerup" || !pointer || pointer.isOnDivider || pointer.moved > 5) return;
    const [x, y] = this.toPhoto(pointer.at).map(Math.floor);
    this.onPick(this.sides.length > 1 && pointer.at[0] > this.split * this.canvas.width ? 1 : 0, x, y);
  }

  // The page scrolls as usual unless the photo has the focus.
  turn(event) {
    if (document.activeElement !== this.canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), this.toCanvas(event));
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const { context, canvas, photo } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!photo || !this.scale) return;
    context.imageSmoothingEnabled = this.scale < 3;
    context.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    if (photo.bitmap) context.drawImage(photo.bitmap, 0, 0);
    const middle = this.split * canvas.width;
    const spans = this.sides.length > 1 ? [[0, middle], [middle, canvas.width]] : [[0, canvas.width]];
    this.sides.forEach((objects, index) => {
      context.save();
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.beginPath();
      context.rect(spans[index][0], 0, spans[index][1] - spans[index][0], canvas.height);
      context.clip();
      // The best last, so that it is on top.
      for (const object of [...objects].reverse()) this.paintObject(object);
      if (this.show.names) [...objects].reverse().forEach(object => this.paintName(object));
      context.restore();
    });
    if (this.sides.length > 1) this.paintDivider(middle);
  }

  paintObject(object) {
    const { context, scale } = this;
    const ratio = window.devicePixelRatio || 1;
    const isSelected = !object.isLabels && this.isSelected(object);
    const color = isSelected || object.isLabels ? "#fff" : `rgb(${object.color.join(" ")})`;
    context.setTransform(scale, 0, 0, scale, this.x, this.y);
    if (this.show.masks && object.box) {
      context.globalAlpha = object.isLabels ? this.opacity : isSelected ? 0.3 : 0.45;
      context.imageSmoothingEnabled = false;
      context.drawImage(object.painted, object.box.left, object.box.top);
      context.globalAlpha = 1;
    }
    if (this.show.masks && object.path) {
      context.lineCap = "square";
      context.lineWidth = ratio * (isSelected ? 5 : 3.2) / scale;
      context.strokeStyle = "rgb(20 20 20 / .8)";
      context.stroke(object.path);
      context.lineWidth = ratio * (isSelected ? 3 : 1.6) / scale;
      context.strokeStyle = color;
      context.stroke(object.path);
    }
    if (this.show.boxes && object.bbox) {
      context.lineWidth = ratio * (isSelected ? 2.5 : 1.5) / scale;
      context.strokeStyle = `rgb(${object.color.join(" ")})`;
      context.strokeRect(...object.bbox);
    }
  }

  paintName(object) {
    const { context, canvas, scale } = this;
    const ratio = window.devicePixelRatio || 1;
    const { left: x0, top: y0, right: x1, bottom: y1 } = object.box || {};
    const [x, y, boxWidth, boxHeight] = object.bbox || [x0, y0, x1 - x0, y1 - y0];
    const isShown = object.label && (x + boxWidth) * scale + this.x > 0 && x * scale + this.x < canvas.width
      && (y + boxHeight) * scale + this.y > 0 && y * scale + this.y < canvas.height;
    if (!isShown) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    const text = object.label.length > LONGEST_LABEL ? `${object.label.slice(0, LONGEST_LABEL)}...` : object.label;
    const width = context.measureText(text).width + 8 * ratio;
    const left = Math.min(Math.max(x * scale + this.x, 0), canvas.width - width);
    const top = Math.min(Math.max(y * scale + this.y - 19 * ratio, 0), canvas.height - 19 * ratio);
    context.fillStyle = `rgb(${object.color.join(" ")})`;
    context.fillRect(left, top, width, 18 * ratio);
    context.fillStyle = "#111";
    context.fillText(text, left + 4 * ratio, top + 13.5 * ratio);
  }

  paintDivider(x) {
    const { context, canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#fff";
    context.strokeStyle = "#111";
    context.fillRect(x - ratio, 0, 2 * ratio, canvas.height);
    context.beginPath();
    context.arc(x, canvas.height / 2, 11 * ratio, 0, 7);
    context.fill();
    context.stroke();
    context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    this.names.forEach((name, index) => {
      const width = context.measureText(name).width + 10 * ratio;
      const left = index ? x + 8 * ratio : x - width - 8 * ratio;
      context.fillStyle = "rgb(0 0 0 / .75)";
      context.fillRect(left, canvas.height - 26 * ratio, width, 20 * ratio);
      context.fillStyle = "#fff";
      context.fillText(name, left + 5 * ratio, canvas.height - 11.5 * ratio);
    });
  }
}
