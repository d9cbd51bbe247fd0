/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The options of create: their table, values and combinations.  Layer: formats.
 * No locking: nothing here is shared.  Limits are those of QEMU, which refuses
 * the same combinations.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/codec.h"
#include "common/text.h"
#include "formats/qcow2/create.h"


const struct format_option qcow2_create_options[] = {
  { "encryption", OPTION_BOOL, "Encrypt the image with format 'aes'. "
    "(Deprecated in favor of encrypt.format=aes)", NULL, false },
  { "encrypt.format", OPTION_STRING,
    "Encrypt the image, format choices: 'aes', 'luks'", NULL, false },
  { "encrypt.key-secret", OPTION_STRING,
    "ID of secret providing qcow AES key or LUKS passphrase", NULL, false },
  { "encrypt.cipher-alg", OPTION_STRING, "Name of encryption cipher algorithm",
    NULL, false },
  { "encrypt.cipher-mode", OPTION_STRING, "Name of encryption cipher mode",
    NULL, false },
  { "encrypt.ivgen-alg", OPTION_STRING, "Name of IV generator algorithm", NULL,
    false },
  { "encrypt.ivgen-hash-alg", OPTION_STRING,
    "Name of IV generator hash algorithm", NULL, false },
  { "encrypt.hash-alg", OPTION_STRING, "Name of encryption hash algorithm",
    NULL, false },
  { "encrypt.iter-time", OPTION_NUMBER,
    "Time to spend in PBKDF in milliseconds", NULL, false },
  { "cluster_size", OPTION_SIZE, "qcow2 cluster size", "65536", false },
  { "extended_l2", OPTION_BOOL, "Extended L2 tables", "off", false },
  { "preallocation", OPTION_STRING,
    "Preallocation mode (allowed values: off, metadata, falloc, full)", NULL,
    false },
  { "compression_type", OPTION_STRING,
    "Compression method used for image cluster compression", "zlib", false },
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { "compat", OPTION_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])",
    NULL, false },
  { "backing_file", OPTION_STRING, "File name of a base image", NULL, false },
  { "backing_fmt", OPTION_STRING, "Image format of the base image", NULL,
    false },
  { "data_file", OPTION_STRING, "File name of an external data file", NULL,
    false },
  { "data_file_raw", OPTION_BOOL,
    "The external data file must stay valid as a raw image", NULL, false },
  { "lazy_refcounts", OPTION_BOOL, "Postpone refcount updates", "off", false },
  { "refcount_bits", OPTION_NUMBER, "Width of a reference count entry in bits",
    "16", false },
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

/* ---- options ---- */

/* Index of TEXT in NAMES. */
static int
option_choice (const struct format_create_options *opts, const char *name,
               const char *const *names, unsigned def, unsigned *r,
               struct error *e)
{
  const char *text = format_option_text (opts, name);

  *r = def;
  if (!text)
    return 0;
  for (unsigned i = 0; names[i]; ++i) {
    if (strcmp (text, names[i]) == 0) {
      *r = i;
      return 0;
    }
  }
  return error_set (e, EINVAL, "%s does not accept the value '%s'", name,
                    text);
}

static int
option_bool (const struct format_create_options *opts, const char *name,
             bool *r, struct error *e)
{
  const char *text = format_option_text (opts, name);

  *r = false;
  return text ? parse_bool (name, text, r, e) : 0;
}

static int
parse_cluster_size (const struct format_create_options *opts, struct plan *p,
                    struct error *e)
{
  const char *text = format_option_text (opts, "cluster_size");
  uint64_t size = 64 * KiB;

  if (text && parse_size ("cluster_size", text, &size, e) == -1)
    return -1;
  if (!is_power_of_2 (size) || size < UINT64_C (1) << MIN_CLUSTER_BITS
      || size > UINT64_C (1) << MAX_CLUSTER_BITS)
    return error_set (e, EINVAL, "Cluster size must be a power of two between"
                      " 512 and 2048k");
  p->cluster_bits = (unsigned) __builtin_ctzll (size);
  return 0;
}

static int
parse_refcount_bits (const struct format_create_options *opts, struct plan *p,
                     struct error *e)
{
  const char *text = format_option_text (opts, "refcount_bits");
  uint64_t bits = 16;

  if (text && parse_number ("refcount_bits", text, 1, 64, &bits, e) == -1)
    return -1;
  if (!is_power_of_2 (bits))
    return error_set (e, EINVAL, "Refcount width must be a power of two and may"
                      " not exceed 64 bits");
  p->refcount_order = (unsigned) __builtin_ctzll (bits);
  return 0;
}

/* What encrypt.format=aes does not take. */
static int
check_aes_options (const struct format_create_options *opts, struct error *e)
{
  static const char *const names[] = {
    "encrypt.cipher-alg", "encrypt.cipher-mode", "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg", "encrypt.hash-alg", "encrypt.iter-time",
  };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (format_option_text (opts, names[i]))
      return error_set (e, EINVAL, "Parameter '%s' is unexpected", names[i]);
  return 0;
}

static bool
any_encrypt_option (const struct format_create_options *opts)
{
  const char *name;
  json_t *value;

  json_object_foreach (opts->options, name, value)
    if (strncmp (name, "encrypt.", 8) == 0)
      return true;
  return false;
}

static int
parse_encrypt (const struct format_create_options *opts, struct plan *p,
               struct error *e)
{
  const char *format = format_option_text (opts, "encrypt.format");
  struct secret secret;
  bool legacy;

  if (option_bool (opts, "encryption", &legacy, e) == -1)
    return -1;
  if (format && legacy)
    return error_set (e, EINVAL, "'encrypt.format' and its alias 'encryption' "
                      "can't be used at the same time");
  if (!format && !legacy)
    return any_encrypt_option (opts)
      ? error_set (e, EINVAL, "Parameter 'encrypt.format' is missing") : 0;
  if (legacy || strcmp (format, "aes") == 0)
    p->crypt_method = CRYPT_AES;
  else if (strcmp (format, "luks") == 0)
    p->crypt_method = CRYPT_LUKS;
  else
    return error_set (e, EINVAL, "Parameter 'encrypt.format' does not accept "
                      "value '%s'", format);
  p->key_secret = format_option_text (opts, "encrypt.key-secret");
  if (!p->key_secret)
    return error_set (e, EINVAL, "Parameter 'encrypt.key-secret' is required "
                      "for cipher");
  if (p->crypt_method == CRYPT_LUKS)
    return luks_parse_options (opts, "encrypt.", &p->luks, e);
  if (check_aes_options (opts, e) == -1)
    return -1;
  if (secret_get (p->key_secret, &secret, e) == -1)
    return -1;
  secret_free (&secret);
  return 0;
}

/* backing_file, backing_fmt and size stand in the struct: their keys in
 * opts->options say the same.  nocow was dealt with when the file was created.
 */
static int
parse_options (const struct format_create_options *opts, struct plan *p,
               struct error *e)
{
  static const char *const compats[] = { "0.10", "v2", "1.1", "v3", NULL };
  static const char *const types[] = { "zlib", "zstd", NULL };
  static const char *const preallocations[] = {
    "off", "metadata", "falloc", "full", NULL
  };
  unsigned compat, type, preallocation;
  bool nocow;

  if (option_choice (opts, "compat", compats, 3, &compat, e) == -1
      || option_choice (opts, "compression_type", types, 0, &type, e) == -1
      || option_choice (opts, "preallocation", preallocations, 0,
                        &preallocation, e) == -1
      || option_bool (opts, "data_file_raw", &p->data_file_raw, e) == -1
      || option_bool (opts, "lazy_refcounts", &p->lazy_refcounts, e) == -1
      || option_bool (opts, "extended_l2", &p->extended_l2, e) == -1
      || option_bool (opts, "nocow", &nocow, e) == -1
      || parse_encrypt (opts, p, e) == -1
      || parse_cluster_size (opts, p, e) == -1
      || parse_refcount_bits (opts, p, e) == -1)
    return -1;
  p->version = compat < 2 ? 2 : 3;
  p->codec = type == 0 ? CODEC_DEFLATE : CODEC_ZSTD;
  p->preallocation = (enum preallocation) preallocation;
  p->data_file = format_option_text (opts, "data_file");
  p->backing_file = opts->backing_file;
  p->backing_format = opts->backing_format;
  if (!round_up_ok (opts->size, SECTOR_SIZE, &p->size) || p->size > INT64_MAX)
    return error_set (e, EFBIG, "the size %" PRIu64 " is too large",
                      opts->size);
  return 0;
}

/* ---- which options go together ---- */

/* In QEMU's order: of several reasons both tell the same one. */
static int
needs_version_3 (const struct plan *p, struct error *e)
{
  static const char text[] =
    "only supported with compatibility level 1.1 and above"
    " (use compat=1.1 or compat=v3)";

  if (p->version >= 3)
    return 0;
  if (p->extended_l2)
    return error_set (e, EINVAL, "Extended L2 entries are %s", text);
  if (p->lazy_refcounts)
    return error_set (e, EINVAL, "Lazy refcounts are %s", text);
  if (p->refcount_order != 4)
    return error_set (e, EINVAL, "Refcount widths other than 16 bits are %s",
                      text);
  if (p->data_file)
    return error_set (e, EINVAL, "External data files are %s", text);
  if (p->codec != CODEC_DEFLATE)
    return error_set (e, EINVAL, "Compression types other than zlib are %s",
                      text);
  return 0;
}

static int
check_backing (const struct plan *p, struct error *e)
{
  if (!p->backing_file)
    return 0;
  if (!p->backing_file[0])
    return error_set (e, EINVAL, "Expected a backing file name, got an empty"
                      " string");
  if (strlen (p->backing_file) > MAX_BACKING_NAME)
    return error_set (e, EINVAL, "the name of the backing file is longer than"
                      " %d bytes", MAX_BACKING_NAME);
  if (p->data_file_raw)
    return error_set (e, EINVAL, "Backing file and data_file_raw cannot be"
                      " used at the same time");
  if (p->preallocation != PREALLOCATION_OFF && !p->extended_l2)
    return error_set (e, EINVAL, "Backing file and preallocation can only be"
                      " used at the same time if extended_l2 is on");
  return 0;
}

static int
check_data_file (const struct plan *p, struct error *e)
{
  if (p->data_file_raw && p->crypt_method != CRYPT_NONE)
    return error_set (e, EINVAL, "data_file_raw and encryption cannot be used "
                      "at the same time: the data file is no raw image when it "
                      "is encrypted");
  if (p->data_file_raw && !p->data_file)
    return error_set (e, EINVAL, "data_file_raw requires data_file");
  if (!p->data_file)
    return 0;
  if (!p->data_file[0])
    return error_set (e, EINVAL, "data_file: the name is empty");
  /* Entries can name host offsets, here the guest's, below 2^56 alone. */
  if (p->size > ENTRY_OFFSET_MASK)
    return error_set (e, EFBIG, "The image size is too large for an external"
                      " data file (at most 64 PiB)");
  return 0;
}

static int
check_plan (const struct plan *p, struct error *e)
{
  if (needs_version_3 (p, e) == -1)
    return -1;
  if (p->extended_l2 && p->cluster_bits < MIN_EXTENDED_CLUSTER_BITS)
    return error_set (e, EINVAL, "Extended L2 entries are only supported with"
                      " cluster sizes of at least 16384 bytes");
  if (check_data_file (p, e) == -1 || check_backing (p, e) == -1)
    return -1;
  if (!codec_available (p->codec))
    return error_set (e, ENOTSUP, "compression_type=%s: this build has no such"
                      " codec", codec_name (p->codec));
  return 0;
}

int
qcow2_measure_plan (const struct format_create_options *opts, struct plan *p,
                    struct error *e)
{
  if (parse_options (opts, p, e) == -1)
    return -1;
  return check_plan (p, e);
}

int
qcow2_create_plan (const struct format_create_options *opts, struct plan *p,
                   struct error *e)
{
  if (qcow2_measure_plan (opts, p, e) == -1)
    return -1;
  if (p->backing_file && (!p->backing_format || !p->backing_format[0]))
    return error_set (e, EINVAL, "Backing file specified without backing"
                      " format (use -F, or backing_fmt)");
  if (p->data_file && !opts->data_file)
    return error_set (e, EINVAL, "data_file: %s is not open", p->data_file);
  return 0;
}
