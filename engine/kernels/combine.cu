// From logits to the visualization map of each layer; the twin of combine.py. All of it is float64.
//
// V = U(sum of (w/r) F) - sum of w min/r, w = p / area: summed at the resolution of the maps, upsampled once.
// Kernels (launch.py) makes the sizes fit; nothing is checked here.
//
// Bytes: `sum_maps` reads each scored feature map once, which bounds it; the others work on a few numbers a mask, or on
// one image a layer, and are bound by latency.

#include "block.cuh"
#include "layer.cuh"

enum { SOFTMAX, SIGMOID, NONE };
#define ROWS 16 // of threads in a block of sum_maps, which share the masks out
#define COLUMNS 32

// Turns logits into the class scores of some classes. A block for each row.
//
// logits [rows, size]; targets [classes]; scores [all masks, classes], from row `first` on.
extern "C" __global__ void activate(const float *logits, int size, const long long *targets, int classes,
                                    int activation, double *scores, int first, int *not_finite) {
    __shared__ double scratch[MOST_THREADS];
    logits += (size_t)blockIdx.x * size;
    scores += (size_t)(first + blockIdx.x) * classes;
    float most = logits[0];
    int strange = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        most = logits[i] > most ? logits[i] : most;
        strange |= !isfinite(logits[i]);
    }
    most = reduce<Most>(scratch, most);
    if (reduce<Most>(scratch, strange) && threadIdx.x == 0)
        *not_finite = 1;
    double sum = 0.0;
    if (activation == SOFTMAX)
        for (int i = threadIdx.x; i < size; i += blockDim.x)
            sum += exp((double)logits[i] - (double)most);
    sum = reduce<Sum>(scratch, sum);
    for (int k = threadIdx.x; k < classes; k += blockDim.x) {
        double z = logits[targets[k]], small = exp(-fabs(z));
        scores[k] = activation == SOFTMAX   ? exp(z - (double)most) / sum
                    : activation == SIGMOID ? (z < 0.0 ? small : 1.0) / (1.0 + small)
                                            : z;
    }
}

// The weight of each mask in its layer's sum: its score over its area times the extent, and what that takes off for the
// minimum. A thread for each mask; scores have a stride, for one of several classes.
extern "C" __global__ void weigh(const double *scores, int stride, const double *minimum, const double *span,
                                 const double *mass, int count, double *weights, double *offsets) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        weights[i] = span[i] > 0.0 ? scores[(size_t)i * stride] / mass[i] : 0.0;
        offsets[i] = weights[i] * minimum[i];
    }
}

// Sums the feature maps of each layer by their weights. Grid: pixels of the largest layer / COLUMNS, layers; blocks of
// COLUMNS x ROWS threads.
//
// starts [layers + 1]: where the masks of each layer begin. sums [pixels of all layers], each layer's from its `place`.
extern "C" __global__ void sum_maps(const Layer *layers, const Mask *table, const int *starts, const int *places,
                                    const double *weights, double *sums) {
    __shared__ double part[ROWS][COLUMNS];
    const Layer &layer = layers[blockIdx.y];
    int size = layer.height * layer.width, pixel = blockIdx.x * COLUMNS + threadIdx.x;
    double sum = 0.0;
    if (pixel < size)
        for (int i = starts[blockIdx.y] + threadIdx.y; i < starts[blockIdx.y + 1]; i += ROWS)
            sum += weights[i] * (double)layer.maps[(size_t)table[i].channel * size + pixel];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && pixel < size) {
        for (int row = 1; row < ROWS; row++)
            sum += part[row][threadIdx.x];
        sums[places[blockIdx.y] + pixel] = sum;
    }
}

// Upsamples the sum of each layer, and scales it to 0 ... 1. A block for each layer.
//
// views [layers, H, W]; there [layers]: 0 where there is no mask, or the map is constant.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) make_views(const Layer *layers, const int *starts, const int *places, const double *offsets,
                                      const double *sums, int height, int width, double *views, int *there) {
    __shared__ double scratch[MOST_THREADS];
    const Layer &layer = layers[blockIdx.x];
    int pixels = height * width;
    sums += places[blockIdx.x];
    views += (size_t)blockIdx.x * pixels;
    double offset = 0.0;
    for (int i = starts[blockIdx.x] + threadIdx.x; i < starts[blockIdx.x + 1]; i += blockDim.x)
        offset += offsets[i];
    offset = reduce<Sum>(scratch, offset);
    double low = INFINITY, high = -INFINITY;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        int y = i / width, x = i % width, left = layer.column_low[x], right = min(left + 1, layer.width - 1);
        int upper = layer.row_low[y], lower = min(upper + 1, layer.height - 1);
        double across = layer.column_weight[x], down = layer.row_weight[y];
        double above = sums[upper * layer.width + left] * (1.0 - across) + sums[upper * layer.width + right] * across;
        double below = sums[lower * layer.width + left] * (1.0 - across) + sums[lower * layer.width + right] * across;
        double value = above * (1.0 - down) + below * down - offset;
        views[i] = value;
        low = fmin(low, value);
        high = fmax(high, value);
    }
    low = reduce<Least>(scratch, low);
    high = reduce<Most>(scratch, high);
    int some = starts[blockIdx.x + 1] > starts[blockIdx.x] && high - low > 1e-6 * fmax(fabs(low), fabs(high));
    for (int i = threadIdx.x; some && i < pixels; i += blockDim.x)
        views[i] = (views[i] - low) / (high - low);
    if (threadIdx.x == 0)
        there[blockIdx.x] = some;
}
