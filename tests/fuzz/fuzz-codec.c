/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Compressed clusters from hostile images: the first byte chooses codec and
 * cluster size, the rest is the stream.  The buffers are of exact size, so that
 * ASan sees a byte read or written past them.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/codec.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t len);

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct error e = ERROR_INIT;
  unsigned char *src, *dst;
  enum codec codec;
  size_t size;

  if (len == 0)
    return 0;
  codec = data[0] & 1 ? CODEC_ZSTD : CODEC_DEFLATE;
  size = (size_t) 512 << (data[0] >> 1) % 13;   /* 512 to 2 MiB */
  src = malloc (len - 1 ? len - 1 : 1);
  dst = malloc (size);
  if (src && dst) {
    memcpy (src, data + 1, len - 1);
    if (codec_decompress (codec, src, len - 1, dst, size, &e) == -1
        && (e.err == 0 || e.text[0] == '\0'))
      abort ();                 /* a failure that does not say why */
  }
  free (src);
  free (dst);
  return 0;
}
