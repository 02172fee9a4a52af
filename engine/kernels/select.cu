// Choosing the feature maps that become masks; the twin of select.py and of is_flat in mask.py.
//
// P = {k : alpha_k > 0}, split where tau(i) = (i/n) ((n-i)/n) (mean of the upper - mean of the lower)^2 is largest.
// Kernels (launch.py) makes the sizes fit; nothing is checked here.
//
// Bytes: all feature maps are read once (9 MB for ResNet-50), which bounds `find_flat`; `choose` works on the average
// gradients alone and is bound by the latency of its barriers.

#include "block.cuh"
#include "layer.cuh"

enum { OTSU, OTSU_COUNT, POSITIVE, ALL };
enum { COUNT_POSITIVE, COUNT_CHOSEN, COUNT_MASKS, COUNTS };

// Tells for every feature map whether it is constant, and whether all that it holds is finite. A block for each map.
//
// flat [sum of channels]; not_finite: set to 1 if something is not.
extern "C" __global__ void find_flat(const Layer *layers, int count, unsigned char *flat, int *not_finite) {
    __shared__ double scratch[MOST_THREADS];
    int number = 0, map = blockIdx.x;
    while (number + 1 < count && map >= layers[number + 1].first)
        number++;
    const Layer &layer = layers[number];
    int channel = map - layer.first, size = layer.height * layer.width;
    const float *values = layer.maps + (size_t)channel * size;
    float low = values[0], high = values[0];
    int strange = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float value = values[i];
        strange |= !isfinite(value);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    low = reduce<Least>(scratch, low);
    high = reduce<Most>(scratch, high);
    strange = reduce<Most>(scratch, strange);
    if (threadIdx.x == 0) {
        float largest = fmaxf(fabsf(high), fabsf(low));
        flat[map] = high - low <= 1e-6f * largest;
        if (strange)
            *not_finite = 1;
    }
}

__device__ inline bool comes_first(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// Otsu's measure, if the `lower` smallest of so many values are one class.
__device__ inline double between(const double *strongest, const double *weakest, int lower, int count) {
    int upper = count - lower;
    double apart = strongest[upper - 1] / upper - weakest[lower - 1] / lower;
    return ((double)lower / count) * ((double)upper / count) * (apart * apart);
}

// Chooses the feature maps of each layer, for the first class. A block for each layer.
//
// values, order [sum of padded]: the average gradients of each layer, the largest first, and their channels.
// sums: scratch [2, sum of padded].
// masks [sum of channels]: in the same order those of the chosen that are not flat.
// counts [layers, 3]: positive, chosen, masks. thresholds [layers]: the least that was chosen.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) choose(const Layer *layers, const unsigned char *flat, int rule, double mu, int padded,
                                  float *values, int *order, double *sums, int *masks, int *counts, float *thresholds,
                                  int *not_finite) {
    __shared__ double scratch[MOST_THREADS];
    const Layer &layer = layers[blockIdx.x];
    values += layer.first_padded;
    order += layer.first_padded;
    double *strongest = sums + layer.first_padded, *weakest = strongest + padded;
    masks += layer.first;
    flat += layer.first;
    int strange = 0;
    for (int i = threadIdx.x; i < layer.padded; i += blockDim.x) {
        float value = i < layer.channels ? layer.averages[i] : -INFINITY; // after all others
        strange |= i < layer.channels && !isfinite(value);
        values[i] = value == value ? value : -INFINITY; // NaN has no place in an order
        order[i] = i;
    }
    if (reduce<Most>(scratch, strange) && threadIdx.x == 0)
        *not_finite = 1;

    for (int run = 2; run <= layer.padded; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < layer.padded; i += blockDim.x) {
                int j = i ^ step;
                if (j > i && comes_first(values[j], order[j], values[i], order[i]) == ((i & run) == 0)) {
                    float value = values[i];
                    values[i] = values[j];
                    values[j] = value;
                    int channel = order[i];
                    order[i] = order[j];
                    order[j] = channel;
                }
            }
            __syncthreads();
        }

    // Every thread has a run of neighbours, the strongest first.
    int each = (layer.channels + blockDim.x - 1) / blockDim.x;
    int begin = min((int)threadIdx.x * each, layer.channels), end = min(begin + each, layer.channels);
    double bar = rule == POSITIVE ? fmax(mu * values[0], 0.0) : 0.0;
    int above = 0, positive = 0;
    for (int i = begin; i < end; i++) {
        positive += values[i] > 0.0f;
        above += values[i] > bar;
    }
    positive = reduce<Sum>(scratch, positive);
    above = reduce<Sum>(scratch, above);

    // Otsu's split: `lower` of the positive ones are the lower class.
    int lower = 0;
    if ((rule == OTSU || rule == OTSU_COUNT) && positive > 1 && values[0] != values[positive - 1]) {
        // Sums from both ends: as a difference of the others they would lose the weak ones' digits.
        begin = min(begin, positive), end = min(end, positive);
        double strong = 0.0, weak = 0.0;
        for (int i = begin; i < end; i++) {
            strong += values[i];
            weak += values[positive - 1 - i];
        }
        strong = sum_before(scratch, strong), weak = sum_before(scratch, weak);
        for (int i = begin; i < end; i++) {
            strongest[i] = strong += values[i]; // of i + 1 values
            weakest[i] = weak += values[positive - 1 - i];
        }
        __syncthreads();
        double most = 0.0;
        for (int i = 1 + threadIdx.x; i < positive; i += blockDim.x)
            most = fmax(most, between(strongest, weakest, i, positive));
        most = reduce<Most>(scratch, most);
        lower = positive;
        for (int i = 1 + threadIdx.x; i < positive; i += blockDim.x)
            if (between(strongest, weakest, i, positive) >= most * (1.0 - 1e-12))
                lower = min(lower, i);
        lower = reduce<Least>(scratch, lower);
    }
    int chosen = rule == ALL        ? layer.channels
                 : rule == POSITIVE ? above
                 : lower == 0       ? positive
                 : rule == OTSU     ? positive - lower
                                    : lower;

    begin = min((int)threadIdx.x * each, chosen), end = min(begin + each, chosen);
    int own = 0;
    for (int i = begin; i < end; i++)
        own += !flat[order[i]];
    int place = sum_before(scratch, own);
    for (int i = begin; i < end; i++)
        if (!flat[order[i]])
            masks[place++] = order[i];
    own = reduce<Sum>(scratch, own);
    if (threadIdx.x == 0) {
        counts[COUNTS * blockIdx.x + COUNT_POSITIVE] = positive;
        counts[COUNTS * blockIdx.x + COUNT_CHOSEN] = chosen;
        counts[COUNTS * blockIdx.x + COUNT_MASKS] = own;
        thresholds[blockIdx.x] = chosen > 0 ? values[chosen - 1] : 0.0f;
    }
}

// Lists the masks that were chosen, layer after layer. A block for each layer.
//
// table [masks of all layers]; starts [layers + 1]: where each layer begins.
extern "C" __global__ void list_masks(const Layer *layers, const int *masks, const int *counts, Mask *table, int *starts) {
    int start = 0, count = counts[COUNTS * blockIdx.x + COUNT_MASKS];
    for (int before = 0; before < (int)blockIdx.x; before++)
        start += counts[COUNTS * before + COUNT_MASKS];
    masks += layers[blockIdx.x].first;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        table[start + i] = {(int)blockIdx.x, masks[i], 1};
    if (threadIdx.x == 0) {
        starts[blockIdx.x] = start;
        if (blockIdx.x + 1 == gridDim.x)
            starts[gridDim.x] = start + count;
    }
}
