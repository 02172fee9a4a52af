// CUDA C++ on a CPU, as far as the engine's kernels use it: every thread of a block is a fiber that runs to the next
// barrier, one after the other, in an order that the caller chooses. A kernel that lacks a barrier gives another result
// in another order.

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static

using std::isfinite;
using std::max;
using std::min;

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

struct Fiber {
    ucontext_t context;
    jmp_buf here;
    std::vector<char> stack;
    bool begun = false, ended = false;
};

static std::vector<Fiber *> fibers; // kept from block to block
static jmp_buf scheduler;
static ucontext_t unused;
static size_t current;
static void (*body)(void *);
static void *body_argument;

static void __syncthreads() {
    if (!_setjmp(fibers[current]->here))
        _longjmp(scheduler, 1);
}

static int atomicAdd(int *place, int value) {
    int before = *place;
    *place += value;
    return before;
}

static void run_fiber() {
    for (;;) {
        body(body_argument);
        fibers[current]->ended = true;
        __syncthreads();
    }
}

// Lets a thread run to its next barrier or its end.
static void resume(Fiber *fiber) {
    if (_setjmp(scheduler))
        return;
    if (fiber->begun)
        _longjmp(fiber->here, 1);
    fiber->begun = true;
    fiber->stack.resize(1 << 16);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = fiber->stack.size();
    makecontext(&fiber->context, run_fiber, 0);
    swapcontext(&unused, &fiber->context); // later switches save no signal mask, which is a system call
}

// Runs one block; returns false if some threads ended while others wait at a barrier.
static bool run_block(Index block, int order) {
    size_t count = (size_t)block.x * block.y * block.z;
    while (fibers.size() < count)
        fibers.push_back(new Fiber);
    for (size_t i = 0; i < count; i++)
        fibers[i]->ended = false;
    for (;;) {
        size_t ended = 0;
        for (size_t turn = 0; turn < count; turn++) {
            current = order < 0 ? count - 1 - turn : order == 0 ? turn : (turn * (2 * (size_t)order + 1) + order) % count;
            threadIdx = {(unsigned)(current % block.x), (unsigned)(current / block.x % block.y), 0};
            resume(fibers[current]);
            ended += fibers[current]->ended;
        }
        if (ended == count)
            return true;
        if (ended > 0)
            return false;
    }
}

template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A> *>(arguments[I])...);
}

template <typename... A>
static int emulate(void (*kernel)(A...), void **arguments, int count, const unsigned *grid, const unsigned *block,
                   int order) {
    if (count != (int)sizeof...(A))
        return 1;
    auto work = [&] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    body = [](void *argument) { (*static_cast<decltype(work) *>(argument))(); };
    body_argument = &work;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            if (!run_block(blockDim, order))
                return 2;
        }
    return 0;
}

// The bits of float16, rounded to the nearest, ties to even.
#define HALF                                                                                                           \
    Element to_element(float value) {                                                                                  \
        _Float16 half = (_Float16)value;                                                                               \
        Element bits;                                                                                                  \
        memcpy(&bits, &half, sizeof bits);                                                                             \
        return bits;                                                                                                   \
    }

#define EMULATED(kernel)                                                                                               \
    extern "C" int emulate_##kernel(void **arguments, int count, const unsigned *grid, const unsigned *block,          \
                                    int order) {                                                                       \
        return emulate(kernel, arguments, count, grid, block, order);                                                  \
    }
