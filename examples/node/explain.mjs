// Explains a photo: node explain.mjs EXPLAIN.onnx PHOTO.png HEATMAP.png [TARGET [MAX_MASKS]]
//
// EXPLAIN.onnx was exported with --single-file and --embed-preprocess, or lies in a bundle that was exported with the
// latter. The heatmap is a grey picture: white is what made the model answer as it did.
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import ort from 'onnxruntime-node';
import { PNG } from 'pngjs';

/** Tells a mistake of the caller in one line, and ends. */
function refuse(text) {
  console.error(`error: ${text.replaceAll('\n', ' ')}`);
  process.exit(2);
}

/** Does what fails if a file is not as it should be. */
async function attempt(work, file, expected) {
  try {
    return await work();
  } catch (error) {
    return refuse(`${file}: ${error.message}; expected ${expected}`);
  }
}

function wholeNumber(name, word, least, most) {
  if (!/^-?\d+$/.test(word) || BigInt(word) < least || BigInt(word) > most) {
    refuse(`${name} is ${word}; expected a whole number from ${least} to ${most}`);
  }
  return BigInt(word);
}

const [model, photo, output, target = '-1', maxMasks = '0'] = process.argv.slice(2);
if (!output) {
  console.error('usage: node explain.mjs EXPLAIN.onnx PHOTO.png HEATMAP.png [TARGET [MAX_MASKS]]');
  process.exit(2);
}

const explainer = 'an explain.onnx that was exported with --embed-preprocess';
const session = await attempt(() => ort.InferenceSession.create(model), model, explainer);
const [image, logits] = [session.inputMetadata[0], session.outputMetadata[3]];
if (image.type !== 'uint8' || logits?.name !== 'logits') refuse(`${model}: takes no photos; expected ${explainer}`);
const { width, height, data } = await attempt(() => PNG.sync.read(readFileSync(photo)), photo, 'a PNG picture'); // RGBA
const pixels = data.filter((_, index) => index % 4 !== 3);
if (existsSync(output) && [model, photo].some((file) => realpathSync(file) === realpathSync(output))) {
  refuse(`${output}: is the model or the photo; expected another file for the heatmap`);
}
const found = await session.run({
  image: new ort.Tensor('uint8', pixels, [height, width, 3]),
  target: new ort.Tensor('int64', [wholeNumber('TARGET', target, -1, logits.shape[1] - 1)], [1]),
  max_masks: new ort.Tensor('int64', [wholeNumber('MAX_MASKS', maxMasks, 0, 2n ** 63n - 1n)], [1]),
});

const [rows, columns] = found.heatmap.dims;
const picture = new PNG({ width: columns, height: rows });
found.heatmap.data.forEach((value, index) => {
  const grey = Math.round(value * 255);
  picture.data.set([grey, grey, grey, 255], 4 * index);
});
await attempt(() => writeFileSync(output, PNG.sync.write(picture)), output, 'a file that can be written');
const masks = found.scored.data.reduce((sum, count) => sum + count, 0n);
console.log(`class ${found.target_index.data[0]}: score ${found.class_score.data[0].toPrecision(4)}, ${masks} masks`);
