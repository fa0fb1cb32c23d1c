/* AutoencoderKL against diffusers, both directions. */
#include "lib/model/vae.h"
#include "tests/golden/golden.h"

/* As SD1.5's file has it: the attention's old names, 1x1 convolutions. */
static int
old_names(char key[256], int *rank, int64_t shape[4])
{
	static const char *const names[][2] = {
		{ ".to_q.", ".query." }, { ".to_k.", ".key." },
		{ ".to_v.", ".value." }, { ".to_out.0.", ".proj_attn." }
	};
	char buf[256], *p;
	size_t i;

	for (i = 0; i < 4; i++) {
		if ((p = strstr(key, names[i][0])) == NULL)
			continue;
		snprintf(buf, sizeof(buf), "%.*s%s%s", (int)(p - key), key,
		    names[i][1], p + strlen(names[i][0]));
		strcpy(key, buf);
		if (*rank == 2) {
			shape[2] = shape[3] = 1;
			*rank = 4;
		}
	}
	return 1;
}

struct rec {
	lpo_tape *t;
	lpo_var *image, *latent, *moments, *decoded;
};

static int
run(struct golden *g, struct rec *r, lpo_vae *m)
{
	struct lpo_plan plan;
	int rc;

	if ((r->t = lpo_tape_new(g->c, &g->be, LPO_F32, 2)) == NULL)
		return LPO_ENOMEM;
	r->image = lpo_input(r->t, 2, 23, 18, 3, LPO_F32, 1);
	r->latent = lpo_input(r->t, 2, 3, 5, 4, LPO_F32, 1);
	r->moments = lpo_vae_encode(r->t, m, r->image);
	r->decoded = lpo_vae_decode(r->t, m, r->latent);
	lpo_output(r->t, r->moments, 1);
	lpo_output(r->t, r->decoded, 1);
	if ((rc = lpo_tape_plan(r->t, 1, &plan)) < 0 ||
	    (rc = lpo_tape_commit(r->t, NULL)) < 0 ||
	    (rc = g_set(r->t, r->image, "image", 1, 0, 0)) < 0 ||
	    (rc = g_set(r->t, r->latent, "latent", 2, 0, 0)) < 0 ||
	    (rc = lpo_tape_forward(r->t, 0)) < 0 ||
	    (rc = g_set(r->t, r->moments, "d_moments", 1, 0, 1)) < 0 ||
	    (rc = g_set(r->t, r->decoded, "d_decoded", 1, 0, 1)) < 0)
		return rc;
	return lpo_tape_backward(r->t);
}

static void
test_vae(int (*change)(char *, int *, int64_t *), const char *level)
{
	struct golden g;
	struct rec r = { 0 };
	lpo_vae *m = NULL;

	if (!g_open(&g, "vae", level))
		return;
	if (g_write_model(&g, g.st, "diffusion_pytorch_model", change) < 0 ||
	    lpo_vae_load(g.c, &g.be, &m, g.tmp, LPO_F32,
	    LPO_VAE_ENCODER | LPO_VAE_DECODER) < 0 || run(&g, &r, m) < 0) {
		ok(0, "vae: %s", lpo_errmsg(g.c));
	} else {
		ok(lpo_vae_cfg(m)->factor == 4 && r.moments->h == 5 &&
		    r.moments->w == 4 && r.moments->c == 8 &&
		    r.decoded->h == 12 && r.decoded->w == 20 &&
		    r.decoded->c == 3, "vae: shapes");
		g_check(&g, r.t, r.moments, "moments", 0, 0);
		g_check(&g, r.t, r.decoded, "decoded", 0, 0);
		g_check(&g, r.t, r.image, "grad_image", 0, 1);
		g_check(&g, r.t, r.latent, "grad_latent", 0, 1);
	}
	lpo_tape_free(r.t);
	lpo_vae_free(m);
	m = NULL;
	if (lpo_vae_load(g.c, &g.be, &m, g.tmp, LPO_BF16,
	    LPO_VAE_ENCODER) < 0)
		ok(0, "vae: %s", lpo_errmsg(g.c));
	lpo_vae_free(m);
	g_close(&g);
}

int
main(void)
{
	test_vae(NULL, "auto");
	test_vae(old_names, "portable");
	test_vae(NULL, "cuda");
	return done_testing();
}
