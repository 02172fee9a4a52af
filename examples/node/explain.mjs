// Explains a photo: node explain.mjs EXPLAIN.onnx PHOTO.png HEATMAP.png [TARGET [MAX_MASKS]]
//
// EXPLAIN.onnx was exported with --single-file and --embed-preprocess, or lies in a bundle that was exported with the
// latter. The heatmap is a grey picture: white is what made the model answer as it did.
import { readFileSync, writeFileSync } from 'node:fs';
import ort from 'onnxruntime-node';
import { PNG } from 'pngjs';

const [model, photo, output, target = '-1', maxMasks = '0'] = process.argv.slice(2);
if (!output) {
  console.error('usage: node explain.mjs EXPLAIN.onnx PHOTO.png HEATMAP.png [TARGET [MAX_MASKS]]');
  process.exit(2);
}

const { width, height, data } = PNG.sync.read(readFileSync(photo)); // RGBA
const pixels = data.filter((_, index) => index % 4 !== 3);
const session = await ort.InferenceSession.create(model);
const found = await session.run({
  image: new ort.Tensor('uint8', pixels, [height, width, 3]),
  target: new ort.Tensor('int64', [BigInt(target)], [1]),
  max_masks: new ort.Tensor('int64', [BigInt(maxMasks)], [1]),
});

const [rows, columns] = found.heatmap.dims;
const picture = new PNG({ width: columns, height: rows });
found.heatmap.data.forEach((value, index) => {
  const grey = Math.round(value * 255);
  picture.data.set([grey, grey, grey, 255], 4 * index);
});
writeFileSync(output, PNG.sync.write(picture));
const masks = found.scored.data.reduce((sum, count) => sum + count, 0n);
console.log(`class ${found.target_index.data[0]}: score ${found.class_score.data[0].toPrecision(4)}, ${masks} masks`);
