/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An image on storages that the test owns: no names, no locks on files.  The
 * storages outlive it, so that a test can open them again.
 */

#ifndef NBDIMG_HARNESS_H
#define NBDIMG_HARNESS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/secret.h"
#include "formats/format.h"
#include "image/gate.h"
#include "image/hook.h"
#include "image/image.h"
#include "image/packed.h"
#include "storage/storage.h"

/* The passphrase of encrypted images, which ask for little work. */
#define HARNESS_SECRET "open"

/* Images that are made with key-secret=s have it. */
static inline void
harness_add_secret (void)
{
  struct error e = ERROR_INIT;

  if (secret_add ("s", HARNESS_SECRET, strlen (HARNESS_SECRET), &e) == -1) {
    fprintf (stderr, "%s\n", e.text);
    exit (EXIT_FAILURE);
  }
}

/* "compat=0.10,cluster_size=4096" */
static inline json_t *
harness_options (const char *text)
{
  json_t *o = json_object ();
  char *copy = strdup (text), *save = NULL, *eq;

  for (char *s = strtok_r (copy, ",", &save); s;
       s = strtok_r (NULL, ",", &save)) {
    eq = strchr (s, '=');
    *eq = '\0';
    json_object_set_new (o, s, json_string (eq + 1));
  }
  free (copy);
  return o;
}

/* An empty image on ST.  BACKING, DATA_FILE: a name, or NULL. */
static inline int
harness_create_format (struct storage *st, const struct format_ops *ops,
                       uint64_t size, const char *options,
                       const char *backing, struct storage *data_file,
                       struct error *e)
{
  struct format_create_options o = {
    .size = size, .backing_file = backing,
    .backing_format = backing ? "raw" : NULL, .data_file = data_file,
    .options = harness_options (options),
  };
  int r = ops->create (st, &o, e);

  json_decref (o.options);
  return r;
}

static inline int
harness_create (struct storage *st, uint64_t size, const char *options,
                const char *backing, struct storage *data_file,
                struct error *e)
{
  return harness_create_format (st, &format_qcow2, size, options, backing,
                                data_file, e);
}

/* Tests name a kind of image by its options, "vdi:static=on"; without a format
 * in front it is qcow2.
 */
static inline const struct format_ops *
harness_kind_format (const char *kind)
{
  const char *colon = strchr (kind, ':');
  char name[16] = "qcow2";

  if (colon) {
    memcpy (name, kind, (size_t) (colon - kind));
    name[colon - kind] = '\0';
  }
  return format_by_name (name);
}

static inline int
harness_create_kind (struct storage *st, const char *kind, uint64_t size,
                     const char *backing, struct storage *data_file,
                     struct error *e)
{
  const char *colon = strchr (kind, ':');

  return harness_create_format (st, harness_kind_format (kind), size,
                                colon ? colon + 1 : kind, backing, data_file,
                                e);
}

static inline void
harness_free (struct image *im)
{
  hooks_free (im);
  packed_cache_free (im->packed);
  range_locks_destroy (&im->ranges);
  gate_destroy (&im->gate);
  free (im);
}

static inline int
harness_unlock (struct format *f, const struct format_needs *needs,
                struct error *e)
{
  const struct secret secret = {
    .data = (uint8_t *) HARNESS_SECRET, .len = strlen (HARNESS_SECRET),
  };
  const struct format_key key = {
    .secret = &secret, .max_iterations = 1 << 16,
  };

  return needs->crypto ? f->ops->unlock (f, &key, e) : 0;
}

static inline int
harness_open_format (struct image *im, const struct format_ops *ops,
                     uint64_t cache_size, struct error *e)
{
  struct format_needs needs = { .backing = NULL };
  struct format_open_options o = {
    .writable = im->writable, .discard = im->options.discard,
    .cache_size = cache_size,
  };
  int r = -1;

  im->format = ops->open (im->storage, &o, &needs, e);
  if (im->format)
    r = harness_unlock (im->format, &needs, e);
  format_needs_free (&needs);
  if (!im->format)
    return -1;
  if (r == 0)
    r = ops->activate (im->format, im->data_file, im->backing != NULL, e);
  if (r == 0 && im->writable)
    r = ops->begin_write (im->format, e);
  if (r == 0 && im->writable)
    r = hook_add_format (im, e);
  if (r == -1) {
    struct error ignored = ERROR_INIT;

    ops->close (im->format, &ignored);
  }
  return r;
}

/* Open ST (borrowed) with OPS.  BACKING and DATA_FILE are borrowed, or NULL. */
static inline struct image *
harness_open (struct storage *st, const struct format_ops *ops,
              struct image *backing, struct storage *data_file, bool writable,
              uint64_t cache_size, struct error *e)
{
  struct image *im = calloc (1, sizeof *im);

  if (!im) {
    error_nomem (e, "an image", sizeof *im);
    return NULL;
  }
  im->name = st->name;
  im->storage = st;
  im->data_file = data_file;
  im->backing = backing;
  im->writable = writable;
  im->options.discard = true;
  gate_init (&im->gate);
  range_locks_init (&im->ranges);
  im->packed = packed_cache_new (1 << 20, e);
  if (!im->packed || harness_open_format (im, ops, cache_size, e) == -1) {
    harness_free (im);
    return NULL;
  }
  im->size = im->format->info.size;
  im->writing = writable;
  return im;
}

/* Clean shutdown; the storages stay. */
static inline int
harness_close (struct image *im, struct error *e)
{
  int r = im->format->ops->close (im->format, e);

  harness_free (im);
  return r;
}

#endif /* NBDIMG_HARNESS_H */
