/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg convert: the sources.  Layer: tool.  No locking here. */

#include <config.h>

#include <stdlib.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "tool/convert.h"

int
convert_open_sources (struct convert_request *rq)
{
  CLEANUP_FREE char *id = NULL;
  struct tool_image ti = rq->source;

  if (rq->snapshot) {
    ti.name = rq->names[0];
    id = tool_find_snapshot (&ti, rq->snapshot);
    if (!id)
      return -1;
    ti.open.snapshot = id;
  }
  rq->opts.sources = calloc (rq->nr_names, sizeof rq->opts.sources[0]);
  if (!rq->opts.sources) {
    tool_error ("out of memory");
    return -1;
  }
  for (size_t i = 0; i < rq->nr_names; ++i) {
    ti.name = rq->names[i];
    rq->opts.sources[i] = tool_open (&ti);
    if (!rq->opts.sources[i])
      return -1;
    rq->opts.nr_sources++;
  }
  return 0;
}

int
convert_close_sources (struct convert_request *rq)
{
  int r = 0;

  for (size_t i = 0; i < rq->opts.nr_sources; ++i)
    if (tool_close (rq->opts.sources[i]) == -1)
      r = -1;
  free (rq->opts.sources);
  rq->opts.sources = NULL;
  rq->opts.nr_sources = 0;
  return r;
}

/* What is copied of one source. */
static uint64_t
source_size (const struct convert_request *rq, size_t i)
{
  uint64_t size = image_size (rq->opts.sources[i]);

  size -= min_u64 (size, rq->opts.skip);
  return rq->opts.limit ? min_u64 (size, rq->opts.limit) : size;
}

uint64_t
convert_total (const struct convert_request *rq)
{
  uint64_t total = 0, span;

  for (size_t i = 0; i < rq->opts.nr_sources; ++i)
    if (!round_up_ok (source_size (rq, i), SECTOR_SIZE, &span)
        || !add_ok (total, span, &total) || total > (uint64_t) INT64_MAX)
      return UINT64_MAX;
  return total;
}
