// Runs explain.onnx in onnxruntime-node and onnxruntime-web alike.

/** Returns all outputs, as plain arrays, by their names. */
export async function explain(ort, model, image, sizes, target, maxMasks) {
  const session = await ort.InferenceSession.create(model);
  const found = await session.run({
    image: new ort.Tensor('float32', image, sizes),
    target: new ort.Tensor('int64', [BigInt(target)], [1]),
    max_masks: new ort.Tensor('int64', [BigInt(maxMasks)], [1]),
  });
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, Array.from(tensor.data, Number)]));
}
