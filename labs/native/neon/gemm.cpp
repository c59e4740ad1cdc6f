// Lab 40: one matrix product, C = A * B, in five ways, for an Arm core.
//
//   gemm KERNEL   multiplies two fixed matrices with one kernel, compares with double precision and prints the error
//   gemm hwcap    prints the bits with which Linux tells a program what the core can do
//
// Around the product it makes two system calls that do not exist: there QEMU's plugin (utils/deploylab/boards/icount.c)
// begins and ends its count. A real kernel answers "no such call", and nothing happens.
#include <arm_neon.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr long kMark = 0x7ace;
// Sizes of a pointwise convolution: output channels, pixels, input channels. All are multiples of every tile below.
constexpr int kRows = 64, kColumns = 96, kDepth = 128;

using Floats = std::vector<float>;

// 1. As the textbook says it: one number after the other. The compiler is told not to use vectors.
__attribute__((noinline, optimize("no-tree-vectorize"))) void scalar(const float* a, const float* b, float* c) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[i * kDepth + k] * b[k * kColumns + j];
      c[i * kColumns + j] = sum;
    }
  }
}

// 2. The same product with its loops in an order that the compiler can turn into vectors by itself.
__attribute__((noinline)) void compiler(const float* a, const float* b, float* c) {
  std::fill_n(c, kRows * kColumns, 0.0F);
  for (int i = 0; i < kRows; ++i) {
    for (int k = 0; k < kDepth; ++k) {
      const float factor = a[i * kDepth + k];
      for (int j = 0; j < kColumns; ++j) c[i * kColumns + j] += factor * b[k * kColumns + j];
    }
  }
}

// 3. NEON by hand: a tile of 8 x 12 results stays in 24 of the 32 registers while k runs.
__attribute__((noinline)) void neon(const float* a, const float* b, float* c) {
  for (int i = 0; i < kRows; i += 8) {
    for (int j = 0; j < kColumns; j += 12) {
      float32x4_t tile[8][3] = {};
      for (int k = 0; k < kDepth; ++k) {
        float32x4_t row[3];
        for (int v = 0; v < 3; ++v) row[v] = vld1q_f32(&b[k * kColumns + j + 4 * v]);
        const float32x4_t low = vld1q_f32(&a[k * kRows + i]), high = vld1q_f32(&a[k * kRows + i + 4]);
        for (int v = 0; v < 3; ++v) {
          tile[0][v] = vfmaq_laneq_f32(tile[0][v], row[v], low, 0);
          tile[1][v] = vfmaq_laneq_f32(tile[1][v], row[v], low, 1);
          tile[2][v] = vfmaq_laneq_f32(tile[2][v], row[v], low, 2);
          tile[3][v] = vfmaq_laneq_f32(tile[3][v], row[v], low, 3);
          tile[4][v] = vfmaq_laneq_f32(tile[4][v], row[v], high, 0);
          tile[5][v] = vfmaq_laneq_f32(tile[5][v], row[v], high, 1);
          tile[6][v] = vfmaq_laneq_f32(tile[6][v], row[v], high, 2);
          tile[7][v] = vfmaq_laneq_f32(tile[7][v], row[v], high, 3);
        }
      }
      for (int r = 0; r < 8; ++r)
        for (int v = 0; v < 3; ++v) vst1q_f32(&c[(i + r) * kColumns + j + 4 * v], tile[r][v]);
    }
  }
}

// 4. Half precision: eight numbers in a register. Needs the fp16 instructions of Armv8.2 (asimdhp).
__attribute__((noinline, target("arch=armv8.2-a+fp16"))) void fp16(const float16_t* a, const float16_t* b, float* c) {
  for (int i = 0; i < kRows; i += 8) {
    for (int j = 0; j < kColumns; j += 16) {
      float16x8_t tile[8][2] = {};
      for (int k = 0; k < kDepth; ++k) {
        const float16x8_t factors = vld1q_f16(&a[k * kRows + i]);
        for (int v = 0; v < 2; ++v) {
          const float16x8_t row = vld1q_f16(&b[k * kColumns + j + 8 * v]);
          tile[0][v] = vfmaq_laneq_f16(tile[0][v], row, factors, 0);
          tile[1][v] = vfmaq_laneq_f16(tile[1][v], row, factors, 1);
          tile[2][v] = vfmaq_laneq_f16(tile[2][v], row, factors, 2);
          tile[3][v] = vfmaq_laneq_f16(tile[3][v], row, factors, 3);
          tile[4][v] = vfmaq_laneq_f16(tile[4][v], row, factors, 4);
          tile[5][v] = vfmaq_laneq_f16(tile[5][v], row, factors, 5);
          tile[6][v] = vfmaq_laneq_f16(tile[6][v], row, factors, 6);
          tile[7][v] = vfmaq_laneq_f16(tile[7][v], row, factors, 7);
        }
      }
      for (int r = 0; r < 8; ++r) {
        for (int v = 0; v < 2; ++v) {
          float* out = &c[(i + r) * kColumns + j + 8 * v];
          vst1q_f32(out, vcvt_f32_f16(vget_low_f16(tile[r][v])));
          vst1q_f32(out + 4, vcvt_high_f32_f16(tile[r][v]));
        }
      }
    }
  }
}

// 5. 8-bit integers: SDOT multiplies 16 pairs and adds them in fours (asimddp). Here a and b lie in groups of four k.
__attribute__((noinline, target("arch=armv8.2-a+dotprod"))) void int8(const int8_t* a, const int8_t* b, int32_t* c) {
  for (int i = 0; i < kRows; i += 8) {
    for (int j = 0; j < kColumns; j += 12) {
      int32x4_t tile[8][3] = {};
      for (int k = 0; k < kDepth / 4; ++k) {
        const int8x16_t low = vld1q_s8(&a[(k * kRows + i) * 4]), high = vld1q_s8(&a[(k * kRows + i + 4) * 4]);
        for (int v = 0; v < 3; ++v) {
          const int8x16_t row = vld1q_s8(&b[(k * kColumns + j + 4 * v) * 4]);
          tile[0][v] = vdotq_laneq_s32(tile[0][v], row, low, 0);
          tile[1][v] = vdotq_laneq_s32(tile[1][v], row, low, 1);
          tile[2][v] = vdotq_laneq_s32(tile[2][v], row, low, 2);
          tile[3][v] = vdotq_laneq_s32(tile[3][v], row, low, 3);
          tile[4][v] = vdotq_laneq_s32(tile[4][v], row, high, 0);
          tile[5][v] = vdotq_laneq_s32(tile[5][v], row, high, 1);
          tile[6][v] = vdotq_laneq_s32(tile[6][v], row, high, 2);
          tile[7][v] = vdotq_laneq_s32(tile[7][v], row, high, 3);
        }
      }
      for (int r = 0; r < 8; ++r)
        for (int v = 0; v < 3; ++v) vst1q_s32(&c[(i + r) * kColumns + j + 4 * v], tile[r][v]);
    }
  }
}

// Numbers between -1 and 1, always the same.
Floats numbers(size_t count, uint32_t seed) {
  Floats values(count);
  for (float& value : values) {
    seed = seed * 1664525U + 1013904223U;  // Numerical Recipes' generator
    value = static_cast<float>(seed >> 8) / static_cast<float>(1U << 23) - 1.0F;
  }
  return values;
}

// a[row][k] as a[k][row].
Floats transposed(const Floats& a) {
  Floats result(a.size());
  for (int i = 0; i < kRows; ++i)
    for (int k = 0; k < kDepth; ++k) result[k * kRows + i] = a[i * kDepth + k];
  return result;
}

constexpr float kScale = 127.0F;

int8_t quantized(float value) { return static_cast<int8_t>(std::lround(value * kScale)); }

// x[k][other], quantized and in groups of four k: x[k / 4][other][k % 4].
std::vector<int8_t> grouped(const Floats& x, int others) {
  std::vector<int8_t> result(x.size());
  for (int k = 0; k < kDepth; ++k)
    for (int o = 0; o < others; ++o) result[(k / 4 * others + o) * 4 + k % 4] = quantized(x[k * others + o]);
  return result;
}

template <typename Kernel>
void counted(Kernel kernel) {
  syscall(kMark, 0);
  kernel();
  syscall(kMark, 1);
}

Floats product(const std::string& kernel, const Floats& a, const Floats& b) {
  Floats c(kRows * kColumns);
  if (kernel == "scalar") {
    counted([&] { scalar(a.data(), b.data(), c.data()); });
  } else if (kernel == "compiler") {
    counted([&] { compiler(a.data(), b.data(), c.data()); });
  } else if (kernel == "neon") {
    const Floats turned = transposed(a);
    counted([&] { neon(turned.data(), b.data(), c.data()); });
  } else if (kernel == "fp16") {
    const Floats turned = transposed(a);
    const std::vector<float16_t> a16(turned.begin(), turned.end()), b16(b.begin(), b.end());
    counted([&] { fp16(a16.data(), b16.data(), c.data()); });
  } else if (kernel == "int8") {
    const std::vector<int8_t> a8 = grouped(transposed(a), kRows), b8 = grouped(b, kColumns);
    std::vector<int32_t> sums(c.size());
    counted([&] { int8(a8.data(), b8.data(), sums.data()); });
    for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(sums[i]) / (kScale * kScale);
  } else {
    std::fprintf(stderr, "there is no kernel %s; there are: scalar compiler neon fp16 int8\n", kernel.c_str());
    std::exit(2);
  }
  return c;
}

// The largest difference from a product in double precision, as a part of the largest result.
double error(const Floats& a, const Floats& b, const Floats& c) {
  double worst = 0, largest = 0;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      double exact = 0;
      for (int k = 0; k < kDepth; ++k) exact += static_cast<double>(a[i * kDepth + k]) * b[k * kColumns + j];
      worst = std::max(worst, std::abs(exact - c[i * kColumns + j]));
      largest = std::max(largest, std::abs(exact));
    }
  }
  return worst / largest;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gemm KERNEL | gemm hwcap\n");
    return 2;
  }
  if (!std::strcmp(argv[1], "hwcap")) {
    std::printf("%#lx\n", getauxval(AT_HWCAP));
    return 0;
  }
  const Floats a = numbers(kRows * kDepth, 1), b = numbers(kDepth * kColumns, 2);
  const Floats c = product(argv[1], a, b);
  std::printf("{\"multiplications\": %d, \"error\": %.3g}\n", kRows * kColumns * kDepth, error(a, b, c));
  return 0;
}
