/* One pass over rows of float32 logits: each row's first largest class, and the sum of its exponentials in float64.

   Compiled for the processor at hand by compiled.py. Loops are written so that a compiler turns them into vectors. */

#include <stdint.h>
#include <string.h>

/* exp(x) for x <= 0, to 3.4e-16 and the rounding of a dozen operations: 2^k times a polynomial on |r| <= ln 2 / 2, which
   interpolates exp at Chebyshev's points. Below -700, where the answer is 1e-304, it stays what it is there. */
static inline double exponential(double x)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: a sum with it holds the nearest integer in its low bits */
    x = x > -700.0 ? x : -700.0;
    const double t = x * 1.4426950408889634 + shift;
    const double r = x - (t - shift) * 0.6931471805599453;
    double p = 2.7626371065696354e-07;
    p = p * r + 2.764019739169484e-06;
    p = p * r + 2.480150431378554e-05;
    p = p * r + 0.00019841170230570286;
    p = p * r + 0.001388888893251478;
    p = p * r + 0.008333333385699212;
    p = p * r + 0.041666666666573066;
    p = p * r + 0.16666666666554314;
    p = p * r + 0.5000000000000006;
    p = p * r + 1.0000000000000067;
    p = p * r + 1.0;
    int64_t k, bits;
    memcpy(&k, &t, sizeof k);
    memcpy(&bits, &p, sizeof bits);
    bits += (int64_t)((uint64_t)k << 52);
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* The first place of the largest number; `least` is the least one, NaN where a number is not finite. */
static inline int64_t first_largest(const float *x, int64_t classes, float *least)
{
    enum { RUN = 64 };
    float most = x[0], low = x[0], faults = 0;
    int64_t at = 0;
#pragma omp simd reduction(max : most) reduction(min : low) reduction(+ : faults)
    for (int64_t j = 0; j < classes; j++) {
        most = x[j] > most ? x[j] : most;
        low = x[j] < low ? x[j] : low;
        faults += x[j] - x[j]; /* NaN for inf and NaN, else 0 */
    }
    for (; at + RUN <= classes; at += RUN) {
        int found = 0;
        for (int j = 0; j < RUN; j++)
            found |= x[at + j] == most;
        if (found)
            break;
    }
    while (at < classes - 1 && !(x[at] == most))
        at++;
    *least = faults == 0 ? low : faults;
    return at;
}

/* Writes the places, counted from `first`, and the numbers of those above the limit; returns how many. */
static inline int64_t list_above(const double *odds, int64_t classes, double limit, int64_t first, int64_t *places,
                                 double *found)
{
    enum { RUN = 64 };
    int64_t count = 0;
    for (int64_t start = 0; start < classes; start += RUN) {
        const int64_t end = start + RUN < classes ? start + RUN : classes;
        int some = 0;
        for (int64_t j = start; j < end; j++)
            some |= odds[j] > limit;
        if (!some)
            continue;
        for (int64_t j = start; j < end; j++)
            if (odds[j] > limit) {
                places[count] = first + j;
                found[count++] = odds[j];
            }
    }
    return count;
}

/* x (rows, classes). To top, least, total (rows,) each: the first largest class, the least logit, and the sum of
   exp(x - largest). squares (rows,), unless NULL: the sum of their squares.
   With mass (classes,), unless NULL: of the rows that `keep` (rows,) marks (NULL: all) and whose logits are finite, each
   class's share of the total is added to mass, and what has more than `share` is listed in places (row * classes +
   class) and found, which must hold rows * (1 / share + 1). odds (classes,) is room. Returns how many were listed. */
int64_t landscape_sweep(const float *x, int64_t rows, int64_t classes, int64_t *top, float *least, double *total,
                        double *squares, double share, const uint8_t *keep, double *odds, double *mass,
                        int64_t *places, double *found)
{
    int64_t count = 0;
    for (int64_t i = 0; i < rows; i++, x += classes) {
        double sum = 0, square = 0;
        top[i] = first_largest(x, classes, &least[i]);
        const double most = x[top[i]];
        if (mass) {
#pragma omp simd reduction(+ : sum, square)
            for (int64_t j = 0; j < classes; j++) {
                const double e = exponential(x[j] - most);
                odds[j] = e;
                sum += e;
                square += e * e;
            }
            if ((!keep || keep[i]) && least[i] == least[i]) {
                const double each = 1 / sum;
#pragma omp simd
                for (int64_t j = 0; j < classes; j++)
                    mass[j] += odds[j] * each;
                count += list_above(odds, classes, sum * share, i * classes, places + count, found + count);
            }
        } else if (squares) {
#pragma omp simd reduction(+ : sum, square)
            for (int64_t j = 0; j < classes; j++) {
                const double e = exponential(x[j] - most);
                sum += e;
                square += e * e;
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < classes; j++)
                sum += exponential(x[j] - most);
        }
        total[i] = sum;
        if (squares)
            squares[i] = square;
    }
    return count;
}
