/* Weights under training to and from a snapshot, a piece at a time. */
#include "lib/train/param_state.h"

#include <stdio.h>

#define PIECE	((int64_t)1 << 24)	/* floats, unless one needs more */

/* How many parameters from `first` on make a piece; *count: its floats. */
static int64_t
piece(const lpo_params *ps, int64_t first, int64_t *count)
{
	int64_t i, one;

	*count = 0;
	for (i = first; i < ps->n; i++) {
		one = lpo_params_state_count(ps, i, 1);
		if (*count > 0 && *count + one > PIECE)
			break;
		*count += one;
	}
	return i - first;
}

int64_t
lpo_param_state_bytes(const lpo_params *ps)
{
	int64_t first, n, count, most = 0;

	for (first = 0; first < ps->n; first += n) {
		n = piece(ps, first, &count);
		most = count > most ? count : most;
	}
	return most * (int64_t)sizeof(float);
}

static int
each(lpo_params *ps, lpo_snap *snap, const char *name, int save)
{
	int64_t first, n, count, k = 0;
	char blob[64];
	float *f;
	int rc = 0;

	for (first = 0; first < ps->n && rc == 0; first += n) {
		n = piece(ps, first, &count);
		if (count == 0)
			continue;
		snprintf(blob, sizeof(blob), "%s-%04lld", name,
		    (long long)k++);
		if ((f = lpo_alloc(ps->ctx, (size_t)count,
		    sizeof(*f))) == NULL)
			return LPO_ENOMEM;
		if (save) {
			if ((rc = lpo_params_get_state(ps, first, n, f)) == 0)
				rc = lpo_snap_blob(snap, blob, f,
				    (size_t)count * sizeof(*f));
		} else if ((rc = lpo_snap_read(snap, blob, f,
		    (size_t)count * sizeof(*f))) == 0)
			rc = lpo_params_set_state(ps, first, n, f);
		lpo_free(f);
	}
	return rc;
}

int
lpo_param_state_save(lpo_params *ps, lpo_snap *snap, const char *name)
{
	return each(ps, snap, name, 1);
}

int
lpo_param_state_restore(lpo_params *ps, lpo_snap *snap, const char *name)
{
	return each(ps, snap, name, 0);
}
