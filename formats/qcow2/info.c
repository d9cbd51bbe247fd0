/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What info says of a qcow2 image beside size and names: the members of
 * "format-specific" "data", with qemu-img's keys in qemu-img's order.
 * Layer: formats.  Locking: feature bits are read under the mutex.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "formats/qcow2/reader.h"

/* Takes VALUE; NULL means that memory was out when it was made. */
static int
put (json_t *out, const char *key, json_t *value, struct error *e)
{
  if (!value || json_object_set_new (out, key, value) == -1)
    return error_nomem (e, key, 0);
  return 0;
}

/* Names are bytes; JSON wants UTF-8: anything else is escaped as \xNN.
 * Returns owned, NULL when memory is out.
 */
static json_t *
name_json (const char *p, size_t len)
{
  json_t *r = json_stringn (p, len);
  char *copy, *escaped = NULL;

  if (r)
    return r;
  copy = strndup (p, len);
  if (copy)
    escaped = printable (copy);
  if (escaped)
    r = json_string (escaped);
  free (escaped);
  free (copy);
  return r;
}

static json_t *
flags_json (uint32_t flags)
{
  json_t *r = json_array ();

  if (!r)
    return NULL;
  if (((flags & BITMAP_IN_USE)
       && json_array_append_new (r, json_string ("in-use")) == -1)
      || ((flags & BITMAP_AUTO)
          && json_array_append_new (r, json_string ("auto")) == -1)) {
    json_decref (r);
    return NULL;
  }
  return r;
}

static int
put_bitmap (json_t *list, const struct bitmap_entry *b, struct error *e)
{
  json_t *o = json_object ();

  if (!o || json_array_append_new (list, o) == -1)
    return error_nomem (e, "bitmaps", 0);
  if (put (o, "flags", flags_json (b->flags), e) == -1
      || put (o, "name", name_json (b->name, b->name_length), e) == -1)
    return -1;
  return put (o, "granularity",
              json_integer ((json_int_t) 1 << b->granularity_bits), e);
}

static int
put_bitmaps (struct qcow2 *q, json_t *out, struct error *e)
{
  struct bitmap_iter it;
  struct bitmap_entry b;
  json_t *list;
  int r;

  if (!qcow2_has_bitmaps (q))
    return 0;
  list = json_array ();
  if (put (out, "bitmaps", list, e) == -1
      || bitmap_iter_init (&it, q, e) == -1)
    return -1;
  while ((r = bitmap_iter_next (&it, &b, e)) == 1)
    if (put_bitmap (list, &b, e) == -1) {
      r = -1;
      break;
    }
  bitmap_iter_free (&it);
  return r;
}

static int
put_encrypt (const struct qcow2 *q, json_t *out, struct error *e)
{
  json_t *o;

  if (q->crypt_method == 0)
    return 0;
  o = json_object ();
  if (put (out, "encrypt", o, e) == -1)
    return -1;
  return qcow2_info_crypt (q, o, e);
}

static int
put_data_file (const struct qcow2 *q, json_t *out, struct error *e)
{
  if (!q->data_file_name)
    return 0;
  if (put (out, "data-file", name_json (q->data_file_name,
                                        strlen (q->data_file_name)), e) == -1)
    return -1;
  return put (out, "data-file-raw", json_boolean (q->data_file_raw), e);
}

int
qcow2_info (struct format *f, json_t *out, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  bool lazy, v3 = q->version >= 3;

  mutex_lock (&q->mutex);
  lazy = q->compatible_features & COMPAT_LAZY_REFCOUNTS;
  mutex_unlock (&q->mutex);

  if (put (out, "compat", json_string (v3 ? "1.1" : "0.10"), e) == -1
      || put (out, "compression-type", json_string (codec_name (q->codec)),
              e) == -1
      || (v3 && put (out, "lazy-refcounts", json_boolean (lazy), e) == -1)
      || put_bitmaps (q, out, e) == -1
      || put (out, "refcount-bits", json_integer (1 << q->refcount_order),
              e) == -1
      || put_encrypt (q, out, e) == -1
      || put_data_file (q, out, e) == -1)
    return -1;
  if (!v3)
    return 0;
  if (put (out, "corrupt", json_boolean (f->corrupt_flag), e) == -1)
    return -1;
  return put (out, "extended-l2", json_boolean (q->extended_l2), e);
}
