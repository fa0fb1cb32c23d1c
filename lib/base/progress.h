/*
 * A line of progress: count, rate and time to go.  The library never prints:
 * the text goes to a callback, several times a second for a terminal, once a
 * minute otherwise.
 *
 * The rate is of the last half of the time and more, up to three quarters: it
 * forgets a slow start, and settles the longer it goes on.
 */
#ifndef LPO_BASE_PROGRESS_H
#define LPO_BASE_PROGRESS_H

#include <stddef.h>
#include <stdint.h>

struct lpo_progress {
	const char *what;	/* "encode" */
	const char *unit;	/* "images" */
	int64_t total;		/* <= 0: not known */
	double done;		/* a part of a unit counts */
	double start_s, last_s;
	/* where the rate is counted from, and where it will be next */
	struct lpo_progress_mark {
		double s, done;
	} mark[2];
	double every_s;		/* between two lines */
	char more[256];		/* what the caller adds */
	double (*clock_s)(void);
	void (*line)(void *arg, const char *text, int last);
	void *arg;
};

/*
 * `line` gets the text without a newline; last = 1 for the final one.  what
 * and unit are borrowed.  line == NULL: nothing is ever said.
 */
void	 lpo_progress_start(struct lpo_progress *, const char *what,
	    const char *unit, int64_t total, double already_done,
	    int terminal,
	    void (*line)(void *arg, const char *text, int last), void *arg);
/* `more` (may be NULL) stands at the line's end: "loss 0.61". */
void	 lpo_progress_at(struct lpo_progress *, double done,
	    const char *more);
/* The rate since the mark; 0: not known yet. */
double	 lpo_progress_rate(const struct lpo_progress *);
void	 lpo_progress_end(struct lpo_progress *);
/* The line as it would be now (SIGUSR2). */
void	 lpo_progress_text(const struct lpo_progress *, char *buf, size_t);
/* "1 h 02 min", "3 min 20 s", "12 s". */
void	 lpo_duration_text(char *buf, size_t, double seconds);
double	 lpo_now_s(void);	/* monotonic */

#endif
