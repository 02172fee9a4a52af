// Masked images, written straight into the scoring batch; the twin of mask.py, to the last bit in float32.
//
// x m + b (1 - m), m = (M - min M) / (max M - min M), M the map upsampled bilinearly with half-pixel centres.
// Kernels (launch.py) makes the sizes fit; nothing is checked here.
//
// BATCH is the type of the batch (32: float32, 16: float16), CHANNELS those of the image, VECTOR how many
// neighbouring pixels a thread writes at once (16 bytes of them, or fewer where the width is no multiple of that), BASELINE
// whether there is one.
//
// Bytes: `write_masks` writes each row once, CHANNELS * H * W elements, which shall bound it: a pixel's three elements cost
// 46 instructions (sm_90, float16), hence no branches, no divisions, and tables read 16 bytes at a time. What it reads
// besides stays in the caches: a feature map of a row, and the image once for every MASKS rows. `find_ranges` computes
// samples and writes a few numbers a mask: arithmetic bounds it.

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
        bottom = INFINITY, top = -INFINITY;
        // Between two rows of the map samples rise or fall, rounded as they are: the extrema are at the ends.
        for (int x = threadIdx.x; x < width; x += blockDim.x) {
            const Between columns = between_columns(layer, x);
            for (int end = 0; end < layer.row_end_count; end++) {
                const Between rows = between_rows(layer, layer.row_ends[end]);
                const float *first = map + rows.first * layer.width, *second = map + rows.second * layer.width;
                float value = sample(first, second, least, columns, rows.weight);
                bottom = value < bottom ? value : bottom;
                top = value > top ? value : top;
            }
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

// Neighbours in memory, which are read and written at once.
template <typename T> struct alignas(sizeof(T) * VECTOR) Run {
    T of[VECTOR];
};

template <typename T> __device__ inline const Run<T> &run_at(const T *place) {
    return *reinterpret_cast<const Run<T> *>(place);
}

// Divides values from 0 to `divisor` by it, each rounded as a division is: a reciprocal, then two remainders, which are
// exact unless they underflow (Markstein, IBM Journal of Research and Development 34, 1990). A division costs more.
__device__ inline void divide(float *values, float divisor) {
    const float small = 0x1p-60f, large = 0x1p40f;
    float inverse = 1.0f / divisor, quotients[VECTOR];
    bool exact = divisor >= small && divisor <= large;
    for (int v = 0; v < VECTOR; v++) {
        exact &= values[v] >= small || values[v] == 0.0f;
        float quotient = values[v] * inverse;
        quotient = fmaf(fmaf(-quotient, divisor, values[v]), inverse, quotient);
        quotients[v] = fmaf(fmaf(-quotient, divisor, values[v]), inverse, quotient);
    }
    for (int v = 0; v < VECTOR; v++)
        values[v] = exact ? quotients[v] : values[v] / divisor;
}

// Writes masked images contrast * m + baseline, m = (sample - low) / extent, into the rows of a batch.
//
// batch [count, CHANNELS, H, W]; contrast [CHANNELS, H, W]: the image less the baseline.
// The rows are the masks `first` and after. Grid: pixels of a row / (VECTOR * threads), count / MASKS.
extern "C" __global__ void write_masks(Element *__restrict__ batch, const float *__restrict__ contrast,
                                       const float *__restrict__ baseline, const Layer *__restrict__ layers,
                                       const Mask *__restrict__ table, const float *__restrict__ base,
                                       const float *__restrict__ low, const float *__restrict__ extent, int first,
                                       int count, int height, int width) {
    int pixels = height * width, start = VECTOR * (blockIdx.x * blockDim.x + threadIdx.x);
    if (start >= pixels)
        return;
    int y = start / width, x = start % width;
    Run<float> image[CHANNELS];
    for (int c = 0; c < CHANNELS; c++)
        image[c] = run_at(contrast + (size_t)c * pixels + start);
    int layer_before = -1, upper = 0, lower = 0, size = 0;
    const float *maps = nullptr;
    float down = 0.0f;
    Between columns[VECTOR];
    for (int row = blockIdx.y * MASKS; row < min((int)(blockIdx.y + 1) * MASKS, count); row++) {
        int number = first + row;
        const Mask mask = table[number];
        if (mask.layer != layer_before) { // where the pixels lie is the same for all maps of a layer
            const Layer layer = layers[mask.layer];
            const Between rows = between_rows(layer, y);
            const Run<int> lefts = run_at(layer.column_low + x);
            const Run<float> weights = run_at(layer.column_weight_32 + x);
            for (int v = 0; v < VECTOR; v++)
                columns[v] = {lefts.of[v], min(lefts.of[v] + 1, layer.width - 1), weights.of[v]};
            upper = rows.first * layer.width, lower = rows.second * layer.width, down = rows.weight;
            maps = layer.maps, size = layer.height * layer.width;
            layer_before = mask.layer;
        }
        const float *map = maps + (size_t)mask.channel * size;
        float values[VECTOR];
        for (int v = 0; v < VECTOR; v++)
            values[v] = sample(map + upper, map + lower, base[number], columns[v], down) - low[number];
        if (extent[number] > 0.0f)
            divide(values, extent[number]);
        for (int c = 0; c < CHANNELS; c++) {
            Run<Element> made;
            Run<float> beneath;
            if (BASELINE)
                beneath = run_at(baseline + (size_t)c * pixels + start);
            for (int v = 0; v < VECTOR; v++) {
                float value = image[c].of[v] * values[v];
                made.of[v] = to_element(BASELINE ? value + beneath.of[v] : value);
            }
            *reinterpret_cast<Run<Element> *>(batch + ((size_t)row * CHANNELS + c) * pixels + start) = made;
        }
    }
}
