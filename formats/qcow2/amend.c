/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Other options for an image that is there: version, width of refcounts, flags,
 * name of the data file.  Layer: formats.  Locking: structural.
 * Specification: "Header", "Header extensions".
 *
 * Steps, each of which leaves a whole image of the same disk: version 3; width
 * (width.c); flags and name; zero clusters (expand.c), then version 2.  Limits
 * and words are those of QEMU.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "formats/qcow2/header_rewrite.h"
#include "formats/qcow2/reader.h"

const struct format_option qcow2_amend_options[] = {
  { "backing_file", OPTION_STRING, "File name of a base image", NULL, false },
  { "backing_fmt", OPTION_STRING, "Image format of the base image", NULL,
    false },
  { "compat", OPTION_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])",
    NULL, false },
  { "data_file", OPTION_STRING, "File name of an external data file", NULL,
    false },
  { "data_file_raw", OPTION_BOOL,
    "The external data file must stay valid as a raw image", NULL, false },
  { "encrypt.iter-time", OPTION_NUMBER,
    "Time to spend in PBKDF in milliseconds", NULL, false },
  { "encrypt.keyslot", OPTION_NUMBER,
    "Select a single keyslot to modify explicitly", NULL, false },
  { "encrypt.new-secret", OPTION_STRING,
    "New secret to set in the matching keyslots. Empty string to erase", NULL,
    false },
  { "encrypt.old-secret", OPTION_STRING,
    "Select all keyslots that match this password", NULL, false },
  { "encrypt.state", OPTION_STRING,
    "Select new state of affected keyslots (active/inactive)", NULL, false },
  { "lazy_refcounts", OPTION_BOOL, "Postpone refcount updates", NULL, false },
  { "refcount_bits", OPTION_NUMBER, "Width of a reference count entry in bits",
    NULL, false },
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { NULL, OPTION_STRING, NULL, NULL, false },
};

/* What is to be. */
struct plan {
  struct qcow2 *q;
  const struct format_amend *a;
  unsigned version;
  unsigned refcount_order;
  bool lazy, data_file_raw;
  const char *data_file;        /* borrowed; NULL = as it is */
};

static const char *
option (const struct plan *p, const char *name)
{
  return json_string_value (json_object_get (p->a->options, name));
}

/* ---- what is wanted ---- */

static int
parse_compat (struct plan *p, struct error *e)
{
  const char *text = option (p, "compat");

  p->version = p->q->version;
  if (!text)
    return 0;
  if (strcmp (text, "0.10") == 0 || strcmp (text, "v2") == 0)
    p->version = 2;
  else if (strcmp (text, "1.1") == 0 || strcmp (text, "v3") == 0)
    p->version = 3;
  else
    return error_set (e, EINVAL, "Unknown compatibility level %s", text);
  return 0;
}

static int
parse_refcount_bits (struct plan *p, struct error *e)
{
  const char *text = option (p, "refcount_bits");
  uint64_t bits = 0;

  p->refcount_order = p->q->refcount_order;
  if (!text)
    return 0;
  if (parse_number ("refcount_bits", text, 0, 64, &bits, e) == -1
      || !is_power_of_2 (bits)) {
    error_clear (e);
    return error_set (e, EINVAL, "Refcount width must be a power of two and may"
                      " not exceed 64 bits");
  }
  p->refcount_order = (unsigned) __builtin_ctzll (bits);
  return 0;
}

static int
parse_flag (const struct plan *p, const char *name, bool now, bool *flag,
            struct error *e)
{
  const char *text = option (p, name);

  *flag = now;
  return text ? parse_bool (name, text, flag, e) : 0;
}

/* ---- what is refused ---- */

static int
check_encryption (const struct plan *p, struct error *e)
{
  const char *key;
  json_t *value;

  json_object_foreach (p->a->options, key, value) {
    if (strncmp (key, "encrypt.", 8) == 0 && p->q->crypt_method == CRYPT_NONE)
      return error_set (e, EINVAL, "Can't amend encryption options -"
                        " encryption not present");
  }
  return 0;
}

static int
check_files (const struct plan *p, struct error *e)
{
  bool has = p->q->incompatible_features & INCOMPAT_DATA_FILE;

  if (option (p, "backing_file") || option (p, "backing_fmt"))
    return error_set (e, EPERM, "Cannot amend the backing file");
  if (p->data_file && !has)
    return error_set (e, EINVAL, "data-file can only be set for images that"
                      " use an external data file");
  if (p->data_file && !*p->data_file)
    return error_set (e, EINVAL, "data_file: the name is empty");
  if (p->data_file_raw && !p->q->data_file_raw)
    return error_set (e, EINVAL, "data-file-raw cannot be set on existing"
                      " images");
  return 0;
}

static int
check_version_2 (const struct plan *p, struct error *e)
{
  if (p->version >= 3)
    return 0;
  if (option (p, "refcount_bits") && p->refcount_order != 4)
    return error_set (e, EINVAL, "Refcount widths other than 16 bits require"
                      " compatibility level 1.1 or above (use compat=1.1 or"
                      " greater)");
  if (p->refcount_order != 4)
    return error_set (e, EINVAL, "compat=0.10 requires refcount_bits=16");
  if (p->lazy && option (p, "lazy_refcounts"))
    return error_set (e, EINVAL, "Lazy refcounts only supported with"
                      " compatibility level 1.1 and above (use compat=1.1 or"
                      " greater)");
  return 0;
}

static int
check_snapshot_sizes (const struct plan *p, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  if (snapshot_iter_init (&it, p->q, e) == -1)
    return -1;
  while ((r = snapshot_iter_next (&it, &s, e)) == 1)
    if (s.disk_size != p->q->format.info.size
        || s.vm_state_size > UINT32_MAX) {
      r = error_set (e, ENOTSUP, "Internal snapshots prevent downgrade of"
                     " image");
      break;
    }
  snapshot_iter_free (&it);
  return r;
}

static int
check_downgrade (const struct plan *p, struct error *e)
{
  const struct qcow2 *q = p->q;

  if (q->version < 3 || p->version >= 3)
    return 0;
  if (q->incompatible_features & INCOMPAT_DATA_FILE)
    return error_set (e, ENOTSUP, "Cannot downgrade an image with a data"
                      " file");
  if (q->incompatible_features & ~(INCOMPAT_DIRTY | INCOMPAT_COMPRESSION))
    return error_set (e, ENOTSUP, "Cannot downgrade an image with incompatible"
                      " features 0x%" PRIx64 " set", q->incompatible_features
                      & ~(INCOMPAT_DIRTY | INCOMPAT_COMPRESSION));
  if (q->incompatible_features & INCOMPAT_COMPRESSION)
    return error_set (e, ENOTSUP, "Cannot downgrade an image with"
                      " compression_type=%s: its compressed clusters could not"
                      " be read", codec_name (q->codec));
  if (q->nb_bitmaps)
    return error_set (e, ENOTSUP, "Cannot downgrade an image with persistent"
                      " bitmaps: remove them first");
  return check_snapshot_sizes (p, e);
}

/* Version 3 wants the disk size in each snapshot table entry. */
static int
check_upgrade (const struct plan *p, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  if (p->q->version >= 3 || p->version < 3)
    return 0;
  if (snapshot_iter_init (&it, p->q, e) == -1)
    return -1;
  it.version = 3;
  while ((r = snapshot_iter_next (&it, &s, e)) == 1)
    if (s.incomplete) {
      r = error_set (e, ENOTSUP, "snapshot table entry %u was made by a program"
                     " that did not record the disk size; delete the snapshot,"
                     " or convert the image", it.index - 1);
      break;
    }
  snapshot_iter_free (&it);
  return r;
}

static int
make_plan (struct plan *p, struct error *e)
{
  bool lazy = p->q->compatible_features & COMPAT_LAZY_REFCOUNTS;

  p->data_file = option (p, "data_file");
  if (parse_compat (p, e) == -1 || parse_refcount_bits (p, e) == -1
      || parse_flag (p, "lazy_refcounts", lazy, &p->lazy, e) == -1
      || parse_flag (p, "data_file_raw", p->q->data_file_raw,
                     &p->data_file_raw, e) == -1)
    return -1;
  if (check_encryption (p, e) == -1 || check_files (p, e) == -1
      || check_version_2 (p, e) == -1 || check_downgrade (p, e) == -1)
    return -1;
  return check_upgrade (p, e);
}

/* ---- steps ---- */

static void
set_version (struct qcow2 *q, unsigned version, uint32_t header_length)
{
  mutex_lock (&q->mutex);
  q->version = version;
  q->header_length = header_length;
  q->incompatible_features = q->compatible_features = 0;
  q->autoclear_features = 0;
  q->format.info.zero_is_fast = version >= 3;
  q->format.info.new_is_random = q->format.encrypted && version < 3;
  mutex_unlock (&q->mutex);
}

/* After an error the header may be either. */
static bool
is_version (struct qcow2 *q, unsigned version)
{
  struct error ignored = ERROR_INIT;
  uint8_t field[4];

  return storage_pread (q->format.storage, field, sizeof field, H_VERSION,
                        &ignored) == 0
    && get_be32 (field) == version;
}

static int
rewrite_version (struct qcow2 *q, unsigned version, struct error *e)
{
  uint8_t fixed[H_OUR_LENGTH] = { 0 };
  struct header_change c = {
    .fixed = fixed, .fixed_length = version < 3 ? H_V2_LENGTH : H_OUR_LENGTH,
    .no_feature_names = version < 3,
  };
  int r;

  if (storage_pread (q->format.storage, fixed, H_V2_LENGTH, 0, e) == -1)
    return -1;
  put_be32 (fixed + H_VERSION, version);
  if (version >= 3) {
    put_be32 (fixed + H_REFCOUNT_ORDER, q->refcount_order);
    put_be32 (fixed + H_HEADER_LENGTH, H_OUR_LENGTH);
  }
  r = qcow2_rewrite_header (q, &c, e);
  if (r == 0 || is_version (q, version))
    set_version (q, version, (uint32_t) c.fixed_length);
  return r;
}

static int
has_backing_name (struct qcow2 *q, bool *has, struct error *e)
{
  uint8_t field[8];

  if (storage_pread (q->format.storage, field, sizeof field,
                     H_BACKING_FILE_OFFSET, e) == -1)
    return -1;
  *has = get_be64 (field) != 0;
  return 0;
}

static int
downgrade (struct qcow2 *q, struct error *e)
{
  bool has_backing;

  if (has_backing_name (q, &has_backing, e) == -1
      || qcow2_expand_zeroes (q, has_backing, e) == -1)
    return -1;
  return rewrite_version (q, 2, e);
}

/* compatible_features and autoclear_features lie side by side. */
static int
set_flags (struct plan *p, struct error *e)
{
  struct qcow2 *q = p->q;
  uint64_t compatible = q->compatible_features & ~COMPAT_LAZY_REFCOUNTS;
  uint64_t autoclear = q->autoclear_features;
  uint8_t fields[16];

  if (p->lazy && p->version >= 3)
    compatible |= COMPAT_LAZY_REFCOUNTS;
  if (!p->data_file_raw)
    autoclear &= ~AUTOCLEAR_DATA_FILE_RAW;
  if (q->version < 3 || (compatible == q->compatible_features
                         && autoclear == q->autoclear_features))
    return 0;
  put_be64 (fields, compatible);
  put_be64 (fields + 8, autoclear);
  if (qcow2_switch_header (q, H_COMPATIBLE_FEATURES, fields, sizeof fields,
                           e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->compatible_features = compatible;
  q->autoclear_features = autoclear;
  q->data_file_raw = p->data_file_raw;
  q->format.info.zero_is_fast = !p->data_file_raw;
  mutex_unlock (&q->mutex);
  return 0;
}

static int
set_data_file (struct plan *p, struct error *e)
{
  const struct header_change c = { .data_file = p->data_file };
  char *copy;

  if (!p->data_file
      || (p->q->data_file_name
          && strcmp (p->data_file, p->q->data_file_name) == 0))
    return 0;
  copy = strdup (p->data_file);
  if (!copy)
    return error_nomem (e, "data file name", strlen (p->data_file));
  if (!p->q->data_file_name) {
    free (copy);
    return error_set (e, ENOTSUP, "the image records no name of its data file,"
                      " and there is no place for one");
  }
  if (qcow2_rewrite_header (p->q, &c, e) == -1) {
    free (copy);
    return -1;
  }
  free (p->q->data_file_name);
  p->q->data_file_name = copy;
  return 0;
}

static void
tell (const struct plan *p, uint64_t done)
{
  if (p->a->progress)
    p->a->progress (p->a->opaque, done, 4);
}

static int
run (struct plan *p, struct error *e)
{
  struct qcow2 *q = p->q;

  tell (p, 0);
  if (q->version < 3 && p->version >= 3 && rewrite_version (q, 3, e) == -1)
    return -1;
  tell (p, 1);
  if (p->refcount_order != q->refcount_order
      && qcow2_set_refcount_order (q, p->refcount_order, e) == -1)
    return -1;
  tell (p, 2);
  if (set_flags (p, e) == -1 || set_data_file (p, e) == -1)
    return -1;
  tell (p, 3);
  if (q->version >= 3 && p->version < 3 && downgrade (q, e) == -1)
    return -1;
  tell (p, 4);
  return 0;
}

int
qcow2_amend (struct format *f, const struct format_amend *a, struct error *e)
{
  struct plan p = { .q = to_qcow2 (f), .a = a };

  if (p.q->incompatible_features & INCOMPAT_CORRUPT)
    return error_set (e, EIO, "the image is marked corrupt: check and repair"
                      " it");
  if (make_plan (&p, e) == -1 || qcow2_settle (p.q, e) == -1)
    return -1;
  return run (&p, e);
}
