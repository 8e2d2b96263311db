// COCO masks: run lengths to pixels, to an outline along the pixels' edges, and to PNG files.

// Decode compressed run lengths; they go down the columns. Returns row-major 0 and 1.
export function decodeMask({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  const runs = decodeCounts(counts);
  let at = 0;
  runs.forEach((length, index) => {
    if (index % 2) {
      for (let n = at; n < at + length; n += 1) {
        mask[(n % height) * width + Math.floor(n / height)] = 1;
      }
    }
    at += length;
  });
  return { mask, width, height };
}

// The numbers of the text: 5 bits in each character, and from the third on differences.
function decodeCounts(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const bits = text.charCodeAt(at) - 48;
      at += 1;
      value |= (bits & 31) << shift;
      shift += 5;
      more = (bits & 32) !== 0;
      if (!more && bits & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

export function isInside({ mask, width, height }, x, y) {
  return x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] > 0;
}

export function measureMask({ mask }) {
  return mask.reduce((sum, each) => sum + each, 0);
}

// Outline of a mask along the edges of its pixels, sharp at every zoom, and the box around it.
export function outlineMask({ mask, width, height }) {
  const path = new Path2D();
  let left = width, top = height, right = 0, bottom = 0;
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  for (let y = 0; y < height; y += 1) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    left = Math.min(left, first);
    right = Math.max(right, row.lastIndexOf(1) + 1);
    top = Math.min(top, y);
    bottom = y + 1;
  }
  const addLines = (lines, count, length, differs, draw) => {
    for (let line = lines; line <= count; line += 1) {
      let start = -1;
      for (let n = length[0]; n <= length[1]; n += 1) {
        const edge = n < length[1] && differs(n, line);
        if (edge && start < 0) start = n;
        if (!edge && start >= 0) { draw(start, n, line); start = -1; }
      }
    }
  };
  addLines(top, bottom, [left, right], (x, y) => inside(x, y) !== inside(x, y - 1),
    (from, to, y) => { path.moveTo(from, y); path.lineTo(to, y); });
  addLines(left, right, [top, bottom], (y, x) => inside(x, y) !== inside(x - 1, y),
    (from, to, x) => { path.moveTo(x, from); path.lineTo(x, to); });
  return { path, box: right > left ? { left, top, right, bottom } : null };
}

// A canvas with the mask in one color, the size of its box.
export function paintMask({ mask, width }, box, color) {
  const canvas = document.createElement("canvas");
  canvas.width = box.right - box.left;
  canvas.height = box.bottom - box.top;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const [red, green, blue] = color;
  for (let y = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1) {
      if (!mask[(y + box.top) * width + x + box.left]) continue;
      image.data.set([red, green, blue, 255], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Encode a mask as a PNG of the photo's size: white on black.
export async function encodePng({ mask, width, height }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let n = 0; n < mask.length; n += 1) {
    image.data.fill(mask[n] ? 255 : 0, 4 * n, 4 * n + 3);
    image.data[4 * n + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  const blob = await new Promise(resolve => canvas.toBlob(resolve, "image/png"));
  return new Uint8Array(await blob.arrayBuffer());
}
