/*
 * torch.randn as others have it, so that a seed gives the picture it gives
 * there: on the CPU (diffusers, ComfyUI) mt19937 and torch's Box-Muller in
 * runs of 16; on CUDA (A1111) Philox with the element as subsequence.
 */
#ifndef LPO_TRAIN_TORCH_RNG_H
#define LPO_TRAIN_TORCH_RNG_H

#include "lib/base/ctx.h"

/*
 * out[n] = the values of call number `call` (0: the first) of
 * torch.randn(n, generator=torch.Generator().manual_seed(seed)); n >= 16.
 * Agrees with torch to 1 ulp or so: its logarithm and cosine differ with
 * the CPU.
 */
int	 lpo_torch_randn(lpo_ctx *, float *out, int64_t n, uint64_t seed,
	    int64_t call);
/*
 * The same of a CUDA generator, for n not above the threads torch starts (2048
 * per multiprocessor: 40960 on the smallest cards, so every SD1.5 latent).
 */
void	 lpo_torch_cuda_randn(float *out, int64_t n, uint64_t seed,
	    int64_t call);

#endif
