/*
 * Files that are either absent, the old version, or complete: written beside
 * their place, flushed to the disk, renamed, the folder flushed.
 */
#ifndef LPO_BASE_FILE_H
#define LPO_BASE_FILE_H

#include <stdint.h>

#include "lib/base/ctx.h"

/*
 * An output file.  Bytes go to PATH.tmp.PID; lpo_out_commit() makes it PATH.
 * "-" is standard output (no renaming; a closed reader is LPO_EPIPE; a
 * terminal is the tool's business), and what is there but not a regular file,
 * such as /dev/null, is written directly.
 */
typedef struct lpo_out lpo_out;

int	 lpo_out_open(lpo_ctx *, lpo_out **, const char *path);
int	 lpo_out_write(lpo_out *, const void *, size_t bytes);	/* buffered */
int	 lpo_out_printf(lpo_out *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
int	 lpo_out_flush(lpo_out *);		/* to the system, no fsync */
int64_t	 lpo_out_bytes(const lpo_out *);	/* written so far */
/*
 * Flush, fsync, close, rename, fsync the folder; the handle is gone whatever
 * the result.  After a failed write it fails with that failure and removes
 * the temporary file.
 */
int	 lpo_out_commit(lpo_out *);
void	 lpo_out_abort(lpo_out *);		/* NULL is fine */
/* A whole small file at once. */
int	 lpo_file_write(lpo_ctx *, const char *path, const void *,
	    size_t bytes);
/* The file `name` of a folder. */
int	 lpo_file_write_text(lpo_ctx *, const char *dir, const char *name,
	    const char *text);

/*
 * The file `from`, or what a symbolic link of this name leads to, also at
 * `to`, where nothing is: a hard link where the file system allows one, else
 * a copy.
 */
int	 lpo_file_link(lpo_ctx *, const char *to, const char *from);

/*
 * The whole file, with a NUL after it that is not counted; lpo_free() it.
 * "-" is standard input.  More than `limit` bytes is LPO_EFORMAT, an absent
 * file LPO_ENOTFOUND, one that is a folder or not ours to read LPO_EINVAL;
 * LPO_EIO is the system's trouble.
 */
int	 lpo_file_read(lpo_ctx *, char **data, size_t *bytes, const char *path,
	    size_t limit);
/* The program that unpacks what begins like this; NULL: it isn't packed. */
const char *lpo_unpacker(const void *data, size_t bytes);

/* A file in memory, read only.  An empty file has data != NULL, bytes 0. */
struct lpo_map {
	const uint8_t *data;
	size_t bytes;
};
int	 lpo_map_open(lpo_ctx *, struct lpo_map *, const char *path);
int	 lpo_map_fd(lpo_ctx *, struct lpo_map *, int fd, const char *name);
void	 lpo_map_close(struct lpo_map *);	/* zeroed is fine */
/* dir, or where that is NULL $TMPDIR, or /var/tmp */
const char *lpo_scratch_dir(const char *dir);
/* A file of dir that has no name, so that a kill leaves nothing. */
int	 lpo_scratch_file(lpo_ctx *, int *fd, const char *dir);
/*
 * Zeroed memory to write to, in such a file of $TMPDIR (/var/tmp), its
 * blocks reserved: a full disk is an error here and not a SIGBUS later.  Given
 * back by munmap().
 */
int	 lpo_map_scratch(lpo_ctx *, void **, size_t bytes);
/*
 * Part of a mapped file is not needed for now: it no longer counts as this
 * process's memory.  Its bytes stay what they are.
 */
void	 lpo_map_drop(const void *data, size_t bytes);

/* Ends s so?  And has the path this extension, ".tar", in any case? */
int	 lpo_ends_with(const char *s, const char *end);
int	 lpo_has_extension(const char *path, const char *extension);

int	 lpo_file_exists(const char *path);	/* 1 or 0, anything there */
int	 lpo_is_dir(const char *path);		/* 1 or 0 */
int64_t	 lpo_file_size(const char *path);	/* -1 when not there */

int	 lpo_mkdir_p(lpo_ctx *, const char *path);
int	 lpo_dir_sync(lpo_ctx *, const char *dir);
/* "a/b.c" -> "a", "b.c" -> "."; lpo_free() it. */
char	*lpo_dirname(lpo_ctx *, const char *path);
/* dir + "/" + name, or name alone when it is absolute; lpo_free() it. */
char	*lpo_path_join(lpo_ctx *, const char *dir, const char *name);
/* Remove a file or a folder with all in it; absent is success. */
int	 lpo_rmtree(lpo_ctx *, const char *path);
/*
 * Sorted names in a folder, "." and ".." left out; lpo_names_free() them.
 */
int	 lpo_dir_list(lpo_ctx *, char ***names, int64_t *n, const char *dir);
void	 lpo_names_free(char **names, int64_t n);

/*
 * A folder that appears at once.  begin makes an empty DIR.tmp.PID and gives
 * its name in *tmp; publish flushes every file in it, renames it to DIR
 * (exchanging it for an old DIR, which is removed, only when `replace`) and
 * frees *tmp; abort removes it (NULL is fine).
 */
int	 lpo_folder_begin(lpo_ctx *, char **tmp, const char *dir);
int	 lpo_folder_publish(lpo_ctx *, char **tmp, const char *dir,
	    int replace);
void	 lpo_folder_abort(char **tmp);
/*
 * Remove PATH.tmp.* that killed writers left.  Only while holding the lock of
 * that output: another's live file would go too.
 */
int	 lpo_tmp_sweep(lpo_ctx *, const char *path);
/* Every NAME.tmp.PID in a folder that is ours alone. */
int	 lpo_tmp_sweep_dir(lpo_ctx *, const char *dir);

/*
 * One writer at a time.  Takes a flock on the file `path` (made if needed,
 * holding pid and boot id); while another process has it: LPO_EINVAL, its pid
 * in the message.  A dead process's lock is free.  LPO_ENOTFOUND: no folder
 * to hold it.
 */
typedef struct lpo_lock lpo_lock;
int	 lpo_lock_take(lpo_ctx *, lpo_lock **, const char *path);
/* Removes the file too: 0, or the errno with which that failed. */
int	 lpo_lock_release(lpo_lock *);

#endif
