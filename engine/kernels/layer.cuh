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

// Where an image's row, or column, lies between two of a feature map's, and how near the second.
struct Between {
    int first, second; // the same at the border
    float weight;      // of the second
};

__device__ inline Between between_rows(const Layer &layer, int y) {
    int row = layer.row_low[y];
    return {row, min(row + 1, layer.height - 1), layer.row_weight_32[y]};
}

__device__ inline Between between_columns(const Layer &layer, int x) {
    int column = layer.column_low[x];
    return {column, min(column + 1, layer.width - 1), layer.column_weight_32[x]};
}

// A value between two rows of a feature map less `base`, in the order of operations of MaskWriter.
__device__ inline float sample(const float *first, const float *second, float base, const Between &columns, float down) {
    float start = first[columns.first] - base, start_below = second[columns.first] - base;
    float above = (first[columns.second] - base - start) * columns.weight + start;
    float below = (second[columns.second] - base - start_below) * columns.weight + start_below;
    return above + (below - above) * down;
}
