// Masked images, written straight into the scoring batch; the twin of mask.py, to the last bit in float32.
//
// x m + b (1 - m), m = (M - min M) / (max M - min M), M the map upsampled bilinearly with half-pixel centres.
// Kernels (launch.py) makes the sizes fit; nothing is checked here.
//
// BATCH is the type of the batch (32: float32, 16: float16), CHANNELS those of the image, VECTOR how many
// neighbouring pixels a thread writes at once (16 bytes of them, or fewer where the width is no multiple of that), BASELINE
// whether there is one.
//
// Bytes: `write_masks` writes each row once, CHANNELS * H * W elements, which bounds it. What it reads besides stays in
// the caches: a feature map of a row, and the image once for every MASKS rows. `find_ranges` computes the same samples
// and writes a few numbers a mask: arithmetic bounds it.

#include "block.cuh"
#include "layer.cuh"

#ifndef CHANNELS
#define CHANNELS 3
#endif
#ifndef VECTOR
#define VECTOR 1
#endif
#ifndef BATCH
#define BATCH 32
#endif
#ifndef BASELINE
#define BASELINE 0
#endif
#define MASKS 4 // rows in one thread, which share the image

// The extrema of each upsampled map, and what its area is made of. A block for each mask.
//
// base, low, extent: of the map, and of its samples less base. minimum, span: the same as the map's least value and the
// extent above it. mass: the sum of all samples above the minimum. Of a mask that is not scored, those before upsampling.
extern "C" __global__ void find_ranges(const Layer *layers, const Mask *table, int height, int width, float *base,
                                       float *low, float *extent, double *minimum, double *span, double *mass) {
    __shared__ double scratch[MOST_THREADS];
    const Mask mask = table[blockIdx.x];
    const Layer &layer = layers[mask.layer];
    int size = layer.height * layer.width, pixels = height * width;
    const float *map = layer.maps + (size_t)mask.channel * size;
    float least = map[0];
    double total = 0.0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        least = map[i] < least ? map[i] : least;
        total += map[i] * (layer.row_total[i / layer.width] * layer.column_total[i % layer.width]);
    }
    least = reduce<Least>(scratch, least);
    total = reduce<Sum>(scratch, total);
    float bottom = 0.0f, top = 1.0f;
    if (mask.scored) {
        bottom = top = sample(layer, map, least, 0, 0);
        // Between two rows of the map samples rise or fall, rounded as they are: the extrema are at the ends.
        for (int x = threadIdx.x; x < width; x += blockDim.x)
            for (int end = 0; end < layer.row_end_count; end++) {
                float value = sample(layer, map, least, layer.row_ends[end], x);
                bottom = value < bottom ? value : bottom;
                top = value > top ? value : top;
            }
        bottom = reduce<Least>(scratch, bottom);
        top = reduce<Most>(scratch, top);
    }
    if (threadIdx.x == 0) {
        base[blockIdx.x] = least;
        low[blockIdx.x] = bottom;
        extent[blockIdx.x] = top - bottom;
        minimum[blockIdx.x] = (double)least + (double)bottom;
        span[blockIdx.x] = top - bottom;
        mass[blockIdx.x] = total - minimum[blockIdx.x] * pixels;
    }
}

// image - baseline. A thread for each of `count` numbers.
extern "C" __global__ void subtract(const float *image, const float *baseline, int count, float *contrast) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        contrast[i] = image[i] - baseline[i];
}

#if BATCH == 32
typedef float Element;
__device__ inline Element to_element(float value) { return value; }
#else
typedef unsigned short Element;
#ifdef __CUDA_ARCH__
__device__ inline Element to_element(float value) {
    Element bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
Element to_element(float value); // of a host that emulates this
#endif
#endif

struct alignas(sizeof(Element) * VECTOR) Pixels {
    Element of[VECTOR];
};

// Writes masked images contrast * m + baseline, m = (sample - low) / extent, into the rows of a batch.
//
// batch [count, CHANNELS, H, W]; contrast [CHANNELS, H, W]: the image less the baseline.
// The rows are the masks `first` and after. Grid: pixels of a row / (VECTOR * threads), count / MASKS.
extern "C" __global__ void write_masks(Element *batch, const float *contrast, const float *baseline,
                                       const Layer *layers, const Mask *table, const float *base, const float *low,
                                       const float *extent, int first, int count, int height, int width) {
    int pixels = height * width, start = VECTOR * (blockIdx.x * blockDim.x + threadIdx.x);
    if (start >= pixels)
        return;
    int y = start / width, x = start % width;
    float image[CHANNELS][VECTOR];
    for (int c = 0; c < CHANNELS; c++)
        for (int v = 0; v < VECTOR; v++)
            image[c][v] = contrast[(size_t)c * pixels + start + v];
    for (int row = blockIdx.y * MASKS; row < min((int)(blockIdx.y + 1) * MASKS, count); row++) {
        int number = first + row;
        const Mask mask = table[number];
        const Layer &layer = layers[mask.layer];
        const float *map = layer.maps + (size_t)mask.channel * layer.height * layer.width;
        float values[VECTOR];
        for (int v = 0; v < VECTOR; v++) {
            values[v] = sample(layer, map, base[number], y, x + v) - low[number];
            if (extent[number] > 0.0f)
                values[v] /= extent[number];
        }
        for (int c = 0; c < CHANNELS; c++) {
            Pixels made;
            for (int v = 0; v < VECTOR; v++) {
                float value = image[c][v] * values[v];
                if (BASELINE)
                    value += baseline[(size_t)c * pixels + start + v];
                made.of[v] = to_element(value);
            }
            *reinterpret_cast<Pixels *>(batch + ((size_t)row * CHANNELS + c) * pixels + start) = made;
        }
    }
}
