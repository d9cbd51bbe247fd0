/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The format "luks": a LUKS header, and the encrypted disk behind it.
 *
 * Layer: formats.  Locking: none: the header does not change while the image is
 * open, and resize is structural.
 *
 * The disk has no end of its own: it is what the storage has behind the payload
 * offset.  Where nothing was written it reads as random bytes.  A detached
 * header is a storage of its own; the disk is then the "data file", from the
 * payload offset on, which mostly is 0.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/secure.h"
#include "formats/blank.h"
#include "formats/preallocation.h"
#include "formats/luks/luks.h"

struct luks {
  struct format base;           /* must be first */
  struct luks_header header;    /* fixed after open */
  uint64_t payload;             /* bytes, in disk () */
  bool detached;                /* the header has a storage of its own */
  bool writing;
};

static const struct format_option luks_options[] = {
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { "key-secret", OPTION_STRING,
    "ID of the secret that provides the keyslot passphrase", NULL, false },
  { "cipher-alg", OPTION_STRING, "Name of encryption cipher algorithm", NULL,
    false },
  { "cipher-mode", OPTION_STRING, "Name of encryption cipher mode", NULL,
    false },
  { "ivgen-alg", OPTION_STRING, "Name of IV generator algorithm", NULL, false },
  { "ivgen-hash-alg", OPTION_STRING, "Name of IV generator hash algorithm",
    NULL, false },
  { "hash-alg", OPTION_STRING, "Name of encryption hash algorithm", NULL,
    false },
  { "iter-time", OPTION_NUMBER, "Time to spend in PBKDF in milliseconds", NULL,
    false },
  FORMAT_OPTION_PREALLOCATION,
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

static const struct format_option luks_amend_options[] = {
  { "state", OPTION_STRING,
    "Select new state of affected keyslots (active/inactive)", NULL, false },
  { "new-secret", OPTION_STRING,
    "New secret to set in the matching keyslots. Empty string to erase", NULL,
    false },
  { "old-secret", OPTION_STRING, "Select all keyslots that match this password",
    NULL, false },
  { "keyslot", OPTION_NUMBER, "Select a single keyslot to modify explicitly",
    NULL, false },
  { "iter-time", OPTION_NUMBER, "Time to spend in PBKDF in milliseconds", NULL,
    false },
  { NULL, OPTION_STRING, NULL, NULL, false },
};

static int
luks_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  return size >= LUKS_HEADER_SIZE && luks_is_header (buf, len) ? 100 : 0;
}

/* ---- create ---- */

/* Key material and all else first, then the sector with the magic. */
static int
write_new (struct storage *st, const uint8_t *buf, uint64_t len,
           struct error *e)
{
  if (storage_pwrite (st, buf + SECTOR_SIZE, (size_t) len - SECTOR_SIZE,
                      SECTOR_SIZE, 0, e) == -1
      || storage_flush (st, e) == -1
      || storage_pwrite (st, buf, SECTOR_SIZE, 0, 0, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* Only the header's place is cleared on a device: a disk that reads as random
 * bytes need not be overwritten, and has its space.
 */
static int
prepare (struct storage *st, uint64_t header, uint64_t end,
         enum preallocation mode, struct error *e)
{
  if (!st->caps.can_grow && mode >= PREALLOCATION_FALLOC)
    return error_set (e, ENOTSUP, "%s: only files can be preallocated; leave "
                      "out preallocation", st->name);
  if (!st->caps.can_grow && storage_size (st) < end)
    return error_set (e, ENOSPC, "%s: has %" PRIu64 " bytes, the image needs %"
                      PRIu64, st->name, storage_size (st), end);
  if (storage_blank (st, header, e) == -1)
    return -1;
  if (st->caps.can_grow && storage_truncate (st, end, e) == -1)
    return -1;
  return preallocate (st, header, end, mode, e);
}

/* The header and the payload of a new image, in bytes.  The header is all its
 * metadata, and always there.
 */
static int
plan (const struct format_create_options *opts, struct luks_options *o,
      uint64_t *header, uint64_t *size, enum preallocation *mode,
      struct error *e)
{
  if (luks_parse_options (opts, "", o, e) == -1
      || preallocation_option (opts, true, mode, e) == -1)
    return -1;
  *header = luks_total_bytes (o);
  if (!round_up_ok (opts->size, SECTOR_SIZE, size)
      || *size > INT64_MAX - *header)
    return error_set (e, EFBIG, "The requested file size is too large");
  return 0;
}

static int
luks_measure (const struct format_create_options *opts,
              struct format_measure *m, struct error *e)
{
  struct luks_options o;
  enum preallocation mode;
  uint64_t header, size;

  if (plan (opts, &o, &header, &size, &mode, e) == -1)
    return -1;
  m->required = m->fully_allocated = header + size;
  m->cluster_size = SECTOR_SIZE;
  m->keeps_bitmaps = false;
  return 0;
}

static int
luks_create (struct storage *st, const struct format_create_options *opts,
             struct error *e)
{
  struct luks_options o;
  enum preallocation mode;
  uint64_t header, size;
  uint8_t *buf;
  int r;

  if (plan (opts, &o, &header, &size, &mode, e) == -1)
    return -1;
  buf = malloc ((size_t) header);
  if (!buf)
    return error_nomem (e, "a LUKS header", (size_t) header);
  r = luks_make (&o, opts->cancel, buf, e);
  if (r == 0)
    r = prepare (st, header, header + size, mode, e);
  if (r == 0)
    r = write_new (st, buf, header, e);
  secure_free (buf, (size_t) header);
  return r;
}

/* ---- open and close ---- */

static struct storage *
disk (const struct luks *l)
{
  return l->detached ? l->base.data_file : l->base.storage;
}

static uint64_t
end_of (const struct storage *st)
{
  return min_u64 (round_up (storage_size (st), SECTOR_SIZE),
                  INT64_MAX - SECTOR_SIZE + 1);
}

static int
set_size (struct luks *l, struct error *e)
{
  uint64_t end = end_of (disk (l));

  l->payload = (uint64_t) l->header.payload_offset * SECTOR_SIZE;
  if (!l->detached && l->payload < LUKS_HEADER_SIZE)
    return error_set (e, EINVAL, "LUKS: the payload offset %" PRIu64 " lies in "
                      "the header; a detached header is named by "
                      "header.filename=, and the disk by file.filename=",
                      l->payload);
  if (l->payload > end)
    return error_set (e, EINVAL, "LUKS: the payload begins at %" PRIu64 ", "
                      "behind the end of the file (%" PRIu64 ")", l->payload,
                      end);
  l->base.info.size = end - l->payload;
  return 0;
}

static struct format *
luks_open (struct storage *st, const struct format_open_options *opts,
           struct format_needs *needs, struct error *e)
{
  struct luks *l = calloc (1, sizeof *l);

  if (!l) {
    error_nomem (e, "LUKS image", sizeof *l);
    return NULL;
  }
  memset (needs, 0, sizeof *needs);
  needs->crypto = "luks";
  needs->data_file = l->detached = opts->detached;
  l->base.ops = &format_luks;
  l->base.storage = st;
  l->base.encrypted = true;
  l->base.info.cluster_size = SECTOR_SIZE;
  l->base.info.cow_size = SECTOR_SIZE;
  l->base.info.alignment = SECTOR_SIZE;
  l->base.info.iv_base = IV_GUEST;
  l->base.info.flat = true;
  l->base.info.new_is_random = true;
  if (luks_read (st, 0, storage_size (st), l->detached, &l->header, e) == 0
      && (l->detached || set_size (l, e) == 0))
    return &l->base;
  free (l);
  return NULL;
}

static int
luks_unlock_image (struct format *f, const struct format_key *key,
                   struct error *e)
{
  struct luks *l = (struct luks *) f;

  f->cipher = luks_cipher (&l->header, f->storage, 0, key, e);
  return f->cipher ? 0 : -1;
}

static int
luks_change_key (struct format *f, const struct format_key *key,
                 const struct format_key_change *change, struct error *e)
{
  struct luks *l = (struct luks *) f;
  uint64_t limit = l->detached ? storage_size (f->storage) : l->payload;

  return luks_amend (&l->header, f->storage, 0, limit, key, change, e);
}

static int
luks_activate (struct format *f, struct storage *data_file, bool has_backing,
               struct error *e)
{
  struct luks *l = (struct luks *) f;

  if (has_backing)
    return error_set (e, EINVAL, "a luks image cannot have a backing file");
  if (!l->detached != !data_file)
    return error_set (e, EINVAL, "%s: the disk of a detached LUKS header is "
                      "missing", f->storage->name);
  f->data_file = data_file;
  return l->detached ? set_size (l, e) : 0;
}

static int
luks_begin_write (struct format *f, struct error *e)
{
  (void) e;
  ((struct luks *) f)->writing = true;
  return 0;
}

static int
luks_flush (struct format *f, struct error *e)
{
  return storage_flush (disk ((struct luks *) f), e);
}

static int
luks_close (struct format *f, struct error *e)
{
  int r = ((struct luks *) f)->writing ? luks_flush (f, e) : 0;

  disk_cipher_free (f->cipher);
  free (f);
  return r;
}

/* ---- the disk ---- */

static int
luks_map (struct format *f, struct format_view *view, uint64_t guest,
          uint64_t length, struct mapping *m, struct error *e)
{
  (void) view;
  (void) e;
  *m = (struct mapping) {
    .kind = MAP_DATA, .length = length,
    .storage = ((struct luks *) f)->detached ? MAP_IN_DATA_FILE
      : MAP_IN_IMAGE,
    .host = ((struct luks *) f)->payload + guest,
  };
  return 0;
}

/* What is new reads as random bytes, as all that nobody wrote. */
static int
luks_resize (struct format *f, uint64_t size, uint64_t zero_until,
             struct error *e)
{
  struct luks *l = (struct luks *) f;

  (void) zero_until;
  if (!round_up_ok (size, SECTOR_SIZE, &size)
      || size > INT64_MAX - SECTOR_SIZE - l->payload)
    return error_set (e, EFBIG, "%s: %" PRIu64 " bytes are too large",
                      f->storage->name, size);
  if (storage_truncate (disk (l), l->payload + size, e) == -1)
    return -1;
  return set_size (l, e);
}

/* On failure the disk has its old size again. */
static int
luks_resize_preallocated (struct format *f, uint64_t size,
                          uint64_t zero_until, enum preallocation mode,
                          struct error *e)
{
  struct luks *l = (struct luks *) f;
  uint64_t old = f->info.size;
  struct error ignored = ERROR_INIT;

  if (mode == PREALLOCATION_METADATA)
    return error_set (e, ENOTSUP, "Unsupported preallocation mode: %s",
                      preallocation_name (mode));
  if (luks_resize (f, size, zero_until, e) == -1)
    return -1;
  if (preallocate (disk (l), l->payload + old, l->payload + f->info.size, mode,
                   e) == 0)
    return luks_flush (f, e);
  luks_resize (f, old, 0, &ignored);
  return -1;
}

static int
luks_format_info (struct format *f, json_t *out, struct error *e)
{
  return luks_info (&((struct luks *) f)->header, false, out, e);
}

const struct format_ops format_luks = {
  .name = "luks",
  .create_options = luks_options,
  .amend_options = luks_amend_options,
  .key_option = "key-secret",
  .probe = luks_probe,
  .create = luks_create,
  .measure = luks_measure,
  .open = luks_open,
  .unlock = luks_unlock_image,
  .change_key = luks_change_key,
  .activate = luks_activate,
  .begin_write = luks_begin_write,
  .close = luks_close,
  .map = luks_map,
  .flush = luks_flush,
  .resize = luks_resize,
  .resize_preallocated = luks_resize_preallocated,
  .info = luks_format_info,
};
