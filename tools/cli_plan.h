/*
 * What a run will take, before it takes it.  Everything is opened and planned
 * on a backend that only counts (lib/nn/dry.h); so a plan can't differ from
 * the run, and one that does not fit is refused before a weight is read.
 */
#ifndef LPO_TOOLS_CLI_PLAN_H
#define LPO_TOOLS_CLI_PLAN_H

#include "lib/base/state.h"
#include "lib/nn/dry.h"
#include "tools/cli.h"

struct lpo_cli_dry {
	struct lpo_dry dry;	/* dry.be is the backend to plan on */
	int64_t limit;		/* --memory, or what there is */
	int64_t more;		/* what the tool knows that isn't counted */
	int64_t host_most, device_most;
};

/* After lpo_cli_backend(); until _end() notices are not said, unless this is
 * --dry-run. */
void	 lpo_cli_dry_begin(lpo_cli *, struct lpo_cli_dry *);
void	 lpo_cli_dry_end(lpo_cli *);
/* A new phase; keep 0: the last one's peak was only a try. */
void	 lpo_cli_dry_phase(struct lpo_cli_dry *, int keep);
int64_t	 lpo_cli_dry_program(const struct lpo_cli_dry *);
/* Bytes of the process at its peak, and of the device (0: the same). */
int64_t	 lpo_cli_dry_host(const struct lpo_cli_dry *);
int64_t	 lpo_cli_dry_device(const struct lpo_cli_dry *);
int64_t	 lpo_cli_dry_over(const struct lpo_cli_dry *);	/* the limit, by */
int64_t	 lpo_cli_dry_room(const struct lpo_cli_dry *);	/* left as it is */
/*
 * make(arg, room) with `room` bytes for activations until the whole fits; each
 * time it does not, unmake(arg), which returns the activations' bytes.
 * 0: it is made; 1: it can't be; or make's error.
 */
int	 lpo_cli_dry_fit(struct lpo_cli_dry *, size_t *room,
	    int (*make)(void *, size_t room), size_t (*unmake)(void *),
	    void *arg);

/* All is loaded: what that has left behind goes back to the system. */
void	 lpo_cli_tidy(void);
/* Resident bytes of this process now and, if not NULL, at most. */
int64_t	 lpo_cli_resident(int64_t *most);

void	 lpo_cli_plan_bytes(lpo_cli *, const char *name, int64_t bytes);
void	 lpo_cli_plan_seconds(lpo_cli *, const char *name, double s);
/* Seconds to read and pack so many bytes of weights. */
double	 lpo_cli_load_s(int64_t bytes);
/* The sum, and what there is. */
void	 lpo_cli_plan_memory(lpo_cli *, const struct lpo_cli_dry *);
/*
 * LPO_ENOMEM with its text: what is needed, the parts of it ("UNet 3279 MiB,
 * ..."), what there is, and ways to make it fit ("" if there are none but
 * --memory).
 */
int	 lpo_cli_refuse(lpo_cli *, const struct lpo_cli_dry *, int64_t need,
	    const char *parts, const char *ways);

/*
 * How an earlier attempt at this run had cut its work up, from its saved
 * state; *out NULL: there is none.  The caller's JSON.
 */
int	 lpo_cli_recall(lpo_cli *, const lpo_state *, json_t **out);
int	 lpo_cli_remember(lpo_cli *, const lpo_state *, const json_t *);

#endif
