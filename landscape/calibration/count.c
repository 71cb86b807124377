/* One pass over pairs of a confidence and right or wrong, counted in cells as cells.py and packed.py lay them out.

   Compiled for the processor at hand by compiled.py. */

#include <stdint.h>
#include <string.h>

enum { LEADING = 15, ENTRY = 31 }; /* cells.py: low bits of 1 - c that are dropped, and of an entry below its key */

/* Adds each pair to the table, at the key of its cell: `shift` + confidence, whose bits are a count and a sum.

   confidence and correct (n,) must have been found in [2^-7, 1] and to be 0 or 1: nothing is checked here. entries holds
   2 * 2^15 of cells.py, table what packed.py takes from it. */
void landscape_count(const float *confidence, const int64_t *correct, int64_t n, const int64_t *entries, double shift,
                     int64_t *table)
{
    for (int64_t i = 0; i < n; i++) {
        const float lacking = 1.0f - confidence[i];
        const double each = confidence[i] + shift;
        int32_t place, bits;
        int64_t packed;
        memcpy(&place, &lacking, sizeof place);
        memcpy(&bits, &confidence[i], sizeof bits);
        memcpy(&packed, &each, sizeof packed);
        table[(entries[place >> LEADING | correct[i] << LEADING] + bits) >> ENTRY] += packed;
    }
}
