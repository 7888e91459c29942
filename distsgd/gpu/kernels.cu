// The kernels of the GPU, compiled at run time for REAL = float or double, without contraction of a*b+c into one rounding:
// an update's bits are then those of the CPU. Arrays are contiguous and batch-last. Interval loop strides over the grid, so
// that any number of blocks and threads computes the same, one thread included. Formulas: see the modules of the CPU.

typedef REAL T;
typedef long long index_t;
typedef unsigned long long word_t;

#define EACH(i, count) \
    for (index_t i = blockIdx.x * (index_t)blockDim.x + threadIdx.x; i < (count); i += (index_t)gridDim.x * blockDim.x)
#define EACH_BLOCK(row, count) for (index_t row = blockIdx.x; row < (count); row += gridDim.x)
#define MOST_THREADS 1024

// A number that changes from step to step comes by value, or lies at `_at` in the GPU's memory, for a step that is recorded
// once and started again. There NaN says: leave everything as it is.
#define STEP_NUMBER(name) double name, const double* name##_at
#define READ(name)                     \
    if (name##_at) {                   \
        name = *name##_at;             \
        if (name != name) return;      \
    }

// ---- one optimizer step, in place: w params, g gradient

extern "C" __global__ void scale(T* w, STEP_NUMBER(factor), index_t count) {
    READ(factor);
    EACH(i, count) w[i] = w[i] * (T)factor;
}

extern "C" __global__ void add_scaled(T* target, const T* source, double factor, index_t count) {
    EACH(i, count) target[i] = target[i] + source[i] * (T)factor;
}

extern "C" __global__ void sgd(T* w, const T* g, STEP_NUMBER(rate), index_t count) {
    READ(rate);
    EACH(i, count) w[i] = w[i] - g[i] * (T)rate;
}

extern "C" __global__ void momentum(T* w, const T* g, T* velocity, STEP_NUMBER(rate), double mu, double undamped,
                                    index_t count) {
    READ(rate);
    EACH(i, count) {
        T v = velocity[i] * (T)mu + (undamped == 1.0 ? g[i] : g[i] * (T)undamped);
        velocity[i] = v;
        w[i] = w[i] - v * (T)rate;
    }
}

extern "C" __global__ void nesterov(T* w, const T* g, T* velocity, STEP_NUMBER(rate), double mu, index_t count) {
    READ(rate);
    EACH(i, count) {
        T v = velocity[i] * (T)mu + g[i];
        velocity[i] = v;
        w[i] = w[i] - (g[i] + v * (T)mu) * (T)rate;
    }
}

__device__ T without_quotient(T w, T numerator, T square, double step, double epsilon) {
    return w - numerator / (sqrt(square) + (T)epsilon) * (T)step;
}

extern "C" __global__ void adagrad(T* w, const T* g, T* sum, STEP_NUMBER(rate), double epsilon, index_t count) {
    READ(rate);
    EACH(i, count) {
        T s = sum[i] + g[i] * g[i];
        sum[i] = s;
        w[i] = without_quotient(w[i], g[i], s, rate, epsilon);
    }
}

extern "C" __global__ void rmsprop(T* w, const T* g, T* mean, STEP_NUMBER(rate), double alpha, double rest,
                                   double epsilon, index_t count) {
    READ(rate);
    EACH(i, count) {
        T s = mean[i] * (T)alpha + g[i] * g[i] * (T)rest;
        mean[i] = s;
        w[i] = without_quotient(w[i], g[i], s, rate, epsilon);
    }
}

extern "C" __global__ void adam(T* w, const T* g, T* first, T* second, STEP_NUMBER(step), double beta1, double beta2,
                                STEP_NUMBER(epsilon), index_t count) {
    READ(step);
    READ(epsilon);
    EACH(i, count) {
        T m = first[i] * (T)beta1 + g[i], v = second[i] * (T)beta2 + g[i] * g[i];
        first[i] = m;
        second[i] = v;
        w[i] = without_quotient(w[i], m, v, step, epsilon);
    }
}

// ---- numbers that aren't finite, in a recorded step: found here, and all that follows leaves everything as it is

extern "C" __global__ void find_non_finite(const T* values, double* non_finite, index_t count) {
    EACH(i, count) if (values[i] - values[i] != 0) *non_finite = 1.0;
}

extern "C" __global__ void find_non_finite_losses(const double* records, double* non_finite, index_t width, index_t lanes) {
    EACH(i, lanes) if (records[i * width] - records[i * width] != 0) *non_finite = 1.0;
}

extern "C" __global__ void hold_after_non_finite(const double* non_finite, index_t ranks, double* numbers, index_t count) {
    double nothing = 0.0, found = 0.0;
    for (index_t rank = 0; rank < ranks; rank++) found += non_finite[rank];
    EACH(i, count) if (found != 0.0) numbers[i] = nothing / nothing;
}

// ---- the sum of rows in the order of a tree, over a number. Row k is laid on the stack, and then sums[k] times the two
// on top become their sum: a tree's leaves from left to right, in one pass. Stacks are as high as a tree of 2^17 lanes.

#define HIGHEST 18

extern "C" __global__ void sum_rows(T* out, const word_t* rows, const index_t* sums, index_t leaves, double divisor,
                                    index_t count) {
    EACH(i, count) {
        T stack[HIGHEST];
        int height = 0;
        for (index_t k = 0; k < leaves; k++) {
            T top = ((const T*)rows[k])[i];
            for (index_t s = sums[k]; s > 0; s--) top = stack[--height] + top;
            stack[height++] = top;
        }
        out[i] = stack[0] / (T)divisor;
    }
}

// ---- sums, each by one block: the threads' own sums in double, then a tree over the threads

__device__ double block_sum(double own) {
    __shared__ double sums[MOST_THREADS];
    sums[threadIdx.x] = own;
    __syncthreads();
    for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
        if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
        __syncthreads();
    }
    double total = sums[0];
    __syncthreads();  // sums is written again by the next call
    return total;
}

extern "C" __global__ void row_sums(const T* rows, T* out, index_t count, index_t length) {
    EACH_BLOCK(row, count) {
        double own = 0.0;
        for (index_t k = threadIdx.x; k < length; k += blockDim.x) own += rows[row * length + k];
        double total = block_sum(own);
        if (threadIdx.x == 0) out[row] = (T)total;
    }
}

extern "C" __global__ void block_squares(const T* values, double* out, index_t blocks, index_t length, index_t count) {
    EACH_BLOCK(block, blocks) {
        index_t stop = (block + 1) * length < count ? (block + 1) * length : count;
        double own = 0.0;
        for (index_t k = block * length + threadIdx.x; k < stop; k += blockDim.x) own += (double)values[k] * values[k];
        double total = block_sum(own);
        if (threadIdx.x == 0) out[block] = total;
    }
}

// ---- batch normalization: a block for each feature

extern "C" __global__ void normalize(const T* rows, const T* scale, const T* shift, double epsilon, T* y, T* mean,
                                     T* m2, T* inverse, index_t features, index_t count) {
    EACH_BLOCK(row, features) {
        const T* x = rows + row * count;
        double own = 0.0;
        for (index_t k = threadIdx.x; k < count; k += blockDim.x) own += x[k];
        T center = (T)(block_sum(own) / count);
        own = 0.0;
        for (index_t k = threadIdx.x; k < count; k += blockDim.x) {
            double d = x[k] - center;
            own += d * d;
        }
        T squares = (T)block_sum(own);
        T inv = (T)1 / sqrt(squares / (T)count + (T)epsilon), factor = scale[row] * inv;
        for (index_t k = threadIdx.x; k < count; k += blockDim.x)
            y[row * count + k] = (x[k] - center) * factor + shift[row];
        if (threadIdx.x == 0) mean[row] = center, m2[row] = squares, inverse[row] = inv;
    }
}

extern "C" __global__ void normalize_backward(const T* rows, const T* mean, const T* inverse, const T* scale,
                                              const T* dy, T* dscale, T* dshift, T* dx, index_t features,
                                              index_t count) {
    EACH_BLOCK(row, features) {
        const T *x = rows + row * count, *d = dy + row * count;
        T center = mean[row], inv = inverse[row];
        double own_scale = 0.0, own_shift = 0.0;
        for (index_t k = threadIdx.x; k < count; k += blockDim.x) {
            own_scale += (double)d[k] * (x[k] - center);
            own_shift += d[k];
        }
        T to_scale = (T)block_sum(own_scale) * inv, to_shift = (T)block_sum(own_shift);
        for (index_t k = threadIdx.x; k < count; k += blockDim.x)
            dx[row * count + k] =
                ((x[k] - center) * (-to_scale * inv / (T)count) + d[k] - to_shift / (T)count) * (scale[row] * inv);
        if (threadIdx.x == 0) dscale[row] = to_scale, dshift[row] = to_shift;
    }
}

// ---- softmax and cross-entropy of labels: a thread for each example; gradient may be null

extern "C" __global__ void softmax_cross_entropy(const T* outputs, const index_t* labels, T* losses, T* gradient,
                                                 index_t classes, index_t count) {
    EACH(i, count) {
        T largest = outputs[i], total = 0, nothing = 0;
        for (index_t c = 1; c < classes; c++) {
            T z = outputs[c * count + i];
            if (z > largest || z != z) largest = z;  // a NaN stays
        }
        for (index_t c = 0; c < classes; c++) total += exp(outputs[c * count + i] - largest);
        index_t label = labels[i];
        bool known = label >= 0 && label < classes;
        losses[i] = known ? log(total) - (outputs[label * count + i] - largest) : nothing / nothing;
        if (gradient == 0) continue;
        for (index_t c = 0; c < classes; c++)
            gradient[c * count + i] = exp(outputs[c * count + i] - largest) / total - (T)(c == label ? 1 : 0);
    }
}

// ---- Philox4x64-10, as NumPy has it: four words for each value of the counter, the first for the counter plus one

__device__ void philox(word_t key0, word_t key1, const word_t* counter, word_t* words) {
    word_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        word_t high0 = __umul64hi(0xD2E7470EE14C6C93ULL, c0), low0 = 0xD2E7470EE14C6C93ULL * c0;
        word_t high1 = __umul64hi(0xCA5A826395121157ULL, c2), low1 = 0xCA5A826395121157ULL * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B97F4A7C15ULL;
        key1 += 0xBB67AE8584CAA73BULL;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

__device__ void philox_block(word_t key0, word_t key1, word_t c0, word_t c1, word_t c2, word_t c3, word_t number,
                             word_t* words) {
    word_t counter[4] = {c0, c1, c2, c3};
    for (int k = 0; k < 4 && number; k++) {  // the counter is one number of 256 bits
        word_t before = counter[k];
        counter[k] += number;
        number = counter[k] < before;
    }
    philox(key0, key1, counter, words);
}

extern "C" __global__ void random_words(word_t* out, word_t key0, word_t key1, word_t c0, word_t c1, word_t c2,
                                        word_t c3, index_t count) {
    EACH(block, (count + 3) / 4) {
        word_t words[4];
        philox_block(key0, key1, c0, c1, c2, c3, block + 1, words);
        for (int k = 0; k < 4 && 4 * block + k < count; k++) out[4 * block + k] = words[k];
    }
}

// Where there is a clock, it has the epoch and the step, which are the counter's second and third word.
extern "C" __global__ void keep_mask(bool* out, word_t below, word_t key0, word_t key1, word_t c0, word_t c1, word_t c2,
                                     word_t c3, const word_t* clock, index_t count) {
    if (clock) c1 = clock[0], c2 = clock[1];
    EACH(block, (count + 7) / 8) {
        word_t words[4];
        philox_block(key0, key1, c0, c1, c2, c3, block + 1, words);
        for (int k = 0; k < 8 && 8 * block + k < count; k++)
            out[8 * block + k] = (k % 2 ? words[k / 2] >> 32 : words[k / 2] & 0xFFFFFFFFULL) < below;
    }
}

// ---- windows over images (channels, height, width, n): pooling, im2col and its transpose

struct Window {
    index_t size_h, size_w, stride_h, stride_w, before_h, before_w, height, width, out_height, out_width, n;
};

#define WINDOW                                                                                                     \
    index_t size_h, index_t size_w, index_t stride_h, index_t stride_w, index_t before_h, index_t before_w,        \
        index_t height, index_t width, index_t out_height, index_t out_width, index_t n
#define AS_WINDOW \
    Window { size_h, size_w, stride_h, stride_w, before_h, before_w, height, width, out_height, out_width, n }

// The pixel of x at place (i, j) of the window of output (h, w), in one channel; -1 on the padding.
__device__ index_t pixel(const Window& of, index_t h, index_t w, index_t i, index_t j) {
    index_t y = h * of.stride_h + i - of.before_h, x = w * of.stride_w + j - of.before_w;
    return y < 0 || y >= of.height || x < 0 || x >= of.width ? -1 : y * of.width + x;
}

// The output that has pixel (y, x) at place (i, j) of its window; -1 where there is none.
__device__ index_t output(const Window& of, index_t y, index_t x, index_t i, index_t j) {
    index_t h = y + of.before_h - i, w = x + of.before_w - j;
    if (h < 0 || w < 0 || h % of.stride_h || w % of.stride_w) return -1;
    h /= of.stride_h, w /= of.stride_w;
    return h >= of.out_height || w >= of.out_width ? -1 : h * of.out_width + w;
}

extern "C" __global__ void max_pool(const T* x, T* y, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width * n, out = out_height * out_width;
    EACH(k, channels * out * n) {
        index_t e = k % n, o = k / n % out, c = k / n / out, h = o / out_width, w = o % out_width;
        T largest = x[c * in + pixel(of, h, w, 0, 0) * n + e];
        for (index_t p = 1; p < size_h * size_w; p++) {
            T z = x[c * in + pixel(of, h, w, p / size_w, p % size_w) * n + e];
            if (z > largest || z != z) largest = z;
        }
        y[k] = largest;
    }
}

extern "C" __global__ void max_pool_backward(const T* x, const T* y, const T* dy, T* dx, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width, out = out_height * out_width;
    EACH(k, channels * in * n) {
        index_t e = k % n, q = k / n % in, c = k / n / in;
        T total = 0;
        for (index_t p = 0; p < size_h * size_w; p++) {
            index_t o = output(of, q / width, q % width, p / size_w, p % size_w);
            if (o < 0) continue;
            index_t at = (c * out + o) * n + e;
            bool chosen = x[k] == y[at];
            for (index_t b = 0; b < p && chosen; b++)  // the first of the largest has it
                chosen = x[(c * in + pixel(of, o / out_width, o % out_width, b / size_w, b % size_w)) * n + e] != y[at];
            total += dy[at] * (T)chosen;
        }
        dx[k] = total;
    }
}

extern "C" __global__ void average_pool(const T* x, T* y, double part, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width * n, out = out_height * out_width;
    EACH(k, channels * out * n) {
        index_t e = k % n, o = k / n % out, c = k / n / out, h = o / out_width, w = o % out_width;
        T total = x[c * in + pixel(of, h, w, 0, 0) * n + e];
        for (index_t p = 1; p < size_h * size_w; p++)
            total += x[c * in + pixel(of, h, w, p / size_w, p % size_w) * n + e];
        y[k] = total * (T)part;
    }
}

extern "C" __global__ void average_pool_backward(const T* dy, T* dx, double part, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width, out = out_height * out_width;
    EACH(k, channels * in * n) {
        index_t e = k % n, q = k / n % in, c = k / n / in;
        T total = 0;
        for (index_t p = 0; p < size_h * size_w; p++) {
            index_t o = output(of, q / width, q % width, p / size_w, p % size_w);
            if (o >= 0) total += dy[(c * out + o) * n + e] * (T)part;
        }
        dx[k] = total;
    }
}

// columns (channels, size_h, size_w, out_height, out_width, n): each output's window in a column
extern "C" __global__ void im2col(const T* x, T* columns, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width * n, out = out_height * out_width, places = size_h * size_w;
    EACH(k, channels * places * out * n) {
        index_t e = k % n, o = k / n % out, p = k / n / out % places, c = k / n / out / places;
        index_t q = pixel(of, o / out_width, o % out_width, p / size_w, p % size_w);
        columns[k] = q < 0 ? (T)0 : x[c * in + q * n + e];
    }
}

// Its transpose: dx is the sum of what each place of the window says of a pixel, in the order of places.
extern "C" __global__ void col2im(const T* columns, T* dx, index_t channels, WINDOW) {
    const Window of = AS_WINDOW;
    index_t in = height * width, out = out_height * out_width, places = size_h * size_w;
    EACH(k, channels * in * n) {
        index_t e = k % n, q = k / n % in, c = k / n / in;
        T total = 0;
        for (index_t p = 0; p < places; p++) {
            index_t o = output(of, q / width, q % width, p / size_w, p % size_w);
            if (o >= 0) total += columns[((c * places + p) * out + o) * n + e];
        }
        dx[k] = total;
    }
}
