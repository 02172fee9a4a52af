// Fusing the layers' visualization maps into the heatmap; the twin of fuse.py, in float64.
//
// E_1 = V_1; E_l = (E_{l-1} + V_l) [V_l > t_l]; then scaled to 0 ... 1.
// Kernels (launch.py) makes the sizes fit; nothing is checked here.
//
// Bytes: each map is read three times, from the cache. One block does it all: a map is small, and each layer waits for
// the one before it, so that latency bounds it.

#include "block.cuh"

#define BINS 256

// Otsu's threshold of values from 0 to 1, of which some is 0 and some is 1: the centre of the first bin that maximises
// the variance between the classes.
__device__ double otsu_threshold(double *scratch, int *bins, const double *values, int pixels) {
    __shared__ int found;
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        bins[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < pixels; i += blockDim.x)
        atomicAdd(&bins[max(0, min((int)(values[i] * BINS), BINS - 1))], 1); // of NaN, any
    __syncthreads();
    long long moment = 0, total_moment = 0;
    int below = 0;
    for (int bin = 0; bin < BINS; bin++)
        total_moment += (long long)bins[bin] * bin;
    double best = -1.0;
    int first = BINS;
    if (threadIdx.x < BINS - 1) {
        for (int bin = 0; bin <= (int)threadIdx.x; bin++) {
            below += bins[bin];
            moment += (long long)bins[bin] * bin;
        }
        double distance = (double)(pixels * moment - below * total_moment);
        best = distance * distance / (double)((long long)below * (pixels - below));
    }
    double most = reduce<Most>(scratch, best);
    if (threadIdx.x < BINS - 1 && best == most)
        first = threadIdx.x;
    first = reduce<Least>(scratch, first);
    if (threadIdx.x == 0)
        found = first;
    __syncthreads();
    double threshold = ((double)found / BINS + (double)(found + 1) / BINS) / 2;
    __syncthreads();
    return threshold;
}

__device__ inline double logistic(double z) {
    double small = exp(-fabs(z));
    return (z < 0.0 ? small : 1.0) / (1.0 + small);
}

// Fuses all maps. One block.
//
// views [layers, pixels], there [layers]: whether a layer has one. fused: scratch [pixels]. heatmap [pixels], all zeros if
// nothing is left; made: whether something is. cuts [layers]: the thresholds, NaN where nothing was cut.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) fuse(const double *views, const int *there, int layers, int pixels, int soft, double *fused,
                                float *heatmap, double *cuts, int *made) {
    __shared__ double scratch[MOST_THREADS];
    __shared__ int bins[BINS];
    int begun = 0;
    for (int number = 0; number < layers; number++, views += pixels) {
        double cut = NAN;
        if (there[number] && !begun) {
            for (int i = threadIdx.x; i < pixels; i += blockDim.x)
                fused[i] = views[i];
        } else if (there[number]) {
            cut = otsu_threshold(scratch, bins, views, pixels);
            if (soft) {
                int above = 0;
                for (int i = threadIdx.x; i < pixels; i += blockDim.x)
                    above += views[i] > 1.5 * cut;
                above = reduce<Sum>(scratch, above);
                cut = (double)above / pixels < 0.1 ? 1.5 * cut : cut;
            }
            for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
                double gate = soft ? logistic(100.0 * (views[i] - cut)) : (views[i] > cut ? 1.0 : 0.0);
                fused[i] = (fused[i] + views[i]) * gate;
            }
        }
        begun |= there[number];
        if (threadIdx.x == 0)
            cuts[number] = cut;
    }
    double low = INFINITY, high = -INFINITY;
    for (int i = threadIdx.x; begun && i < pixels; i += blockDim.x) {
        low = fmin(low, fused[i]);
        high = fmax(high, fused[i]);
    }
    low = reduce<Least>(scratch, low);
    high = reduce<Most>(scratch, high);
    int some = begun && high - low > 1e-6 * fmax(fabs(low), fabs(high));
    for (int i = threadIdx.x; i < pixels; i += blockDim.x)
        heatmap[i] = some ? (float)((fused[i] - low) / (high - low)) : 0.0f;
    if (threadIdx.x == 0)
        *made = some;
}
