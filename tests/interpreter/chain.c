/* What a GPU makes of a matrix product. Build with -ffp-contract=off: where two operations are to be one, it says so. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Scalar units: one chain of fused multiply-adds per element, in ascending order of the sum. */
void chain(const float *a, const float *b, float *acc, long m, long k, long n)
{
    for (long i = 0; i < m; i++)
        for (long p = 0; p < k; p++) {
            float left = a[i * k + p];
            for (long j = 0; j < n; j++)
                acc[i * n + j] = __builtin_fmaf(left, b[p * n + j], acc[i * n + j]);
        }
}

/* Exponent of a double as it is stored, 2047 for infinity and NaN. */
static inline int64_t stored_exponent(double x)
{
    int64_t bits;
    memcpy(&bits, &x, 8);
    return bits >> 52 & 0x7ff;
}

static inline double power_of_two(int64_t stored)
{
    int64_t bits = stored << 52;
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

/* Matrix units at their worst: of each four products and the sum before them all bits below 24 of the largest are cut off, and the
 * new sum is cut to 24 bits. Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores, 2021, find one to two bits more. */
void truncated(const float *a, const float *b, float *acc, long m, long k, long n)
{
    for (long i = 0; i < m; i++)
        for (long p = 0; p < k; p += 4) {
            long terms = k - p < 4 ? k - p : 4;
            for (long j = 0; j < n; j++) {
                double product[4], before = acc[i * n + j];
                int64_t largest = stored_exponent(before), exponent;
                for (long t = 0; t < terms; t++) {
                    product[t] = (double)a[i * k + p + t] * b[(p + t) * n + j];
                    exponent = stored_exponent(product[t]);
                    largest = exponent > largest ? exponent : largest;
                }
                if (largest == 2047 || largest < 100) {
                    /* infinity and NaN as they come, and nothing but zeros and what float32 calls one */
                    for (long t = 0; t < terms; t++)
                        before += product[t];
                    acc[i * n + j] = before;
                    continue;
                }
                double scale = power_of_two(1023 + 23 - (largest - 1023)), unit = power_of_two(1023 - 23 + (largest - 1023));
                int64_t sum = (int64_t)(before * scale);
                for (long t = 0; t < terms; t++)
                    sum += (int64_t)(product[t] * scale);
                double whole = (double)sum * unit;
                int64_t bits;
                memcpy(&bits, &whole, 8);
                bits &= ~(((int64_t)1 << 29) - 1);
                memcpy(&whole, &bits, 8);
                acc[i * n + j] = (float)whole;
            }
        }
}
