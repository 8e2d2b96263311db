// Files to save: COCO JSON, and a ZIP archive of masks.

import { encodePng } from "/page/masks.js";

export function saveFile(name, parts, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// COCO's annotation file, with a score for each annotation.
export function toCoco(photos, categories) {
  const images = [], annotations = [];
  photos.forEach(({ name, width, height, detections }, index) => {
    images.push({ id: index + 1, file_name: name, width, height });
    for (const found of detections) {
      annotations.push({
        id: annotations.length + 1,
        image_id: index + 1,
        category_id: found.category_id,
        segmentation: found.segmentation,
        area: found.area,
        bbox: found.bbox,
        iscrowd: 0,
        score: found.score,
      });
    }
  });
  return JSON.stringify({ images, annotations, categories }, null, 1);
}

// A PNG for each object, in one archive.
export async function saveMasks(photo, objects, nameOf) {
  const files = [];
  for (const [index, object] of objects.entries()) {
    const name = nameOf(object).replace(/[^\w.-]+/g, "_");
    files.push({ name: `${String(index + 1).padStart(3, "0")}-${name}.png`, data: await encodePng(object.pixels) });
  }
  saveFile(`${photo.name.replace(/\.[^.]*$/, "")}-masks.zip`, zip(files), "application/zip");
}

// A ZIP archive of files that are stored as they are: PNG is compressed already.
export function zip(files) {
  const encoder = new TextEncoder();
  const parts = [], directory = [];
  let offset = 0;
  for (const { name, data } of files) {
    const path = encoder.encode(name);
    const fields = [20, 0x800, 0, 0, 0x21];
    const sizes = [checksum(data), data.length, data.length];
    const local = pack([[0x04034b50, 4], ...fields.map(each => [each, 2]),
      ...sizes.map(each => [each, 4]), [path.length, 2], [0, 2]]);
    directory.push(pack([[0x02014b50, 4], [20, 2], ...fields.map(each => [each, 2]),
      ...sizes.map(each => [each, 4]), [path.length, 2], [0, 2], [0, 2], [0, 2], [0, 2], [0, 4],
      [offset, 4]]), path);
    parts.push(local, path, data);
    offset += local.length + path.length + data.length;
  }
  const length = directory.reduce((sum, each) => sum + each.length, 0);
  const end = pack([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2],
    [length, 4], [offset, 4], [0, 2]]);
  return [...parts, ...directory, end];
}

function pack(numbers) {
  const bytes = [];
  for (const [value, size] of numbers) {
    for (let n = 0; n < size; n += 1) bytes.push((value >>> (8 * n)) & 255);
  }
  return new Uint8Array(bytes);
}

function checksum(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
