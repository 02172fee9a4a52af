// What the threads of a block find together. The order of every sum is fixed, so that runs give the same bits.
//
// Blocks have a power of two of threads, at most 1,024. `scratch` is shared memory of one double for each of them.

#pragma once

#define MOST_THREADS 1024

#ifdef __CUDACC_RTC__ // which has no headers
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif

struct Sum {
    template <typename T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct Least {
    template <typename T> __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};

struct Most {
    template <typename T> __device__ T operator()(T a, T b) const { return b > a ? b : a; }
};

// The sum, the least or the most of all threads' values; every thread gets it.
template <typename Join, typename T> __device__ T reduce(double *scratch, T value) {
    T *part = reinterpret_cast<T *>(scratch);
    part[threadIdx.x] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            part[threadIdx.x] = Join()(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
    T found = part[0];
    __syncthreads();
    return found;
}

// The sum of the values of all threads before this one.
template <typename T> __device__ T sum_before(double *scratch, T value) {
    T *part = reinterpret_cast<T *>(scratch);
    part[threadIdx.x] = value;
    __syncthreads();
    for (unsigned step = 1; step < blockDim.x; step *= 2) {
        T other = threadIdx.x >= step ? part[threadIdx.x - step] : T(0);
        __syncthreads();
        part[threadIdx.x] += other;
        __syncthreads();
    }
    T before = threadIdx.x > 0 ? part[threadIdx.x - 1] : T(0);
    __syncthreads();
    return before;
}
