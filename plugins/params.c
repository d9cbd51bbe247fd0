/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The parameters of the nbdkit plugin: one table, from key=value to what
 * image_open is asked for.  Layer: plugins.
 *
 * Locking: none; all calls come from one thread, before nbdkit serves.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/cleanup.h"
#include "common/error.h"
#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "common/text.h"
#include "image/image.h"
#include "plugins/message.h"
#include "plugins/params.h"

static struct {
  const char *file, *image_opts, *format;       /* nbdkit's strings */
  bool readonly;
  struct image_open_options open;
} params = { .open = { .discard = true } };

static int
set_text (const char *key, const char *value, const char **text,
          struct error *e)
{
  if (*text)
    return error_set (e, EINVAL, "%s= was given twice", key);
  if (!*value)
    return error_set (e, EINVAL, "%s= needs a value", key);
  *text = value;
  return 0;
}

static int
set_file (const char *key, const char *value, struct error *e)
{
  if (params.file && strcmp (params.file, "[") == 0)
    return error_set (e, EINVAL,
                      "[ %s ...: here a command is one word, a JSON array: "
                      "file='[\"%s\", \"...\"]'", value, value);
  if (params.file)
    return error_set (e, ENOTSUP,
                      "%s: a second image: serving more than one image is not "
                      "built yet; start another nbdkit for it", value);
  return set_text (key, value, &params.file, e);
}

static int
set_image_opts (const char *key, const char *value, struct error *e)
{
  return set_text (key, value, &params.image_opts, e);
}

static int
set_format (const char *key, const char *value, struct error *e)
{
  return set_text (key, value, &params.format, e);
}

static int
set_snapshot (const char *key, const char *value, struct error *e)
{
  return set_text (key, value, &params.open.snapshot, e);
}

/* As nbdkit's own parameters: 1, on, true, yes, ... */
static int
set_bool (const char *key, const char *value, bool *on, struct error *e)
{
  int r = nbdkit_parse_bool (value);

  if (r == -1)
    return error_set (e, EINVAL, "%s=%s: give on or off", key, value);
  *on = r;
  return 0;
}

static int
set_readonly (const char *key, const char *value, struct error *e)
{
  return set_bool (key, value, &params.readonly, e);
}

static int
set_untrusted (const char *key, const char *value, struct error *e)
{
  return set_bool (key, value, &params.open.untrusted, e);
}

static int
set_backing (const char *key, const char *value, struct error *e)
{
  bool on = true;

  if (set_bool (key, value, &on, e) == -1)
    return -1;
  params.open.no_backing = !on;
  return 0;
}

static int
set_share (const char *key, const char *value, struct error *e)
{
  return set_bool (key, value, &params.open.share, e);
}

static int
set_force_share (const char *key, const char *value, struct error *e)
{
  return set_bool (key, value, &params.open.force_share, e);
}

static int
set_cache (const char *key, const char *value, struct error *e)
{
  return cache_mode_parse (key, value, &params.open.cache, e);
}

static int
set_discard (const char *key, const char *value, struct error *e)
{
  if (strcmp (value, "unmap") == 0 || strcmp (value, "on") == 0)
    params.open.discard = true;
  else if (strcmp (value, "ignore") == 0 || strcmp (value, "off") == 0)
    params.open.discard = false;
  else
    return error_set (e, EINVAL, "%s=%s: give unmap or ignore", key, value);
  return 0;
}

static int
set_detect_zeroes (const char *key, const char *value, struct error *e)
{
  if (strcmp (value, "off") == 0)
    params.open.detect_zeroes = DETECT_ZEROES_OFF;
  else if (strcmp (value, "on") == 0)
    params.open.detect_zeroes = DETECT_ZEROES_ON;
  else if (strcmp (value, "unmap") == 0)
    params.open.detect_zeroes = DETECT_ZEROES_UNMAP;
  else
    return error_set (e, EINVAL, "%s=%s: give off, on or unmap", key, value);
  return 0;
}

/* 8 slices of 4 KiB are the least with which an image works. */
static int
set_metadata_cache (const char *key, const char *value, struct error *e)
{
  const uint64_t least = 64 << 10, most = UINT64_C (64) << 30;

  if (parse_size (key, value, &params.open.cache_size, e) == -1)
    return -1;
  if (params.open.cache_size < least || params.open.cache_size > most)
    return error_set (e, EINVAL, "%s=%s: give 64K to 64G", key, value);
  return 0;
}

/* What nbdkit reads as it reads passwords: +FILE, -, -FD.  A secret in the
 * command line itself could be seen by everybody.
 */
static int
add_password (const char *id, const char *how, struct error *e)
{
  char *password = NULL;
  int r;

  if (*how != '+' && *how != '-')
    return error_set (e, EINVAL, "secret=%s:...: give file:PATH, +FILE, - or "
                      "-FD; a secret in the command line can be seen by "
                      "others", id);
  if (nbdkit_read_password (how, &password) == -1)
    return error_set (e, EINVAL, "secret=%s: it could not be read", id);
  r = secret_add (id, password, strlen (password), e);
  secure_free (password, strlen (password));
  return r;
}

static int
set_secret (const char *key, const char *value, struct error *e)
{
  const char *colon = strchr (value, ':');
  CLEANUP_FREE char *id = NULL;

  if (!colon)
    return error_set (e, EINVAL, "%s=: give ID:file:PATH, ID:+FILE, ID:- or "
                      "ID:-FD", key);
  id = strndup (value, (size_t) (colon - value));
  if (!id)
    return error_nomem (e, "a secret", strlen (value));
  if (strncmp (colon, ":file:", 6) == 0)
    return secret_add_file (id, colon + 6, e);
  return add_password (id, colon + 1, e);
}

/* As --object of the tool; secrets have a parameter of their own, which
 * keeps them out of the command line.
 */
static int
set_object (const char *key, const char *value, struct error *e)
{
  if (strncmp (value, "tls-creds-", 10) != 0)
    return error_set (e, EINVAL, "%s=: give tls-creds-x509,id=ID,dir=FOLDER "
                      "or tls-creds-psk,id=ID,dir=FOLDER", key);
  return object_add (value, e);
}

static int
refuse (const char *key, const char *value, struct error *e)
{
  (void) value;
  return error_set (e, ENOTSUP, "%s= is not built yet", key);
}

static const struct {
  const char *key;
  int (*set) (const char *key, const char *value, struct error *e);
} table[] = {
  { "file", set_file },
  { "image-opts", set_image_opts },
  { "format", set_format },
  { "readonly", set_readonly },
  { "snapshot", set_snapshot },
  { "backing", set_backing },
  { "cache", set_cache },
  { "discard", set_discard },
  { "detect-zeroes", set_detect_zeroes },
  { "share", set_share },
  { "force-share", set_force_share },
  { "untrusted", set_untrusted },
  { "metadata-cache", set_metadata_cache },
  { "secret", set_secret },
  { "object", set_object },
  { "dir", refuse },
  { "control", refuse },
};

static int
set (const char *key, const char *value, struct error *e)
{
  for (size_t i = 0; i < sizeof table / sizeof table[0]; ++i)
    if (strcmp (table[i].key, key) == 0)
      return table[i].set (key, value, e);
  return error_set (e, EINVAL,
                    "unknown parameter %s=; nbdkit nbdimg --help lists them",
                    key);
}

int
params_set (const char *key, const char *value)
{
  struct error e = ERROR_INIT;

  if (set (key, value, &e) == 0)
    return 0;
  message_error (e.text);
  return -1;
}

static int
check (struct error *e)
{
  const struct image_open_options *o = &params.open;

  if (!params.file && !params.image_opts)
    return error_set (e, EINVAL, "no image: nbdkit nbdimg [file=]NAME");
  if (params.file && params.image_opts)
    return error_set (e, EINVAL,
                      "file= and image-opts= each name an image: give one");
  if (params.format && params.image_opts)
    return error_set (e, EINVAL,
                      "format= goes with file=; in image-opts= it is driver=");
  if (params.format && !format_lookup (params.format, e))
    return error_prefix (e, "format=%s", params.format);
  if (o->force_share && !params.readonly && !o->snapshot)
    return error_set (e, EINVAL, "force-share=on needs readonly=on");
  if (o->detect_zeroes == DETECT_ZEROES_UNMAP && !o->discard)
    return error_set (e, EINVAL, "detect-zeroes=unmap needs discard=unmap");
  return 0;
}

int
params_check (void)
{
  struct error e = ERROR_INIT;

  if (check (&e) == -1) {
    message_error (e.text);
    return -1;
  }
  params.open.writable_if_permitted = !params.readonly;
  return 0;
}

/* nbdkit changes to / later.  The files are open by then, but the names stay
 * in messages and are what another program is told about this image.
 */
static int
make_absolute (json_t *node, struct error *e)
{
  const char *driver = json_string_value (json_object_get (node, "driver"));
  const char *name = json_string_value (json_object_get (node, "filename"));
  json_t *value;
  const char *key;

  if (name && name[0] != '/' && driver
      && (strcmp (driver, "file") == 0 || strcmp (driver, "host_device") == 0))
    {
      CLEANUP_FREE char *path = nbdkit_absolute_path (name);

      /* A name may have any bytes, UTF-8 or not. */
      if (!path || json_object_set_new (node, "filename",
                                        json_string_nocheck (path)))
        return error_set (e, ENOMEM, "%s: no absolute name for it", name);
    }
  json_object_foreach (node, key, value)
    if (json_is_object (value) && make_absolute (value, e) == -1)
      return -1;
  return 0;
}

json_t *
params_image_tree (struct error *e)
{
  json_t *tree = params.file
    ? image_name_parse (params.file, params.format, e)
    : image_opts_parse (params.image_opts, e);

  if (tree && make_absolute (tree, e) == -1) {
    json_decref (tree);
    return NULL;
  }
  return tree;
}

const struct image_open_options *
params_image_options (void)
{
  return &params.open;
}

bool
params_readonly (void)
{
  return params.readonly;
}
