// record_rows (record_rows.py) in CUDA C++. A warp takes one group of 128 features of one row after another, four features a lane.
//
// Rounding is done on the bits and nothing is fused, so rows and scales are those of the other forms bit for bit. Sums of squares
// [groups, n] and the sums of a block [blocks, 3, width] are added up by the caller: no atomics, so two runs agree.
// Built by record_rows_cuda.py with nvcc; on a CPU tests/kernels/threads.h stands for the GPU, a thread for each of its threads.
#include <cstdint>
#include <cstring>
#ifdef __CUDACC__
#define RUN(kernel, x, y, threads, stream, ...) kernel<<<dim3(x, y), threads, 0, (cudaStream_t)stream>>>(__VA_ARGS__)
#else
#include "threads.h"
#endif

constexpr int GROUP = 128, LANES = 32, EACH = GROUP / LANES, WARPS = 4, TURNS = 16;  // a block: 4 warps, 16 rows each
constexpr float TINY = 1.1754943508222875e-38f;

__device__ inline uint32_t bits(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
__device__ inline float number(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }

// The nearest bfloat16, ties to even, as the upper half of a float32; NaN is the quiet one.
__device__ inline uint32_t half_of(float x) {
    uint32_t b = bits(x);
    return x == x ? (b + 0x7FFF + ((b >> 16) & 1)) & 0xFFFF0000u : 0x7FC00000u;
}

__device__ inline float read(const float *x) { return *x; }
__device__ inline float read(const uint16_t *x) { return number((uint32_t)*x << 16); }
__device__ inline float write(float *to, float y) { return *to = y; }
__device__ inline float write(uint16_t *to, float y) { uint32_t b = half_of(y); *to = b >> 16; return number(b); }
__device__ inline float write(int8_t *, float y) { return y; }  // codes are written beside their scale

template <typename In, typename Out>
__global__ void record(const In *x, const int64_t *kept, const int64_t *slots, Out *rows, uint16_t *scales, const float *pivot,
                       float *squares, double *parts, int n, int width, int groups) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = blockIdx.y;
    __shared__ double all[WARPS][3][GROUP];
    double sums[3][EACH] = {};
    for (int turn = 0; turn < TURNS; turn++) {
        const int i = (blockIdx.x * TURNS + turn) * WARPS + warp;
        if (i >= n) break;  // all lanes of a warp have the same row
        const In *from = x + (kept ? kept[i] : (int64_t)i) * width;
        Out *to = rows + slots[i] * width;
        float y[EACH], square = 0, peak = 0;
        bool nan = false;
        for (int e = 0; e < EACH; e++) {
            const int f = g * GROUP + e * LANES + lane;
            y[e] = f < width ? read(from + f) : 0;
            square += y[e] * y[e];
            if (pivot && f < width) y[e] = y[e] - pivot[f];
            nan = nan || y[e] != y[e];
            peak = fmaxf(peak, fabsf(y[e]));
        }
        for (int other = LANES / 2; other; other /= 2) {
            square += __shfl_xor_sync(0xFFFFFFFFu, square, other);
            peak = fmaxf(peak, __shfl_xor_sync(0xFFFFFFFFu, peak, other));
            nan = __shfl_xor_sync(0xFFFFFFFFu, (float)nan, other) != 0 || nan;
        }
        if (!lane) squares[(int64_t)g * n + i] = square;
        const float most = __fdiv_rn(peak, 127.0f);
        const uint32_t scale = half_of(nan ? number(0x7FC00000u) : most < TINY ? TINY : most);
        if (!lane && pivot) scales[slots[i] * groups + g] = scale >> 16;
        for (int e = 0; e < EACH; e++) {
            const int f = g * GROUP + e * LANES + lane;
            if (f >= width) continue;
            float found;
            if (pivot) {
                const float code = rintf(__fmul_rn(y[e], __fdiv_rn(1.0f, number(scale))));
                ((int8_t *)to)[f] = (int8_t)code;
                found = __fmul_rn(code, number(scale));
            } else {
                found = write(to + f, y[e]);
            }
            const double lost = y[e] - found;
            sums[0][e] += y[e];
            sums[1][e] += (double)y[e] * y[e];
            sums[2][e] += lost * lost;
        }
    }
    if (!parts) return;
    for (int s = 0; s < 3; s++)
        for (int e = 0; e < EACH; e++) all[warp][s][e * LANES + lane] = sums[s][e];
    __syncthreads();
    for (int at = threadIdx.x; at < 3 * GROUP; at += WARPS * LANES) {
        const int s = at / GROUP, f = g * GROUP + at % GROUP;
        if (f >= width) continue;
        double total = 0;
        for (int w = 0; w < WARPS; w++) total += all[w][s][at % GROUP];
        parts[((int64_t)blockIdx.x * 3 + s) * width + f] = total;
    }
}

// `in` and `out`: bytes of a number, 4 float32, 2 bfloat16, 1 int8. Returns 0, or the error that CUDA names.
extern "C" int record_rows(const void *x, int in, const int64_t *kept, const int64_t *slots, void *rows, int out, uint16_t *scales,
                           const float *pivot, float *squares, double *parts, int n, int width, int groups, void *stream) {
    const int blocks = (n + WARPS * TURNS - 1) / (WARPS * TURNS);
#define OF(In, Out) RUN((record<In, Out>), blocks, groups, WARPS *LANES, stream, (const In *)x, kept, slots, (Out *)rows, scales, \
                        pivot, squares, parts, n, width, groups)
    if (in == 4 && out == 4) OF(float, float);
    else if (in == 4 && out == 2) OF(float, uint16_t);
    else if (in == 4 && out == 1) OF(float, int8_t);
    else if (in == 2 && out == 4) OF(uint16_t, float);
    else if (in == 2 && out == 2) OF(uint16_t, uint16_t);
    else if (in == 2 && out == 1) OF(uint16_t, int8_t);
    else return -1;
#ifdef __CUDACC__
    return (int)cudaGetLastError();
#else
    return 0;
#endif
}
