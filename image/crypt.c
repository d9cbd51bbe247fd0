/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest data on their way to and from the storage, which is where encryption
 * stands.  Layer: image.  Locking: the caller holds the guest range; for
 * writes of an encrypted image EXCLUSIVE and rounded out to sectors, since a
 * part of a sector is written by reading, changing and writing all of it.
 *
 * A cipher works on sectors of 512 bytes, each with an IV of its number.  Guest
 * and host offsets are the same within a sector: hosts are clusters, or the
 * start of the payload, and the layer above asks drivers for nothing else.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "image/io.h"

/* What is encrypted and written at a time. */
enum { PIECE = 256 * 1024 };

struct place {
  struct image *im;
  struct storage *storage;
  uint64_t host, guest;         /* bytes; move on with the data */
};

static void
advance (struct place *p, uint64_t n)
{
  p->host += n;
  p->guest += n;
}

/* The number that the IV is made from. */
static uint64_t
sector_of (const struct place *p)
{
  return (p->im->format->info.iv_base == IV_HOST ? p->host : p->guest)
    / SECTOR_SIZE;
}

static int
check_key (const struct image *im, struct error *e)
{
  if (im->format->cipher)
    return 0;
  return error_set (e, EACCES, "%s: the image is encrypted, and was opened "
                    "without its key", im->name);
}

/* ---- whole sectors ---- */

static int
get_sectors (const struct place *p, void *buf, size_t len, struct error *e)
{
  if (storage_pread (p->storage, buf, len, p->host, e) == -1)
    return -1;
  return disk_decrypt (p->im->format->cipher, buf, len, sector_of (p), e);
}

/* BUF is overwritten. */
static int
put_sectors (const struct place *p, void *buf, size_t len, unsigned flags,
             struct error *e)
{
  if (disk_encrypt (p->im->format->cipher, buf, len, sector_of (p), e) == -1)
    return -1;
  return storage_pwrite (p->storage, buf, len, p->host, flags, e);
}

static int
put_all (const struct place *start, const uint8_t *buf, uint64_t len,
         unsigned flags, struct error *e)
{
  struct place p = *start;
  size_t size = (size_t) min_u64 (len, PIECE), n;
  CLEANUP_FREE uint8_t *piece = malloc (size);

  if (!piece)
    return error_nomem (e, "encryption", size);
  for (; len > 0; len -= n, advance (&p, n)) {
    n = (size_t) min_u64 (len, size);
    if (buf)
      memcpy (piece, buf, n);
    else
      memset (piece, 0, n);
    if (put_sectors (&p, piece, n, flags, e) == -1)
      return -1;
    buf = buf ? buf + n : NULL;
  }
  return 0;
}

/* ---- a part of one sector ---- */

/* The bytes of the sector that P stands in, from P on, at most LEN. */
static size_t
part_length (const struct place *p, uint64_t len)
{
  return (size_t) min_u64 (len, SECTOR_SIZE - p->guest % SECTOR_SIZE);
}

static struct place
start_of_sector (const struct place *p)
{
  struct place s = *p;

  s.host -= p->guest % SECTOR_SIZE;
  s.guest -= p->guest % SECTOR_SIZE;
  return s;
}

static int
get_part (const struct place *p, uint8_t *buf, size_t n, struct error *e)
{
  const struct place s = start_of_sector (p);
  uint8_t sector[SECTOR_SIZE];

  if (get_sectors (&s, sector, sizeof sector, e) == -1)
    return -1;
  memcpy (buf, sector + p->guest % SECTOR_SIZE, n);
  return 0;
}

static int
put_part (const struct place *p, const uint8_t *buf, size_t n, unsigned flags,
          struct error *e)
{
  const struct place s = start_of_sector (p);
  uint8_t sector[SECTOR_SIZE], *part = sector + p->guest % SECTOR_SIZE;

  if (get_sectors (&s, sector, sizeof sector, e) == -1)
    return -1;
  if (buf)
    memcpy (part, buf, n);
  else
    memset (part, 0, n);
  return put_sectors (&s, sector, sizeof sector, flags, e);
}

/* ---- any range ---- */

static bool
is_part (const struct place *p, uint64_t len)
{
  return len && (p->guest % SECTOR_SIZE || len < SECTOR_SIZE);
}

static int
get (struct place *p, uint8_t *buf, size_t len, struct error *e)
{
  while (len > 0) {
    bool part = is_part (p, len);
    size_t n = part ? part_length (p, len)
      : (size_t) round_down (len, SECTOR_SIZE);

    if (part ? get_part (p, buf, n, e) == -1
        : get_sectors (p, buf, n, e) == -1)
      return -1;
    advance (p, n);
    buf += n;
    len -= n;
  }
  return 0;
}

static int
encrypt_and_put (struct place *p, const uint8_t *buf, uint64_t len,
                 unsigned flags, struct error *e)
{
  while (len > 0) {
    bool part = is_part (p, len);
    uint64_t n = part ? part_length (p, len) : round_down (len, SECTOR_SIZE);

    if (part ? put_part (p, buf, (size_t) n, flags, e) == -1
        : put_all (p, buf, n, flags, e) == -1)
      return -1;
    advance (p, n);
    buf = buf ? buf + n : NULL;
    len -= n;
  }
  return 0;
}

int
io_get (struct image *im, enum map_storage where, void *buf, size_t len,
        uint64_t host, uint64_t guest, struct error *e)
{
  struct place p = {
    .im = im, .storage = io_storage (im, where), .host = host, .guest = guest,
  };

  if (!im->format->encrypted)
    return storage_pread (p.storage, buf, len, host, e);
  return check_key (im, e) == -1 ? -1 : get (&p, buf, len, e);
}

/* How much of LEN bytes (BUF NULL = zeroes) is to be written.  A disk ends with
 * a whole sector, and an export that it lies on need not; what is behind the
 * export's end reads as zeroes.  So zeroes there are written already, and
 * anything else is for the storage to refuse.
 */
static uint64_t
without_padding (const struct place *p, const uint8_t *buf, uint64_t len)
{
  const struct storage *st = p->storage;
  uint64_t size = storage_size (st), inside;

  if (!p->im->format->info.identity || st->caps.can_grow
      || p->host + len <= size || p->host + len > round_up (size, SECTOR_SIZE))
    return len;
  inside = p->host < size ? size - p->host : 0;
  return !buf || is_zero (buf + inside, (size_t) (len - inside)) ? inside : len;
}

int
io_put (struct image *im, enum map_storage where, const void *buf,
        uint64_t len, uint64_t host, uint64_t guest, unsigned flags,
        struct error *e)
{
  struct place p = {
    .im = im, .storage = io_storage (im, where), .host = host, .guest = guest,
  };

  if (im->format->encrypted) {
    flags &= ~(unsigned) STORAGE_MAY_UNMAP;
    return check_key (im, e) == -1 ? -1
      : encrypt_and_put (&p, buf, len, flags, e);
  }
  len = without_padding (&p, buf, len);
  if (len == 0)
    return 0;
  if (!buf)
    return storage_zero (p.storage, host, len, flags, e);
  return storage_pwrite (p.storage, buf, (size_t) len, host, flags, e);
}
