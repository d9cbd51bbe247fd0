/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The two codecs of compressed clusters: raw deflate and zstd frames.
 *
 * Every function may be called from any thread: compressor and decompressor
 * states are kept per thread and reused, and are freed when the thread ends.
 */

#ifndef NBDIMG_CODEC_H
#define NBDIMG_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"

enum codec { CODEC_DEFLATE, CODEC_ZSTD };

/* "zlib" or "zstd", as the qcow2 specification names them. */
extern const char *codec_name (enum codec codec);

/* Was this codec built in? */
extern bool codec_available (enum codec codec);

/* Compress LEN bytes of SRC into DST.  Returns the number of bytes written,
 * or 0 when they do not fit into DST_SIZE (the caller then stores plain),
 * or -1.
 */
extern ssize_t codec_compress (enum codec codec, const void *src, size_t len,
                               void *dst, size_t dst_size, struct error *e);

/* Decompress into exactly DST_LEN bytes; a stream that yields less is an
 * error (EIO).  SRC may be longer than the stream (up to the end of its
 * sector), and what follows the stream is ignored.
 */
extern int codec_decompress (enum codec codec, const void *src, size_t len,
                             void *dst, size_t dst_len, struct error *e);

#endif /* NBDIMG_CODEC_H */
