/*
 * The text of a progress line.
 */
#include "lib/base/progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

double
lpo_now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void
lpo_duration_text(char *buf, size_t size, double seconds)
{
	int64_t s = seconds > 0 ? (int64_t)(seconds + 0.5) : 0;

	if (s >= 48 * 3600)
		snprintf(buf, size, "%lld d %02lld h", (long long)(s / 86400),
		    (long long)(s / 3600 % 24));
	else if (s >= 3600)
		snprintf(buf, size, "%lld h %02lld min",
		    (long long)(s / 3600), (long long)(s / 60 % 60));
	else if (s >= 60)
		snprintf(buf, size, "%lld min %02lld s", (long long)(s / 60),
		    (long long)(s % 60));
	else
		snprintf(buf, size, "%lld s", (long long)s);
}

void
lpo_progress_start(struct lpo_progress *p, const char *what, const char *unit,
    int64_t total, double already_done, int terminal,
    void (*line)(void *, const char *, int), void *arg)
{
	memset(p, 0, sizeof(*p));
	p->what = what;
	p->unit = unit;
	p->total = total;
	p->done = already_done;
	p->every_s = terminal ? 0.2 : 60;
	p->clock_s = lpo_now_s;
	p->line = line;
	p->arg = arg;
	p->start_s = p->last_s = p->clock_s();
	/* what an earlier attempt did says nothing about this one's speed */
	p->mark[0].s = p->mark[1].s = p->start_s;
	p->mark[0].done = p->mark[1].done = already_done;
}

double
lpo_progress_rate(const struct lpo_progress *p)
{
	double spent = p->clock_s() - p->mark[0].s;

	return spent > 0 ? (p->done - p->mark[0].done) / spent : 0;
}

/* The second mark is as old as the first was then: it becomes the first. */
static void
marks(struct lpo_progress *p, double now)
{
	if (now - p->mark[1].s < p->mark[1].s - p->mark[0].s ||
	    p->done <= p->mark[1].done)
		return;
	p->mark[0] = p->mark[1];
	p->mark[1].s = now;
	p->mark[1].done = p->done;
}

void
lpo_progress_text(const struct lpo_progress *p, char *buf, size_t size)
{
	double spent = p->clock_s() - p->start_s;
	double rate = lpo_progress_rate(p);
	char time[48], count[64], speed[64];

	if (p->total > 0)
		snprintf(count, sizeof(count), "%lld/%lld %s (%d%%)",
		    (long long)p->done, (long long)p->total, p->unit,
		    (int)(100.0 * p->done / (double)p->total));
	else
		snprintf(count, sizeof(count), "%lld %s", (long long)p->done,
		    p->unit);
	if (rate >= 0.1)
		snprintf(speed, sizeof(speed), "%.*f/s", rate < 10 ? 2 :
		    rate < 100 ? 1 : 0, rate);
	else if (rate > 0)
		snprintf(speed, sizeof(speed), "%.1f s each", 1 / rate);
	else
		snprintf(speed, sizeof(speed), "no rate yet");
	if ((double)p->total > p->done && rate > 0) {
		lpo_duration_text(time, sizeof(time),
		    ((double)p->total - p->done) / rate);
		snprintf(buf, size, "%s: %s, %s, %s left%s%s", p->what, count,
		    speed, time, p->more[0] ? ", " : "", p->more);
	} else {
		lpo_duration_text(time, sizeof(time), spent);
		snprintf(buf, size, "%s: %s, %s, %s%s%s", p->what, count,
		    speed, time, p->more[0] ? ", " : "", p->more);
	}
}

static void
say(struct lpo_progress *p, int last)
{
	char text[640];

	if (p->line == NULL)
		return;
	lpo_progress_text(p, text, sizeof(text));
	p->line(p->arg, text, last);
}

void
lpo_progress_at(struct lpo_progress *p, double done, const char *more)
{
	double now = p->clock_s();

	p->done = done;
	marks(p, now);
	snprintf(p->more, sizeof(p->more), "%s", more ? more : "");
	if (now - p->last_s < p->every_s)
		return;
	p->last_s = now;
	say(p, 0);
}

void
lpo_progress_end(struct lpo_progress *p)
{
	say(p, 1);
}
