/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The open policy: see policy.h.
 *
 * Layer: image.  No locking, no state.
 *
 * The names come from whoever wrote the image: a virtual machine's owner, a
 * download.  What is followed can be read by the guest, so services must use
 * the closed profile for images of others (CVE-2015-1850, CVE-2024-32498).
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "image/name.h"
#include "image/policy.h"
#include "image/tree.h"
#include "image/url.h"

/* "a.qcow2: the backing file 'x' is not followed: REASON" */
static int
not_followed (const struct policy_image *in, const char *what,
              const char *name, struct error *e)
{
  return error_prefix (e, "%s: its %s '%s' is not followed", in->name, what,
                       name);
}

static int
check_name (const struct policy_image *in, const char *name, struct error *e)
{
  if (in->untrusted)
    return error_set (e, EPERM, "the image is untrusted, and only what the "
                      "command line names is opened");
  if (*name == '\0')
    return error_set (e, EINVAL, "the name is empty");
  if (strlen (name) >= PATH_MAX)
    return error_set (e, ENAMETOOLONG, "the name is too long");
  return 0;
}

/* ---- json: ---- */

/* The keys that say where bytes are, and with which of the user's secrets they
 * are read; nothing that changes how this program behaves.
 */
static const char *const json_keys[] = {
  "driver", "node-name", "read-only", "file", "backing", "data-file", "offset",
  "size", "filename", "uri", "server", "host", "port", "path", "export",
  "read-zeroes", "key-secret", "encrypt",
};

enum { NR_JSON_KEYS = sizeof json_keys / sizeof json_keys[0] };

static int
check_json_key (const char *key, struct error *e)
{
  for (size_t i = 0; i < NR_JSON_KEYS; ++i)
    if (strcmp (key, json_keys[i]) == 0)
      return 0;
  return error_set (e, EPERM, "the option '%s' is not taken from an image",
                    key);
}

/* How much work a key may be is for the user to say. */
static int
check_json_encrypt (const json_t *encrypt, struct error *e)
{
  if (json_object_get (encrypt, "max-iterations"))
    return error_set (e, EPERM, "the option 'encrypt.max-iterations' is not "
                      "taken from an image");
  return 0;
}

/* TREE passed tree_check, which bounds its depth. */
static int
check_json (const json_t *tree, struct error *e)
{
  static const char *const children[] = { "file", "backing", "data-file" };
  const char *key, *uri = tree_text (tree, "uri");
  json_t *value;

  json_object_foreach ((json_t *) tree, key, value)
    if (check_json_key (key, e) == -1)
      return -1;
  if ((uri && nbd_check_untrusted_uri (uri, e) == -1)
      || check_json_encrypt (json_object_get (tree, "encrypt"), e) == -1)
    return -1;
  for (size_t i = 0; i < 3; ++i) {
    value = json_object_get (tree, children[i]);
    if (json_is_object (value) && check_json (value, e) == -1)
      return -1;
  }
  return 0;
}

static json_t *
json_tree (const char *name, const char *format, struct error *e)
{
  json_t *tree = name_json_to_tree (name, format, e);

  if (tree && check_json (tree, e) == -1) {
    json_decref (tree);
    return NULL;
  }
  return tree;
}

/* ---- plain names ---- */

static json_t *
plain_storage (const char *name, struct error *e)
{
  json_t *node;

  if (url_is_known (name)) {
    error_set (e, EPERM, "it would start a command; name the backing file "
               "yourself by json: or --image-opts");
    return NULL;
  }
  node = name_to_storage (name, true, e);
  if (node && check_json (node, e) == -1) {
    json_decref (node);
    return NULL;
  }
  return node;
}

/* A relative name is relative to the image that it stands in. */
static json_t *
relative_storage (const struct policy_image *in, const char *name,
                  struct error *e)
{
  CLEANUP_FREE char *path = NULL;

  if (name_has_protocol (name) || *name == '/')
    return plain_storage (name, e);
  if (!in->path) {
    error_set (e, EINVAL, "a relative name needs an image in a local folder; "
               "name the backing file yourself by json: or --image-opts");
    return NULL;
  }
  path = image_name_resolve (in->path, name);
  if (!path) {
    error_nomem (e, "a name", strlen (name));
    return NULL;
  }
  /* The folder may have any name: what has been resolved is a path. */
  return json_pack ("{ssso}", "driver", "file", "filename",
                    name_string (path, e));
}

json_t *
policy_backing (const struct policy_image *in, const char *name,
                const char *format, struct error *e)
{
  json_t *tree = NULL;

  if (check_name (in, name, e) == 0) {
    if (strncmp (name, "json:", 5) == 0)
      tree = json_tree (name, format, e);
    else {
      tree = relative_storage (in, name, e);
      if (tree)
        tree = tree_with_format (tree, format, e);
    }
  }
  if (!tree) {
    if (!e->err)
      error_nomem (e, "a name", strlen (name));
    not_followed (in, "backing file", name, e);
  }
  return tree;
}

json_t *
policy_data_file (const struct policy_image *in, const char *name,
                  struct error *e)
{
  json_t *node = NULL;

  if (check_name (in, name, e) == 0) {
    /* CVE-2024-4467: no JSON here. */
    if (strncmp (name, "json:", 5) == 0)
      error_set (e, EPERM, "it must be a path or an NBD URI");
    else
      node = plain_storage (name, e);
  }
  if (!node)
    not_followed (in, "data file", name, e);
  return node;
}

/* ---- writing to a data file ---- */

/* Do the files PATH and IMAGE lie in one folder? */
static bool
in_folder_of (const char *image, const char *path)
{
  CLEANUP_FREE char *i = realpath (image, NULL), *p = realpath (path, NULL);
  const char *a = i ? strrchr (i, '/') : NULL;
  const char *b = p ? strrchr (p, '/') : NULL;

  return a && b && a - i == b - p && memcmp (i, p, (size_t) (a - i)) == 0;
}

/* Whoever wrote the image chose the file, and it is us who may write to it.
 * Data files have whole sectors, by whomever they were made; what people keep
 * their passwords, keys and settings in hardly ever has.
 */
int
policy_write_data_file (const struct policy_image *in,
                        const struct storage *st, struct error *e)
{
  if (st->caps.is_local_file && !is_aligned (storage_size (st), SECTOR_SIZE))
    return error_set (e, EPERM, "%s: its data file '%s' has %" PRIu64 " bytes, "
                      "which is not the size of a disk: it is not written to; "
                      "name it by data-file.filename= if it is meant",
                      in->name, st->name, storage_size (st));
  if (!st->caps.is_local_file || !in->path
      || !in_folder_of (in->path, st->name))
    log_warning ("%s: its data file '%s' lies elsewhere, and may be written "
                 "to because the image says so; with data-file.filename= it is "
                 "you who says so", in->name, st->name);
  return 0;
}

/* ---- writes to a disk that was probed as raw ---- */

bool
image_probed_raw_write_ok (struct image *im, const void *buf, size_t len,
                           uint64_t offset)
{
  uint8_t head[FORMAT_PROBE_SIZE];
  struct error e = ERROR_INIT;
  const char *foreign;
  size_t n;

  if (!im->probed || im->format->ops != &format_raw || len == 0
      || offset >= sizeof head)
    return true;
  n = (size_t) min_u64 (len, sizeof head - offset);
  /* What cannot be read cannot be judged. */
  if (n < sizeof head
      && storage_pread (im->storage, head, sizeof head, 0, &e) == -1)
    return false;
  if (buf)
    memcpy (head + offset, buf, n);
  else
    memset (head + offset, 0, n);
  return format_probe (head, sizeof head, storage_size (im->storage), NULL,
                       &foreign) == &format_raw && !foreign;
}
