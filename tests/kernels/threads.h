// What of CUDA record_rows.cu uses, on a CPU: a thread for each thread of a block, block after block. It proves places, masks
// and arithmetic, and nothing about speed or memory.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

struct Three { unsigned x, y, z; };
static thread_local Three threadIdx, blockIdx;
static std::barrier<> *block, *warps[32];
static float said[1024];

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline void __syncthreads() { block->arrive_and_wait(); }
static inline float __shfl_xor_sync(unsigned, float mine, int other) {
    auto &warp = *warps[threadIdx.x / 32];
    said[threadIdx.x] = mine;
    warp.arrive_and_wait();
    float theirs = said[threadIdx.x ^ other];
    warp.arrive_and_wait();
    return theirs;
}

template <typename Kernel, typename... Given>
void run(Kernel kernel, unsigned width, unsigned height, unsigned threads, Given... given) {
    for (unsigned x = 0; x < width; x++)
        for (unsigned y = 0; y < height; y++) {
            std::barrier<> all(threads);
            block = &all;
            std::vector<std::unique_ptr<std::barrier<>>> own;
            for (unsigned w = 0; w < threads / 32; w++) warps[w] = own.emplace_back(new std::barrier<>(32)).get();
            std::vector<std::thread> running;
            for (unsigned t = 0; t < threads; t++)
                running.emplace_back([=] { threadIdx = {t, 0, 0}; blockIdx = {x, y, 0}; kernel(given...); });
            for (auto &one : running) one.join();
        }
}
#define RUN(kernel, x, y, threads, stream, ...) run(kernel, x, y, threads, __VA_ARGS__)
