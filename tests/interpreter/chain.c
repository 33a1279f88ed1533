/* What a GPU makes of a matrix product, and of a load. Build with -ffp-contract=off: where two operations are to be one, it says so. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Scalar units: one chain of fused multiply-adds per element, in ascending order of the sum. */
void chain(const float *restrict a, const float *restrict b, float *restrict acc, long m, long k, long n)
{
    for (long i = 0; i < m; i++)
        for (long p = 0; p < k; p++) {
            float left = a[i * k + p];
            for (long j = 0; j < n; j++)
                acc[i * n + j] = __builtin_fmaf(left, b[p * n + j], acc[i * n + j]);
        }
}

static inline int64_t bits_of(double x)
{
    int64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

static inline double of_bits(int64_t bits)
{
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

/* Matrix units at their worst: of each four products and the sum before them all bits below 24 of the largest are cut off, and the
 * new sum is cut to 24 bits. Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores, 2021, find one to two bits more.
 * k: a multiple of 4. The inner loop has no branch, for compilers to take several columns at once. */
void truncated(const float *restrict a, const float *restrict b, float *restrict acc, long m, long k, long n)
{
    const int64_t fraction = ((int64_t)1 << 52) - 1, magnitude = INT64_MAX;
    for (long i = 0; i < m; i++)
        for (long p = 0; p < k; p += 4)
            for (long j = 0; j < n; j++) {
                double before = acc[i * n + j], product[4];
                /* its exponent as a double stores it, 2047 for infinity and NaN */
                int64_t largest = bits_of(before) & magnitude;
                for (int t = 0; t < 4; t++) {
                    product[t] = (double)a[i * k + p + t] * b[(p + t) * n + j];
                    int64_t size = bits_of(product[t]) & magnitude;
                    largest = size > largest ? size : largest;
                }
                largest &= ~fraction;
                /* powers of two: the last bit that is kept becomes one, and back */
                double scale = of_bits(((int64_t)(1023 + 23 + 1023) << 52) - largest), unit = of_bits(largest - ((int64_t)23 << 52));
                /* from zero: small negative terms sum to 0, not to -0 */
                double sum = 0.0 + trunc(before * scale), plain = before;
                for (int t = 0; t < 4; t++) {
                    sum += trunc(product[t] * scale);
                    plain += product[t];
                }
                double cut = of_bits(bits_of(sum * unit) & ~(((int64_t)1 << 29) - 1));
                /* infinity and NaN as they come, and nothing but zeros and what float32 calls one */
                int special = largest == (int64_t)2047 << 52 || largest < (int64_t)100 << 52;
                acc[i * n + j] = (float)(special ? plain : cut);
            }
}

/* out: what stays where the mask is false. Triton's own load takes 60 ns for an element. */
void load(const uint64_t *addresses, const uint8_t *mask, char *out, long n, long width)
{
    for (long i = 0; i < n; i++)
        if (mask[i]) {
            const void *from = (const void *)addresses[i];
            switch (width) {
            case 1: memcpy(out + i, from, 1); break;
            case 2: memcpy(out + 2 * i, from, 2); break;
            case 4: memcpy(out + 4 * i, from, 4); break;
            default: memcpy(out + 8 * i, from, 8);
            }
        }
}
