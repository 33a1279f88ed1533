/* What a GPU's scalar units make of a matrix product: one chain of fused multiply-adds per element, in ascending order of the sum. */

void chain(const float *a, const float *b, float *acc, long m, long k, long n)
{
    for (long i = 0; i < m; i++)
        for (long p = 0; p < k; p++) {
            float left = a[i * k + p];
            for (long j = 0; j < n; j++)
                acc[i * n + j] = __builtin_fmaf(left, b[p * n + j], acc[i * n + j]);
        }
}
