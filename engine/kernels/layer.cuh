// A feature layer in device memory; engine/kernels/launch.py writes it.

#pragma once

struct Layer {
    const float *maps;             // [channels, height, width]
    const float *averages;         // [channels], of the first class
    const int *row_low;            // [H]: the sample before each row of the image, in a map
    const int *column_low;         // [W]
    const double *row_weight;      // [H]: of the sample after it
    const double *column_weight;   // [W]
    const float *row_weight_32;    // the same in float32
    const float *column_weight_32;
    const double *row_total;       // [height]: the sum of each row's weights over the image
    const double *column_total;    // [width]
    const int *row_ends;           // the first and the last of the image's rows between two rows of a map
    int channels, height, width;
    int first;                     // channels of the layers before
    int padded;                    // channels, up to the next power of two
    int first_padded;              // the same of the layers before
    int row_end_count;
};

// A mask: a feature map's layer and channel, and whether it is scored; the score of one that is not is estimated.
struct Mask {
    int layer, channel, scored;
};

// One value of an upsampled feature map less `base`, in the order of operations of MaskWriter.
__device__ inline float sample(const Layer &layer, const float *map, float base, int y, int x) {
    int row = layer.row_low[y], left = layer.column_low[x];
    int right = left + 1 < layer.width ? left + 1 : left;
    float across = layer.column_weight_32[x];
    const float *upper = map + row * layer.width;
    float start = upper[left] - base;
    float above = (upper[right] - base - start) * across + start;
    if (row + 1 == layer.height)
        return above;
    const float *lower = upper + layer.width;
    float start_below = lower[left] - base;
    float below = (lower[right] - base - start_below) * across + start_below;
    return above + (below - above) * layer.row_weight_32[y];
}
