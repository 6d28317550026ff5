/* Text from outside (paths, names inside files) made fit for an error message. */
#ifndef LM_IO_TEXT_H
#define LM_IO_TEXT_H

/* The text with control bytes as '?', and its middle left out where it is long; in one of eight
 * thread-local buffers used in turn. */
const char *lm__shown(const char *text);

#endif
