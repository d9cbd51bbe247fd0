/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Warnings and debug messages from layers that may not print.
 *
 * The program (tool/ or plugins/) sets one sink at its start, before it makes
 * a thread; without one the messages are dropped.
 */

#ifndef NBDIMG_LOG_H
#define NBDIMG_LOG_H

enum log_level { LOG_WARNING, LOG_DEBUG };

/* TEXT has no newline at its end.  May be called from any thread. */
typedef void (*log_sink) (enum log_level level, const char *text);

extern void log_set_sink (log_sink sink);

extern void log_warning (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));
extern void log_debug (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

#endif /* NBDIMG_LOG_H */
