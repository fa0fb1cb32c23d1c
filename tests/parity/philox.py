"""Philox4x32-10 and what is drawn with it, in numpy, from the paper and from
the layout that lib/base/philox.h states."""
import numpy as np

POSTERIOR, NOISE, TIMESTEP, SHUFFLE, LATENT, CANDIDATE, PICK, INIT = \
    range(1, 9)


def philox(counter, key):
    """Random123's philox4x32-10; counter [n, 4], key [2] -> [n, 4]"""
    c = [np.uint64(1) * counter[:, i].astype(np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    low = np.uint64(0xffffffff)
    for _ in range(10):
        p = [np.uint64(0xd2511f53) * c[0], np.uint64(0xcd9e8d57) * c[2]]
        c = [(p[1] >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p[1] & low,
             (p[0] >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p[0] & low]
        k = [(k[0] + 0x9e3779b9) % 2 ** 32, (k[1] + 0xbb67ae85) % 2 ** 32]
    return np.stack(c, 1)


class Draw:
    """Draws of one purpose; elements are counted from 0."""

    def __init__(self, seed, purpose, item=0, epoch=0, step=0, candidate=0):
        self.key = [seed % 2 ** 32, seed >> 32]
        self.rest = [item, epoch << 16 | step, purpose << 24 | candidate]

    def words(self, n, first=0):
        """The words of elements 4 * first ... [n / 4, 4]"""
        block = np.arange(first, first + (n + 3) // 4, dtype=np.uint64)
        rest = np.broadcast_to(np.array(self.rest, dtype=np.uint64),
                               (len(block), 3))
        return philox(np.concatenate([block[:, None], rest], 1), self.key)

    def word(self, element):
        return int(self.words(1, element // 4)[0, element % 4])

    def below(self, n, element=0):
        return self.word(element) * n >> 32

    def normal(self, *shape):
        """f32 by Box-Muller on words (0, 1) and (2, 3)"""
        w = self.words(int(np.prod(shape))).astype(np.float64).reshape(-1, 2)
        r = np.sqrt(-2 * np.log((w[:, 0] + 1) / 2 ** 32))
        turn = 2 * np.pi * w[:, 1] / 2 ** 32
        z = np.stack([r * np.cos(turn), r * np.sin(turn)], 1).reshape(-1)
        return z[:int(np.prod(shape))].astype(np.float32).reshape(shape)

    def permute(self, i, n):
        """Place of i in a permutation of 0 .. n-1: Feistel, cycle walking"""
        h = 1
        while 4 ** h < n:
            h += 1
        mask = 2 ** h - 1
        while True:
            left, right = i >> h, i & mask
            for r in range(8):
                left, right = right, \
                    left ^ (self.word(r << h | right) & mask)
            i = left << h | right
            if i < n:
                return i
