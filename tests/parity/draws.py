"""The draws of design.md 5 made again in NumPy: Philox4x32-10 by counter."""
import numpy as np

# enum lpo_purpose
POSTERIOR, NOISE, TIMESTEP, LATENT, OFFSET, PARTNER, ETA = 1, 2, 3, 5, 10, \
    11, 12


def philox(counter, seed):
    c = [np.asarray(x, np.uint64) for x in np.broadcast_arrays(*counter)]
    k = [np.uint64(seed & 0xffffffff), np.uint64(seed >> 32)]
    low, shift = np.uint64(0xffffffff), np.uint64(32)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & low,
             (p0 >> shift) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low,
             (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def words(n, seed, purpose, item, epoch, step=0, candidate=0):
    """Elements 0 .. n-1 of a draw."""
    w = philox([np.arange(-(-n // 4)), item, epoch << 16 | step,
                purpose << 24 | candidate], seed)
    return np.stack(w, -1).reshape(-1)[:n]


def normals(n, *draw):
    w = words(-(-n // 4) * 4, *draw).reshape(-1, 2).astype(float)
    r = np.sqrt(-2 * np.log((w[:, 0] + 1) / 2 ** 32))
    turn = 2 * np.pi * w[:, 1] / 2 ** 32
    return np.stack([r * np.cos(turn), r * np.sin(turn)], -1).reshape(-1)[:n]


def torch_cuda(n, seed, call=0):
    """torch.randn of a CUDA generator: element i is subsequence i, the first
    of curand_normal4's four; each call moves the counter by one."""
    w = philox([np.uint64(call), np.uint64(0), np.arange(n), np.uint64(0)],
               seed)
    u, v = (x.astype(float) for x in w[:2])
    return np.sqrt(-2 * np.log(u / 2 ** 32 + 2 ** -33)) * \
        np.sin(2 * np.pi * (v / 2 ** 32 + 2 ** -33))
